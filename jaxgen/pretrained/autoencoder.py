"""The convolutional autoencoder of `jaxgen.nn.autoencoder` under three layouts' names.

Latent diffusion's own code (Rombach et al. 2022), diffusers' and LlamaGen's: levels of residual
blocks, attention here and there, a middle, and a convolution that halves or doubles.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from jaxgen.pretrained.layout import State, Table, conv, count, dense, norm, within


@dataclasses.dataclass(frozen=True)
class Names:
    """What a layout calls the parts of a half; {kind} is "down" or "up".

    levels, residuals, attentions: lists. upwards: whether the decoder's levels are numbered as the
    encoder's, from the highest resolution. attention: ours -> theirs in an attention block.
    """

    levels: str
    residuals: str
    attentions: str
    sampler: str
    middle: tuple[str, str, str]
    norm_out: str
    shortcut: str
    attention: Mapping[str, str]
    upwards: bool = False


def half(state: State, side: str, names: Names) -> Table:
    """The table of `side` ("encoder" or "decoder"), of as many levels and blocks as there are."""
    kind = "down" if side == "encoder" else "up"
    made = {**conv("conv_in", "conv_in"), **conv("conv_out", "conv_out")}
    made |= norm("norm_out", names.norm_out)
    for ours, theirs in (("mid0", names.middle[0]), ("mid1", names.middle[2])):
        made |= within(ours, theirs, _residual(state, f"{side}.{theirs}", names))
    made |= within("mid_attention", names.middle[1], _attention(names))
    total = levels(state, side, names)
    for number in range(total):
        same = kind == "down" or names.upwards
        level = number if same else total - 1 - number
        block = f"{names.levels.format(kind=kind)}.{number}"
        for n in range(count(state, f"{side}.{block}.{names.residuals}")):
            theirs = f"{block}.{names.residuals}.{n}"
            own = _residual(state, f"{side}.{theirs}", names)
            made |= within(f"{kind}{level}_{n}", theirs, own)
        for n in range(count(state, f"{side}.{block}.{names.attentions}")):
            theirs = f"{block}.{names.attentions}.{n}"
            made |= within(f"{kind}{level}_attention{n}", theirs, _attention(names))
        sampler = f"{block}.{names.sampler.format(kind=kind)}"
        if f"{side}.{sampler}.weight" in state:
            made |= conv(f"{kind}{level}_sample", sampler)
    return made


def levels(state: State, side: str, names: Names) -> int:
    """How many resolutions a half has."""
    kind = "down" if side == "encoder" else "up"
    return count(state, f"{side}.{names.levels.format(kind=kind)}")


def attending(state: State, names: Names) -> tuple[int, ...]:
    """The levels of the encoder whose blocks are followed by attention."""
    prefix = f"encoder.{names.levels.format(kind='down')}"
    found = range(levels(state, "encoder", names))
    return tuple(i for i in found if count(state, f"{prefix}.{i}.{names.attentions}"))


def _residual(state: State, block: str, names: Names) -> Table:
    made = {**norm("norm1", "norm1"), **norm("norm2", "norm2")}
    made |= {**conv("conv1", "conv1"), **conv("conv2", "conv2")}
    if f"{block}.{names.shortcut}.weight" in state:
        made |= conv("shortcut", names.shortcut)
    return made


def _attention(names: Names) -> Table:
    made = norm("norm", names.attention["norm"])
    for ours in ("q", "k", "v", "proj"):
        # Some files keep these matrices as 1x1 convolutions.
        made |= dense(ours, names.attention[ours])
    return made
