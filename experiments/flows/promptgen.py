"""PromptGen: Gaussian posteriors in closed form, and a moment constraint whose beta is known."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.shared.check import Check, control, mean_near, near
from jaxgen.nn.realnvp import RealNVP
from jaxgen.steer.expected import minimise_expected
from jaxgen.steer.promptgen import PromptGen, moment_energy

PAPER = "Generative Visual Prompt: Unifying Distributional Control of Pre-Trained Generative Models"
ENTRY = "jaxgen.steer.promptgen.PromptGen"

SEEDS, STEPS, BATCH, COUNT, DRAWS = 5, 300, 128, 1000, 4000
MAP = np.array([[1.0, 0.5], [-0.4, 1.2], [0.3, 0.8]])
FIRST, SECOND = np.array([1.0, -0.5, 0.7]), np.array([0.2, 1.5, -1.0])
WEIGHTS = (0.8, 1.5)


def generate(z: jax.Array) -> jax.Array:
    """A linear generator from the plane to three dimensions."""
    return z @ MAP.T


def far(x: jax.Array) -> jax.Array:
    """Half of the squared distance to FIRST."""
    return ((x - FIRST) ** 2).sum(-1) / 2


def off(x: jax.Array) -> jax.Array:
    """Half of the squared error of one linear feature."""
    return (x @ SECOND - 1.0) ** 2 / 2


def exact() -> tuple[np.ndarray, np.ndarray]:
    """Mean [2] and covariance of the latents' posterior."""
    row = MAP.T @ SECOND
    precision = np.eye(2) + WEIGHTS[0] * MAP.T @ MAP + WEIGHTS[1] * np.outer(row, row)
    covariance = np.linalg.inv(precision)
    return covariance @ (WEIGHTS[0] * MAP.T @ FIRST + WEIGHTS[1] * row), covariance


@dataclasses.dataclass(frozen=True, eq=False)
class Weighed:
    """A flow that tells `share` of the logarithm of its volume's change: 1 is the truth."""

    flow: Any
    share: Any

    def init(self, *args: Any) -> Any:
        """The flow's parameters."""
        return self.flow.init(*args)

    def apply(self, variables: Any, eps: jax.Array, labels: jax.Array) -> Any:
        """(z, what it tells)."""
        z, log_det = self.flow.apply(variables, eps, labels)
        return z, self.share * log_det


def flow() -> RealNVP:
    """Four couplings in the plane."""
    return RealNVP(num_classes=1, shape=(2,), width=16, couplings=4)


def fitted(beta: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Latents [3 cases, SEEDS, COUNT, 2] of flows before training and after it, one program.

    The cases: two energies; the same without the log-determinant; the moment's energy alone.
    """
    rate = optax.adam(optax.cosine_decay_schedule(1e-2, STEPS))
    energies = (far, off, lambda x: -often(x)[:, 0])

    def run(key: jax.Array, weights: jax.Array, share: jax.Array) -> tuple[jax.Array, jax.Array]:
        weighed = list(zip(weights, energies, strict=True))
        prompt = PromptGen(Weighed(flow(), share), (2,), generate, weighed)
        start, drawing = prompt.init(key), jax.random.fold_in(key, 1)
        params, _ = minimise_expected(prompt.loss, rate, start, drawing, steps=STEPS, batch=BATCH)
        latent_keys = jax.random.split(jax.random.fold_in(key, 2), COUNT)
        return prompt.latents(start, latent_keys)[0], prompt.latents(params, latent_keys)[0]

    keys = jnp.tile(jax.random.split(jax.random.key(0), SEEDS), 3)
    weights = jnp.array([[*WEIGHTS, 0.0], [*WEIGHTS, 0.0], [0.0, 0.0, float(beta)]])
    shares = jnp.repeat(jnp.array([1.0, 0.0, 1.0]), SEEDS)
    results = jax.jit(jax.vmap(run))(keys, jnp.repeat(weights, SEEDS, 0), shares)
    before, after = (np.asarray(z).reshape(3, SEEDS, COUNT, 2) for z in results)
    return before, after


def often(x: jax.Array) -> jax.Array:
    """A soft classifier of an attribute that nine in ten images or so have: [B, 1]."""
    return jax.nn.sigmoid(3 * x[:, :1] + 4.0)


def on_grid(beta: float) -> tuple[float, float]:
    """Means of `often` and of x_1 under x_1's law N(0, 1.25) times exp(beta often): on a grid."""
    x = np.linspace(-8, 8, 4001)
    chance = 1 / (1 + np.exp(-3 * x - 4))
    share = np.exp(-(x**2) / 2.5 + beta * chance)
    share /= share.sum()
    return float(share @ chance), float(share @ x)


def balance() -> float:
    """The beta on the grid that makes an attribute's mean 1/2, by bisection."""
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if on_grid(middle)[0] < 0.5 else (low, middle)
    return low


def known_betas() -> list[Check]:
    """A coin of 9 in 10 wants -ln 9; a Gaussian's mean 0.3 + 0.49 beta."""
    coin = jnp.where(jnp.arange(DRAWS) < 0.9 * DRAWS, 1.0, 0.0)[:, None]
    beta = moment_energy(lambda x: x, coin, [0.5])[0][0]
    results = [near("beta that makes nine in ten one in two", beta, -math.log(9), 1e-3)]
    betas = []
    for seed in range(SEEDS):
        x = 0.3 + 0.7 * jax.random.normal(jax.random.key(seed), (DRAWS, 1))
        betas.append(float(moment_energy(lambda x: x, x, [0.8])[0][0]))
    return [*results, mean_near("beta that moves a Gaussian's mean", betas, 0.5 / 0.49, 0.05)]


def checks() -> list[Check]:
    """Moments of the posterior; beta of a Gaussian's mean and of a coin; a de-biased generator."""
    results = known_betas()
    images = generate(jax.random.normal(jax.random.key(9), (DRAWS, 2)))
    (beta,), _ = moment_energy(often, images, [0.5])
    wanted = balance()
    results.append(near("beta from samples", beta, wanted, 0.2))
    before, (full, weightless, fair) = fitted(beta)
    mean, covariance = exact()
    for name, z, wrap in (
        ("PromptGen", full, lambda check: check),
        ("untrained", before[0], control),
        ("no log-determinant", weightless, control),
    ):
        spread = np.stack([np.cov(draws.T) for draws in z])
        if name != "no log-determinant":
            for axis in (0, 1):
                check = f"{name}: mean of z_{axis + 1}"
                results.append(wrap(mean_near(check, z[..., axis].mean(1), mean[axis], 0.04)))
        for row, column in ((0, 0), (0, 1), (1, 1)):
            check = f"{name}: covariance {row + 1}{column + 1}"
            results.append(
                wrap(mean_near(check, spread[:, row, column], covariance[row, column], 0.04))
            )
    for name, z, wrap in (("de-biased", fair, lambda c: c), ("untrained", before[2], control)):
        x = generate(z)
        rate = np.asarray(often(x.reshape(-1, 3))).reshape(SEEDS, COUNT).mean(1)
        results.append(wrap(mean_near(f"{name}: share of the attribute", rate, 0.5, 0.05)))
        check, exactly = f"{name}: mean of x_1", on_grid(wanted)[1]
        results.append(wrap(mean_near(check, x[..., 0].mean(1), exactly, 0.1)))
    return results
