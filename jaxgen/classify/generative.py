"""Classify with a generative model: the class under which the image is least surprising.

The diffusion classifier (Li et al. 2023; Clark & Jaini 2023), for every family whose Method has a
`label_error`. Noise is shared across classes, so that most of the estimates' variance cancels in
their differences; classes that are behind are dropped round by round, and images whose winner is
clear stop early.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.errors import invalid
from jaxgen.method import Method

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Classification:
    """labels [N] int32; scores [N, C] float32; calls: network evaluations per image, on average.

    scores are estimates of ln p(x | class) - ln p(x | winner) in nats, from the draws that the
    class lived to see, the winner's on the same noise; 0 for the winner, at most 0 for the others.
    A class that was dropped early looked bad on few draws, some by chance, and its score stays that
    low: for posteriors let every class live (rounds=((draws, 1),)). Padding of the last batch of a
    round is not counted in calls.
    """

    labels: np.ndarray
    scores: np.ndarray
    calls: float


def halving(num_classes: int, draws: int) -> tuple[tuple[int, int], ...]:
    """A schedule of rounds ((draws so far, classes kept), ...): half the classes, twice the draws.

    The last round has `draws` draws and keeps one. halving(10, 16) is ((2, 5), (4, 3), (8, 2),
    (16, 1)): 2 x 10 + 2 x 5 + 4 x 3 + 8 x 2 = 58 calls in place of 160.
    """
    keeps, kept = [], num_classes
    while kept > 1:
        kept = (kept + 1) // 2
        keeps.append(kept)
    rounds: list[tuple[int, int]] = []
    for behind, keep in enumerate(reversed(keeps or [1])):
        upto = max(draws >> behind, 1)
        if rounds and upto == rounds[-1][0]:
            continue  # no draws left to tell this round from the one after it
        rounds.append((upto, keep))
    return tuple(reversed(rounds))


def classify(
    method: Method,
    params: PyTree,
    images: np.ndarray | jax.Array,
    keys: jax.Array,
    *,
    draws: int = 16,
    rounds: Sequence[tuple[int, int]] | None = None,
    confidence: float | None = None,
    batch: int = 1000,
) -> Classification:
    """The most likely class of each image [N, ...] in [-1, 1]; keys [N], one per image.

    draws: noise draws a class gets at most. rounds: (draws so far, classes kept), draws rising to
    `draws` and the last keeping 1; None: `halving`. confidence: images whose winner leads every
    rival by that many standard errors of the paired differences stop after a round; None: none do.
    batch: network rows at once. One program is compiled per round, with fixed shapes.

    Raises UsageError for a method without `label_error`, draws < 1, and impossible rounds.
    """
    error = method.label_error
    if error is None:
        raise invalid("method", "one without a likelihood", "a method that has label_error")
    classes, count = method.spec.num_classes, len(images)
    if draws < 1:
        raise invalid("classify.draws", draws, "draws >= 1")
    if batch < 1:
        raise invalid("classify.batch", batch, "batch >= 1")
    rounds = halving(classes, draws) if rounds is None else tuple(rounds)
    _check(rounds, classes, draws)

    labels = np.zeros(count, np.int32)
    active = np.arange(count)
    candidates = np.tile(np.arange(classes, dtype=np.int32), (count, 1))
    errors = np.zeros((count, classes, draws), np.float32)
    lived = np.zeros((count, classes), np.int32)  # draws that each class has seen
    calls, done = 0, 0
    for upto, keep in rounds:
        alive = candidates.shape[1]
        program = _program(error, draws, upto - done)
        fresh = _in_batches(
            program, params, images, keys, active, candidates, done, max(1, batch // alive)
        )
        calls += fresh.size
        errors[active[:, None], candidates, done:upto] = fresh
        lived[active[:, None], candidates] = done = upto
        of_candidates = errors[active[:, None], candidates, :done]
        order = np.argsort(of_candidates.mean(2), axis=1, kind="stable")
        candidates = np.take_along_axis(candidates, order, 1)
        labels[active] = candidates[:, 0]
        going = np.full(len(active), keep > 1)
        if confidence is not None and upto > 1:
            of_candidates = np.take_along_axis(of_candidates, order[:, :, None], 1)
            behind = of_candidates[:, 1:] - of_candidates[:, :1]
            spread = behind.std(2, ddof=1) / np.sqrt(upto)
            going &= (behind.mean(2) < confidence * spread).any(1)
        active, candidates = active[going], candidates[going, :keep]
        if not len(active):
            break
    behind = errors - errors[np.arange(count), labels][:, None]
    seen = np.arange(draws) < lived[:, :, None]
    scores = np.minimum(-behind.mean(2, where=seen), 0.0)  # a tie may round to the wrong side
    return Classification(labels, scores, calls / max(count, 1))


def _check(rounds: Sequence[tuple[int, int]], classes: int, draws: int) -> None:
    upto, kept = 0, classes
    for number, keep in rounds:
        if number <= upto or not 1 <= keep <= kept:
            raise invalid("classify.rounds", rounds, "draws that rise and classes that fall")
        upto, kept = number, keep
    if upto != draws or kept != 1:
        raise invalid("classify.rounds", rounds, f"a last round ({draws}, 1)")


@functools.lru_cache(maxsize=64)
def _program(error: Callable[..., jax.Array], draws: int, fresh: int) -> Callable[..., jax.Array]:
    """fn(params, x[B, ...], labels[B, K], keys[B], first) -> errors [B, K, fresh].

    Kept between calls of `classify`, so that a second call compiles nothing.
    """

    @jax.jit
    def program(
        params: PyTree, x: jax.Array, labels: jax.Array, keys: jax.Array, first: jax.Array
    ) -> jax.Array:
        size, alive = labels.shape
        rows = jnp.repeat(x, alive, axis=0)
        repeated = jnp.repeat(keys, alive, axis=0)

        def of_draw(number: jax.Array) -> jax.Array:
            draw = jnp.full(size * alive, number)
            return error(params, rows, labels.reshape(-1), repeated, draw, draws)

        out = jax.lax.map(of_draw, first + jnp.arange(fresh))
        return out.T.reshape(size, alive, fresh)

    return program


def _in_batches(
    program: Callable[..., jax.Array],
    params: PyTree,
    images: Any,
    keys: jax.Array,
    active: np.ndarray,
    candidates: np.ndarray,
    first: int,
    size: int,
) -> np.ndarray:
    """The program over all active images, `size` at a time; the last batch is padded."""
    size = min(size, len(images))
    batches = []
    for start in range(0, len(active), size):
        chosen = active[start : start + size]
        padded = np.resize(chosen, size)
        labels = np.resize(candidates[start : start + size], (size, candidates.shape[1]))
        x = jnp.asarray(np.asarray(images[padded]), jnp.float32)
        out = program(params, x, jnp.asarray(labels), keys[padded], jnp.int32(first))
        batches.append(np.asarray(out)[: len(chosen)])
    return np.concatenate(batches)
