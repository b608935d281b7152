"""Perturbed-attention guidance (Ahn et al. 2024): away from a network whose tokens do not meet."""

from __future__ import annotations

from jaxgen.errors import invalid
from jaxgen.families.diffusion.core.denoiser import Denoiser, Layer
from jaxgen.families.diffusion.core.prediction import Prediction
from jaxgen.families.diffusion.guidance.pair import At, one_of, pushed


def pag(guided: Denoiser, *, layers: tuple[Layer, ...], scale: float = 1.0) -> Denoiser:
    """guided + scale (cond - perturbed), on x0 and eps alike.

    perturbed is `cond` with the identity for the self-attention maps of `layers`: a DiT's numbers
    from 0, a UNet's blocks ("middle_0"). `guided` is `cond`, or a pair that `cond` is the good one
    of (CFG and this add up). One call more than `guided`; scale = 0 is `guided` itself.
    """
    cond = one_of(guided)
    if cond.perturb is None:
        raise invalid("guidance.pag", "a denoiser without self-attention", "one of a DiT or a UNet")
    if not layers:
        raise invalid("guidance.layers", layers, "at least one layer of self-attention")
    if scale == 0:
        return guided
    perturbed = cond.perturb(tuple(layers))

    def push(out: Prediction, p: Prediction, at: At) -> Prediction:
        q, _ = perturbed(at.keys, at.x, at.t, perturbed.init(at.x))
        x0, eps = out.x0 + scale * (p.x0 - q.x0), out.eps + scale * (p.eps - q.eps)
        return Prediction(x0, eps, out.variance)

    return pushed(guided, push)
