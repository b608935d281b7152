"""Autoregressive models: exact likelihoods, one element after another."""

from jaxgen.families.autoregressive.method import autoregressive

__all__ = ["autoregressive"]
