"""Time, label and patches as tokens of one stack whose later half merges the earlier's outputs.

What U-ViT (Bao et al., "All are Worth Words", 2023, figure 1) and DiS share.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.nn.conditions import Conditions, embed
from jaxgen.nn.dit import grid, patchify, unpatchify
from jaxgen.nn.layers import compute_dtype, fill, patched, sinusoidal
from jaxgen.nn.stack import Taps, check_taps, stacked

INIT, ROWS = nn.initializers.truncated_normal(0.02), nn.initializers.normal(0.02)


class LongSkips(nn.Module):
    """Time, label and patches as tokens of a stack whose later half merges the earlier's outputs.

    A subclass says its `table` of sizes and its block (`_block`). Arguments, taps (of patches) and
    shared fields as `jaxgen.nn.dit.DiT`'s. depth is odd: half of the layers, the middle one, and
    half that each merge the output of their mirror image. Positions are of one image size.
    time_offset is added to what is embedded. conv: a 3x3 convolution of the output.
    """

    table: ClassVar[Mapping[str, Mapping[str, int]]]
    num_classes: int
    out_channels: int
    size: str = "S/2"
    depth: int = 0
    width: int = 0
    patch: int = 0
    dropout: float = 0.0
    time_scale: float = 1000.0
    dtype: str = "float32"
    scan: bool = True
    remat: str = "dots"
    conditions: Conditions = ()
    time_offset: float = 0.0
    epsilon: float = 1e-6
    conv: bool = True

    def __post_init__(self) -> None:
        """Take from `size` what no field says."""
        fill(self, patched(self.table))
        super().__post_init__()

    def _block(self, length: int, train: bool) -> Callable[..., nn.Module]:
        """Makes a block, (x [B * length, width], skip [B, length, width] or none) -> x."""
        raise NotImplementedError

    def _time(self, numbers: jax.Array) -> jax.Array:
        """Numbers [B] -> their tokens [B, width]."""
        return sinusoidal(numbers, self.width)

    @nn.compact
    def __call__(
        self, x: jax.Array, noise: jax.Array, condition: Any, *,
        train: bool = False, taps: Taps = (),
    ) -> Any:  # fmt: skip
        """Denoise x [B, H, W, C] at noise [B], given a condition: [B, H, W, out_channels]."""
        dtype, shape, width = compute_dtype(self.dtype), grid(x.shape, self.patch), self.width
        self._check(taps)
        dense = functools.partial(nn.Dense, kernel_init=INIT, dtype=dtype)
        length, first, rows = shape[0] * shape[1] + 2, self.depth // 2 + 1, self.num_classes + 1
        time = self._time(self.time_scale * noise + self.time_offset).astype(dtype)
        table = nn.Embed(rows, width, embedding_init=ROWS, dtype=dtype, name="labels")
        label = embed(condition, table, self.conditions, x.shape[0], width=width, dtype=dtype)
        h = dense(width, name="patch")(patchify(x.astype(dtype), self.patch))
        h = jnp.concatenate([time[:, None], label[:, None], h.reshape(x.shape[0], -1, width)], 1)
        h = h + self.param("positions", INIT, (length, width), jnp.float32).astype(dtype)
        block = self._block(length, train)
        stack = functools.partial(stacked, block, scan=self.scan, remat=self.remat)
        shallow = stack(first)(name="shallow_blocks")
        h, outputs = shallow(h.reshape(-1, width), places=length, every=True)
        deep = stack(first - 1, per_layer=("tokens",))(name="deep_blocks")
        later, skips = tuple(k - first for k in taps if k > first), outputs[-2::-1]
        h, tapped = deep(h, places=length, each=(skips,), taps=later)
        h = nn.LayerNorm(self.epsilon, dtype=dtype, name="norm")(h)
        h = h.reshape(x.shape[0], length, width)[:, 2:]
        h = dense(self.patch**2 * self.out_channels, name="out")(h.reshape(-1, width))
        h = unpatchify(h, x.shape[0], *shape, self.patch)
        conv = nn.Conv(self.out_channels, (3, 3), dtype=dtype, name="conv")
        out = (conv(h) if self.conv else h).astype(jnp.float32)
        seen = {k: outputs[k - 1] if k <= first else tapped[k - first] for k in taps}
        return (out, {k: a[:, 2:] for k, a in seen.items()}) if taps else out

    def _check(self, taps: Taps) -> None:
        check_taps(taps, self.depth)
        if self.depth < 3 or self.depth % 2 == 0:
            raise invalid("model.depth", self.depth, "odd numbers from 3: a middle and two halves")
