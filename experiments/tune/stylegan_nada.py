"""StyleGAN-NADA's directional loss: all samples move one way and stay as different as they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.shared.adversarial_toy import fit
from experiments.shared.check import Check, above, below, control
from experiments.shared.quick import quick_jit
from jaxgen.families.adversarial import adversarial
from jaxgen.method import Spec, minimise
from jaxgen.nn.gan import MLPDiscriminator, MLPGenerator
from jaxgen.training.ema import Averages
from jaxgen.tune.changes import added
from jaxgen.tune.directional import GROUP, directional

PAPER = "StyleGAN-NADA: CLIP-Guided Domain Adaptation of Image Generators"
ENTRY = "jaxgen.tune.directional.directional"
D, STEPS, COUNT = 6, 1000, 1000
TOWARDS = jnp.array([1.0, -2.0, 0.5])
MIXING = jax.random.normal(jax.random.key(0), (D, 3)) / D**0.5


def encode(x: jax.Array) -> jax.Array:
    """A linear encoder, [B, 6] -> [B, 3]."""
    return x @ MIXING


def checks() -> list[Check]:
    """A linear generator, adapted by the direction; by nearness to the target, in its place."""
    spec, rate = Spec((D,), 1, None), optax.adam(optax.cosine_decay_schedule(1e-2, STEPS))
    generator = MLPGenerator((D,), 1, depth=0, conditional=False, squash=False)
    base = adversarial(
        spec, {"generator": generator, "discriminator": MLPDiscriminator(4, 1)}, rate,
        Averages((1000,)), head="unconditional", latent=dict(name="normal", size=D),
    )  # fmt: skip
    match = r"^generator\.out\."
    method = directional(base, spec=spec, encoder=encode, direction=TOWARDS, match=match)
    draw = lambda key: {"label": jnp.zeros(128, jnp.int32)}
    state = quick_jit(lambda: fit(method, draw, STEPS))()
    keys, labels = jax.random.split(jax.random.key(9), COUNT), jnp.zeros(COUNT, jnp.int32)
    assert base.sampler is not None
    sample = base.sampler().fn
    cosine: Callable[..., Any] = optax.losses.cosine_similarity
    before = sample(state.params, keys, labels)

    def near(generator: Any, key: jax.Array) -> jax.Array:
        own = jax.random.split(key, 128)
        x = sample({**state.params, "generator": generator}, own, labels[:128])
        return 1 - cosine(encode(x), TOWARDS, epsilon=1e-6).mean()

    many = jax.random.split(jax.random.key(1), STEPS)
    alike = quick_jit(lambda: minimise(near, rate, state.params["generator"], many)[0])()
    after = sample(added(state.params, GROUP), keys, labels)
    results = [below("directional loss", 1 - cosine(encode(after - before), TOWARDS).mean(), 1e-3)]
    unit = TOWARDS / jnp.linalg.norm(TOWARDS)

    def spread(x: jax.Array) -> jax.Array:
        """Variance of the encodings across the direction that all are to move in."""
        e = encode(x)
        return (e - jnp.outer(e @ unit, unit)).var(0).sum()

    for name, x in (("", after), (", by nearness", sample({"generator": alike}, keys, labels))):
        left = spread(x) / spread(before)
        check = above(f"variance across the direction, share left{name}", left, 0.95)
        results.append(control(check) if name else check)
    return results
