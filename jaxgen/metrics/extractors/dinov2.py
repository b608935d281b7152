"""DINOv2's class token (Oquab et al. 2023), the features of FD-DINOv2 (Stein et al. 2023).

"Exposing flaws of generative model evaluation metrics and their unfair treatment of diffusion
models" resizes to 224 by Pillow's bicubic in floats, and takes Meta's own network, whose positions
are interpolated with an offset that transformers' does not have (`positions`).
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxgen.errors import invalid
from jaxgen.metrics.extractors import vit
from jaxgen.metrics.extractors.network import NetworkExtractor, applied, described
from jaxgen.metrics.extractors.resize import keys, pil_bicubic
from jaxgen.metrics.extractors.weights import Origin, State, obtain, taken

SIZE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES: dict[str, dict[str, Any]] = {
    "dinov2_vitb14": dict(width=768, depth=12, heads=12),
    "dinov2_vitl14": dict(width=1024, depth=24, heads=16),
}
_HUB = {"dinov2_vitb14": "facebook/dinov2-base", "dinov2_vitl14": "facebook/dinov2-large"}


class Names(NamedTuple):
    """What a state dict calls the parts; layer: ours -> theirs within a block."""

    positions: str
    token: str
    patch: str
    last: str
    blocks: str
    qkv: tuple[str, ...]
    layer: dict[str, str]


_LAYER = {"norm1": "norm1", "norm2": "norm2", "expand": "mlp.fc1", "contract": "mlp.fc2"}
META = Names(
    "pos_embed",
    "cls_token",
    "patch_embed.proj",
    "norm",
    "blocks.",
    ("attn.qkv",),
    _LAYER | {"proj": "attn.proj", "scale1": "ls1.gamma", "scale2": "ls2.gamma"},
)
TRANSFORMERS = Names(
    "embeddings.position_embeddings",
    "embeddings.cls_token",
    "embeddings.patch_embeddings.projection",
    "layernorm",
    "encoder.layer.",
    tuple(f"attention.attention.{name}" for name in ("query", "key", "value")),
    _LAYER
    | {
        "proj": "attention.output.dense",
        "scale1": "layer_scale1.lambda1",
        "scale2": "layer_scale2.lambda1",
    },
)


def module(width: int, depth: int, heads: int, dtype: str = "float32") -> vit.ViT:
    """DINOv2's network of a size."""
    return vit.ViT(width, depth, heads, scaled=True, dtype=jnp.dtype(dtype))


def origin(name: str) -> Origin:
    """Where the weights of a size come from."""
    file = f"{name}_pretrain.pth"
    return Origin(
        name=name,
        fetch=(
            f"curl -L --create-dirs -o ~/.cache/torch/hub/checkpoints/{file} "
            f"https://dl.fbaipublicfiles.com/dinov2/{name}/{file}",
            f"hf download {_HUB[name]} model.safetensors   # or this one",
        ),
        torch=(file,),
        hub=_HUB[name],
    )


def convert(
    state: State, *, heads: int, side: int = SIZE // 14, offset: float = 0.1
) -> dict[str, Any]:
    """Parameters of `module` from Meta's state dict or transformers' (`Dinov2Model`).

    side: patches along a side of the images to come. offset: see `positions`. UsageError for
    weights that are missing.
    """
    if extra := [k for k in state if "register" in k]:
        raise invalid("weights", extra[0], "DINOv2 without registers")
    names = META if META.positions in state else TRANSFORMERS
    return {
        "patch": {
            "kernel": vit.patch_kernel(state, f"{names.patch}.weight"),
            "bias": taken(state, f"{names.patch}.bias"),
        },
        "token": taken(state, names.token).reshape(-1),
        "positions": positions(taken(state, names.positions)[0], side, offset),
        "layers": vit.layers(state, names.blocks, names.layer, names.qkv, heads),
        "norm_after": vit.norm(state, names.last),
    }


def positions(table: np.ndarray, side: int, offset: float) -> np.ndarray:
    """Positions [1 + n * n, width] for side x side patches: [1 + side * side, width].

    Row 0 is the class token's. PyTorch's bicubic interpolation (a = -3/4, no filter, edges
    repeated) at a scale of (side + offset) / n. Meta's network has an offset of 0.1, which moves
    every position a little; transformers' has 0. Both leave the table alone where side is n.
    """
    n = round((len(table) - 1) ** 0.5)
    if n * n + 1 != len(table):
        raise invalid("weights", f"{len(table)} positions", "a square's and one for the class")
    if n == side:
        return table
    weights = _cubic(n, side, n / (side + offset))
    grid = table[1:].reshape(n, n, -1).astype(np.float64)
    grid = np.einsum("yh,hwd,xw->yxd", weights, grid, weights, optimize=True)
    return np.concatenate([table[:1], grid.reshape(side * side, -1).astype(np.float32)])


def _cubic(source: int, target: int, step: float) -> np.ndarray:
    """[target, source]: Keys' kernel with a = -3/4 at places (i + 1/2) step - 1/2."""
    place = (np.arange(target) + 0.5) * step - 0.5
    weights = np.zeros((target, source))
    for tap in range(-1, 3):
        index = np.floor(place).astype(int) + tap
        near = index.clip(0, source - 1)
        np.add.at(weights, (np.arange(target), near), keys(place - index, -0.75))
    return weights


def extractor(
    name: str, weights: str | Path | None = None, *, dtype: str = "float32", batch: int = 64
) -> NetworkExtractor:
    """DINOv2 of one of `SIZES`; features [N, width]. See `jaxgen.metrics.extractors.load`."""
    size = SIZES[name]
    apply = applied(functools.partial(module, **size), dtype)
    shapes = vit.shapes(module(**size), SIZE)
    by_heads = functools.partial(convert, heads=size["heads"])
    params, digest = obtain(origin(name), by_heads, shapes, weights)
    return NetworkExtractor(
        name=name,
        digest=described(digest, dtype),
        params=params,
        prepare=lambda images: vit.normalised(MEAN, STD)(pil_bicubic(images, (SIZE, SIZE))),
        apply=lambda params, x: {"features": apply(params, x)},
        batch=batch,
    )
