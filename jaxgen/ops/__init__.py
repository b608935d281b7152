"""Kernels: one function each, with interchangeable implementations of the same mathematics."""

from jaxgen.ops.attention import attention
from jaxgen.ops.fused import fused_attention
from jaxgen.ops.kernel import interpreted
from jaxgen.ops.masks import BlockCausal, Causal, Full, Mask, Prefix
from jaxgen.ops.partial import attention_with_lse, merge

__all__ = [
    "BlockCausal",
    "Causal",
    "Full",
    "Mask",
    "Prefix",
    "attention",
    "attention_with_lse",
    "fused_attention",
    "interpreted",
    "merge",
]
