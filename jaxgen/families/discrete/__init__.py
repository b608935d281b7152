"""Masked and discrete diffusion: tokens noised to masks, or to noise, and predicted in parallel."""

from jaxgen.families.discrete.method import discrete_interpolants, maskbit, maskgit

__all__ = ["discrete_interpolants", "maskbit", "maskgit"]
