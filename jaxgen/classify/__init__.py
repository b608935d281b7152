"""Verbs that ask a generative model which class an image is of."""

from jaxgen.classify.generative import Classification, classify, halving
from jaxgen.classify.noise import add_noise, noise_levels

__all__ = ["Classification", "add_noise", "classify", "halving", "noise_levels"]
