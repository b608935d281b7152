"""Networks that were written for something else: Linen, NNX, Equinox, and pairs of pure functions.

    model=dict(name="own.NNX", of=dict(name="my_net.UNet", width=64), call="x, 1000 * t, y")

Each class here is a Flax module like all others of `jaxgen.nn`, so that whatever is done with one
of those (averages, checkpoints, guidance, meshes, LoRA) is done with it too. docs/own_network.md
says what a network is given and what it must return.
"""

from __future__ import annotations

from jaxgen.nn.own.base import adapted
from jaxgen.nn.own.equinox import Equinox
from jaxgen.nn.own.linen import Linen
from jaxgen.nn.own.nnx import NNX
from jaxgen.nn.own.pure import Pure
from jaxgen.nn.own.trees import filled, parameters

__all__ = ["NNX", "Equinox", "Linen", "Pure", "adapted", "filled", "parameters"]
