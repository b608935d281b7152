"""Verbs that ask a generative model which class an image is of."""

from jaxgen.classify.generative import Classification, classify, halving

__all__ = ["Classification", "classify", "halving"]
