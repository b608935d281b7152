"""Stable Diffusion's VAE as `jaxgen.nn.autoencoder.AutoencoderKL`: diffusers' names, or its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxgen.pretrained.autoencoder import Names, attending, half, levels
from jaxgen.pretrained.layout import (
    Found,
    Layout,
    PyTree,
    State,
    conv,
    converted,
    count,
    shape_of,
    within,
)

DIFFUSERS = Names(
    levels="{kind}_blocks",
    residuals="resnets",
    attentions="attentions",
    sampler="{kind}samplers.0.conv",
    middle=("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1"),
    norm_out="conv_norm_out",
    shortcut="conv_shortcut",
    attention={"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj": "to_out.0"},
)
# Of checkpoints written before diffusers 0.14.
_OLD = {"norm": "group_norm", "q": "query", "k": "key", "v": "value", "proj": "proj_attn"}
OWN = Names(
    levels="{kind}",
    residuals="block",
    attentions="attn",
    sampler="{kind}sample.conv",
    middle=("mid.block_1", "mid.attn_1", "mid.block_2"),
    norm_out="norm_out",
    shortcut="nin_shortcut",
    attention={"norm": "norm", "q": "q", "k": "k", "v": "v", "proj": "proj_out"},
    upwards=True,
)
_WHAT, _OWN_WHAT = "an AutoencoderKL of diffusers", "an AutoencoderKL of latent diffusion's code"
FIRST = "encoder.conv_in.weight"


def from_diffusers(state: State) -> dict[str, Any]:
    """Parameters (float32) from the state dict of an `AutoencoderKL`.

    state: name -> array, as a safetensors file gives it. Its scaling factor (0.18215 for Stable
    Diffusion's) is not a weight: give it to the source of latents. Raises UsageError for weights
    that are missing and for weights that this network has no place for.
    """
    return _converted(state, _names(state), _WHAT)


def from_own(state: State) -> dict[str, Any]:
    """Parameters (float32) from the state dict of latent diffusion's own code. UsageError."""
    return _converted(state, OWN, _OWN_WHAT)


def _names(state: State) -> Names:
    """diffusers', or what it had before."""
    old = "encoder.mid_block.attentions.0.query.weight" in state
    return DIFFUSERS if not old else dataclasses.replace(DIFFUSERS, attention=_OLD)


def _converted(state: State, names: Names, what: str) -> dict[str, Any]:
    shape_of(state, FIRST, what)
    table = {
        **within("encoder", "encoder", half(state, "encoder", names)),
        **within("decoder", "decoder", half(state, "decoder", names)),
        **conv("quant", "quant_conv"),
        **conv("post_quant", "post_quant_conv"),
    }
    # Training's losses, a discriminator among them, are in the same file.
    return dict(converted(state, table, what, beside=(r"loss\..*",)))


def _config(found: Found, names: Names, what: str) -> dict[str, Any]:
    state, about = found.state, found.about
    out, latent = (shape_of(state, f"decoder.{n}.weight", what) for n in ("conv_out", "conv_in"))
    first = f"encoder.{names.levels.format(kind='down')}"
    widths = tuple(
        shape_of(state, f"{first}.{i}.{names.residuals}.0.conv2.weight", what)[0]
        for i in range(levels(state, "encoder", names))
    )
    side = about.get("sample_size", 256)
    return dict(
        data=dict(
            source=dict(name="folder.folder", path="data", image_size=side),
            holds=dict(shape=(side, side, out[0]), num_classes=1000, levels=256),
        ),
        model=dict(
            name="autoencoder.AutoencoderKL",
            latent_channels=latent[1],
            widths=widths,
            blocks=count(state, f"{first}.0.{names.residuals}"),
            attention_levels=attending(state, names),
            groups=about.get("norm_num_groups", 32),
        ),
        method=dict(name="jaxgen.tokenizers.vqgan.vqgan", quantiser=dict(name="gaussian")),
    )


def scale_of(found: Found) -> tuple[float, float]:
    """(scale, shift) of the latents by its config.json, or else Stable Diffusion's."""
    scale, shift = (found.about.get(f"{n}_factor") for n in ("scaling", "shift"))
    return float(scale or 0.18215), float(shift or 0.0)


def normalised(params: PyTree, mean: Sequence[float], scale: Sequence[float]) -> PyTree:
    """Parameters of an autoencoder whose latents are (z - mean) * scale, channel by channel.

    Its 1x1 convolutions around the latents take the change, so that images stay as they were.
    """
    shift, factor = np.asarray(mean, np.float32), np.asarray(scale, np.float32)
    quant, post = params["net"]["quant"], params["net"]["post_quant"]
    both = np.concatenate([factor, np.ones_like(factor)])
    moved = np.concatenate([-shift * factor, 2 * np.log(factor)])
    into = {"kernel": quant["kernel"] * both, "bias": quant["bias"] * both + moved}
    back = {
        "kernel": post["kernel"] / factor[:, None],
        "bias": post["bias"] + shift @ post["kernel"][0, 0],
    }
    return {**params, "net": {**params["net"], "quant": into, "post_quant": back}}


LAYOUTS = (
    Layout(
        "autoencoder_kl",
        "diffusers' AutoencoderKL, Stable Diffusion's VAE",
        (FIRST, "decoder.conv_out.weight", r"encoder\.down_blocks\.0\.resnets\.0\.conv1\.weight"),
        lambda found: _config(found, _names(found.state), _WHAT),
        lambda found, net: {"net": from_diffusers(found.state)},
    ),
    Layout(
        "autoencoder_ldm",
        "latent diffusion's own AutoencoderKL (Rombach et al. 2022), Stable Diffusion's VAE",
        (FIRST, "post_quant_conv.weight", r"encoder\.down\.0\.block\.0\.conv1\.weight"),
        lambda found: _config(found, OWN, _OWN_WHAT),
        lambda found, net: {"net": from_own(found.state)},
        never=(r"quantize\..*",),
    ),
)
