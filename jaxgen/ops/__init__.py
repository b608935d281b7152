"""Kernels: one function each, with interchangeable implementations of the same mathematics."""

from jaxgen.ops.attention import attention

__all__ = ["attention"]
