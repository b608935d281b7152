"""Fitted to one's own samples, spread is lost by 1 / n a generation; real data keep it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shared.check import Check, control, mean_above, mean_near
from jaxgen.training.retraining import retrain

PAPER = "On the Stability of Iterative Retraining of Generative Models on their own Data"
ENTRY = "jaxgen.training.retraining.retrain"
N, GENERATIONS, CHAINS = 50, 30, 15_000
COLUMNS = 3_000
CLASSES = jnp.array([0.4, 0.3, 0.15, 0.1, 0.05])


def checks() -> list[Check]:
    """Gaussians and classes by maximum likelihood: alone, and with real data mixed in.

    Chains are seeds, in columns. Standard errors are 0.006 for variances alone, whose law has a
    long tail, and 0.002 with real data; the differences from the closed forms were within two.
    """
    results = []
    alone, alone_mean = _gaussian(real=0, synthetic=N, key=0)
    lost = (1 - 1 / N) ** GENERATIONS  # 0.545
    start = 1 - 1 / N  # of the first fit
    check = "variance after 30 generations alone, n = 50"
    results.append(mean_near(check, alone, start * lost, 0.03))
    results.append(control(mean_near(check, alone, start, 0.03)))
    # The mean wanders by v_t / n a generation: what variance is lost, it has gained.
    results.append(mean_near("square of the mean's error then", alone_mean, 1 - start * lost, 0.04))

    mixed = {}
    for share, (real, synthetic) in {"80": (N, 12), "50": (N, N), "33": (N, 2 * N)}.items():
        variance, square = mixed[share] = _gaussian(real, synthetic, key=int(share))
        expected = _expected(real, synthetic)
        check = f"{share} % real: variance after 30 generations"
        results.append(mean_near(check, variance, expected[0], 0.008))
        results.append(control(mean_near(check, alone, expected[0], 0.008)))
        check = f"{share} % real: square of the mean's error then"
        results.append(mean_near(check, square, expected[1], 0.0015))
        results.append(control(mean_near(check, alone_mean, expected[1], 0.0015)))
    check = "variance after 30 generations with half of the data real"
    results.append(mean_above(check, mixed["50"][0], 0.95))
    results.append(control(mean_above(check, alone, 0.95)))

    # Classes drift as genes do (Wright 1931): 1 - sum p^2 falls by 1 / n a generation.
    first = float(1 - (CLASSES**2).sum()) * (1 - 1 / N)
    variety, left = _classes(real=0, synthetic=N, key=1)
    check = "chance that two draws of classes differ, after 30 generations alone"
    results.append(mean_near(check, variety, first * lost, 0.02))
    results.append(control(mean_near(check, variety, first, 0.02)))
    kept, all_left = _classes(real=N, synthetic=N, key=2)
    check = "share of classes that are still drawn, half of the data real"
    results.append(mean_above(check, all_left, 0.95))
    results.append(control(mean_above(check, left, 0.95)))
    check = "chance that two draws differ, half of the data real"
    results.append(mean_above(check, kept, 0.95 * first))
    results.append(control(mean_above(check, variety, 0.95 * first)))
    return results


def _gaussian(real: int, synthetic: int, key: int) -> tuple[np.ndarray, np.ndarray]:
    """Variance and squared mean [CHAINS] of the last generation; the truth is N(0, 1)."""
    keys = jax.random.split(jax.random.key(key), 2)
    first = jax.random.normal(keys[0], (N, CHAINS))

    @jax.jit
    def fit(data: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        return data.mean(0), data.var(0)

    def draw(params: tuple[jax.Array, jax.Array], key: jax.Array, n: int) -> jax.Array:
        mean, variance = params
        return mean + jnp.sqrt(variance) * jax.random.normal(key, (n, CHAINS))

    *_, (mean, variance) = retrain(
        fit,
        jax.jit(draw, static_argnums=2),
        first,
        keys[1],
        generations=GENERATIONS,
        synthetic=synthetic,
        real=first[:real] if real else None,
    )
    return np.asarray(variance, np.float64), np.asarray(mean, np.float64) ** 2


def _expected(real: int, synthetic: int) -> tuple[float, float]:
    """E variance and E (mean)^2 after the generations, exactly, over the real data too.

    Of `real` fixed examples with mean m and variance s^2 (E s^2 = 1 - 1 / real) and b = synthetic /
    total drawn from N(mu_t, v_t), with d_t = E (mu_t - m)^2: mu_{t+1} - m = b (mu_t - m) + noise
    of variance b v_t / total, and v_{t+1} = (1 - b) s^2 + b v_t + (1 - b) b d_t - b v_t / total.
    """
    total = real + synthetic
    b = synthetic / total
    spread = 1 - 1 / real
    variance, apart = spread, 0.0
    for _ in range(GENERATIONS):
        variance, apart = (
            (1 - b) * spread + b * variance + (1 - b) * b * apart - b * variance / total,
            b**2 * apart + b * variance / total,
        )
    return variance, apart + 1 / real


def _classes(real: int, synthetic: int, key: int) -> tuple[np.ndarray, np.ndarray]:
    """1 - sum p^2, and the share of classes with p > 0, [COLUMNS], of the last generation.

    Examples are one-hot [n, COLUMNS, classes], so that the fit is a mean.
    """
    keys = jax.random.split(jax.random.key(key), 2)

    def draw(p: jax.Array, key: jax.Array, n: int) -> jax.Array:
        # From the cumulative sums: the first that exceeds a uniform number.
        below = jnp.cumsum(p, -1)
        uniform = jax.random.uniform(key, (n, COLUMNS, 1)) * below[..., -1:]
        return jax.nn.one_hot((uniform >= below).sum(-1), len(CLASSES))

    draw = jax.jit(draw, static_argnums=2)
    first = draw(jnp.broadcast_to(CLASSES, (COLUMNS, len(CLASSES))), keys[0], N)
    *_, p = retrain(
        jax.jit(lambda data, key: data.mean(0)),
        draw,
        first,
        keys[1],
        generations=GENERATIONS,
        synthetic=synthetic,
        real=first[:real] if real else None,
    )
    p = np.asarray(p, np.float64)
    seen = np.asarray(first.mean(0)) > 0
    return 1 - (p**2).sum(-1), (p > 0).sum(-1) / seen.sum(-1)
