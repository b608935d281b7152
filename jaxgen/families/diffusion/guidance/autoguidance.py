"""Autoguidance: away from a worse version of the model itself (Karras et al. 2024)."""

from __future__ import annotations

from jaxgen.families.diffusion.core.denoiser import Denoiser
from jaxgen.families.diffusion.guidance.pair import Guided, extrapolate


def autoguidance(cond: Denoiser, weak: Denoiser, weight: float = 1.0) -> Guided:
    """weak + weight (cond - weak), both for the label (their eq. 2).

    weight = 1 is `cond` itself. The weak model is the same network with the parameters at
    `params["weak"]`, or whatever the sampler's `branches` calls "weak" (a smaller network).
    """
    return extrapolate(cond, weak, weight)
