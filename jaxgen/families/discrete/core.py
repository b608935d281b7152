"""The core that the family's methods share: elements, how they are noised, and who predicts them.

An example is N elements, int32 in [0, V), the unit of masking. For most models an element is a
token. MaskBit's tokens are K bits in G groups that are masked apart, so that an element is a group:
N = G x tokens, V = 2^(K / G).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.families.discrete.schedules import Schedule
from jaxgen.method import Spec

PyTree = Any
CHOSEN, NOISED = range(2)
"""Streams of the key that noises an example: which elements, and what they become."""


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Elements are tokens; the network is given their numbers, the mask's one past the last."""

    levels: int

    @property
    def values(self) -> int:
        """V."""
        return self.levels

    @property
    def per_token(self) -> int:
        """Elements of a token."""
        return 1

    def split(self, tokens: jax.Array) -> jax.Array:
        """Tokens [B, n] as elements [B, N]."""
        return tokens

    def join(self, elements: jax.Array) -> jax.Array:
        """The inverse of `split`."""
        return elements

    def inputs(self, elements: jax.Array) -> jax.Array:
        """What the network is given of elements [B, N], masks among them."""
        return elements


@dataclasses.dataclass(frozen=True)
class Bits:
    """Elements are groups of a token's bits; the network is given bits -1 and 1, 0 where masked.

    Weber et al., "MaskBit: Embedding-free Image Generation via Bit Tokens" (2024), section 4. A
    token's highest bit comes first; groups are consecutive bits.
    """

    bits: int
    groups: int

    @property
    def values(self) -> int:
        """V = 2^(bits of a group)."""
        return 2**self._size

    @property
    def per_token(self) -> int:
        """Elements of a token: the groups."""
        return self.groups

    @property
    def _size(self) -> int:
        return self.bits // self.groups

    def split(self, tokens: jax.Array) -> jax.Array:
        """Tokens [B, n] in [0, 2^bits) as groups [B, n x groups]."""
        shifts = self._size * jnp.arange(self.groups)[::-1]
        groups = (tokens[..., None] >> shifts) & (self.values - 1)
        return groups.reshape(*tokens.shape[:-1], -1).astype(jnp.int32)

    def join(self, elements: jax.Array) -> jax.Array:
        """The inverse of `split`."""
        shifts = self._size * jnp.arange(self.groups)[::-1]
        groups = elements.reshape(*elements.shape[:-1], -1, self.groups)
        return (groups << shifts).sum(-1).astype(jnp.int32)

    def inputs(self, elements: jax.Array) -> jax.Array:
        """Bits float32 [B, n, bits] of groups [B, n x groups]."""
        shifts = jnp.arange(self._size)[::-1]
        bits = 2.0 * ((elements[..., None] >> shifts) & 1) - 1.0
        bits = jnp.where((elements == self.values)[..., None], 0.0, bits)
        return bits.reshape(*elements.shape[:-1], -1, self.bits)


@dataclasses.dataclass(frozen=True)
class Core:
    """Elements of examples, their noise, and the network's prediction of them.

    noise: "mask" (an element becomes number V, which no data has) or "uniform" (it becomes any of
    the V). timed: the network is told the time (explicit), else it has to see it (implicit).
    """

    spec: Spec
    net: Any
    codec: Tokens | Bits
    schedule: Schedule
    noise: str
    timed: bool

    @property
    def size(self) -> int:
        """N."""
        return self.spec.size * self.codec.per_token

    @property
    def values(self) -> int:
        """V, and the number of the mask."""
        return self.codec.values

    def elements(self, x: jax.Array) -> jax.Array:
        """Examples [B, *shape] as elements int32 [B, N]."""
        return self.codec.split(self.spec.to_tokens(x).reshape(x.shape[0], -1))

    def examples(self, elements: jax.Array) -> jax.Array:
        """The inverse of `elements`."""
        tokens = self.codec.join(elements).reshape(-1, *self.spec.shape)
        return self.spec.from_tokens(tokens)

    def fresh(self, key: jax.Array) -> tuple[dict[str, PyTree], PyTree]:
        """First parameters {"net": ...}, and no extra."""
        x = self.codec.inputs(jnp.zeros((1, self.size), jnp.int32))
        options = {"noise": jnp.zeros(1)} if self.timed else {}
        return {"net": self.net.init(key, x, jnp.zeros(1, jnp.int32), **options)["params"]}, ()

    def logits(
        self,
        params: PyTree,
        x: jax.Array,
        labels: jax.Array,
        t: jax.Array,
        dropout: jax.Array | None = None,
    ) -> jax.Array:
        """Logits float32 [B, N, V] of the clean elements, from noised x [B, N] at t [B]."""
        options: dict[str, Any] = {"noise": t} if self.timed else {}
        out = self.net.apply(
            {"params": params},
            self.codec.inputs(x),
            labels,
            train=dropout is not None,
            rngs=None if dropout is None else {"dropout": dropout},
            **options,
        )
        return out.reshape(*x.shape, self.values).astype(jnp.float32)

    def noised(self, keys: jax.Array, x: jax.Array, chosen: jax.Array) -> jax.Array:
        """x [B, N] with the chosen elements (bool [B, N]) noised; keys [B]."""
        return jnp.where(chosen, self.start(keys), x)

    def start(self, keys: jax.Array) -> jax.Array:
        """All noise, int32 [B, N]."""
        if self.noise == "mask":
            return jnp.full((keys.shape[0], self.size), self.values, jnp.int32)
        return jax.vmap(lambda k: jax.random.randint(k, (self.size,), 0, self.values))(keys)


def ranks(keys: jax.Array, size: int) -> jax.Array:
    """A uniform permutation of 0 .. size - 1 for each key: int32 [B, size]."""

    def permutation(key: jax.Array) -> jax.Array:
        return jax.random.permutation(key, size)

    return jax.vmap(permutation)(keys)


def negative_log(logits: jax.Array, x: jax.Array) -> jax.Array:
    """-ln p [B, N] of elements x under logits [B, N, V]."""
    log = jax.nn.log_softmax(logits, axis=-1)
    return -jnp.take_along_axis(log, x[..., None], axis=-1)[..., 0]
