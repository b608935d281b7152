"""Classifier-free guidance by several conditions or models at once."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from jaxgen.errors import invalid
from jaxgen.families.diffusion.core.denoiser import Denoiser, Memory, together
from jaxgen.families.diffusion.core.prediction import Prediction
from jaxgen.families.diffusion.guidance.cfg import cfg
from jaxgen.families.diffusion.guidance.interval import limit
from jaxgen.families.diffusion.guidance.pair import Guided


def spatext(
    uncond: Denoiser, denoisers: Sequence[Denoiser], *, weights: Sequence[float] | float = 1.0
) -> Denoiser:
    """uncond + sum_i weights[i] (denoisers[i] - uncond), on x0 and eps (Avrahami et al. 2023,
    SpaText).

    denoisers: of one condition each, for conditions that have a scale of their own. The
    quick form, one direction towards all conditions together, is `cfg` of the denoiser that knows
    them all, at two calls. Parts of weight 0 are not called. Exact at weights 1 where the
    conditions are independent given x and without; calls that share a network are one batch.
    """
    scales = (weights,) * len(denoisers) if isinstance(weights, (int, float)) else tuple(weights)
    if len(scales) != len(denoisers) or not denoisers:
        sizes = (len(denoisers), len(scales))
        raise invalid("guidance.weights", sizes, "as many weights as denoisers, at least 1")
    used = [(cond, w) for cond, w in zip(denoisers, scales, strict=True) if w]
    if len(used) == 1:
        return cfg(used[0][0], uncond, used[0][1])
    if not used:
        return uncond
    every = [uncond, *(cond for cond, _ in used)]

    def call(
        keys: jax.Array, x: jax.Array, t: jax.Array, memory: Memory
    ) -> tuple[Prediction, Memory]:
        (q, *predictions), memories = together(every, keys, x, t, memory)
        x0, eps = q.x0, q.eps
        for p, (_, w) in zip(predictions, used, strict=True):
            x0, eps = x0 + w * (p.x0 - q.x0), eps + w * (p.eps - q.eps)
        return Prediction(x0, eps, predictions[0].variance), tuple(memories)

    return Denoiser(
        call,
        init=lambda x: tuple(each.init(x) for each in every),
        calls=lambda t: sum(each.calls(t) for each in every),
        path=uncond.path,
    )


def sine(
    cond: Denoiser,
    uncond: Denoiser,
    tuned: Denoiser,
    *,
    weight: float = 1.0,
    share: float = 0.5,
    above: float = 0.0,
) -> Guided:
    """uncond + weight (share tuned + (1 - share) cond - uncond) (Zhang et al. 2023, SINE).

    tuned: a model fine-tuned on the one image that is edited, for that image's label, which gives
    the layout; it is asked only at t >= above, where layout is made. `cond` is the base model, for
    the edit. share = 0 is `cfg` itself.
    """
    if not 0 <= share <= 1:
        raise invalid("guidance.share", share, "0 <= share <= 1")
    return cfg(limit(blend(cond, tuned, share), above, 1.0, cond=cond), uncond, weight)


def blend(cond: Denoiser, other: Denoiser, share: float) -> Denoiser:
    """share other + (1 - share) cond, on x0 and eps; 0 is `cond`, 1 `other`."""
    if share in (0, 1):
        return other if share else cond

    def call(
        keys: jax.Array, x: jax.Array, t: jax.Array, memory: Memory
    ) -> tuple[Prediction, Memory]:
        (p, q), memories = together([cond, other], keys, x, t, memory)
        x0, eps = p.x0 + share * (q.x0 - p.x0), p.eps + share * (q.eps - p.eps)
        return Prediction(x0, eps, p.variance), tuple(memories)

    return Denoiser(
        call,
        init=lambda x: (cond.init(x), other.init(x)),
        calls=lambda t: cond.calls(t) + other.calls(t),
        path=cond.path,
    )
