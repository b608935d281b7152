"""Self-attention from the projection of tokens: norm, rotation, softmax and product as one step."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid, unknown
from jaxgen.ops import choice, derivatives
from jaxgen.ops.attention import IMPLEMENTATIONS, attention
from jaxgen.ops.kernel import interpreting
from jaxgen.ops.masks import Full, Mask
from jaxgen.ops.rotary import rms_norm, rotate
from jaxgen.ops.tpu import fused as kernels


def fused_attention(
    qkv: jax.Array,
    *,
    heads: int,
    scale: float,
    groups: int | None = None,
    mask: Mask | None = None,
    q_scale: jax.Array | None = None,
    k_scale: jax.Array | None = None,
    angles: jax.Array | None = None,
    epsilon: float = 1e-6,
    implementation: str = "auto",
) -> jax.Array:
    """Self-attention of B sequences of N tokens: qkv [B, N, (H + 2 G) D] -> [B, N, H D].

    A row holds G groups, one after another; a group its H / G queries, its key and its value, each
    of D numbers. Without grouped queries (groups=None: G = H) that is q, k, v of the first head,
    then of the second, and so on, so that any range of heads is a range of columns.

    q_scale, k_scale [D]: queries and keys are divided by their root mean square and multiplied by
    these (`rms_norm`, with `epsilon`); both or neither. angles [N, D / 2]: queries and keys are
    then turned (`rotate`). scale, mask, and what follows: as `attention`, on tokens 0 to N - 1.
    implementation: "pallas_tpu" is one kernel for all of it and one for the gradient, and moves
    nothing through main memory but qkv and the result; the others are `attention`'s, with the parts
    around them; "auto" as there. Raises UsageError for shapes that do not fit each other or the
    chip.
    """
    groups = groups or heads
    if implementation not in IMPLEMENTATIONS:
        raise unknown("fused_attention.implementation", implementation, IMPLEMENTATIONS)
    layout = _layout(qkv, heads, groups, q_scale, k_scale, angles)
    norm, rope = q_scale is not None, angles is not None
    settings = kernels.Settings(layout, scale, mask or Full(), norm, rope, epsilon)
    xs = tuple(each for each in (qkv, q_scale, k_scale, angles) if each is not None)
    fits = kernels.fits(layout, qkv.shape[1], qkv.dtype)
    if implementation == "auto":
        implementation = choice.of_tokens(qkv, layout.size, mask, fits)
    if implementation != "pallas_tpu":
        return composed(settings, xs, implementation)
    choice.demand(implementation)
    if not fits:
        raise invalid(
            "fused_attention with pallas_tpu: qkv",
            (qkv.shape, str(qkv.dtype)),
            f"float32 or bfloat16 that takes {kernels.MEMORY >> 20} MiB on the chip at most",
            "Take fewer heads or tokens at a time, or another implementation.",
        )
    return derivatives.apply(Fused(settings, interpreting()), xs)


def _layout(
    qkv: jax.Array,
    heads: int,
    groups: int,
    q_scale: jax.Array | None,
    k_scale: jax.Array | None,
    angles: jax.Array | None,
) -> kernels.Layout:
    columns = heads + 2 * groups
    if qkv.ndim != 3 or heads % groups or qkv.shape[2] % columns:
        allowed = f"[B, N, (H + 2 G) D] with H = {heads}, G = {groups} a divisor of it"
        raise invalid("fused_attention: qkv", qkv.shape, allowed)
    size = qkv.shape[2] // columns
    if (q_scale is None) != (k_scale is None):
        raise invalid("fused_attention: q_scale, k_scale", "one of them", "both or neither")
    for name, given, wanted in (
        ("q_scale", q_scale, (size,)),
        ("k_scale", k_scale, (size,)),
        ("angles", angles, (qkv.shape[1], size // 2)),
    ):
        if given is not None and given.shape != wanted:
            raise invalid(f"fused_attention: {name}", given.shape, str(wanted))
    return kernels.Layout(heads, groups, size)


def composed(settings: kernels.Settings, xs: derivatives.Arrays, implementation: str) -> jax.Array:
    """`fused_attention` of `Fused`'s xs as its parts around `attention`."""
    s = settings
    (b, n, _), layout = xs[0].shape, s.layout
    shared = layout.heads // layout.groups
    by_head = xs[0].reshape(b, n, layout.groups, shared + 2, layout.size)
    by_head = by_head.transpose(0, 2, 3, 1, 4)
    q, k, v = by_head[:, :, :-2], by_head[:, :, -2], by_head[:, :, -1]
    q = q.reshape(b, layout.heads, n, layout.size)
    if s.norm:
        q, k = (rms_norm(a, w, epsilon=s.epsilon) for a, w in ((q, xs[1]), (k, xs[2])))
    if s.rope:
        q, k = rotate(q, xs[-1]), rotate(k, xs[-1])
    h = attention(q, k, v, scale=s.scale, mask=s.mask, implementation=implementation)
    return h.transpose(0, 2, 1, 3).reshape(b, n, -1)


@dataclasses.dataclass(frozen=True)
class Fused(derivatives.Operation):
    """Xs: qkv, the two scales if there is a norm, angles if there is a rotation."""

    settings: kernels.Settings
    interpret: str

    def _given(self, xs: derivatives.Arrays) -> tuple[jax.Array | None, jax.Array | None]:
        scales = jnp.stack(xs[1:3]).astype(jnp.float32) if self.settings.norm else None
        return scales, kernels.turns(xs[-1]) if self.settings.rope else None

    def forward(self, xs, aux):  # type: ignore[no-untyped-def]
        """As `Operation.forward`."""
        return kernels.forward(xs[0], *self._given(xs), self.settings, self.interpret), ()

    def backward(self, xs, aux, kept, g, needed):  # type: ignore[no-untyped-def]
        """As `Operation.backward`; angles, which nobody trains, by the formula."""
        given = self._given(xs)
        dqkv, dscales = kernels.backward(xs[0], *given, g, self.settings, self.interpret)
        cotangents = [dqkv]
        if dscales is not None:
            cotangents += [dscales[i].astype(xs[1 + i].dtype) for i in range(2)]
        if self.settings.rope:
            by_angles = lambda angles: self.formula((*xs[:-1], angles), aux)
            angles = jax.vjp(by_angles, xs[-1])[1](g) if needed[-1] else [jnp.zeros_like(xs[-1])]
            cotangents += angles
        return tuple(cotangents)

    def formula(self, xs, aux):  # type: ignore[no-untyped-def]
        """The parts, composed."""
        return composed(self.settings, xs, "xla")
