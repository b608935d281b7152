"""PAG: tokens that do not meet are the worse model; a pair of Gaussian tokens, and a real DiT."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shared.affine import Affine, eps_of, euler_law
from experiments.shared.causal import quick_jit, random_weights
from experiments.shared.check import Check, above, below, control, mean_near
from experiments.shared.toys import PATH, estimate, samples
from jaxgen.families.diffusion.core import grids
from jaxgen.families.diffusion.core.denoiser import Denoiser, Network
from jaxgen.families.diffusion.core.prediction import Prediction
from jaxgen.families.diffusion.guidance.pag import pag
from jaxgen.nn.dit import DiT

PAPER = "Self-Rectifying Diffusion Sampling with Perturbed-Attention Guidance"
ENTRY = "jaxgen.families.diffusion.guidance.pag.pag"

MEAN = np.array([0.8, -0.3])
COV = np.array([[0.5, 0.24], [0.24, 0.3]])
ALONE = np.diag(np.diag(COV))
SCALE, STEPS = 0.6, 32
SIZE, PATCH = 4, 2


def tokens() -> Denoiser:
    """The exact denoiser of N(MEAN, COV); perturbed, that of each token by itself."""

    def of(cov: np.ndarray) -> Denoiser:
        def call(keys: jax.Array, x: jax.Array, t: jax.Array, memory: Any) -> Any:
            noised = (1 - t) ** 2 * cov + t**2 * jnp.eye(2)
            rest = jnp.linalg.solve(noised, (x - (1 - t) * MEAN).T).T
            return Prediction(MEAN + (1 - t) * rest @ cov, t * rest), memory

        return Denoiser(call, path=PATH)

    return dataclasses.replace(of(COV), perturb=lambda layers: of(ALONE))


def distribution(scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of guided samples."""

    def velocity(t: float) -> Affine:
        results = Affine(np.zeros((2, 2)), np.zeros(2))
        for cov, share in ((COV, 1 + scale), (ALONE, -scale)):
            eps = eps_of(MEAN, cov, t)
            gain = (1 - t) * cov @ eps.matrix / t
            x0 = Affine(gain, MEAN - (1 - t) * gain @ MEAN)
            results = results + (eps + x0 * -1) * share
        return results

    return euler_law(velocity, np.asarray(grids.uniform(STEPS, PATH), np.float64), 2)


def across(denoiser: Denoiser) -> float:
    """How far the estimate at the other patches moves where one patch is replaced."""
    keys, x = jax.random.split(jax.random.key(0), 1), jnp.zeros((1, SIZE, SIZE, 1))

    @quick_jit
    def x0(x: jax.Array) -> jax.Array:
        return denoiser(keys, x, jnp.float32(0.5))[0].x0

    change = jnp.abs(x0(x.at[:, :PATCH, :PATCH].set(2.0)) - x0(x))
    return float(change.at[:, :PATCH, :PATCH].set(0.0).max())


def checks() -> list[Check]:
    """What a perturbed DiT sees, and the law that guidance away from separate tokens samples."""
    results = []
    model = DiT(1, 1, depth=2, width=16, heads=2, patch=PATCH)
    inputs = (jnp.zeros((1, SIZE, SIZE, 1)), jnp.zeros(1), jnp.zeros(1, jnp.int32))
    params = random_weights(lambda: model.init(jax.random.key(0), *inputs), 0.3)["params"]
    network = Network(model, PATH, "velocity").denoiser(params, inputs[2])
    assert network.perturb is not None
    check = "change of a patch by another, all layers perturbed"
    results.append(below(check, across(network.perturb((0, 1))), 0.0))
    results.append(control(below(check + ": none", across(network), 0.0)))

    cond = tokens()
    mean, cov = distribution(SCALE)
    for name, denoiser, wrap in (
        ("PAG", pag(cond, layers=(0,), scale=SCALE), lambda c: c),
        ("no guidance", cond, control),
    ):
        out = np.asarray(samples(denoiser, steps=STEPS))
        centred = out - mean
        between = (centred[..., 0] * centred[..., 1]).mean(1)
        results.append(
            wrap(mean_near(f"{name}: covariance of the tokens", between, cov[0, 1], 0.03))
        )
    results.append(above("covariance that it adds", cov[0, 1] - distribution(0.0)[1][0, 1], 0.1))
    results.append(below("change of the mean", np.abs(mean - distribution(0.0)[0]).max(), 0.01))
    same = estimate(pag(cond, layers=(0,), scale=0.0), 0.6).x0
    results.append(below("scale 0: change", jnp.abs(same - estimate(cond, 0.6).x0).max(), 0.0))
    return results
