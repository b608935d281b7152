"""What a network may predict, and the one thing that the rest of the library uses: `Prediction`.

Every kind is a linear map between (x0, eps) and the network's output at known (x_t, t); the two
directions are `target` (for training) and `to_prediction` (for everything after). With a network
that is off by an error e, x0 is off by `x0_gain` e.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxgen.families.diffusion.core.path import Path, expand

KINDS = ("eps", "x0", "v", "velocity", "score", "edm")
"""eps: the noise (Ho et al. 2020). x0: the data. v: alpha eps - sigma x0 (Salimans & Ho 2022).
velocity: dx_t/dt at fixed (x0, eps) (flow matching). score: -eps / sigma (Song et al. 2021).
edm: EDM's preconditioned F (Karras et al. 2022, eq. 7), for any path."""

ALPHA_MIN = 1e-3
"""Floor of alpha where eps or the score is turned into x0: at t=1 they say nothing about it."""

SIGMA_MIN = 1e-6
"""Floor of sigma where x0 is turned into eps or the score: at t=0 it says nothing about them."""


class Prediction(NamedTuple):
    """An estimate of both end points, float32 [B, ...] each.

    variance: logits in [-1, 1] of a learned reverse variance (Nichol & Dhariwal 2021), or None.
    """

    x0: jax.Array
    eps: jax.Array
    variance: jax.Array | None = None

    def velocity(self, path: Path, t: jax.Array) -> jax.Array:
        """dx_t/dt = alpha'(t) x0 + sigma'(t) eps: the probability-flow field."""
        return expand(path.d_alpha(t), self.x0) * self.x0 + expand(path.d_sigma(t), self.x0) * (
            self.eps
        )

    def v(self, path: Path, t: jax.Array) -> jax.Array:
        """alpha eps - sigma x0."""
        return expand(path.alpha(t), self.x0) * self.eps - expand(path.sigma(t), self.x0) * self.x0

    def score(self, path: Path, t: jax.Array) -> jax.Array:
        """Gradient of log p_t(x): -eps / sigma, sigma floored at t=0."""
        return -self.eps / expand(jnp.maximum(path.sigma(t), SIGMA_MIN), self.eps)

    def mix(self, path: Path, t: jax.Array) -> jax.Array:
        """alpha(t) x0 + sigma(t) eps: where this estimate says x is at time t."""
        return path.mix(self.x0, self.eps, t)


def from_x0(
    x0: jax.Array, x: jax.Array, t: jax.Array, path: Path, variance: jax.Array | None = None
) -> Prediction:
    """The Prediction of a data estimate: eps is what is left, (x - alpha x0) / sigma."""
    return Prediction(x0, _eps_of_x0(x0, x, t, path), variance)


def _eps_of_x0(x0: jax.Array, x: jax.Array, t: jax.Array, path: Path) -> jax.Array:
    sigma = expand(jnp.maximum(path.sigma(t), SIGMA_MIN), x)
    return (x - expand(path.alpha(t), x) * x0) / sigma


def to_prediction(
    kind: str,
    output: jax.Array,
    x: jax.Array,
    t: jax.Array,
    path: Path,
    *,
    sigma_data: float = 0.5,
    variance: jax.Array | None = None,
) -> Prediction:
    """A network's output of a kind, at x_t [B, ...] and t [] or [B], as a Prediction.

    Exact wherever the kind determines both x0 and eps; finite at t=0 and t=1 for every kind.
    """
    alpha, sigma = expand(path.alpha(t), x), expand(path.sigma(t), x)
    if kind == "x0":
        return from_x0(output, x, t, path, variance)
    if kind == "eps":
        return Prediction((x - sigma * output) / jnp.maximum(alpha, ALPHA_MIN), output, variance)
    if kind == "score":
        eps = -sigma * output
        return Prediction((x - sigma * eps) / jnp.maximum(alpha, ALPHA_MIN), eps, variance)
    if kind == "v":
        square = alpha**2 + sigma**2
        x0, eps = (alpha * x - sigma * output) / square, (sigma * x + alpha * output) / square
        return Prediction(x0, eps, variance)
    if kind == "velocity":
        d_alpha, d_sigma = expand(path.d_alpha(t), x), expand(path.d_sigma(t), x)
        wronskian = alpha * d_sigma - d_alpha * sigma
        x0 = (d_sigma * x - sigma * output) / wronskian
        return Prediction(x0, (alpha * output - d_alpha * x) / wronskian, variance)
    if kind == "edm":
        # EDM's D = c_skip x + c_out F on x / alpha; eps follows without dividing by sigma.
        square = sigma**2 + (alpha * sigma_data) ** 2
        root = jnp.sqrt(square)
        x0 = alpha * sigma_data**2 / square * x + sigma * sigma_data / root * output
        return Prediction(x0, sigma / square * x - alpha * sigma_data / root * output, variance)
    raise ValueError(f"unknown prediction {kind!r}; one of {KINDS}")


def target(
    kind: str, x0: jax.Array, eps: jax.Array, t: jax.Array, path: Path, *, sigma_data: float = 0.5
) -> jax.Array:
    """What a network of a kind is trained towards, from x0, eps [B, ...] and t [] or [B]."""
    if kind == "x0":
        return x0
    if kind == "eps":
        return eps
    if kind == "score":
        return Prediction(x0, eps).score(path, t)
    if kind == "v":
        return Prediction(x0, eps).v(path, t)
    if kind == "velocity":
        return Prediction(x0, eps).velocity(path, t)
    if kind == "edm":
        alpha, sigma = expand(path.alpha(t), x0), expand(path.sigma(t), x0)
        root = jnp.sqrt(sigma**2 + (alpha * sigma_data) ** 2)
        return (sigma / sigma_data * x0 - alpha * sigma_data * eps) / root
    raise ValueError(f"unknown prediction {kind!r}; one of {KINDS}")


def x0_gain(kind: str, t: jax.Array, path: Path, *, sigma_data: float = 0.5) -> jax.Array:
    """How much an error of the network's output moves x0: |d x0 / d output|, of t's shape."""
    alpha, sigma = path.alpha(t), path.sigma(t)
    if kind == "x0":
        return jnp.ones_like(sigma)
    if kind == "eps":
        return sigma / jnp.maximum(alpha, ALPHA_MIN)
    if kind == "score":
        return sigma**2 / jnp.maximum(alpha, ALPHA_MIN)
    if kind == "v":
        return sigma / (alpha**2 + sigma**2)
    if kind == "velocity":
        return sigma / (alpha * path.d_sigma(t) - path.d_alpha(t) * sigma)
    if kind == "edm":
        return sigma * sigma_data / jnp.sqrt(sigma**2 + (alpha * sigma_data) ** 2)
    raise ValueError(f"unknown prediction {kind!r}; one of {KINDS}")


def input_scale(kind: str, t: jax.Array, path: Path, *, sigma_data: float = 0.5) -> jax.Array:
    """c_in, what the network's input is multiplied by: unit variance for edm, else 1."""
    if kind != "edm":
        return jnp.ones_like(path.sigma(t))
    return 1 / jnp.sqrt(path.sigma(t) ** 2 + (path.alpha(t) * sigma_data) ** 2)


def noise_condition(kind: str, t: jax.Array, path: Path) -> jax.Array:
    """c_noise, the number that tells the network how noisy its input is.

    ln(sigma / alpha) / 4 for edm (EDM, table 1), kept finite at both ends; for all others t, or
    the index of the noise level where the path has such (`path.discrete`).
    """
    if kind != "edm":
        return path.told(t)
    ratio = path.sigma(t) / jnp.maximum(path.alpha(t), SIGMA_MIN)
    return jnp.log(jnp.maximum(ratio, SIGMA_MIN)) / 4
