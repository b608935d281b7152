"""A DiT cut into an encoder of the visible patches and a light decoder of all of them.

Hansen-Estruch et al., "Unified Auto-Encoding with Masked Diffusion" (2024); the form is the masked
autoencoder's (He et al. 2022, section 3) with the blocks of `jaxgen.nn.dit`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.nn.dit import DiT, blocks_of, grid, patchify
from jaxgen.nn.layers import compute_dtype, normalise
from jaxgen.nn.positions import sin_cos_2d
from jaxgen.nn.stack import Stack, Taps


class Decoder(nn.Module):
    """Encoded visible patches -> tokens of all patches, with a learned token for the masked ones.

    layers() gives its stack of blocks. Only the mask tokens get positions: the encoder's tokens
    have theirs already (the masked autoencoder adds them to both).
    """

    width: int
    layers: Callable[[], Stack]
    dtype: Any

    @nn.compact
    def __call__(
        self, h: jax.Array, c: jax.Array, rows: int, columns: int, visible: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """h [B * K, D], condition c [B, D] -> (tokens [B * N, width], condition [B, width])."""
        images, places = c.shape[0], rows * columns
        init = nn.initializers.xavier_uniform()
        h = nn.Dense(self.width, kernel_init=init, dtype=self.dtype, name="embed")(h)
        c = nn.Dense(self.width, kernel_init=init, dtype=self.dtype, name="condition")(c)
        token = self.param("mask", nn.initializers.normal(0.02), (self.width,), jnp.float32)
        if visible is not None:
            masked = (token + sin_cos_2d(rows, columns, self.width)).astype(self.dtype)
            seen = h.reshape(images, -1, self.width)
            h = jax.vmap(lambda row, at: masked.at[at].set(row))(seen, visible)
        h = self.layers()(h.reshape(-1, self.width), c, None, places=places, each=(None,))
        return h, c


class MaskedDiT(DiT):
    """MaskedDiT: module(x[B, H, W, C], noise[B], condition) -> float32 [B, H, W, out_channels].

    visible: the places of the patches to see, row by row, int32 [B, K], each once; K is fixed and
    the encoder costs K patches. What a masked patch holds is never read; at its place the output is
    what the decoder makes of a mask token there. None: all patches, an ordinary denoiser, which
    sampling, guidance and likelihood use. With the decoder's `embed` and `condition` the identity
    it is then a DiT of depth + decoder_depth layers.

    Fields: `DiT`'s, for the encoder, and decoder_depth, decoder_width, decoder_heads (by default a
    fraction of DiT-S, as He et al. 2022, table 1, have a fraction of their encoder). rope is not
    offered: examples see different patches. identity_attention, attention maps and taps are the
    encoder's.
    """

    decoder_depth: int = 4
    decoder_width: int = 192
    decoder_heads: int = 3

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        noise: jax.Array,
        condition: Any,
        *,
        train: bool = False,
        visible: jax.Array | None = None,
        taps: Taps = (),
        decode: bool = True,
    ) -> Any:
        """Denoise x at noise, given a condition; decode=False: `features` instead."""
        dtype = compute_dtype(self.dtype)
        self._check(x.shape)
        images, (rows, columns) = x.shape[0], grid(x.shape, self.patch)

        h = patchify(x.astype(dtype), self.patch).reshape(images, rows * columns, -1)
        positions = sin_cos_2d(rows, columns, self.width).astype(dtype)
        if visible is not None:
            h = jnp.take_along_axis(h, visible[..., None], axis=1)
            positions = positions[visible]
        init, places = nn.initializers.xavier_uniform(), h.shape[1]
        h = nn.Dense(self.width, kernel_init=init, dtype=dtype, name="patch")(
            h.reshape(images * places, -1)
        )
        h = (h.reshape(images, places, self.width) + positions).reshape(-1, self.width)
        c = self._condition(noise, condition, dtype)
        blocks = blocks_of(self, self.depth, self.width, self.heads, train)
        h, tapped = blocks(h, c, None, places=places, each=(self._alone(),), taps=taps)
        if not decode:
            return normalise(h).reshape(images, places, self.width)

        sizes = self.decoder_depth, self.decoder_width, self.decoder_heads
        decoder = Decoder(
            self.decoder_width, lambda: blocks_of(self, *sizes, train), dtype, name="decoder"
        )
        h, c = decoder(h, c, rows, columns, visible)
        out = self._image(h, c, rows, columns)
        return (out, tapped) if taps else out

    def features(
        self, x: jax.Array, noise: jax.Array, condition: Any, visible: jax.Array | None = None
    ) -> jax.Array:
        """The encoder's tokens, normalised: float32 [B, K, width]; K all patches by default.

        For linear probes: their mean over patches, at noise 0 and "no label", as in training's
        representation step. module.apply(variables, x, noise, condition, method="features").
        """
        return self(x, noise, condition, visible=visible, decode=False)

    def _check(self, shape: tuple[int, ...]) -> None:
        super()._check(shape)
        if self.rope:
            raise invalid("model.rope", True, "False: visible patches differ between examples")
        if self.decoder_width % (4 * self.decoder_heads):
            allowed = f"multiples of 4 x decoder_heads = {4 * self.decoder_heads}"
            raise invalid("model.decoder_width", self.decoder_width, allowed)
