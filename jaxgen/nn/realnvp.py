"""RealNVP for vectors: affine couplings, each of one half of the numbers given the other.

Dinh, Sohl-Dickstein & Bengio, "Density estimation using Real NVP" (2017), section 3; for flows on
latents, where Glow's and TarFlow's places mean nothing.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.errors import invalid

PyTree = Any
BOUND = 2.0
"""Of a coupling's log-scales: tanh keeps them below, so that no step of training overflows."""


class RealNVP(nn.Module):
    """An invertible map between examples [B, *shape], flattened, and noise, given labels.

    width: of the one hidden layer in each coupling; couplings: how many, which take turns in what
    they change. The identity at initialisation. Raises UsageError for examples of one number.
    """

    num_classes: int
    shape: tuple[int, ...]
    width: int = 64
    couplings: int = 4

    guidable = False
    """A guided coupling would no longer be the inverse of anything."""

    @nn.compact
    def __call__(
        self, x: jax.Array, labels: jax.Array, *, train: bool = False, inverse: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """Examples to (noise [B, size], ln |det| [B]), or with inverse=True noise to examples."""
        del train
        size = math.prod(self.shape)
        if size < 2 or self.couplings < 1:
            allowed = "two numbers or more, and couplings >= 1"
            raise invalid("config.model.couplings", (self.shape, self.couplings), allowed)
        h, log_det = x.reshape(x.shape[0], size), jnp.zeros(x.shape[0])
        order = range(self.couplings)
        for number in reversed(order) if inverse else order:
            given, changed = (slice(None, size // 2), slice(size // 2, None))[
                :: 1 - 2 * (number % 2)
            ]
            shift, log_scale = self._coupling(number, h[:, given], labels, h[:, changed].shape[1])
            if inverse:
                new, sign = (h[:, changed] - shift) * jnp.exp(-log_scale), -1
            else:
                new, sign = h[:, changed] * jnp.exp(log_scale) + shift, 1
            h, log_det = h.at[:, changed].set(new), log_det + sign * log_scale.sum(-1)
        return (h.reshape(-1, *self.shape) if inverse else h), log_det

    def _coupling(
        self, number: int, given: jax.Array, labels: jax.Array, size: int
    ) -> tuple[jax.Array, jax.Array]:
        """Shift and log-scale [B, size] from the half [B, n] that stays."""
        table = nn.Embed(self.num_classes + 1, self.width, name=f"label{number}")
        h = nn.Dense(self.width, name=f"in{number}")(given) + table(labels)
        zeros = nn.initializers.zeros
        out = nn.Dense(2 * size, kernel_init=zeros, name=f"out{number}")(nn.silu(h))
        shift, raw = jnp.split(out, 2, axis=-1)
        return shift, BOUND * jnp.tanh(raw / BOUND)

    def inverse(
        self, params: PyTree, z: jax.Array, labels: jax.Array, guidance: float = 1.0
    ) -> jax.Array:
        """z [B, size] -> x [B, *shape]; guidance can only be 1."""
        del guidance
        x: Any = self.apply({"params": params}, z, labels, inverse=True)
        return x[0]

    def calls(self, guidance: float) -> float:
        """Network evaluations a sample: one."""
        del guidance
        return 1.0
