"""CLIP's image embedding (Radford et al. 2021), the features of CMMD (Jayasumana et al. 2024).

The ViT-L/14 of 336 pixels, projected into the space that it shares with text. Whether embeddings
have length one changes CMMD many times over, so the two are two extractors.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.metrics.extractors import vit
from jaxgen.metrics.extractors.network import NetworkExtractor, applied, described
from jaxgen.metrics.extractors.resize import pil_bicubic
from jaxgen.metrics.extractors.weights import Origin, State, dense, obtain, taken

SIZE = 336
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
LARGE: dict[str, Any] = dict(width=1024, depth=24, heads=16, projection=768)
ORIGIN = Origin(
    name="clip_vitl14_336",
    fetch=("hf download openai/clip-vit-large-patch14-336 model.safetensors",),
    hub="openai/clip-vit-large-patch14-336",
)
_LAYER = {
    "norm1": "layer_norm1",
    "proj": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "expand": "mlp.fc1",
    "contract": "mlp.fc2",
}
_QKV = tuple(f"self_attn.{name}_proj" for name in "qkv")


def module(width: int, depth: int, heads: int, projection: int, dtype: str = "float32") -> vit.ViT:
    """CLIP's image tower of a size."""
    return vit.ViT(
        width,
        depth,
        heads,
        gelu="quick",
        before=True,
        bias=False,
        epsilon=1e-5,
        projection=projection,
        dtype=jnp.dtype(dtype),
    )


def convert(state: State, *, heads: int) -> dict[str, Any]:
    """Parameters of `module` from transformers' state dict of CLIP, or of its image tower.

    UsageError for weights that are missing.
    """
    top = "vision_model."
    return {
        "patch": {"kernel": vit.patch_kernel(state, f"{top}embeddings.patch_embedding.weight")},
        "token": taken(state, f"{top}embeddings.class_embedding"),
        "positions": taken(state, f"{top}embeddings.position_embedding.weight"),
        # The name is spelt so there.
        "norm_before": vit.norm(state, f"{top}pre_layrnorm"),
        "layers": vit.layers(state, f"{top}encoder.layers.", _LAYER, _QKV, heads),
        "norm_after": vit.norm(state, f"{top}post_layernorm"),
        "projection": dense(state, "visual_projection"),
    }


def extractor(
    weights: str | Path | None = None,
    *,
    unit: bool = False,
    dtype: str = "float32",
    batch: int = 64,
) -> NetworkExtractor:
    """CLIP ViT-L/14-336; features [N, 768]. See `jaxgen.metrics.extractors.load`.

    unit: embeddings of length one, called clip_vitl14_336_unit. Images are resized to a square,
    not cropped to one.
    """
    apply = applied(functools.partial(module, **LARGE), dtype)
    shapes = vit.shapes(module(**LARGE), SIZE)
    params, digest = obtain(
        ORIGIN, functools.partial(convert, heads=LARGE["heads"]), shapes, weights
    )

    def features(params: Any, x: jax.Array) -> dict[str, jax.Array]:
        embedding = apply(params, x)
        return {"features": scaled(embedding) if unit else embedding}

    return NetworkExtractor(
        name="clip_vitl14_336_unit" if unit else "clip_vitl14_336",
        digest=described(digest, dtype),
        params=params,
        prepare=lambda images: vit.normalised(MEAN, STD)(pil_bicubic(images, (SIZE, SIZE))),
        apply=features,
        batch=batch,
    )


def scaled(x: jax.Array) -> jax.Array:
    """Each row over its length."""
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
