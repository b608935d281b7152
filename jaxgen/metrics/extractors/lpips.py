"""LPIPS: how far apart two images look (Zhang et al. 2018, eq. 1), version 0.1 on VGG16.

"The Unreasonable Effectiveness of Deep Features as a Perceptual Metric". Each of five maps is
scaled to length one over its channels, differences are squared, weighted by channel with weights
learnt from people's judgements, averaged over places and summed over maps.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxgen.errors import invalid
from jaxgen.method import Encoder
from jaxgen.metrics.extractors import vgg
from jaxgen.metrics.extractors.network import (
    ROWS,
    WHOLE,
    applied,
    batches,
    checked,
    compiled,
    described,
)
from jaxgen.metrics.extractors.weights import Origin, State, obtain, taken
from jaxgen.metrics.sets.quantise import quantise

# ImageNet's mean and deviation for images in [-1, 1], as the authors round them.
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_SHA256 = "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868"
ORIGIN = Origin(
    name="lpips_vgg",
    fetch=(
        "pip install --no-deps lpips   # which has them in it",
        "curl -L --create-dirs -o ~/.cache/torch/hub/checkpoints/lpips_vgg.pth "
        "https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1/vgg.pth",
    ),
    torch=("lpips_vgg.pth",),
    package=("lpips", "weights/v0.1/vgg.pth"),
    digests={"lpips_vgg.pth": _SHA256, "vgg.pth": _SHA256},
)
Maps = list[jax.Array]


def embed(params: Any, x: jax.Array, *, dtype: str = "float32") -> Maps:
    """Five maps of images [B, H, W, 3] in [-1, 1], whose squared distances make LPIPS.

    A map is VGG16's, of length one over channels, times the roots of the learnt weights: LPIPS is
    the sum over maps of the mean over places of squared lengths of differences. params: {"vgg",
    "linear"}.
    """
    x = (x - jnp.asarray(SHIFT)) / jnp.asarray(SCALE)
    maps = applied(vgg.VGG16, dtype)(params["vgg"], x)
    return [unit(h) * jnp.sqrt(params["linear"][str(i)]) for i, h in enumerate(maps)]


def unit(x: jax.Array) -> jax.Array:
    """x [..., C] over its length; nought stays nought, and its gradient is nought."""
    squares = jnp.square(x).sum(-1, keepdims=True)
    some = squares > 0
    # A plain root's gradient is not a number at nought.
    return x / (jnp.where(some, jnp.sqrt(jnp.where(some, squares, 1.0)), 0.0) + 1e-10)


def lpips(params: Any, a: jax.Array, b: jax.Array, *, dtype: str = "float32") -> jax.Array:
    """LPIPS [B] of pairs of images [B, H, W, 3] in [-1, 1]; 0 for equal ones, but for rounding."""
    maps = embed(params, jnp.concatenate([a, b]), dtype=dtype)
    pairs = (jnp.split(h, 2) for h in maps)
    apart = [jnp.square(first - second).sum(-1).mean((1, 2)) for first, second in pairs]
    return jnp.stack(apart).sum(0)


def convert(state: State) -> dict[str, np.ndarray]:
    """The weights by channel of the five maps from the `lpips` package's file.

    UsageError for what is missing and for weights below 0, which training does not allow.
    """
    weights = {
        str(i): taken(state, f"lin{i}.model.1.weight").reshape(-1) for i in range(len(vgg.WIDTHS))
    }
    for name, weight in weights.items():
        if (weight < 0).any():
            raise invalid("weights", f"lin{name} with {weight.min()}", "none below 0")
    return weights


def shapes() -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the weights by channel."""
    return {
        str(i): jax.ShapeDtypeStruct(widths[-1:], jnp.float32)
        for i, widths in enumerate(vgg.WIDTHS)
    }


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class LPIPS:
    """LPIPS with its weights. batch: pairs at a time, over all devices (None: this process's)."""

    params: Any
    digest: str
    name: str = "lpips_vgg"
    dtype: str = "float32"
    batch: int = 32
    devices: Sequence[jax.Device] | None = None

    def __post_init__(self) -> None:
        """Check the batch."""
        if self.batch < 1:
            raise invalid("batch", self.batch, "1 or more")

    def distances(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """float32 [N] of pairs of images [N, H, W, C], at their own size.

        uint8 or floats in [-1, 1], which become bytes; one channel is repeated to three. Raises
        UsageError for shapes that differ and for sides below 16.
        """
        pair = np.asarray(a), np.asarray(b)
        if pair[0].shape != pair[1].shape:
            raise invalid("images", f"{pair[0].shape} and {pair[1].shape}", "one shape for both")
        if pair[0].ndim != 4 or pair[0].shape[-1] not in (1, 3):
            raise invalid("images", pair[0].shape, "a shape (N, H, W, 1) or (N, H, W, 3)")
        params, mesh, fn = self._compiled
        run = lambda *both: fn(params, *both)
        chunks = batches(run, [quantise(images) for images in pair], self.batch, mesh)
        return np.concatenate([np.asarray(apart)[:size] for size, apart in chunks])

    @functools.cached_property
    def _compiled(self) -> tuple[Any, Mesh, Callable[..., jax.Array]]:
        devices = jax.local_devices() if self.devices is None else self.devices
        mesh = Mesh(np.array(devices), ("data",))

        def of_bytes(params: Any, a: jax.Array, b: jax.Array) -> jax.Array:
            wide = (jnp.broadcast_to(x, (*x.shape[:3], 3)) / 127.5 - 1 for x in (a, b))
            return lpips(params, *wide, dtype=self.dtype)

        params = jax.device_put(self.params, NamedSharding(mesh, WHOLE))
        return params, mesh, compiled(of_bytes, mesh, WHOLE, ROWS, ROWS)


def load(
    trunk: str | Path | None = None,
    linear: str | Path | None = None,
    *,
    dtype: str = "float32",
    batch: int = 32,
) -> LPIPS:
    """LPIPS of two files: torchvision's VGG16 (trunk) and the `lpips` package's vgg.pth (linear).

    None: of this machine's caches, and `linear` of the installed package. Raises UsageError as
    `jaxgen.metrics.extractors.load` does.
    """
    checked(dtype)
    below, first = vgg.load(trunk)
    above, second = obtain(ORIGIN, convert, shapes(), linear)
    return LPIPS(
        params={"vgg": below, "linear": above},
        digest=described(f"{first}; {second}", dtype),
        dtype=dtype,
        batch=batch,
    )


def perceptual(trunk: str = "", linear: str = "") -> Encoder:
    """For `tokenizers.vqgan`'s `perceptual`: maps whose mean squared difference is LPIPS.

    trunk, linear: the files of `load`, or "" for this machine's. fn(images [B, H, W, C] in [-1, 1])
    -> five maps; each one's mean squared difference, averaged over maps, is the batch's mean LPIPS.
    """
    network = load(trunk or None, linear or None)

    def features(params: Any, x: jax.Array) -> Maps:
        maps = embed(params, jnp.broadcast_to(x, (*x.shape[:3], 3)))
        return [h * (len(maps) * h.shape[-1]) ** 0.5 for h in maps]

    return Encoder(features, network.params)
