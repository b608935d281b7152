"""Networks, a file a backbone: module(x[B, H, W, C], noise[B], condition, *, train=False)."""

from jaxgen.nn.dit import DiT
from jaxgen.nn.edm2 import EDM2
from jaxgen.nn.flops import multiply_adds, parameters
from jaxgen.nn.mlp import MLP
from jaxgen.nn.unet import UNet
from jaxgen.nn.uvit import UViT

__all__ = ["DiT", "EDM2", "MLP", "UNet", "UViT", "multiply_adds", "parameters"]
