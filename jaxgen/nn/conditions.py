"""What a network is told of an example, as one vector: a label, and whatever else it declares.

A condition is labels int32 [B]; or a mapping from names to arrays [B, ...], several conditions at
once, the label's name being "label"; or a `Condition`, which holds either and a change of the
vector that comes of it. A network declares what it can be told besides the label in its field
`conditions`, as (name, kind, *sizes):

| kind | array | sizes |
|-|-|-|
| "label" | int [B] in [0, classes) | classes |
| "number" | float [B], e.g. a guidance weight | scale (1): 1 over a change of it that matters |
| "vector" | float [B, D] | D |
| "set" | float [B, K, D] in any order, any K | D |
| "sequence" | float [B, N, D] | N, D |
| "tokens" | int [B, N] in [0, words) | N, words |
| "image" | float [B, h, w, c] | h, w, c, patch, a divisor of h and w |

All of them are pooled into the vector; attention to their parts is another backbone's matter.

"None" is what a name that is left out means, for an example NaN in all of it, and -1 for integers
(for a label the number of classes too); it has an embedding of its own, which is learned; for the
label alone it is the network's, in U-Nets a zero vector. Where only some rows of a set, a sequence,
tokens or patches are NaN or -1, those rows are left out.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from jaxgen.errors import invalid, unknown
from jaxgen.nn.mp import MPDense, mp_fourier, mp_silu, mp_sum, unit_rms

Conditions = tuple[tuple[Any, ...], ...]
"""What a network declares: (name, kind, *sizes) for each."""

Change = Callable[[jax.Array], jax.Array]
"""Embeddings [B, width] -> embeddings [B, width]."""

UNIT = nn.initializers.normal(1.0)

FEATURES = 64
"""Random Fourier features of a number."""


@flax.struct.dataclass
class Condition:
    """What is told, labels or a mapping, and what is done to its embedding [B, width].

    The change may hold traced arrays, so it cannot pass into another `jit`. None: there is none.
    """

    told: Any
    change: Change | None = flax.struct.field(pytree_node=False, default=None)


def changed(condition: Any, change: Change) -> Condition:
    """The condition whose embedding is changed, after any change that it has."""
    if not isinstance(condition, Condition):
        return Condition(condition, change)
    before = condition.change
    both = change if before is None else lambda y: change(before(y))
    return Condition(condition.told, both)


def embed(
    condition: Any,
    table: Callable[[jax.Array], jax.Array],
    conditions: Conditions,
    size: int,
    *,
    width: int,
    dtype: Any,
    preserving: bool = False,
) -> jax.Array:
    """The vectors [B, width] of a condition of `size` examples, within a network's `nn.compact`.

    table: the network's own embedding of labels [B]. conditions: what it declares; their parameters
    are in its "conditions", and there are none where it declares nothing. preserving: for networks
    that keep magnitudes (EDM2). At initialisation they add nothing, so that a network which is
    given further conditions starts as it was. Raises UsageError for a condition that is not
    declared, and for one of another shape.
    """
    told, change = condition, None
    if isinstance(condition, Condition):
        told, change = condition.told, condition.change
    told = dict(told) if isinstance(told, Mapping) else {"label": told}
    h = table(told.pop("label") if "label" in told else jnp.full(size, -1))
    for name in told:
        if name not in [own for own, *_ in conditions]:
            raise unknown("condition", name, ["label", *(own for own, *_ in conditions)])
    if conditions:
        h = _Sum(conditions, width, dtype, preserving, name="conditions")(h, told)
    return h if change is None else change(h)


class _Sum(nn.Module):
    """Embeddings of labels with those of all that is declared added.

    Magnitudes are kept by a learned gain for each, 0 at first, over the root of 1 + their squares.
    """

    conditions: Conditions
    width: int
    dtype: Any
    preserving: bool

    @nn.compact
    def __call__(self, h: jax.Array, told: Mapping[str, jax.Array]) -> jax.Array:
        """h [B, width], what is told besides the label -> [B, width]."""
        square: jax.Array | float = 1.0
        for name, kind, *sizes in self.conditions:
            example = shape_of(name, kind, *sizes)
            value = told.get(name, none(kind, (h.shape[0], *example)))
            _check(name, kind, value, (h.shape[0], *example))
            embedding = Embedding(
                kind, tuple(sizes), self.width, self.dtype, self.preserving, name=name
            )
            gain: jax.Array | float = 1.0
            if self.preserving:
                gain = self.param(f"{name}_gain", nn.initializers.zeros, ())
                square = square + gain**2
            h = h + (gain * embedding(value)).astype(h.dtype)
        return (h * jax.lax.rsqrt(square)).astype(h.dtype) if self.preserving else h


class Embedding(nn.Module):
    """One condition, as declared -> [B, width]. Two dense layers, the mean over rows between them.

    preserving: layers are magnitude-preserving, and so is the whole; else it is 0 at first.
    """

    kind: str
    sizes: tuple[Any, ...]
    width: int
    dtype: Any
    preserving: bool

    @nn.compact
    def __call__(self, value: jax.Array) -> jax.Array:
        """The array of the kind that the module's table says."""
        zeros = nn.initializers.zeros
        if self.kind == "label":
            classes = self.sizes[0]
            return self._table(jnp.where(value < 0, classes, value), classes + 1, "table", zeros)
        rows, seen = self._rows(value)
        h = self._first(rows, seen)
        if self.kind in ("sequence", "tokens", "image"):
            places = self._table(jnp.arange(h.shape[1]), h.shape[1], "positions")
            h = mp_sum(h, places, 0.5) if self.preserving else h + places
        h = mp_silu(h) if self.preserving else nn.silu(h)
        weight = seen[..., None].astype(h.dtype)
        h = (weight * h).sum(1) / jnp.maximum(weight.sum(1), 1)
        if self.preserving:
            h = self._dense("second")(unit_rms(h, -1))
            none = self.param("none", UNIT, (self.width,), jnp.float32)
            none = unit_rms(none, -1)
        else:
            h = self._dense("second", kernel_init=zeros)(h)
            none = self.param("none", zeros, (self.width,), jnp.float32)
        return jnp.where(seen.any(1)[:, None], h, none.astype(h.dtype))

    def _rows(self, value: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(rows [B, K, D], or [B, K] of tokens; which are there, bool [B, K])."""
        if self.kind == "tokens":
            return value, value >= 0
        if self.kind == "image":
            *_, patch = self.sizes
            b, h, w, c = value.shape
            value = value.reshape(b, h // patch, patch, w // patch, patch, c)
            rows = value.transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, patch * patch * c)
        else:
            rows = value.reshape(value.shape[0], -1, value.shape[-1] if value.ndim > 1 else 1)
        seen = jnp.isfinite(rows).all(-1)
        # Gradients of what is left out would be NaN, were it not replaced before any layer.
        return jnp.where(seen[..., None], rows, 0.0), seen

    def _first(self, rows: jax.Array, seen: jax.Array) -> jax.Array:
        """The first layer, [B, K, width]."""
        if self.kind == "tokens":
            return self._table(jnp.where(seen, rows, 0), self.sizes[1], "first")
        if self.kind == "number":
            scale = self.sizes[0] if self.sizes else 1.0
            rows = mp_fourier(scale * rows[:, 0, 0], FEATURES)[:, None]
        if self.preserving:
            # In the place of a bias, as for the network's image.
            rows = jnp.concatenate([rows, jnp.ones_like(rows[..., :1])], axis=-1)
        return self._dense("first")(rows)

    def _dense(self, name: str, **options: Any) -> Any:
        layer: Any = MPDense if self.preserving else functools.partial(nn.Dense, **options)
        return layer(self.width, dtype=self.dtype, name=name)

    def _table(self, index: jax.Array, rows: int, name: str, init: Any = UNIT) -> jax.Array:
        """Row `index` of a learned table of that many rows."""
        if self.preserving:
            one_hot = jax.nn.one_hot(index, rows) * math.sqrt(rows)
            return MPDense(self.width, dtype=self.dtype, name=name)(one_hot)
        return nn.Embed(rows, self.width, embedding_init=init, dtype=self.dtype, name=name)(index)


SHAPES: dict[str, Callable[..., tuple[int, ...]]] = {
    "label": lambda classes: (),
    "number": lambda scale=1.0: (),
    "vector": lambda size: (size,),
    "set": lambda size: (1, size),
    "sequence": lambda length, size: (length, size),
    "tokens": lambda length, words: (length,),
    "image": lambda height, width, channels, patch: (height, width, channels),
}
"""An example's shape by kind, of its sizes; a set's of one row."""


def shape_of(name: str, kind: str, *sizes: Any) -> tuple[int, ...]:
    """An example's shape of what is declared. Raises UsageError where it is declared wrongly."""
    if name == "label":
        raise invalid("model.conditions", name, "other names: labels are the network's own")
    if kind not in SHAPES:
        raise unknown("model.conditions", str(kind), SHAPES)
    try:
        shape = SHAPES[kind](*sizes)
    except TypeError as error:
        wanted = SHAPES[kind].__code__.co_varnames
        raise invalid("model.conditions", (name, kind, *sizes), f"{kind} with {wanted}") from error
    if kind == "image" and (sizes[0] % sizes[3] or sizes[1] % sizes[3]):
        raise invalid("model.conditions", (name, kind, *sizes), "a patch that divides the image")
    return shape


def none(kind: str, shape: tuple[int, ...]) -> jax.Array:
    """What an example that is told nothing is told, of a kind and this shape."""
    return jnp.full(shape, -1) if kind in ("label", "tokens") else jnp.full(shape, jnp.nan)


def _check(name: str, kind: str, value: Any, wanted: tuple[int, ...]) -> None:
    """Refuse an array of another shape or type than declared; a set may have any number of rows."""
    integers = kind in ("label", "tokens")
    given = value.shape[:1] + (1,) + value.shape[2:] if kind == "set" else value.shape
    if given != wanted or integers != jnp.issubdtype(value.dtype, jnp.integer):
        allowed = f"{'int' if integers else 'float'} {wanted}"
        raise invalid(f"condition.{name}", f"{value.dtype} {value.shape}", allowed)
