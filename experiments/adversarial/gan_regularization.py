"""A study of regularisation: penalties of a linear critic, spectral norms, slopes of at most 1."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shared.check import Check, above, below, control, near
from experiments.shared.quick import quick_jit
from jaxgen.families.adversarial import regularisers
from jaxgen.families.adversarial.regularisers import Case
from jaxgen.nn.gan import MLPDiscriminator
from jaxgen.nn.gan_layers import spectral_norm

PAPER = "A Large-Scale Study on Regularization and Normalization in GANs"
ENTRY = "jaxgen.families.adversarial.regularisers.dragan"
WEIGHTS = np.array([3.0, 4.0, 12.0])  # of length 13


def checks() -> list[Check]:
    """Of a critic w.x and of perceptrons with spectral norm and without."""
    return [*penalties(), *norms(), *slopes()]


def penalties() -> list[Check]:
    """(|w| - 1)^2 wherever it is asked, |w|^2 without a target, so no noise matters."""
    rng = np.random.default_rng(0)
    real, fake = (jnp.asarray(x, jnp.float32) for x in rng.normal(size=(2, 8, 3)))
    keys, w = jax.random.split(jax.random.key(0), 8), jnp.asarray(WEIGHTS, jnp.float32)
    case = Case(lambda x, y: x @ w, real, fake, jnp.zeros(8, jnp.int32), keys, None)
    found = {
        name: float(getattr(regularisers, name)(1.0).penalty(case))
        for name in ("gradient_penalty", "dragan", "max_gradient_penalty", "r1", "r2")
    }
    exact = dict.fromkeys(found, 144.0) | dict(max_gradient_penalty=169.0, r1=84.5, r2=84.5)
    return [near(f"{n} of a linear critic", v, exact[n], 1e-3) for n, v in found.items()]


def norms() -> list[Check]:
    """Power iterations against a singular value decomposition, dense and convolution."""
    results = []
    for name, shape in (("dense", (40, 30)), ("convolution", (3, 3, 8, 16))):
        kernel = jax.random.normal(jax.random.key(1), shape)

        def run(kernel: jax.Array = kernel) -> jax.Array:
            step = lambda u, _: (spectral_norm(kernel, u)[1], None)
            start = jnp.ones(kernel.shape[-1]) / kernel.shape[-1] ** 0.5
            return spectral_norm(kernel, jax.lax.scan(step, start, None, length=300)[0])[0]

        top = lambda w: np.linalg.svd(np.asarray(w).reshape(-1, w.shape[-1]), compute_uv=False)[0]
        results.append(near(f"largest singular value, {name}", top(quick_jit(run)()), 1, 1e-3))
        results.append(control(near(f"that of the kernel as it is, {name}", top(kernel), 1, 1e-3)))
    return results


def slopes() -> list[Check]:
    """The steepest of 4,000 chords of a deep perceptron."""

    def steepest(spectral: bool) -> float:
        module = MLPDiscriminator(32, 4, spectral=spectral)

        def run() -> jax.Array:
            a, b = jax.random.normal(jax.random.key(2), (2, 4000, 8))
            b = a + 0.1 * b
            variables: Any = module.init(jax.random.key(0), a)
            params = jax.tree.map(lambda w: 3 * w, variables["params"])
            variables = {**variables, "params": params}
            if spectral:
                step = lambda v, _: ({**v, **module.apply(v, a, mutable=["spectral"])[1]}, None)
                variables = jax.lax.scan(step, variables, None, length=60)[0]
            rise = module.apply(variables, a) - module.apply(variables, b)
            return (jnp.linalg.norm(rise, axis=-1) / jnp.linalg.norm(a - b, axis=-1)).max()

        return float(quick_jit(run)())

    # Power iterations reach the top singular value from below, to a part in a hundred each layer.
    normed = steepest(True)
    return [
        below("steepest chord with spectral norms", normed, 1.04),
        above("and not flat", normed, 1e-3),
        control(below("steepest chord without", steepest(False), 1.04)),
    ]
