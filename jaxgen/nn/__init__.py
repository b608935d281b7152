"""Networks, a file a backbone: module(x[B, H, W, C], noise[B], labels[B], *, train=False)."""

from jaxgen.nn.dit import DiT
from jaxgen.nn.flops import multiply_adds, parameters
from jaxgen.nn.mlp import MLP

__all__ = ["DiT", "MLP", "multiply_adds", "parameters"]
