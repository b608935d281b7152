"""The kernels for arrays of heads, [B, H, N, D], as operations with every derivative."""

from __future__ import annotations

import dataclasses
from types import ModuleType

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.ops import choice, derivatives, gpu
from jaxgen.ops.derivatives import Arrays
from jaxgen.ops.kernel import Settings, interpreting
from jaxgen.ops.masks import Full, Mask, Place, dense
from jaxgen.ops.plain import xla
from jaxgen.ops.tpu import flash, single

KERNELS: dict[str, ModuleType] = {"single": single, "flash": flash, "gpu": gpu}


@dataclasses.dataclass(frozen=True)
class Heads(derivatives.Operation):
    """Xs: q, k, v and perhaps a bias; aux: `Place.array`."""

    kernel: str
    settings: Settings
    interpret: str

    def forward(self, xs: Arrays, aux: Arrays) -> tuple[jax.Array, Arrays]:
        """As `Operation.forward`."""
        outputs: tuple[jax.Array, Arrays] = KERNELS[self.kernel].forward(
            *xs[:3], _bias(xs), aux[0], self.settings, self.interpret
        )
        return outputs

    def backward(
        self, xs: Arrays, aux: Arrays, kept: Arrays, g: jax.Array, needed: tuple[bool, ...]
    ) -> Arrays:
        """As `Operation.backward`; a bias, whose cotangents are all scores', by the formula."""
        cotangents: Arrays = KERNELS[self.kernel].backward(
            *xs[:3], _bias(xs), aux[0], kept, g, self.settings, self.interpret
        )
        if len(xs) == 3:
            return cotangents
        by_bias = lambda bias: self.formula((*xs[:3], bias), aux)
        bias = jax.vjp(by_bias, xs[3])[1](g)[0] if needed[3] else jnp.zeros_like(xs[3])
        return *cotangents, bias

    def formula(self, xs: Arrays, aux: Arrays) -> jax.Array:
        """`xla`."""
        q, k, v = xs[:3]
        s = self.settings
        mask = dense(s.mask, q.shape[2], k.shape[2], aux[0]) if s.masked else None
        return xla(q, k, v, scale=s.scale, mask=mask, bias=_bias(xs))


def _bias(xs: Arrays) -> jax.Array | None:
    return xs[3] if len(xs) > 3 else None


def pallas_tpu(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    scale: float,
    mask: Mask,
    place: Place,
    bias: jax.Array | None = None,
) -> jax.Array:
    """`attention` by the TPU kernels: `single` where a head's keys fit on the chip, else `flash`.

    Raises UsageError for dtypes other than float32 and bfloat16, and for another platform.
    """
    kernel = "single" if single.fits(q, k, v) else "flash"
    return _apply("pallas_tpu", kernel, q, k, v, scale, mask, place, bias)


def pallas_gpu(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    scale: float,
    mask: Mask,
    place: Place,
    bias: jax.Array | None = None,
) -> jax.Array:
    """`attention` by the GPU kernels; dtypes as in `pallas_tpu`."""
    return _apply("pallas_gpu", "gpu", q, k, v, scale, mask, place, bias)


def _apply(
    name: str, kernel: str, q: jax.Array, k: jax.Array, v: jax.Array, scale: float, mask: Mask,
    place: Place, bias: jax.Array | None,
) -> jax.Array:  # fmt: skip
    dtypes = [str(each.dtype) for each in (q, k, v)]
    if len(set(dtypes)) > 1 or dtypes[0] not in ("float32", "bfloat16"):
        raise invalid(f"attention with {name}: dtypes", dtypes, "all float32 or all bfloat16")
    choice.demand(name)
    masked = not (isinstance(mask, Full) and place.keys is None)
    op = Heads(kernel, Settings(scale, mask, masked), interpreting())
    xs = (
        (q, k, v)
        if bias is None
        else (q, k, v, jnp.reshape(bias, (1,) * (4 - bias.ndim) + bias.shape))
    )
    return derivatives.apply(op, xs, (place.array(k.shape[2]),))
