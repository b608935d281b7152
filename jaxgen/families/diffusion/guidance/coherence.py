"""Guidance against low coherence: away from labels that are not to be believed."""

from __future__ import annotations

from jaxgen.families.diffusion.core.denoiser import Denoiser
from jaxgen.families.diffusion.guidance.pair import Guided, extrapolate


def coherence(cond: Denoiser, incoherent: Denoiser, weight: float = 1.0) -> Guided:
    """incoherent + weight (cond - incoherent), both for the label (Dufour et al. 2024).

    cond is at the highest coherence, incoherent at the lowest, where the label says next to
    nothing: so no label has to be dropped in training. weight = 1 is `cond` itself.
    """
    return extrapolate(cond, incoherent, weight)
