"""BigGAN: truncated latents, spectral norms against SVD, orthogonality off the diagonal."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shared.check import Check, below, control, near
from jaxgen.families.adversarial import latent, regularisers
from jaxgen.nn import biggan
from jaxgen.nn.gan_layers import spectral_norm

PAPER = "Large Scale GAN Training for High Fidelity Natural Image Synthesis"
ENTRY = "jaxgen.nn.biggan.Generator"


def checks() -> list[Check]:
    """The pieces that the paper adds, each against an answer not ours."""
    results = []
    for bound in (0.5, 1.5):
        keys = jax.random.split(jax.random.key(0), 20_000)
        z = np.asarray(latent.normal(8).truncated(bound)(keys))  # type: ignore[misc]
        phi = math.exp(-(bound**2) / 2) / math.sqrt(2 * math.pi)
        variance = 1 - 2 * bound * phi / math.erf(bound / math.sqrt(2))
        results.append(below(f"largest |z| at truncation {bound}", np.abs(z).max(), bound))
        # A variance of n values in [-b, b] has a standard error under b^2 / sqrt(n).
        error = 4 * bound**2 / z.size**0.5
        results.append(near(f"variance at truncation {bound}", z.var(), variance, error))
    clipped = np.clip(np.asarray(latent.normal(8).draw(keys)), -1.5, 1.5)
    results.append(
        control(near("variance of values clipped, not redrawn", clipped.var(), variance, error))
    )

    module = biggan.Discriminator(width=2)
    x = jnp.zeros((1, 32, 32, 3))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda w: jnp.asarray(rng.normal(size=w.shape), jnp.float32),
        jax.eval_shape(module.init, jax.random.key(0), x),
    )
    kernels = variables["params"]

    spectral = variables["spectral"]

    @jax.jit
    def step(spectral: Any) -> Any:
        held = {"params": kernels, "spectral": spectral}
        return module.apply(held, x, mutable=["spectral"])[1]["spectral"]

    for _ in range(100):
        spectral = step(spectral)
    worst = untouched = 0.0
    for path, state in jax.tree_util.tree_leaves_with_path(spectral):
        kernel = kernels
        for entry in path[:-1]:
            kernel = kernel[entry.key]
        kernel = kernel["kernel"]
        for name, w in (("normed", spectral_norm(kernel, state)[0]), ("raw", kernel)):
            top = np.linalg.svd(np.asarray(w).reshape(-1, w.shape[-1]), compute_uv=False)[0]
            if name == "normed":
                worst = max(worst, abs(top - 1))
            else:
                untouched = max(untouched, abs(top - 1))
    results.append(below("top singular values from 1 after 100 steps", worst, 1e-2))
    results.append(control(below("the same without spectral norm", untouched, 1e-2)))

    rule = regularisers.orthogonal(1.0)
    assert rule.weights is not None
    q = np.linalg.qr(rng.normal(size=(27, 5)))[0] * np.array([3, 1, 0.5, 2, 4])
    columns = {"conv": {"kernel": jnp.asarray(q.reshape(3, 3, 3, 5), jnp.float32)}}
    results.append(
        below("penalty of orthogonal columns of any length", rule.weights(columns), 1e-9)
    )
    leaning = {"conv": {"kernel": columns["conv"]["kernel"] + 0.1}}
    matrix = q + 0.1
    gram = matrix.T @ matrix
    exact = (gram**2).sum() - (np.diag(gram) ** 2).sum()
    results.append(
        near("penalty of others, over float64's", rule.weights(leaning) / exact, 1, 1e-4)
    )
    with_lengths = ((gram - np.eye(5)) ** 2).sum()
    check = "penalty of others, over that of W'W - I"
    results.append(control(near(check, rule.weights(leaning) / with_lengths, 1, 1e-4)))
    return results
