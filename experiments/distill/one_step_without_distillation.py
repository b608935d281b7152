"""A one-step generator by a critic's ratio at all noise levels: no teacher's score is asked."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.shared.check import Check, above, below, control, near
from jaxgen.distill.divergence import weight
from jaxgen.distill.matching import matched
from jaxgen.families.diffusion.core.path import linear
from jaxgen.method.learning import minimise

PAPER = "Towards Training One-Step Diffusion Models Without Distillation"
ENTRY = "jaxgen.distill.matching.matching"
PATH, BATCH = linear(), 512
MEAN, STD = 2.0, 0.5
START = jnp.array([-3.0, 0.3])
"""The generator's mean and deviation: where it begins, 6 of the data's deviations from any data."""
LEVELS = jnp.linspace(0.1, 0.9, 9)


def noised(mean: Any, std: Any, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and variance of x_t."""
    alpha, sigma = PATH.alpha(t), PATH.sigma(t)
    return alpha * mean, (alpha * std) ** 2 + sigma**2


def exact_slope(x: jax.Array, t: jax.Array, generator: jax.Array) -> jax.Array:
    """d ln p_t / q_t / dx of data against generator."""
    (m, v), (n, w) = noised(MEAN, STD, t), noised(generator[0], generator[1], t)
    return -(x - m) / v + (x - n) / w


def log_ratio(critic: jax.Array, x: jax.Array, level: jax.Array) -> jax.Array:
    """A quadratic for each level, as ln r of two Gaussians is: critic [levels, 3], x [B]."""
    a, b, c = critic[level].T
    return a * x**2 + b * x + c


def judged(critic: jax.Array, real: jax.Array, fake: jax.Array, level: jax.Array) -> jax.Array:
    """The logistic loss, whose minimum is ln p / q."""
    return (
        jax.nn.softplus(-log_ratio(critic, real, level))
        + jax.nn.softplus(log_ratio(critic, fake, level))
    ).mean()


def drawn(generator: jax.Array, key: jax.Array) -> tuple[jax.Array, ...]:
    """(x0 of the generator, noised data, noised x0, levels), [BATCH] each."""
    keys = jax.random.split(key, 4)
    z, eps, data = (jax.random.normal(k, (BATCH,)) for k in keys[:3])
    level = jax.random.randint(keys[3], (BATCH,), 0, len(LEVELS))
    x0, t = generator[0] + generator[1] * z, LEVELS[level]
    return x0, PATH.mix(MEAN + STD * data, eps, t), PATH.mix(x0, eps, t), level


def loss(params: Any, key: jax.Array) -> jax.Array:
    """Critic and generator at once, each against the other held."""
    held = jax.lax.stop_gradient(params)
    x0, real, fake, level = drawn(params["generator"], key)
    critic = judged(params["critic"], real, jax.lax.stop_gradient(fake), level)
    t = LEVELS[level]
    ratio, slope = jax.vmap(jax.value_and_grad(lambda x, n: log_ratio(held["critic"], x, n)))(
        fake, level
    )
    pull = PATH.sigma(t) ** 2 / PATH.alpha(t) * slope
    h = weight("jensen_shannon", ratio)
    moved = matched(x0[:, None], pull[:, None], jnp.ones(BATCH), h).mean()
    return critic + moved


def critic_alone(params: jax.Array, key: jax.Array) -> jax.Array:
    """The critic's loss where the generator stands at N(1, .8^2)."""
    _, real, fake, level = drawn(jnp.array([1.0, 0.8]), key)
    return judged(params, real, fake, level)


def reach(t: float) -> float:
    """Size of the gradient in the generator's mean at the start: E |h slope|, at one level."""
    x = START[0] * PATH.alpha(t) + jnp.linspace(-2, 2, 41) * jnp.sqrt(noised(*START, t)[1])
    (m, v), (n, w) = noised(MEAN, STD, t), noised(*START, t)
    ratio = jax.scipy.stats.norm.logpdf(x, m, v**0.5) - jax.scipy.stats.norm.logpdf(x, n, w**0.5)
    h = jnp.exp(-jax.nn.softplus(-ratio))  # r / (1 + r), before `weight` bounds and scales it
    return float(jnp.abs(h * exact_slope(x, t, START)).mean())


def checks() -> list[Check]:
    """The critic's slope at each level, the generator's end, and what data's own level says."""
    steps, zeros = 3000, jnp.zeros((len(LEVELS), 3))
    keys = jax.random.split(jax.random.key(0), steps)
    rate = optax.cosine_decay_schedule(3e-2, steps)
    critic = jax.jit(lambda: minimise(critic_alone, optax.adam(rate), zeros, keys)[0])()
    x, results = jnp.linspace(-1, 3, 9), []
    for number in (3, 5, 8):
        exact = exact_slope(x, LEVELS[number], jnp.array([1.0, 0.8]))
        for name, slope in (
            ("", 2 * critic[number, 0] * x + critic[number, 1]),
            (" of no critic", jnp.zeros_like(x)),
        ):
            error = jnp.abs(slope - exact).max() / jnp.abs(exact).max()
            check = f"relative error of the ratio's slope{name}, t={LEVELS[number]:.1f}"
            made = below(check, error, 0.2)
            results.append(control(made) if name else made)
    start = {"critic": zeros, "generator": START}
    end = jax.jit(lambda: minimise(loss, optax.adam(rate), start, keys)[0])()["generator"]
    results.append(near("mean of the generator", end[0], MEAN, 0.05))
    results.append(near("deviation of the generator", jnp.abs(end[1]), STD, 0.05))
    results.append(above("gradient at the start, t=0.9", reach(0.9), 1e-2))
    results.append(control(above("gradient at the start, t=0.01", reach(0.01), 1e-2)))
    return results
