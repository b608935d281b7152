"""Curated samples move the law as a closed form says; real data keep mass everywhere."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shared.check import Check, above, control, mean_above, mean_below
from jaxgen.training.retraining import by_reward, retrain

PAPER = "Self-Consuming Generative Models with Curated Data Provably Optimize Human Preferences"
ENTRY = "jaxgen.training.retraining.by_reward"
REAL = np.array([0.35, 0.25, 0.2, 0.15, 0.05])
REWARD = np.array([0.2, -0.5, 1.0, 0.1, 0.9])
SAMPLES, GENERATIONS, SEEDS = 40_000, 12, 6


def checks() -> list[Check]:
    """One round for several K, the reward along the way, and where it all ends."""
    results = []
    for k in (2, 3, 5):
        expected = exact_update(REAL, k)
        # Summed over 5 classes at 40,000 samples, E |p^ - p| is at most sqrt(5 / 40,000) = 0.011,
        # by Cauchy and Schwarz.
        check = f"one round, K = {k}: total distance to the closed form"
        results.append(mean_below(check, _distances(k, expected), 0.012))
        results.append(control(mean_below(check, _distances(k, REAL), 0.012)))
    tilted = REAL * np.exp(REWARD) / (REAL @ np.exp(REWARD))
    # At 4,000 samples sqrt(5 / 4,000) = 0.035 is the most, and some 1 / K remains.
    check = "one round, K = 100: total distance to p e^r"
    results.append(mean_below(check, _distances(100, tilted, 4_000), 0.05))
    results.append(control(mean_below(check, _distances(2, tilted, 4_000), 0.05)))

    # Expected reward over exact rounds, and over sampled ones of 40,000.
    exact = [REAL]
    for _ in range(GENERATIONS):
        exact.append(exact_update(exact[-1], 2))
    gains = np.diff([p @ REWARD for p in exact])
    results.append(above("least gain of the expected reward in an exact round", gains.min(), 1e-6))
    paths = [_path(s) for s in range(SEEDS)]
    check = "gain of the expected reward over 12 rounds"
    gain = float((exact[-1] - REAL) @ REWARD)
    results.append(mean_above(check, [(p[-1] - p[0]) @ REWARD for p in paths], 0.9 * gain))
    plain = [_path(s, curated=False) for s in range(SEEDS)]
    results.append(control(mean_above(check, [(p[-1] - p[0]) @ REWARD for p in plain], 0.9 * gain)))
    check = "share of rounds in which it rises"
    results.append(mean_above(check, [_rises(p) for p in paths], 0.95))
    results.append(control(mean_above(check, [_rises(p) for p in plain], 0.95)))

    # Without real data only the best class is left; with them, at least their share of each.
    lasting = _limit(0.0)
    results.append(above("mass of the best class after 400 exact rounds", lasting.max(), 0.999))
    share = 0.25
    least = float((_limit(share) / REAL).min())
    check = "least mass over the real law's in the limit, a quarter real"
    results.append(above(check, least, share))
    results.append(control(above(check, float((lasting / REAL).min()), share)))
    mixed = [_path(s, real=SAMPLES // 3) for s in range(SEEDS)]
    check = "sampled, a quarter real: total distance to the exact rounds"
    mixture = REAL
    for _ in range(GENERATIONS):
        mixture = share * REAL + (1 - share) * exact_update(mixture, 2)
    off = [np.abs(p[-1] - mixture).sum() for p in mixed]
    results.append(mean_below(check, off, 0.02))
    alone = [np.abs(p[-1] - mixture).sum() for p in paths]
    results.append(control(mean_below(check, alone, 0.02)))
    return results


def exact_update(p: np.ndarray, k: int) -> np.ndarray:
    """p(x) E[K e^r(x) / (e^r(x) + sum of e^r over K - 1 draws)], the draws enumerated."""
    weight = np.exp(REWARD)
    total = np.zeros(len(p))
    for others in itertools.product(range(len(p)), repeat=k - 1):
        chance = np.prod(p[list(others)])
        total += chance * k * weight / (weight + weight[list(others)].sum())
    # The sum is 1 but for rounding, which every round would multiply by K.
    return p * total / (p @ total)


def _limit(share: float, rounds: int = 400) -> np.ndarray:
    """Where exact rounds of K = 2 end with `share` of real data."""
    p = REAL
    for _ in range(rounds):
        p = share * REAL + (1 - share) * exact_update(p, 2)
    return p


@jax.jit
def _fit(data: jax.Array, key: jax.Array) -> jax.Array:
    """Counting, which is maximum likelihood."""
    return (data[:, None] == jnp.arange(len(REAL))).mean(0)


@functools.partial(jax.jit, static_argnums=2)
def _draw(p: jax.Array, key: jax.Array, n: int) -> jax.Array:
    edges = jnp.cumsum(p)
    return jnp.searchsorted(edges, jax.random.uniform(key, (n,)) * edges[-1], side="right")


_curate = jax.jit(by_reward(lambda x: jnp.asarray(REWARD)[x]))


def _path(
    seed: int,
    *,
    real: int = 0,
    curated: bool = True,
    k: int = 2,
    rounds: int = GENERATIONS,
    samples: int = SAMPLES,
) -> np.ndarray:
    """Laws [rounds + 1, classes] of sampled rounds, with about `real` real examples in each."""
    # In exact proportion, so that the first law is the real one.
    exactly = jnp.asarray(np.repeat(np.arange(len(REAL)), np.rint(REAL * 20).astype(int)))
    laws = retrain(
        _fit,
        _draw,
        exactly,
        jax.random.key(seed),
        generations=rounds,
        synthetic=samples,
        real=jnp.tile(exactly, round(real / len(exactly))) if real else None,
        curate=_curate if curated else None,
        candidates=k if curated else 1,
    )
    return np.asarray(list(laws), np.float64)


def _distances(k: int, expected: np.ndarray, samples: int = SAMPLES) -> list[float]:
    """Total distance of one sampled round to a law, over seeds."""
    paths = (_path(s, k=k, rounds=1, samples=samples) for s in range(SEEDS))
    return [float(np.abs(path[1] - expected).sum()) for path in paths]


def _rises(path: np.ndarray) -> float:
    """Share of rounds in which the expected reward rises."""
    return float((np.diff(path @ REWARD) > 0).mean())
