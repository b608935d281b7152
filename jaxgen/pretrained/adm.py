"""ADM's own code (Dhariwal & Nichol 2021), guided-diffusion, as parameters of `nn.unet.ADM`.

Blocks are numbered through all levels there. Queries, keys and values go head by head, or one after
the other with `use_new_attention_order` (its network of 64x64), which no shape tells: two layouts.
Networks of 128x128 (as many heads at every level) and of 512x512 (half a multiplier) have no place
in ours.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from jaxgen.errors import invalid
from jaxgen.pretrained.layout import (
    Found,
    Layout,
    Row,
    State,
    Table,
    conv,
    converted,
    count,
    dense,
    norm,
    shape_of,
    unfit,
    within,
)

_WHAT = "ADM's own code"
SIDES = {(1, 2, 3, 4): 64, (1, 1, 2, 2, 4, 4): 256}
"""Images' sizes by the multipliers of its networks."""
HEAD = 64
"""Channels of a head in these."""


def blocks_of(state: State) -> tuple[int, int]:
    """(levels, residual blocks a level): the first decoder block that ends in another says."""
    total = count(state, "output_blocks")
    for n in range(total):
        if any(f"output_blocks.{n}.{k}.in_layers.0.weight" in state for k in (1, 2)):
            return total // (n + 1), n
    raise unfit(_WHAT, missing=["a block that doubles, output_blocks.N.1.in_layers.0.weight"])


def parts(state: State) -> dict[str, str]:
    """Our names of all residual blocks, and theirs."""
    levels, blocks = blocks_of(state)
    found = {"middle_0": "middle_block.0", "middle_1": "middle_block.2"}
    for level in range(levels):
        first = 1 + level * (blocks + 1)
        found |= {f"encode_{level}_{i}": f"input_blocks.{first + i}.0" for i in range(blocks)}
        if level:
            found[f"halve_{level}"] = f"input_blocks.{first - 1}.0"
        start = (levels - 1 - level) * (blocks + 1)
        found |= {f"decode_{level}_{i}": f"output_blocks.{start + i}.0" for i in range(blocks + 1)}
        if level:
            last = f"output_blocks.{start + blocks}"
            attends = f"{last}.1.qkv.weight" in state
            found[f"double_{level - 1}"] = f"{last}.{2 if attends else 1}"
    return found


def _attention(theirs: str) -> str:
    """Where the attention after a residual block is: the next in its group."""
    group, _, number = theirs.rpartition(".")
    return f"{group}.{int(number) + 1}"


def table(state: State, *, new_order: bool) -> Table:
    """Names of a network of ADM's code."""

    def ordered(columns: np.ndarray) -> np.ndarray:
        if new_order:
            return columns
        cut = columns.reshape(*columns.shape[:-1], -1, 3, HEAD)
        return np.swapaxes(cut, -2, -3).reshape(columns.shape)

    def kernel(w: np.ndarray) -> np.ndarray:
        return ordered(w.reshape(w.shape[:2]).T)

    names = {
        **conv("in", "input_blocks.0.0"),
        **dense("noise_hidden", "time_embed.0"),
        **dense("noise_out", "time_embed.2"),
        "labels.kernel": Row(("label_emb.weight",)),
        **norm("norm_out", "out.0"),
        **conv("out", "out.2"),
    }
    for ours, theirs in parts(state).items():
        block = {**norm("norm_in", "in_layers.0"), **conv("conv_in", "in_layers.2")}
        block |= {**dense("affine", "emb_layers.1"), **norm("norm_out", "out_layers.0")}
        block |= conv("conv_out", "out_layers.3")
        if f"{theirs}.skip_connection.weight" in state:
            block |= conv("skip", "skip_connection")
        names |= within(ours, theirs, block)
        after = _attention(theirs)
        if f"{after}.qkv.weight" in state:
            attention: Table = {
                "qkv.kernel": Row(("qkv.weight",), kernel),
                "qkv.bias": Row(("qkv.bias",), ordered),
            }
            attention |= {**norm("norm_attention", "norm"), **dense("proj", "proj_out")}
            names |= within(ours, after, attention)
    return names


def from_official(state: State, *, new_order: bool = False) -> dict[str, Any]:
    """Parameters of `ADM` (float32). new_order: of its attention. UsageError where they do not fit.

    Heads are of 64 channels.
    """
    shape_of(state, "input_blocks.0.0.weight", _WHAT)
    return dict(converted(state, table(state, new_order=new_order), _WHAT))


def _config(found: Found, *, cosine: bool) -> dict[str, Any]:
    state = found.state
    channels = shape_of(state, "time_embed.0.weight", _WHAT)[1]
    colours = shape_of(state, "input_blocks.0.0.weight", _WHAT)[1]
    classes = shape_of(state, "label_emb.weight", _WHAT)[0]
    outputs = shape_of(state, "out.2.weight", _WHAT)[0]
    levels, blocks = blocks_of(state)
    names = [parts(state)[f"encode_{level}_0"] for level in range(levels)]
    widths = [shape_of(state, f"{name}.out_layers.3.weight", _WHAT)[0] for name in names]
    multipliers = tuple(width // channels for width in widths)
    if multipliers == (1, 1, 2, 3, 4) or min(multipliers) < 1:
        given = f"a network of widths {widths}"
        raise invalid("weights", given, "ADM's of 64x64 or 256x256, or like them")
    side = SIDES.get(multipliers)
    attends = [f"{_attention(name)}.qkv.weight" in state for name in names]
    sizes = None if side is None else tuple(side >> i for i, a in enumerate(attends) if a)
    shape = None if side is None else (side, side, colours)
    return dict(
        data=dict(
            source=dict(name="folder.folder", path="data", image_size=side),
            holds=dict(shape=shape, num_classes=classes, levels=256),
        ),
        model=dict(
            name="unet.ADM",
            channels=channels,
            multipliers=multipliers,
            blocks=blocks,
            attention_sizes=sizes,
            head_channels=HEAD,
        ),
        method=dict(
            name="diffusion.denoising",
            path=dict(name="discrete", betas="cosine" if cosine else "linear", levels=1000),
            prediction="eps",
            times=dict(name="levels"),
            weighting=dict(name="simple"),
            learned_variance=outputs == 2 * colours,
            label_dropout=0.0,
        ),
        sample=dict(solver="ddpm", steps=250, grid="respaced", guidance=1.0),
    )


_MARKS = ("input_blocks.0.0.weight", "time_embed.0.weight", "middle_block.1.qkv.weight",
          r"output_blocks\.0\.0\.in_layers\..*")  # fmt: skip
LAYOUTS = (
    Layout(
        "adm",
        "ADM's own code (Dhariwal & Nichol 2021), linear betas, attention head by head (256x256)",
        _MARKS,
        functools.partial(_config, cosine=False),
        lambda found, net: {"net": from_official(found.state)},
    ),
    Layout(
        "adm_new_order",
        "ADM's own code, cosine betas, use_new_attention_order (64x64)",
        _MARKS,
        functools.partial(_config, cosine=True),
        lambda found, net: {"net": from_official(found.state, new_order=True)},
    ),
)
