"""Locally typical sampling: the mode may be cut, and what is kept keeps its proportions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shared.check import Check, above, below, control, near
from jaxgen.families.autoregressive.truncation import nucleus, typical

PAPER = "Locally Typical Sampling"
ENTRY = "jaxgen.families.autoregressive.truncation.typical"


def checks() -> list[Check]:
    """By hand: entropy 1.2206 nats; information .693, 1.609, 1.609, 2.303."""
    p = jnp.array([0.5, 0.2, 0.2, 0.1])
    logits = jnp.log(p)
    distribution = jax.nn.softmax(typical(logits, 0.4))
    by_mass = jax.nn.softmax(nucleus(logits, 0.4))
    results = [
        below("typical at .4 against (0, 1/2, 1/2, 0)", gap(distribution, [0, 0.5, 0.5, 0]), 1e-6),
        # The control: cutting by probability instead of information keeps the mode.
        control(below("nucleus at .4 against it", gap(by_mass, [0, 0.5, 0.5, 0]), 1e-6)),
        below("change at a mass of 1", gap(typical(logits, 1.0), logits), 0.0),
    ]
    uniform = jnp.zeros(16)
    kept = [float(jnp.isfinite(typical(uniform, mass)).sum()) for mass in (0.1, 0.5, 0.9)]
    results.append(near("kept of 16 equal ones, least", min(kept), 16, 0))

    # Random laws: a smallest set by brute force over all sets of neighbours in |information - H|.
    rng = np.random.default_rng(0)
    wrong, mode, by_nucleus = 0, 0, 0
    for _ in range(100):
        p = rng.dirichlet(np.full(8, 0.7))
        information = -np.log(p)
        order = np.argsort(np.abs(information - (p * information).sum()))
        size = next(n for n in range(1, 9) if p[order[:n]].sum() >= 0.6)
        want = np.isin(np.arange(8), order[:size])
        wrong += int((np.isfinite(typical(jnp.log(p), 0.6)) != want).any())
        by_nucleus += int((np.isfinite(nucleus(jnp.log(p), 0.6)) != want).any())
        mode += int(not want[p.argmax()])
    results.append(below("of 100 random laws, cut otherwise than by hand", wrong, 0))
    results.append(control(below("the same, by nucleus sampling", by_nucleus, 0)))
    results.append(above("of them, those that lose their mode", mode, 1))

    draws = jax.random.categorical(jax.random.key(0), typical(logits, 0.41), shape=(50_000,))
    share = np.bincount(np.asarray(draws), minlength=4) / 50_000
    # 4 standard deviations of a share: 4 sqrt(1/4 / 50,000).
    distribution = np.array([0.5, 0.2, 0.2, 0]) / 0.9
    results.append(below("shares of draws against the law", gap(share, distribution), 0.009))
    return results


def gap(a: object, b: object) -> float:
    """The largest difference."""
    return float(np.abs(np.asarray(a) - np.asarray(b)).max())
