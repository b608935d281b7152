"""Weights of diffusers' `AutoencoderKL` as parameters of `jaxgen.nn.autoencoder.AutoencoderKL`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxgen.pretrained.layout import (
    Found,
    Layout,
    PyTree,
    State,
    Table,
    conv,
    converted,
    count,
    dense,
    norm,
    shape_of,
    within,
)

_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "proj": "to_out.0"}
# The names of checkpoints written before diffusers 0.14.
_OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
_WHAT = "an AutoencoderKL of diffusers"
FIRST = "encoder.conv_in.weight"


def from_diffusers(state: State) -> dict[str, Any]:
    """Parameters (float32) from the state dict of an `AutoencoderKL`.

    state: name -> array, as a safetensors file gives it. Its scaling factor (0.18215 for Stable
    Diffusion's) is not a weight: give it to the source of latents. Raises UsageError for weights
    that are missing and for weights that this network has no place for.
    """
    shape_of(state, FIRST, _WHAT)
    return dict(converted(state, table(state), _WHAT))


def table(state: State) -> Table:
    """Names of an autoencoder of as many levels and blocks as the state dict has."""
    return {
        **within("encoder", "encoder", _half(state, "encoder", "down")),
        **within("decoder", "decoder", _half(state, "decoder", "up")),
        **conv("quant", "quant_conv"),
        **conv("post_quant", "post_quant_conv"),
    }


def _half(state: State, side: str, kind: str) -> Table:
    """One of the two networks: levels of residual blocks around a middle with attention."""
    names = {**conv("conv_in", "conv_in"), **conv("conv_out", "conv_out")}
    names |= norm("norm_out", "conv_norm_out")
    for n in (0, 1):
        names |= within(f"mid{n}", f"mid_block.resnets.{n}", res(state, f"{side}.mid_block", n))
    names |= norm("mid_attention.norm", "mid_block.attentions.0.group_norm")
    old = f"{side}.mid_block.attentions.0.query.weight" in state
    for ours, theirs in _ATTENTION.items():
        # Old checkpoints keep the attention's matrices as 1x1 convolutions, under other names.
        theirs = _OLD_ATTENTION[theirs] if old else theirs
        names |= dense(f"mid_attention.{ours}", f"mid_block.attentions.0.{theirs}")
    levels = count(state, f"{side}.{kind}_blocks")
    for number in range(levels):
        level = number if kind == "down" else levels - 1 - number
        block = f"{kind}_blocks.{number}"
        for n in range(count(state, f"{side}.{block}.resnets")):
            made = res(state, f"{side}.{block}", n)
            names |= within(f"{kind}{level}_{n}", f"{block}.resnets.{n}", made)
        if f"{side}.{block}.{kind}samplers.0.conv.weight" in state:
            names |= conv(f"{kind}{level}_sample", f"{block}.{kind}samplers.0.conv")
    return names


def res(state: State, block: str, number: int) -> Table:
    """A residual block, with a shortcut where there is one."""
    names = {**norm("norm1", "norm1"), **norm("norm2", "norm2")}
    names |= {**conv("conv1", "conv1"), **conv("conv2", "conv2")}
    if f"{block}.resnets.{number}.conv_shortcut.weight" in state:
        names |= conv("shortcut", "conv_shortcut")
    return names


def _config(found: Found) -> dict[str, Any]:
    state, about = found.state, found.about
    out, latent = (shape_of(state, f"decoder.{n}.weight", _WHAT) for n in ("conv_out", "conv_in"))
    levels = count(state, "encoder.down_blocks")
    widths = tuple(
        shape_of(state, f"encoder.down_blocks.{i}.resnets.0.conv2.weight", _WHAT)[0]
        for i in range(levels)
    )
    blocks = count(state, "encoder.down_blocks.0.resnets")
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
            blocks=blocks,
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
        _config,
        lambda found, net: {"net": from_diffusers(found.state)},
    ),
)
