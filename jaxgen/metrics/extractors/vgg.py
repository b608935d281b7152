"""VGG16's feature maps (Simonyan & Zisserman 2015, configuration D), as torchvision trained it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.metrics.extractors.weights import Origin, State, obtain, taken

# Features of the convolutions between one pooling and the next.
WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
SMALLEST = 2 ** (len(WIDTHS) - 1)
_FILE = "vgg16-397923af.pth"
ORIGIN = Origin(
    name="vgg16",
    fetch=(
        f"curl -L --create-dirs -o ~/.cache/torch/hub/checkpoints/{_FILE} "
        f"https://download.pytorch.org/models/{_FILE}",
    ),
    torch=(_FILE,),
    digests={_FILE: "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0"},
)


class VGG16(nn.Module):
    """x [B, H, W, 3], normalised -> the five maps before each pooling, after their ReLU.

    [B, H / 2^i, W / 2^i, WIDTHS[i][-1]], rounded down, float32. UsageError for images with a side
    below 16, of which nothing would be left.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        """[B, H, W, 3] -> relu1_2, relu2_2, relu3_3, relu4_3, relu5_3."""
        if min(x.shape[1:3]) < SMALLEST:
            raise invalid("images", x.shape, f"sides of {SMALLEST} or more for VGG16")
        x, maps = x.astype(self.dtype), []
        for stage, widths in enumerate(WIDTHS, 1):
            if stage > 1:
                x = nn.max_pool(x, (2, 2), (2, 2))
            for number, width in enumerate(widths, 1):
                x = nn.relu(nn.Conv(width, (3, 3), dtype=self.dtype, name=f"{stage}_{number}")(x))
            maps.append(x.astype(jnp.float32))
        return maps


def convert(state: State) -> dict[str, Any]:
    """Parameters of `VGG16` from torchvision's state dict; its classifier is left out."""
    params, place = {}, 0
    for stage, widths in enumerate(WIDTHS, 1):
        for number in range(1, len(widths) + 1):
            params[f"{stage}_{number}"] = {
                "kernel": taken(state, f"features.{place}.weight").transpose(2, 3, 1, 0),
                "bias": taken(state, f"features.{place}.bias"),
            }
            # A convolution and its ReLU are two places in torchvision's list, a pooling one.
            place += 2
        place += 1
    return params


@functools.cache
def shapes() -> Any:
    """Shapes of the parameters of `VGG16`."""
    images = jax.ShapeDtypeStruct((1, SMALLEST, SMALLEST, 3), jnp.float32)
    return jax.eval_shape(VGG16().init, jax.random.key(0), images)["params"]


def load(weights: str | Path | None = None) -> tuple[Any, str]:
    """(parameters, digest) of torchvision's file, or of a cache: see `weights.obtain`."""
    return obtain(ORIGIN, convert, shapes(), weights)
