"""DiT weights between others' networks and `jaxgen.nn.dit.DiT`: diffusers', DiT's, SiT's, REPA's.

diffusers' `DiTTransformer2DModel` and ours compute the same function of the same weights, with
these differences of convention: diffusers keeps a copy of the noise and label embedding in every
block (ours is one; converted checkpoints have equal copies), and channels come first there. Its
sinusoidal frequencies are 10000 ** (-i / 127), where the DiT paper's code and ours have 10000 **
(-i / 128); the epsilon of its second norms is 1e-5 by default, where the paper's code and ours have
1e-6 (`endpoint` and `mlp_epsilon` of `DiT` are diffusers'). Queries, keys and values are three
layers there and one here, whose outputs go head by head. Networks that were trained on DDPM's chain
are told its index: `DiT` with time_scale=1 on `path.discrete`.

DiT's code guides the first three channels and diffusers' pipeline all; SiT's guides three, REPA's
all. SiT's network is told 1 - t and says the velocity to the data, REPA's t and the velocity to the
noise, which is ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxgen.errors import invalid
from jaxgen.nn.dit import SIZES
from jaxgen.nn.positions import sin_cos_2d
from jaxgen.pretrained.layout import (
    Found,
    Layout,
    State,
    Table,
    by_head,
    converted,
    count,
    dense,
    heads_joined,
    patches,
    rows,
    shape_of,
    size_of,
    stacked,
    unfit,
)

# ours -> theirs, for one block. qkv is made of three of diffusers'.
_BLOCK = {
    "modulation": "norm1.linear",
    "proj": "attn1.to_out.0",
    "expand": "ff.net.0.proj",
    "contract": "ff.net.2",
}
_QKV = ("attn1.to_q", "attn1.to_k", "attn1.to_v")
_HIDDEN, _OUT = "timestep_embedder.linear_1", "timestep_embedder.linear_2"
_LABELS = "class_embedder.embedding_table.weight"
_OFFICIAL = {
    "modulation": "adaLN_modulation.1",
    "proj": "attn.proj",
    "expand": "mlp.fc1",
    "contract": "mlp.fc2",
}

STABLE_DIFFUSION = 0.18215
"""The scale of Stable Diffusion's latents, on which these networks were trained."""


def diffusers_table(depth: int, heads: int) -> Table:
    """The names of a `DiTTransformer2DModel` of so many blocks; the first block's embedding."""
    emb = "transformer_blocks.0.norm1.emb"
    block = heads_joined("qkv", _QKV, heads)
    for ours, theirs in _BLOCK.items():
        block |= dense(ours, theirs)
    return {
        **patches("patch", "pos_embed.proj"),
        **dense("noise.hidden", f"{emb}.{_HIDDEN}"),
        **dense("noise.out", f"{emb}.{_OUT}"),
        **rows("labels", f"{emb}.class_embedder.embedding_table"),
        **stacked("blocks", [f"transformer_blocks.{i}" for i in range(depth)], block),
        **dense("modulation", "proj_out_1"),
        **dense("out", "proj_out_2"),
    }


def official_table(depth: int, heads: int) -> Table:
    """The names of DiT's, SiT's and REPA's own code."""
    block = heads_joined("qkv", ("attn.qkv",), heads)
    for ours, theirs in _OFFICIAL.items():
        block |= dense(ours, theirs)
    return {
        **patches("patch", "x_embedder.proj"),
        **dense("noise.hidden", "t_embedder.mlp.0"),
        **dense("noise.out", "t_embedder.mlp.2"),
        **rows("labels", "y_embedder.embedding_table"),
        **stacked("blocks", [f"blocks.{i}" for i in range(depth)], block),
        **dense("modulation", "final_layer.adaLN_modulation.1"),
        **dense("out", "final_layer.linear"),
    }


def from_diffusers(state: State, *, patch: int, heads: int) -> dict[str, Any]:
    """Parameters of `DiT` (float32) from the state dict of a `DiTTransformer2DModel`.

    heads: of the model's attention, which its weights do not tell. state: name -> array, as `{k:
    v.numpy() for k, v in model.state_dict().items()}` or a safetensors file gives it. UsageError
    for weights that do not fit, and for blocks whose noise or label embeddings differ (a model
    fine-tuned after conversion), which one shared table cannot hold.
    """
    what = "a DiTTransformer2DModel"
    _check_patch(state, "pos_embed.proj.weight", patch, what)
    depth = count(state, "transformer_blocks")
    beside = (r"transformer_blocks\.[1-9]\d*\.norm1\.emb\..*", r"pos_embed\.pos_embed")
    made = converted(state, diffusers_table(depth, heads), what, beside=beside)
    for i in range(1, depth):
        for name in (f"{_HIDDEN}.weight", f"{_HIDDEN}.bias", f"{_OUT}.weight", _LABELS):
            first, other = (f"transformer_blocks.{j}.norm1.emb.{name}" for j in (0, i))
            if other not in state:
                raise unfit(what, missing=[other])
            if not np.array_equal(state[first], state[other]):
                raise invalid("weights", f"block {i} differs in {name}", "one embedding for all")
    return dict(made)


def from_official(
    state: State, *, patch: int, heads: int, sit: bool = False, beside: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Parameters of `DiT` (float32) from the state dict of a network of DiT's or SiT's own code.

    heads: of the model's attention, which its weights do not tell. sit: the weights are of SiT, for
    `jaxgen.nn.dit.SiT`, out_channels as many as the image has, and prediction="velocity": the half
    of the outputs that SiT never reads is left out, and the sign of the rest is turned. beside: as
    `layout.converted` has it. UsageError for weights that do not fit, positions that are not the
    fixed ones, and another patch.
    """
    what = "DiT's or SiT's own code"
    _check_patch(state, "x_embedder.proj.weight", patch, what)
    table = official_table(count(state, "blocks"), heads)
    made = dict(converted(state, table, what, beside=("pos_embed", *beside)))
    if "pos_embed" in state:
        _check_positions(np.asarray(state["pos_embed"])[0])
    if sit:
        channels = np.shape(state["x_embedder.proj.weight"])[1]
        out = made["out"]
        read = {k: a.reshape(*a.shape[:-1], patch**2, -1)[..., :channels] for k, a in out.items()}
        made["out"] = {k: -a.reshape(*a.shape[:-2], -1) for k, a in read.items()}
    return made


def _check_patch(state: State, name: str, patch: int, what: str) -> None:
    held = shape_of(state, name, what)[-1]
    if held != patch:
        raise invalid("patch", patch, f"{held}, the checkpoint's")


def _check_positions(table: np.ndarray) -> None:
    """Refuse other positions [N, width] than the sines and cosines of a square."""
    side = int(len(table) ** 0.5)
    if side**2 != len(table) or not np.allclose(
        table, sin_cos_2d(side, side, table.shape[1]), atol=1e-4
    ):
        allowed = "the fixed sines and cosines of a square of patches"
        raise invalid("weights", f"pos_embed {table.shape}", allowed)


def _sized(state: State, names: tuple[str, str, str, str], depth: int, what: str) -> dict[str, Any]:
    """Sections `model` and what `holds` says, of the shapes of four weights.

    names: of the patches' layer, the labels' table, the MLP's first layer, the last layer's bias.
    """
    width, channels, patch, _ = shape_of(state, names[0], what)
    classes = shape_of(state, names[1], what)[0] - 1
    hidden = shape_of(state, names[2], what)[0]
    outputs = shape_of(state, names[3], what)[0] // patch**2
    fields: dict[str, Any] = size_of(SIZES, depth=depth, width=width)
    named = [n for n, known in SIZES.items() if known == fields]
    model: dict[str, Any] = dict(size=f"{named[0]}/{patch}") if named and patch in (2, 4, 8) else {}
    model |= {} if model else {**fields, "patch": patch}
    model |= {} if hidden == 4 * width else {"mlp_ratio": hidden / width}
    return {
        "model": {"name": "dit.DiT", **model, "time_scale": 1.0},
        "channels": channels,
        "classes": classes,
        "outputs": outputs,
        "patch": patch,
    }


def _chain(learned: bool, path: Mapping[str, Any]) -> dict[str, Any]:
    """The method of networks that were trained on DDPM's chain to say its noise."""
    return dict(
        name="diffusion.denoising",
        path=dict(path),
        prediction="eps",
        times=dict(name="levels"),
        weighting=dict(name="simple"),
        learned_variance=learned,
        label_dropout=0.1,
    )


_LINEAR = dict(
    name="diffusion.denoising",
    path=dict(name="linear"),
    prediction="velocity",
    times=dict(name="uniform"),
    weighting=dict(name="simple"),
    label_dropout=0.1,
)
_SDE = dict(
    solver=dict(name="euler_maruyama", form="sigma", last="mean"),
    steps=250,
    grid=dict(name="uniform", last=0.04),
)
"""SiT's sampler (its appendix E): w = 2 sigma, and a last step of .04."""


def _official(found: Found) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what the shapes say, the section `data`)."""
    state, what = found.state, "DiT's or SiT's own code"
    names = ("x_embedder.proj.weight", "y_embedder.embedding_table.weight",
             "blocks.0.mlp.fc1.weight", "final_layer.linear.bias")  # fmt: skip
    said = _sized(state, names, count(state, "blocks"), what)
    side = None
    if "pos_embed" in state:
        side = round(np.shape(state["pos_embed"])[1] ** 0.5) * said["patch"]
    return said, _latents(said, side, STABLE_DIFFUSION)


def _latents(said: Mapping[str, Any], side: int | None, scale: float) -> dict[str, Any]:
    shape = None if side is None else (side, side, said["channels"])
    return dict(
        source=dict(name="latents.latents", path="data/{split}", scale=scale),
        holds=dict(shape=shape, num_classes=said["classes"], levels=None),
    )


def _learned(said: Mapping[str, Any]) -> bool:
    return bool(said["outputs"] == 2 * said["channels"])


def _config_dit(found: Found) -> dict[str, Any]:
    said, data = _official(found)
    guided = [dict(name="cfg.cfg", weight=1.5, channels=3)]
    return dict(
        data=data,
        model=said["model"],
        method=_chain(_learned(said), dict(name="discrete", betas="linear", levels=1000)),
        sample=dict(solver="ddpm", steps=250, grid="respaced", guidance=guided),
    )


def _config_sit(found: Found) -> dict[str, Any]:
    said, data = _official(found)
    model = {k: v for k, v in said["model"].items() if k != "time_scale"} | {"name": "dit.SiT"}
    guided = [dict(name="cfg.cfg", weight=1.5, channels=3)]
    return dict(data=data, model=model, method=_LINEAR, sample=dict(_SDE, guidance=guided))


def _config_repa(found: Found) -> dict[str, Any]:
    said, data = _official(found)
    guided = [dict(name="cfg.cfg", weight=1.8), dict(name="interval.limit", low=0.0, high=0.7)]
    return dict(data=data, model=said["model"], method=_LINEAR, sample=dict(_SDE, guidance=guided))


def _config_diffusers(found: Found) -> dict[str, Any]:
    about, state, what = found.about, found.state, "a DiTTransformer2DModel"
    names = ("pos_embed.proj.weight", f"transformer_blocks.0.norm1.emb.{_LABELS}",
             "transformer_blocks.0.ff.net.0.proj.weight", "proj_out_2.bias")  # fmt: skip
    said = _sized(state, names, count(state, "transformer_blocks"), what)
    for name, only in (("activation_fn", "gelu-approximate"), ("norm_type", "ada_norm_zero")):
        if about.get(name, only) != only:
            raise invalid(f"config.json {name}", about[name], repr(only))
    model = said["model"] | dict(endpoint=True, mlp_epsilon=float(about.get("norm_eps", 1e-5)))
    heads = about.get("num_attention_heads")
    if heads is not None:  # more than its published size says
        model["heads"] = heads
    return dict(
        data=_latents(said, about.get("sample_size"), STABLE_DIFFUSION),
        model=model,
        method=_chain(_learned(said), chain_path(found.scheduler)),
        sample=dict(
            solver="ddim", steps=50, grid="uniform", guidance=[dict(name="cfg.cfg", weight=4.0)]
        ),
    )


def chain_path(scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """The path of a scheduler_config.json of diffusers; DiT's where there is none. UsageError."""
    kind, betas = scheduler.get("prediction_type", "epsilon"), scheduler.get("trained_betas")
    if kind != "epsilon" or scheduler.get("rescale_betas_zero_snr"):
        given = {k: scheduler.get(k) for k in ("prediction_type", "rescale_betas_zero_snr")}
        raise invalid(
            "scheduler_config.json", given, "prediction_type 'epsilon', betas as they are"
        )
    if betas is not None:
        return dict(name="discrete", betas=tuple(betas))
    schedule = scheduler.get("beta_schedule", "linear")
    ours = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
    if schedule not in ours:
        raise invalid("scheduler_config.json beta_schedule", schedule, ", ".join(ours))
    return dict(
        name="discrete",
        betas=ours[schedule],
        levels=scheduler.get("num_train_timesteps", 1000),
        beta_min=scheduler.get("beta_start", 1e-4),
        beta_max=scheduler.get("beta_end", 0.02),
    )


_OWN = ("x_embedder.proj.weight", "t_embedder.mlp.0.weight", "final_layer.linear.weight")
_PROJECTORS = r"projectors\..*"
LAYOUTS = (
    Layout(
        "dit",
        "DiT's own code (Peebles & Xie 2023)",
        _OWN,
        _config_dit,
        lambda found, net: {"net": from_official(found.state, patch=net.patch, heads=net.heads)},
        never=(_PROJECTORS,),
    ),
    Layout(
        "sit",
        "SiT's own code (Ma et al. 2024)",
        _OWN,
        _config_sit,
        lambda found, net: {
            "net": from_official(found.state, patch=net.patch, heads=net.heads, sit=True)
        },
        never=(_PROJECTORS,),
    ),
    Layout(
        "repa",
        "REPA's own code (Yu et al. 2025): SiT with projectors, which are left out",
        (*_OWN, _PROJECTORS),
        _config_repa,
        lambda found, net: {
            "net": from_official(
                found.state, patch=net.patch, heads=net.heads, beside=(_PROJECTORS,)
            )
        },
    ),
    Layout(
        "diffusers_dit",
        "diffusers' DiTTransformer2DModel",
        ("pos_embed.proj.weight", "proj_out_1.weight", r".*\.attn1\.to_q\.weight"),
        _config_diffusers,
        lambda found, net: {"net": from_diffusers(found.state, patch=net.patch, heads=net.heads)},
    ),
)


def to_diffusers(params: Mapping[str, Any], *, patch: int, heads: int) -> dict[str, np.ndarray]:
    """The state dict of a `DiTTransformer2DModel` from the parameters of a plain `DiT`.

    The inverse of `from_diffusers`. UsageError for variants that diffusers does not have.
    """
    state: dict[str, np.ndarray] = {}
    extra = set(params["blocks"]) - {"qkv", *_BLOCK}
    if extra:
        raise invalid("model", f"a DiT with {', '.join(sorted(extra))}", "a plain DiT")

    def dense(name: str, kernel: Any, bias: Any) -> None:
        state[f"{name}.weight"] = np.ascontiguousarray(np.asarray(kernel, np.float32).T)
        state[f"{name}.bias"] = np.asarray(bias, np.float32)

    blocks = params["blocks"]
    for i in range(np.shape(blocks["qkv"]["kernel"])[0]):
        prefix = f"transformer_blocks.{i}."
        kernels, biases = (by_layer(blocks["qkv"][k][i], heads) for k in ("kernel", "bias"))
        for name, kernel, bias in zip(_QKV, kernels, biases, strict=True):
            dense(prefix + name, kernel, bias)
        for ours, name in _BLOCK.items():
            dense(prefix + name, blocks[ours]["kernel"][i], blocks[ours]["bias"][i])
        for ours, name in (("hidden", _HIDDEN), ("out", _OUT)):
            dense(f"{prefix}norm1.emb.{name}", **params["noise"][ours])
        state[f"{prefix}norm1.emb.{_LABELS}"] = np.asarray(params["labels"]["embedding"])
    dense("proj_out_1", **params["modulation"])
    dense("proj_out_2", **params["out"])
    kernel = np.asarray(params["patch"]["kernel"], np.float32)
    kernel = kernel.reshape(patch, patch, -1, kernel.shape[-1]).transpose(3, 2, 0, 1)
    state["pos_embed.proj.weight"] = np.ascontiguousarray(kernel)
    state["pos_embed.proj.bias"] = np.asarray(params["patch"]["bias"], np.float32)
    return state


class Factors(NamedTuple):
    """A low-rank change a b of a layer's kernel: a [..., in, r], b [r, out]."""

    a: np.ndarray
    b: np.ndarray


_OUTSIDE = {
    "proj_out_1": "modulation",
    "proj_out_2": "out",
    "final_layer.adaLN_modulation.1": "modulation",
    "final_layer.linear": "out",
}


def adapter_layers(layers: Mapping[str, Factors], heads: int | None) -> dict[str, Factors]:
    """Low-rank changes of a DiT's layers by our names for them (`net.blocks.0.qkv`).

    layers: by diffusers' names or the paper's code's; other names stay. heads: of the attention.
    Changes of queries, keys and values are one of three times the rank. UsageError without heads.
    """
    ours = {theirs: name for table in (_BLOCK, _OFFICIAL) for name, theirs in table.items()}
    found: dict[str, Factors] = {}
    joined: dict[str, list[Factors | None]] = {}
    for name, (a, b) in layers.items():
        block = re.fullmatch(r"(?:transformer_)?blocks\.(\d+)\.(.+)", name)
        number, layer = block.groups() if block else ("", "")
        if layer in ours:
            found[f"net.blocks.{number}.{ours[layer]}"] = Factors(a, b)
        elif layer in _QKV:
            parts = joined.setdefault(f"net.blocks.{number}.qkv", [None] * 3)
            parts[_QKV.index(layer)] = Factors(a, b)
        elif layer == "attn.qkv":
            cut = np.split(b, 3, axis=-1)
            found[f"net.blocks.{number}.qkv"] = Factors(a, by_head(cut, _known(heads)))
        else:
            found[f"net.{_OUTSIDE[name]}" if name in _OUTSIDE else name] = Factors(a, b)
    for name, three in joined.items():
        wide = next(f.b.shape[1] for f in three if f is not None)
        rows = []
        for i, f in enumerate(three):
            if f is not None:
                own = [
                    f.b if j == i else np.zeros((f.b.shape[0], wide), f.b.dtype) for j in range(3)
                ]
                rows.append(by_head(own, _known(heads)))
        a = np.concatenate([f.a for f in three if f is not None], -1)
        found[name] = Factors(a, np.concatenate(rows))
    return found


def diffusers_layers(layers: Mapping[str, Factors], heads: int | None) -> dict[str, Factors]:
    """The inverse of `adapter_layers`, for diffusers' names; UsageError for a layer without one."""
    outside = {f"net.{ours}": theirs for theirs, ours in _OUTSIDE.items() if "proj" in theirs}
    found: dict[str, Factors] = {}
    for name, (a, b) in layers.items():
        block = re.fullmatch(r"net\.blocks\.(\d+)\.(.+)", name)
        number, layer = block.groups() if block else ("", "")
        prefix = f"transformer_blocks.{number}."
        if layer == "qkv":
            for theirs, part in zip(_QKV, by_layer(b, _known(heads)), strict=True):
                found[prefix + theirs] = Factors(a, part)
        elif layer in _BLOCK:
            found[prefix + _BLOCK[layer]] = Factors(a, b)
        elif name in outside:
            found[outside[name]] = Factors(a, b)
        else:
            raise invalid("layout", f"'diffusers' of {name}", "layers of DiT's blocks and its head")
    return found


def _known(heads: int | None) -> int:
    if heads is None:
        raise invalid("heads", heads, "the number of heads of the network's attention")
    return heads


def by_layer(joined: np.ndarray, heads: int) -> list[np.ndarray]:
    """The inverse of `by_head`."""
    joined = np.asarray(joined)
    cut = joined.reshape(*joined.shape[:-1], heads, 3, -1)
    return [cut[..., i, :].reshape(*joined.shape[:-1], -1) for i in range(3)]
