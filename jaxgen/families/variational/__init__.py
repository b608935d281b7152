"""Variational autoencoders: CVAE, IWAE and deep latent Gaussian models by one method, `vae`."""

from jaxgen.families.variational.method import vae

__all__ = ["vae"]
