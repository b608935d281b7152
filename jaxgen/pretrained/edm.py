"""EDM's and EDM2's own code (Karras et al. 2022, 2024) as `nn.unet.UNet`, `NCSNpp`, `EDM2`.

Their files are pickles: an object whose `state_dict()` is to be written as safetensors, outside of
jaxgen (docs/checkpoints.md). Blocks are named for their resolution. Queries, keys and values go
channel by channel there and one after the other here. Sampled by Heun's method at their levels.
"""

from __future__ import annotations

import re
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
    dense,
    norm,
    shape_of,
    unfit,
    within,
)

_EDM, _EDM2 = "EDM's own code (DDPM++ or NCSN++)", "EDM2's own code"


def sides(state: State) -> list[int]:
    """The resolutions of a network's levels, finest first."""
    found = {int(m[1]) for n in state if (m := re.match(r"enc\.(\d+)x\1_", n)) is not None}
    return sorted(found, reverse=True)


def parts(state: State) -> dict[str, str]:
    """Our names of all blocks, and theirs: of the encoder, the middle and the decoder."""
    found: dict[str, str] = {}
    for level, side in enumerate(sides(state)):
        encoder, decoder = (f"{half}.{side}x{side}" for half in ("enc", "dec"))
        for part, kind in ((encoder, "encode"), (decoder, "decode")):
            numbers = {int(m[1]) for n in state if (m := re.match(rf"{part}_block(\d+)\.", n))}
            found |= {f"{kind}_{level}_{i}": f"{part}_block{i}" for i in sorted(numbers)}
        for ours, theirs in (
            (f"halve_{level}", f"{encoder}_down"),
            (f"double_{level}", f"{decoder}_up"),
            ("middle_0", f"{decoder}_in0"),
            ("middle_1", f"{decoder}_in1"),
        ):
            if any(name.startswith(f"{theirs}.") for name in state):
                found[ours] = theirs
    return found


def one_after_the_other(columns: np.ndarray) -> np.ndarray:
    """[.., channel, 3] in the last axis as [.., 3, channel]."""
    cut = columns.reshape(*columns.shape[:-1], -1, 3)
    return np.swapaxes(cut, -1, -2).reshape(columns.shape)


def _qkv(theirs: str, *, bias: bool) -> Table:
    def kernel(w: np.ndarray) -> np.ndarray:
        return one_after_the_other(w.reshape(w.shape[:2]).T)

    table: Table = {"qkv.kernel": Row((f"{theirs}.weight",), kernel)}
    return table | ({"qkv.bias": Row((f"{theirs}.bias",), one_after_the_other)} if bias else {})


def edm_table(state: State) -> Table:
    """Names of a network of EDM's code."""
    first = f"{sides(state)[0]}x{sides(state)[0]}"
    names = {
        **conv("in", f"enc.{first}_conv"),
        **dense("labels", "map_label"),
        **dense("noise_hidden", "map_layer0"),
        **dense("noise_out", "map_layer1"),
        **norm("norm_out", f"dec.{first}_aux_norm"),
        **conv("out", f"dec.{first}_aux_conv"),
    }
    if "map_augment.weight" in state:
        names |= dense("augment", "map_augment", bias=False)
    if "map_noise.freqs" in state:
        names["constants.frequencies"] = Row(("map_noise.freqs",))
    for level, side in enumerate(sides(state)):
        if f"enc.{side}x{side}_aux_residual.weight" in state:
            names |= conv(f"picture_{level}", f"enc.{side}x{side}_aux_residual")
    for ours, theirs in parts(state).items():
        block = {
            **norm("norm_in", "norm0"),
            **norm("norm_out", "norm1"),
            **dense("affine", "affine"),
        }
        block |= {**conv("conv_in", "conv0"), **conv("conv_out", "conv1")}
        if f"{theirs}.skip.weight" in state:
            block |= conv("skip", "skip")
        if f"{theirs}.qkv.weight" in state:
            block |= {**norm("norm_attention", "norm2"), **_qkv("qkv", bias=True)}
            block |= dense("proj", "proj")
        names |= within(ours, theirs, block)
    return names


def edm2_table(state: State) -> Table:
    """Names of a network of EDM2's code."""
    first = f"{sides(state)[0]}x{sides(state)[0]}"
    names: Table = {
        "constants.frequencies": Row(("emb_fourier.freqs",)),
        "constants.phases": Row(("emb_fourier.phases",)),
        "out_gain": Row(("out_gain",)),
        **conv("in", f"enc.{first}_conv", bias=False),
        **dense("noise", "emb_noise", bias=False),
        **dense("labels", "emb_label", bias=False),
        **conv("out", "out_conv", bias=False),
    }
    for ours, theirs in parts(state).items():
        block: Table = {"embedding_gain": Row(("emb_gain",))}
        block |= dense("embedding", "emb_linear", bias=False)
        block |= conv("conv_in", "conv_res0", bias=False)
        block |= conv("conv_out", "conv_res1", bias=False)
        if f"{theirs}.conv_skip.weight" in state:
            block |= conv("skip", "conv_skip", bias=False)
        if f"{theirs}.attn_qkv.weight" in state:
            block |= _qkv("attn_qkv", bias=False) | dense("proj", "attn_proj", bias=False)
        names |= within(ours, theirs, block)
    return names


def inner(state: State) -> State:
    """The network's own weights: without the preconditioning around it."""
    for prefix in ("model.", "unet."):
        own = {k.removeprefix(prefix): a for k, a in state.items() if k.startswith(prefix)}
        if any(name.startswith("enc.") for name in own):
            return own
    return state


def from_edm(state: State) -> dict[str, Any]:
    """Parameters of `UNet` or `NCSNpp` (float32). UsageError for weights that do not fit."""
    own = inner(state)
    _check(own, _EDM)
    return dict(converted(own, edm_table(own), _EDM, beside=(r".*\.resample_filter",)))


def from_edm2(state: State) -> dict[str, Any]:
    """Parameters of `EDM2` (float32), without what training alone uses. UsageError."""
    own = inner(state)
    _check(own, _EDM2)
    return dict(converted(own, edm2_table(own), _EDM2))


def _check(state: State, what: str) -> None:
    if not sides(state):
        raise unfit(what, missing=["enc.32x32_conv.weight (or another resolution)"])


def _levels(state: State, name: str) -> dict[str, Any]:
    """Fields that both networks have: `name` is of a block's last convolution."""
    found = sides(state)
    side, what = found[0], f"a network of {found}"
    channels = shape_of(state, f"enc.{side}x{side}_conv.weight", what)[0]
    blocks = sum(f"enc.{side}x{side}_block{i}.{name}.weight" in state for i in range(64))
    widths = [shape_of(state, f"enc.{r}x{r}_block0.{name}.weight", what)[0] for r in found]
    uneven = [r for i, r in enumerate(found) if r << i != side]
    if uneven:
        raise invalid("weights", f"levels of {found}", "levels that halve the one before")
    return dict(
        channels=channels,
        multipliers=tuple(width // channels for width in widths),
        blocks=blocks,
    )


def _config(
    state: State, model: dict[str, Any], *, classes: int, channels: int, std: tuple[float, float]
) -> dict[str, Any]:
    """The sections of a network with EDM's preconditioning; std: of its training's noise levels."""
    side = sides(state)[0]
    mean, spread = std
    images = dict(name="folder.folder", path="data", image_size=side)
    latents = dict(name="latents.latents", path="data/{split}", scale=1.0)
    levels = None if channels == 4 else 256
    return dict(
        data=dict(
            source=latents if channels == 4 else images,
            holds=dict(shape=(side, side, channels), num_classes=classes, levels=levels),
        ),
        model=model,
        method=dict(
            name="diffusion.denoising",
            path=dict(name="edm", sigma_min=0.002, sigma_max=80.0),
            prediction="edm",
            times=dict(name="log_normal", mean=mean, std=spread),
            weighting=dict(name="edm", sigma_data=0.5),
            sigma_data=0.5,
            label_dropout=0.0,
        ),
    )


def _config_edm(found: Found) -> dict[str, Any]:
    state = inner(found.state)
    _check(state, _EDM)
    fir = "map_noise.freqs" in state
    augment = "map_augment.weight" in state
    attend = tuple(r for r in sides(state) if f"enc.{r}x{r}_block0.qkv.weight" in state)
    model = dict(
        name="unet.NCSNpp" if fir else "unet.UNet",
        **_levels(state, "conv1"),
        attention_sizes=attend,
        augment_dim=shape_of(state, "map_augment.weight", _EDM)[1] if augment else 0,
    )
    classes = shape_of(state, "map_label.weight", _EDM)[1]
    channels = shape_of(state, f"enc.{sides(state)[0]}x{sides(state)[0]}_conv.weight", _EDM)[1]
    made = _config(state, model, classes=classes, channels=channels, std=(-1.2, 1.2))
    heun = dict(solver="heun", steps=18, grid=dict(name="karras", rho=7.0), guidance=1.0)
    return made | dict(sample=heun)


def _config_edm2(found: Found) -> dict[str, Any]:
    state = inner(found.state)
    _check(state, _EDM2)
    attend = tuple(r for r in sides(state) if f"enc.{r}x{r}_block0.attn_qkv.weight" in state)
    channels = shape_of(state, "out_conv.weight", _EDM2)[0]
    model = dict(name="edm2.EDM2", **_levels(state, "conv_res1"), attention_sizes=attend)
    classes = shape_of(state, "emb_label.weight", _EDM2)[1]
    made = _config(state, model, classes=classes, channels=channels, std=(-0.8, 1.6))
    heun = dict(solver="heun", steps=32, grid=dict(name="karras", rho=7.0), guidance=1.0)
    return made | dict(sample=heun)


LATENTS = (
    (5.81, 3.25, 0.12, -2.15),
    tuple(0.5 / std for std in (4.17, 4.62, 3.71, 3.28)),
)
"""Mean and scale, channel by channel, of the latents that EDM2's networks at 512x512 are of."""
_ENTRY = r"(model\.|unet\.)?enc\.\d+x\d+_"
LAYOUTS = (
    Layout(
        "edm",
        "EDM's own code (Karras et al. 2022): DDPM++ or NCSN++",
        (rf"{_ENTRY}conv\.weight", rf"{_ENTRY}block0\.norm0\.weight", r".*aux_conv\.weight"),
        _config_edm,
        lambda found, net: {"net": from_edm(found.state)},
    ),
    Layout(
        "edm2",
        "EDM2's own code (Karras et al. 2024)",
        (rf"{_ENTRY}conv\.weight", rf"{_ENTRY}block0\.conv_res0\.weight", r".*emb_fourier\.freqs"),
        _config_edm2,
        lambda found, net: {"net": from_edm2(found.state)},
        latents=LATENTS,
    ),
)
