"""T-Stitch: several models in one trajectory, small ones first (Pan et al. 2024)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.errors import invalid, unknown
from jaxgen.families.diffusion.core.denoiser import Denoiser, Memory
from jaxgen.families.diffusion.core.prediction import Prediction


def stitch(models: Sequence[tuple[Denoiser, float]], grid: jax.Array) -> Denoiser:
    """Each denoiser for its share of the grid's steps, in order from noise to data.

    models: (denoiser, share of steps); the shares add up to 1. The first n steps are a model's that
    ends at grid[n], n rounded; a call at that time or below is the next one's. Which one runs
    depends on the time alone, so the solver knows nothing of it and only one of them runs. Each
    keeps its own memory. Parts without a step are left out; a single one left is itself. The grid's
    numbers must be known when this is built.
    Raises UsageError: no models, shares that are negative or do not add up to 1.
    """
    shares = [share for _, share in models]
    if not shares or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise invalid("guidance.models", shares, "shares >= 0 of the steps that add up to 1")
    steps = grid.shape[0] - 1
    last = [round(steps * total) for total in itertools.accumulate(shares)]
    used = [
        (denoiser, end)
        for (denoiser, _), start, end in zip(models, [0, *last], last, strict=False)
        if end > start
    ]
    denoisers = [denoiser for denoiser, _ in used]
    if len(denoisers) == 1:
        return denoisers[0]
    ends = np.asarray(grid, np.float32)[[end for _, end in used[:-1]]]

    def call(
        keys: jax.Array, x: jax.Array, t: jax.Array, memory: Memory
    ) -> tuple[Prediction, Memory]:
        number = _span(t.astype(jnp.float32), ends)
        if t.ndim:
            return _each(denoisers, number, keys, x, t, memory)

        # A learned variance that not all of them have is nobody's: branches give one structure.
        kinds = [
            jax.eval_shape(d, keys, x, t, m)[0] for d, m in zip(denoisers, memory, strict=True)
        ]
        bare = any(p.variance is None for p in kinds)

        def run(k: int) -> Any:
            def branch(memory: Memory) -> tuple[Prediction, Memory]:
                p, memory_after = denoisers[k](keys, x, t, memory[k])
                p = p._replace(variance=None) if bare else p
                return p, (*memory[:k], memory_after, *memory[k + 1 :])

            return branch

        return jax.lax.switch(number, [run(k) for k in range(len(denoisers))], memory)

    return Denoiser(
        call,
        init=lambda x: tuple(d.init(x) for d in denoisers),
        calls=lambda t: denoisers[int(_span(np.float32(t), ends))].calls(t),
        path=denoisers[-1].path,
    )


def _span(t: Any, ends: np.ndarray) -> Any:
    """Which denoiser's span a call at float32 time t [] or [B] belongs to."""
    return (t[..., None] <= ends).sum(-1)


def _each(
    denoisers: Sequence[Denoiser],
    number: jax.Array,
    keys: jax.Array,
    x: jax.Array,
    t: jax.Array,
    memory: Memory,
) -> tuple[Prediction, Memory]:
    """Each image at a time of its own (adaptive solvers): all of them, and choose."""
    pairs = [d(keys, x, t, m) for d, m in zip(denoisers, memory, strict=True)]
    x0, eps = pairs[0][0].x0, pairs[0][0].eps
    for k, (p, _) in enumerate(pairs[1:], 1):
        in_span = (number >= k).reshape(t.shape + (1,) * (x.ndim - 1))
        x0, eps = jnp.where(in_span, p.x0, x0), jnp.where(in_span, p.eps, eps)
    return Prediction(x0, eps), tuple(m for _, m in pairs)


def early(
    guided: Denoiser,
    branches: Mapping[str, Any],
    grid: jax.Array,
    *,
    models: Sequence[Any] = (("small", 0.4),),
) -> Denoiser:
    """`stitch` for configs: the models named, each for its share of steps, then `guided`.

    models: (name in the sampler's branches, share of steps). A branch may be guided itself:
    branches={"small": lambda params, labels: cfg(...)}. Raises UsageError for unknown names.
    """
    for name, _ in models:
        if name not in branches:
            raise unknown("guidance.models", name, branches)
    rest = 1 - sum(share for _, share in models)
    if rest < -1e-6:
        raise invalid("guidance.models", list(models), "shares of the steps that add up to <= 1")
    return stitch([*((branches[n], s) for n, s in models), (guided, max(rest, 0.0))], grid)
