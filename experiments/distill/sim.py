"""Score implicit matching: an affine student of a Gaussian teacher becomes the teacher's law."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.shared.check import Check, below, control
from experiments.shared.quick import quick_jit
from jaxgen.distill.matching import implicit
from jaxgen.families.diffusion.core.path import expand, linear
from jaxgen.method.learning import minimise

PAPER = "One-Step Diffusion Distillation through Score Implicit Matching"
ENTRY = "jaxgen.distill.matching.implicit"
MEAN = jnp.array([0.8, -0.5])
COVARIANCE = jnp.array([[0.5, 0.3], [0.3, 0.4]])
PATH, BATCH, STEPS = linear(), 512, 3000
START = {"a": jnp.array([[1.0, 0.0], [0.0, 1.0]]), "b": jnp.zeros(2)}
BEST = {"a": jnp.linalg.cholesky(COVARIANCE), "b": MEAN}


def posterior_mean(x: jax.Array, t: jax.Array, mean: jax.Array, cov: jax.Array) -> jax.Array:
    """E[x0 | x_t] of N(mean, cov), x [B, 2], t [B]."""
    alpha, sigma = (expand(f(t), x) for f in (PATH.alpha, PATH.sigma))
    (p, q), (_, r) = cov
    # The inverse of alpha^2 cov + sigma^2 I, written out: a solver of many small systems is slow.
    p, q, r = (alpha**2 * e + s for e, s in ((p, sigma**2), (q, 0.0), (r, sigma**2)))
    first, second = jnp.split(x - alpha * mean, 2, axis=-1)
    scaled = jnp.concatenate([r * first - q * second, p * second - q * first], -1)
    return mean + alpha * (scaled / (p * r - q**2)) @ cov


def loss(params: Any, key: jax.Array, *, tracks: bool = True) -> jax.Array:
    """Of x0 = A z + b. The fake score is that of the student's own law, held; or of its first."""
    z_key, eps_key, t_key = jax.random.split(key, 3)
    z, eps = (jax.random.normal(k, (BATCH, 2)) for k in (z_key, eps_key))
    t = jax.random.uniform(t_key, (BATCH,), minval=0.02, maxval=0.98)
    x0 = z @ params["a"].T + params["b"]
    x = PATH.mix(x0, eps, t)
    held = jax.lax.stop_gradient(params) if tracks else START
    ours = posterior_mean(x, t, held["b"], held["a"] @ held["a"].T)
    theirs = posterior_mean(x, t, MEAN, COVARIANCE)
    return implicit(x0, ours, theirs, jnp.ones(BATCH), 0.1).mean()


def learned(**options: Any) -> Any:
    """The student's parameters after training."""
    rate = optax.cosine_decay_schedule(1e-2, STEPS)
    keys = jax.random.split(jax.random.key(0), STEPS)
    fit = jax.jit(
        lambda: minimise(lambda p, k: loss(p, k, **options), optax.adam(rate), START, keys)
    )
    return fit()[0]


def off(params: Any) -> tuple[jax.Array, jax.Array]:
    """Largest distances of the student's mean and covariance from the teacher's."""
    cov = params["a"] @ params["a"].T
    return jnp.abs(params["b"] - MEAN).max(), jnp.abs(cov - COVARIANCE).max()


def checks() -> list[Check]:
    """The optimum is a fixed point, training reaches it, and not where the fake score stands."""
    keys = jax.random.split(jax.random.key(1), 400)
    gradient = quick_jit(jax.vmap(jax.grad(loss), (None, 0)))
    norm = {n: optax.tree.norm(jax.tree.map(lambda g: g.mean(0), gradient(p, keys)))
            for n, p in (("optimum", BEST), ("start", START))}  # fmt: skip
    check = "norm of the gradient"
    results = [below(f"{check} at the optimum", norm["optimum"], 1e-6)]
    results.append(control(below(f"{check} at the start", norm["start"], 1e-6)))
    for name, options in (("", {}), (", fake score held", {"tracks": False})):
        for what, value in zip(("mean", "covariance"), off(learned(**options)), strict=True):
            check = below(f"{what} of the student, largest error{name}", value, 0.03)
            results.append(control(check) if name else check)
    return results
