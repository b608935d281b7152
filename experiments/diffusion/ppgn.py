"""PPGN: a Gaussian of features, its optimal autoencoder and a logistic condition, on a grid."""

from __future__ import annotations

import jax
import numpy as np

from experiments.shared.check import Check, control, mean_near
from experiments.shared.toys import SEEDS
from jaxgen.steer.langevin import plug_and_play

PAPER = (
    "Plug & Play Generative Networks: Conditional Iterative Generation of Images in Latent Space"
)
ENTRY = "jaxgen.steer.langevin.plug_and_play"

MEAN, STD, BLUR = np.array([0.5, -0.3]), np.array([1.0, 0.6]), 0.3
MAP, SLOPE, BIAS = np.array([[1.0, 0.5], [-0.4, 1.2]]), np.array([1.5, -2.0]), -1.0
SPEED, COUNT, STEPS = 0.01, 1000, 600


def reconstruct(h: jax.Array) -> jax.Array:
    """The optimal denoising autoencoder for noise of deviation BLUR."""
    return h - BLUR**2 * (h - MEAN) / (STD**2 + BLUR**2)


def generate(h: jax.Array) -> jax.Array:
    """A linear generator."""
    return h @ MAP.T


def log_prob(x: jax.Array) -> jax.Array:
    """ln of a logistic classifier's probability."""
    return jax.nn.log_sigmoid(x @ SLOPE + BIAS)


def exact(conditional: bool) -> tuple[np.ndarray, np.ndarray]:
    """Means and deviations [2] of the noised features' law, given the condition or not."""
    axis = np.linspace(-6, 6, 601)
    h = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    log = -0.5 * ((h - MEAN) ** 2 / (STD**2 + BLUR**2)).sum(1)
    if conditional:
        log -= np.logaddexp(0, -(h @ MAP.T @ SLOPE + BIAS))
    share = np.exp(log - log.max())
    share /= share.sum()
    mean = share @ h
    return mean, np.sqrt(share @ (h - mean) ** 2)


def checks() -> list[Check]:
    """Moments of p(h) p(y | h) and of p(h); without a term they are something else."""
    keys = jax.random.split(jax.random.key(0), SEEDS * COUNT)

    def draw(prior: float, condition: float) -> jax.Array:
        chain = plug_and_play(
            reconstruct, generate, log_prob, (2,), steps=STEPS,
            prior=prior, condition=condition, noise=(2 * SPEED) ** 0.5,
        )  # fmt: skip
        return jax.jit(chain)(keys)

    results = []
    full, of_prior = SPEED / BLUR**2, exact(False)
    cases = [
        ("all terms", full, SPEED, exact(True), False),
        ("no condition", full, 0.0, exact(True), True),
        ("no condition: the prior", full, 0.0, of_prior, False),
        ("no prior: the prior", 0.0, 0.0, of_prior, True),
    ]
    for name, prior, condition, (mean, deviation), fails in cases:
        wrap = control if fails else lambda check: check
        h = np.asarray(draw(prior, condition)).reshape(SEEDS, COUNT, 2)
        for axis in (0, 1):
            check = f"{name}: mean of h_{axis + 1}"
            results.append(wrap(mean_near(check, h[..., axis].mean(1), mean[axis], 0.07)))
        # The condition hardly changes the other feature's deviation.
        check = f"{name}: deviation of h_1"
        results.append(wrap(mean_near(check, h[..., 0].std(1), deviation[0], 0.07)))
    return results
