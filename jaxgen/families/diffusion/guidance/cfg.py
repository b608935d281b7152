"""Classifier-free guidance (Ho & Salimans 2022)."""

from __future__ import annotations

from jaxgen.families.diffusion.core.denoiser import Denoiser
from jaxgen.families.diffusion.guidance.pair import Guided, extrapolate


def cfg(
    cond: Denoiser, uncond: Denoiser, weight: float = 1.0, *, channels: int | None = None
) -> Guided:
    """uncond + weight (cond - uncond) on x0 and eps alike (their eq. 6, whose w is ours minus 1).

    weight = 1 is `cond` itself and 0 `uncond` itself: nothing is computed that is not used. A
    learned variance stays the conditional one's. channels: how many of the first channels are
    guided, None for all; the rest stay the conditional model's, under whatever further guidance the
    pair gets. DiT's and SiT's published scores have 3 of their four latent channels.
    """
    return extrapolate(cond, uncond, weight, channels)
