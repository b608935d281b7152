"""Diffusion and flow matching: paths, predictions, losses, solvers, guidance, likelihood."""

from jaxgen.families.diffusion.methods.denoising import denoising
from jaxgen.families.diffusion.methods.jumps import mean_flow, shortcut
from jaxgen.families.diffusion.methods.masked import masked_denoising
from jaxgen.families.diffusion.methods.pixelflow import pixel_flow

__all__ = ["denoising", "masked_denoising", "mean_flow", "pixel_flow", "shortcut"]
