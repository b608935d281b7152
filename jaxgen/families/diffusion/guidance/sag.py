"""Self-attention guidance (Hong et al. 2023): away from an estimate blurred where one attends."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.families.diffusion.core.denoiser import Denoiser, Layer, Memory, path_of
from jaxgen.families.diffusion.core.path import TINY, Path, expand
from jaxgen.families.diffusion.core.prediction import Prediction
from jaxgen.families.diffusion.guidance.pair import At, is_pair, one_of


def sag(
    guided: Denoiser,
    *,
    layer: Layer | None = None,
    scale: float = 1.0,
    threshold: float = 1.0,
    blur: float = 1.0,
    path: Path | None = None,
) -> Denoiser:
    """eps(guided) + scale (eps(cond, x) - eps(cond, x')), and x0 to match.

    x' is x with `cond`'s x0 blurred (Gaussian, `blur` pixels) where the layer's attention map
    exceeds `threshold` times its mean, and the same eps. layer: a DiT's number from 0, a UNet's
    block ("middle_0"); None blurs everywhere, their blur guidance, for any denoiser. x [B, H, W, C]
    or [B, N]. `guided` is `cond`, or a pair that `cond` is the good one of. One call more than
    `guided`, and no batch of the pair; scale = 0 is `guided` itself.
    """
    if blur <= 0:
        raise invalid("guidance.blur", blur, "blur > 0, in pixels")
    cond, path = one_of(guided), path_of(guided, path)
    if layer is not None and cond.attend is None:
        raise invalid("guidance.layer", layer, "None: this denoiser has no self-attention")
    if scale == 0:
        return guided
    look = cond.attend(layer) if layer is not None and cond.attend is not None else None

    def estimate(at: At, memory: Memory) -> tuple[Prediction, Memory, jax.Array | None]:
        if look is None:
            return *cond(at.keys, at.x, at.t, memory), None
        return look(at.keys, at.x, at.t, memory)

    def call(
        keys: jax.Array, x: jax.Array, t: jax.Array, memory: Memory
    ) -> tuple[Prediction, Memory]:
        at = At(keys, x, t)
        cond_memory = memory[0] if is_pair(guided) else memory
        p, after, seen = estimate(at, cond_memory)
        out = p
        if is_pair(guided):
            q, second = guided.bad(keys, x, t, memory[1])
            out, third = guided.rule(p, q, at, memory[2])
            after = (after, second, third)
        alpha, sigma = expand(path.alpha(t), x), expand(path.sigma(t), x)
        worse, _ = cond(
            keys, x + alpha * (blurred(p.x0, blur, seen, threshold) - p.x0), t, cond_memory
        )
        push = scale * (p.eps - worse.eps)
        x0 = out.x0 - sigma * alpha / (alpha**2 + TINY) * push
        return Prediction(x0, out.eps + push, out.variance), after

    return Denoiser(
        call, init=guided.init, calls=lambda t: guided.calls(t) + cond.calls(t), path=path
    )


def blurred(
    x: jax.Array, std: float, seen: jax.Array | None = None, threshold: float = 1.0
) -> jax.Array:
    """x [B, H, W, C] or [B, N], blurred by a Gaussian of `std` pixels where the map is high.

    seen: [B, h, w] (or [B, n]), taken to x's size by repeating; None: everywhere. At the edges the
    weights of what is inside are divided by their sum.
    """
    places = x.shape[1 : max(x.ndim - 1, 2)]
    soft = x
    for axis, size in enumerate(places, start=1):
        step = jnp.arange(size)[:, None] - jnp.arange(size)
        weights = jax.nn.softmax(-0.5 * (step / std) ** 2, axis=-1)
        soft = jnp.moveaxis(jnp.tensordot(weights, soft, (1, axis)), 0, axis)
    if seen is None:
        return soft
    mask = jax.image.resize(seen, (x.shape[0], *places), "nearest") > threshold
    return jnp.where(expand(mask, x), soft, x)
