"""Diffusion and flow matching: paths, predictions, losses, solvers, guidance, likelihood."""

from jaxgen.families.diffusion.jumps import mean_flow, shortcut
from jaxgen.families.diffusion.masked import masked_denoising
from jaxgen.families.diffusion.method import denoising

__all__ = ["denoising", "masked_denoising", "mean_flow", "shortcut"]
