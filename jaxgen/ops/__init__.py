"""Kernels: one function each, with interchangeable implementations of the same mathematics."""

from jaxgen.ops.attention import attention, attention_with_lse, merge
from jaxgen.ops.masks import BlockCausal, Causal, Full, Mask, Prefix

__all__ = [
    "BlockCausal",
    "Causal",
    "Full",
    "Mask",
    "Prefix",
    "attention",
    "attention_with_lse",
    "merge",
]
