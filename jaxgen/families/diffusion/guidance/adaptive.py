"""Adaptive guidance (Castillo et al. 2023): no unconditional call where it tells nothing new."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.errors import invalid
from jaxgen.families.diffusion.core.denoiser import Denoiser, Memory
from jaxgen.families.diffusion.core.path import TINY, expand
from jaxgen.families.diffusion.core.prediction import Prediction
from jaxgen.families.diffusion.guidance.pair import At, Guided, needs_pair, ruled

NAN = float("nan")


def adaptive_guidance(guided: Denoiser, *, threshold: float = 0.991, high: float = 0.8) -> Guided:
    """`guided` until the cosine of good and bad eps has reached the threshold, then `good` alone.

    Each image switches by itself and stays switched; the bad network is left
    out from when the whole batch has. So the number of calls depends on the samples: calls is NaN,
    and the memory's last part counts them: (the rule's own, switched [B], network calls so far []).
    high: agreement counts from this time down, because near t=1 any two eps agree: both are x.
    """
    old = needs_pair(guided, "adaptive_guidance")
    if not -1 <= threshold <= 1:
        raise invalid("guidance.threshold", threshold, "-1 <= threshold <= 1")
    if not 0 <= high <= 1:
        raise invalid("guidance.high", high, "0 <= high <= 1")
    if old.weight == 1:
        return old

    def rule(p: Prediction, q: Prediction, at: At, memory: Memory) -> tuple[Prediction, Memory]:
        inner, done, count = memory
        out, inner = old.rule(p, q, at, inner)
        near = (cosine(p.eps, q.eps) >= threshold) & (at.t <= high)
        switched = expand(done, at.x)
        out = jax.tree.map(lambda a, b: jnp.where(switched, a, b), p, out)
        return out, (inner, done | near, count + 2)

    def start(x: jax.Array) -> Memory:
        return old.start(x), jnp.zeros(x.shape[0], bool), jnp.zeros((), jnp.int32)

    both = ruled(old, rule, start)

    def call(
        keys: jax.Array, x: jax.Array, t: jax.Array, memory: Memory
    ) -> tuple[Prediction, Memory]:
        def alone(memory: Memory) -> tuple[Prediction, Memory]:
            first, second, (inner, done, count) = memory
            p, first = old.good(keys, x, t, first)
            return p, (first, second, (inner, done, count + 1))

        done = memory[2][1]
        return jax.lax.cond(done.all(), alone, lambda m: both(keys, x, t, m), memory)

    return dataclasses.replace(both, call=call, calls=lambda t: NAN)


def cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """The cosine of the angle between a and b [B, ...], [B]."""
    axes = tuple(range(1, a.ndim))
    lengths = jnp.sqrt((a**2).sum(axes) * (b**2).sum(axes))
    return (a * b).sum(axes) / jnp.maximum(lengths, TINY)


class Affine(NamedTuple):
    """LinearAG's fit: at times[n] where skip[n], the bad eps is a sum of what is known.

    times [N]; skip [N] bool; weights [N, 3] of (good eps now, good eps before, bad eps before).
    """

    times: Sequence[float]
    skip: Sequence[bool]
    weights: Sequence[Sequence[float]]


def linear_ag(guided: Denoiser, fit: Affine) -> Guided:
    """LinearAG: where the fit says so the bad eps is estimated, not computed.

    From the good one's eps now and both eps at the call before; the estimates are themselves what
    comes "before" for the next call. For one call a step (Euler, DDIM, multistep): a call at time t
    takes the row of the nearest time. The bad x0 follows from x where the path is known, so only
    pairs of denoisers that know theirs.
    """
    old = needs_pair(guided, "linear_ag")
    if old.path is None:
        raise invalid("guidance.linear_ag", "denoisers without a path", "denoisers with one")
    if len(fit.skip) and fit.skip[0]:
        raise invalid("guidance.skip", fit.skip, "a first call that is not skipped")
    path, times, skip = old.path, np.asarray(fit.times), np.asarray(fit.skip, bool)
    weights = np.asarray(fit.weights)
    if not skip.any():
        return old

    def row(t: float) -> int:
        return int(np.abs(times - t).argmin())

    def start(x: jax.Array) -> Memory:
        return old.start(x), jnp.zeros_like(x), jnp.zeros_like(x)

    def rule(p: Prediction, q: Prediction, at: At, memory: Memory) -> tuple[Prediction, Memory]:
        out, inner = old.rule(p, q, at, memory[0])
        return out, (inner, p.eps, q.eps)

    both = ruled(old, rule, start)

    def call(
        keys: jax.Array, x: jax.Array, t: jax.Array, memory: Memory
    ) -> tuple[Prediction, Memory]:
        number = jnp.abs(jnp.asarray(times, x.dtype) - t).argmin()

        def estimated(memory: Memory) -> tuple[Prediction, Memory]:
            first, second, rule_memory = memory
            p, first = old.good(keys, x, t, first)
            now, before, bad = jnp.asarray(weights, x.dtype)[number]
            eps = now * p.eps + before * rule_memory[1] + bad * rule_memory[2]
            ratio = path.sigma(t) * path.alpha(t) / (path.alpha(t) ** 2 + TINY)
            # x is the same for both, so x0 differs by -sigma / alpha times what eps does.
            q = Prediction(p.x0 - ratio * (eps - p.eps), eps, p.variance)
            out, rule_memory = rule(p, q, At(keys, x, t), rule_memory)
            return out, (first, second, rule_memory)

        return jax.lax.cond(
            jnp.asarray(skip)[number], estimated, lambda m: both(keys, x, t, m), memory
        )

    def calls(t: float) -> float:
        return old.good.calls(t) + (0.0 if skip[row(t)] else old.bad.calls(t))

    return dataclasses.replace(both, call=call, calls=calls)


def fit_affine(
    times: Sequence[float], good: np.ndarray, bad: np.ndarray, skip: Sequence[bool]
) -> Affine:
    """Least squares of bad eps on (good now, good before, bad before), a row for each skipped time.

    good, bad: eps along a few trajectories, [N, trajectories, ...] at times[N].
    """
    rows = np.zeros((len(times), 3))
    for n in np.flatnonzero(skip):
        columns = np.stack([good[n].ravel(), good[n - 1].ravel(), bad[n - 1].ravel()], axis=1)
        rows[n] = np.linalg.lstsq(columns, bad[n].ravel(), rcond=None)[0]
    return Affine(list(map(float, times)), list(map(bool, skip)), rows.tolist())
