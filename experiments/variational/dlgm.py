"""DLGM: stochastic backpropagation, and the rank-one posterior where it is the exact one.

z ~ N(0, I_3), x | z ~ N(w . z, s^2): the posterior's precision is I + w w^T / s^2, of rank one
above a diagonal, so a rank-one q closes the bound and the best diagonal one leaves
(1/2) (sum_i ln L_ii - ln |L|), L the precision.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.stats import norm

from experiments.shared.check import Check, below, control
from jaxgen.families.variational import posterior
from jaxgen.method import minimise

PAPER = "Stochastic Backpropagation and Approximate Inference in Deep Generative Models"
ENTRY = "jaxgen.families.variational.posterior.sample"
W = np.array([1.0, -2.0, 0.5])
NOISE, X = 0.7, 1.3


def bound(head: posterior.Head) -> jax.Array:
    """The exact ELBO at x = X: both terms are Gaussian expectations."""
    w = jnp.asarray(W)
    scale = jnp.exp(head["log_scale"])
    spread = (scale * w) ** 2
    if "direction" in head:
        v = scale * head["direction"]
        along = (scale * w * v).sum()
        variance = spread.sum() - along**2 / (1 + (v**2).sum())
    else:
        variance = spread.sum()
    error = (X - head["mean"] @ w) ** 2 + variance
    rec = -0.5 * error / NOISE**2 - 0.5 * jnp.log(2 * jnp.pi * NOISE**2)
    return rec - posterior.kl_to_standard(head)


def best(direction: bool) -> float:
    """The bound after maximising it over the head."""
    head = {"mean": jnp.zeros(3), "log_scale": jnp.zeros(3)}
    if direction:
        head["direction"] = jnp.array([0.1, 0.1, 0.1])
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, 3000))

    @jax.jit
    def fit(head: posterior.Head) -> posterior.Head:
        return minimise(lambda h, _: -bound(h), optimizer, head, jnp.arange(3000))[0]

    return float(bound(fit(head)))


def expectation_gradients(power: int) -> tuple[np.ndarray, np.ndarray]:
    """Gradients of E z^power, z ~ N(0.7, 0.5^2), to mean and log-scale: by draws, and exact."""
    eps = jax.random.normal(jax.random.key(0), (400_000, 1))

    def mean(head):
        return (posterior.sample(head, eps)[:, 0] ** power).mean()

    head = {"mean": jnp.array([0.7]), "log_scale": jnp.log(jnp.array([0.5]))}
    slopes = jax.grad(mean)(head)
    m, s = 0.7, 0.5
    exact = {2: (2 * m, 2 * s * s), 4: (4 * m**3 + 12 * m * s * s, 12 * m * m * s * s + 12 * s**4)}
    return np.array([slopes["mean"][0], slopes["log_scale"][0]]), np.array(exact[power])


def checks() -> list[Check]:
    """Gradients against closed forms; the bound against ln p(x) and against its known gap."""
    exact = norm(0, (W @ W + NOISE**2) ** 0.5).logpdf(X)
    precision = np.eye(3) + np.outer(W, W) / NOISE**2
    gap = 0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1])
    rank_one, diagonal = best(True), best(False)
    head = {
        "mean": jnp.asarray(np.linalg.solve(precision, W * X / NOISE**2)),
        "log_scale": jnp.zeros(3),
        "direction": jnp.asarray(W / NOISE),
    }
    draws = np.asarray(posterior.sample(head, jax.random.normal(jax.random.key(1), (200_000, 3))))
    covariance = np.linalg.inv(precision)
    out = [
        below("rank-one bound - ln p(x)", abs(rank_one - exact), 2e-3),
        below("diagonal bound's gap - closed form", abs(exact - diagonal - gap), 2e-3),
        control(below("diagonal bound - ln p(x)", exact - diagonal, 2e-3)),
        # An entry of 200,000 draws' covariance has a standard error of at most sqrt(2 / 200,000).
        below("covariance of rank-one draws", np.abs(np.cov(draws.T) - covariance).max(), 0.0127),
    ]
    for power in (2, 4):
        estimated, known = expectation_gradients(power)
        # Each estimate's standard error is below 0.02 of its value here; four of them.
        out.append(below(f"gradient of E z^{power}", np.abs(estimated / known - 1).max(), 0.02))
    return out
