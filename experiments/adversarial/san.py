"""SAN: the normalised last layer finds the direction in which two laws lie apart."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.shared.adversarial_toy import Identity, fit_judge
from experiments.shared.check import Check, above, control, near
from jaxgen.families.adversarial import head, loss
from jaxgen.families.adversarial.players import Discriminator

PAPER = "SAN: Inducing Metrizability of GAN with Discriminative Normalized Linear Layer"
ENTRY = "jaxgen.families.adversarial.head.normalised"


def checks() -> list[Check]:
    """Frozen features, two Gaussians of one anisotropic covariance, the gap off its axes."""
    rng = np.random.default_rng(0)
    spread, gap = np.array([2.0, 0.4]), np.array([1.2, 0.9])
    noise = rng.normal(size=(2, 1000, 2)) * spread
    fake, real = noise[0] - noise[0].mean(0), noise[1] - noise[1].mean(0) + gap
    real, fake = jnp.asarray(real, jnp.float32), jnp.asarray(fake, jnp.float32)
    aim = gap / np.linalg.norm(gap)

    def direction(group: str, key: str, module: Discriminator) -> np.ndarray:
        params = fit_judge(module, loss.hinge(), real, fake, 1500, optax.adam(0.01))
        return np.asarray(params["head"][group][key]).reshape(-1)

    san = Discriminator(Identity(), head.normalised(num_classes=1, conditional=False))
    w = direction("direction", "embedding", san)
    params = {"head": {"direction": {"embedding": jnp.asarray(w)[None]}}}
    slope = jax.jacobian(lambda x: san.apply({"params": params}, x[None], jnp.zeros(1, int)).logits)
    plain = direction("out", "kernel", Discriminator(Identity(), head.unconditional()))
    # The best linear discriminator leans by the inverse covariance.
    lean = gap / spread**2
    lean = lean / np.linalg.norm(lean)
    return [
        near("cosine of SAN's w and the normalised mean difference", _cosine(w, aim), 1.0, 1e-4),
        near("length of the w that the logit uses", jnp.linalg.norm(slope(jnp.ones(2))), 1.0, 1e-5),
        control(near("that cosine when the hinge loss trains w", _cosine(plain, aim), 1.0, 1e-4)),
        above("cosine of the hinge's w and inverse covariance x gap", _cosine(plain, lean), 0.99),
    ]


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
