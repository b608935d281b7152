"""Networks' label embeddings, changed from outside; a network told descriptions, not labels."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.errors import invalid


@contextlib.contextmanager
def changed(change: Callable[[jax.Array], jax.Array]) -> Iterator[None]:
    """Within, a network called has change(embeddings [B, width]) for its label embeddings.

    For networks whose label table is an `nn.Embed` named "labels" (DiT, MLP). Raises UsageError
    where none was called.
    """
    found = []

    def swap(
        following: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        out = following(*args, **kwargs)
        module, called = context.module, context.method_name == "__call__"
        if not (called and isinstance(module, nn.Embed) and module.name == "labels"):
            return out
        found.append(module)
        return change(out)

    with nn.intercept_methods(swap):
        yield
    if not found:
        allowed = "one with a table of label embeddings, an nn.Embed named 'labels'"
        raise invalid("config.model", "this network", allowed)


class Described(nn.Module):
    """`inner` told a description in the place of a label.

    module(x, noise[B], descriptions) as inner's: vectors [B, D], or sets of them [B, K, D] whose
    order does not matter. NaN stands for "no description", which is inner's "no label". inner: a
    network with a `width` and a label table (DiT, MLP).
    """

    inner: Any

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        noise: jax.Array,
        descriptions: jax.Array,
        *,
        train: bool = False,
        **options: Any,
    ) -> Any:
        """What inner says of x [B, ...]; options: what else it takes (taps)."""
        sets = descriptions if descriptions.ndim == 3 else descriptions[:, None]
        known = jnp.isfinite(sets).all((1, 2))[:, None]
        h = nn.Dense(self.inner.width, name="first")(jnp.where(known[..., None], sets, 0.0))
        h = nn.Dense(self.inner.width, name="second")(nn.silu(h)).mean(1)
        nothing = jnp.full(x.shape[0], self.inner.num_classes, jnp.int32)
        with changed(lambda out: jnp.where(known, h.astype(out.dtype), out)):
            return self.inner(x, noise, nothing, train=train, **options)
