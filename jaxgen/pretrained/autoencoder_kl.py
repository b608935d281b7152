"""Weights of diffusers' `AutoencoderKL` as parameters of `jaxgen.nn.autoencoder.AutoencoderKL`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxgen.errors import invalid

_RES = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2"}
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj": "to_out.0"}
# The names of checkpoints written before diffusers 0.14.
_OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def from_diffusers(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Parameters (float32) from the state dict of an `AutoencoderKL`.

    state: name -> array, as a safetensors file gives it. Its scaling factor (0.18215 for Stable
    Diffusion's) is not a weight: give it to the source of latents. Raises UsageError for weights
    that are missing and for weights that this network has no place for.
    """
    used: set[str] = set()

    def get(name: str) -> np.ndarray:
        parts = name.rsplit(".", 1)
        for new, old in _OLD_ATTENTION.items():
            if name not in state and parts[0].endswith(new):
                name = f"{parts[0].removesuffix(new)}{old}.{parts[1]}"
        if name not in state:
            raise invalid("weights", name, "an AutoencoderKL state dict, which holds it")
        used.add(name)
        return np.asarray(state[name], np.float32)

    def layer(name: str) -> dict[str, np.ndarray]:
        weight = get(f"{name}.weight")
        if weight.ndim == 1:
            return {"scale": weight, "bias": get(f"{name}.bias")}
        kernel = weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T
        return {"kernel": kernel, "bias": get(f"{name}.bias")}

    def dense(name: str) -> dict[str, np.ndarray]:
        # Old checkpoints keep the attention's matrices as 1x1 convolutions.
        found = layer(name)
        if "kernel" in found and found["kernel"].ndim == 4:
            found["kernel"] = found["kernel"][0, 0]
        return found

    def res(name: str) -> dict[str, Any]:
        found = {ours: layer(f"{name}.{theirs}") for ours, theirs in _RES.items()}
        if f"{name}.conv_shortcut.weight" in state:
            found["shortcut"] = layer(f"{name}.conv_shortcut")
        return found

    def half(side: str) -> dict[str, Any]:
        out: dict[str, Any] = {n: layer(f"{side}.{n}") for n in ("conv_in", "conv_out")}
        out["norm_out"] = layer(f"{side}.conv_norm_out")
        middle = f"{side}.mid_block"
        out["mid0"], out["mid1"] = (res(f"{middle}.resnets.{n}") for n in (0, 1))
        names = {k: f"{middle}.attentions.0.{v}" for k, v in _ATTENTION.items()}
        out["mid_attention"] = {k: dense(v) for k, v in names.items()}
        kind = "down" if side == "encoder" else "up"
        prefix = f"{side}.{kind}_blocks."
        levels = 1 + max((int(k.split(".")[2]) for k in state if k.startswith(prefix)), default=-1)
        for theirs in range(levels):
            ours = theirs if kind == "down" else levels - 1 - theirs
            block = f"{prefix}{theirs}"
            count = sum(f"{block}.resnets.{n}.conv1.weight" in state for n in range(64))
            for number in range(count):
                out[f"{kind}{ours}_{number}"] = res(f"{block}.resnets.{number}")
            sampler = f"{block}.{kind}samplers.0.conv"
            if f"{sampler}.weight" in state:
                out[f"{kind}{ours}_sample"] = layer(sampler)
        return out

    params = {
        "encoder": half("encoder"),
        "decoder": half("decoder"),
        "quant": layer("quant_conv"),
        "post_quant": layer("post_quant_conv"),
    }
    left = sorted(set(state) - used)
    if left:
        raise invalid("weights", left[0], "an AutoencoderKL without further weights")
    return params
