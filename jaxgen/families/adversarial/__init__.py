"""Adversarial training: losses, heads, regularisers, augmentations, and their composition."""

from jaxgen.families.adversarial.method import adversarial

__all__ = ["adversarial"]
