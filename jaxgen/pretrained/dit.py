"""DiT weights between others' networks and `jaxgen.nn.dit.DiT`: diffusers', DiT's and SiT's own.

diffusers' `DiTTransformer2DModel` and ours compute the same function of the same weights, with
these differences of convention: diffusers keeps a copy of the noise and label embedding in every
block (ours is one; converted checkpoints have equal copies), and channels come first there. Its
sinusoidal frequencies are 10000 ** (-i / 127), where the DiT paper's code and ours have 10000 **
(-i / 128); its norm_eps defaults to 1e-5, where the paper's code and ours have 1e-6. Queries, keys
and values are three layers there and one here, whose outputs go head by head. Networks that were
trained on DDPM's chain are told its index: `DiT` with time_scale=1 on `path.discrete`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxgen.errors import invalid

# ours -> theirs, for one block, and outside of the blocks. qkv is made of three of theirs.
_BLOCK = {
    "modulation": "norm1.linear",
    "proj": "attn1.to_out.0",
    "expand": "ff.net.0.proj",
    "contract": "ff.net.2",
}
_QKV = ("attn1.to_q", "attn1.to_k", "attn1.to_v")
_HIDDEN, _OUT = "timestep_embedder.linear_1", "timestep_embedder.linear_2"
_LABELS = "class_embedder.embedding_table.weight"


def from_diffusers(state: Mapping[str, np.ndarray], *, patch: int, heads: int) -> dict[str, Any]:
    """Parameters of `DiT` (float32) from the state dict of a `DiTTransformer2DModel`.

    heads: of the model's attention, which its weights do not tell. state: name -> array, as `{k:
    v.numpy() for k, v in model.state_dict().items()}` or a safetensors file gives it. UsageError
    for a missing weight, and for blocks whose noise or label embeddings differ (a model fine-tuned
    after conversion), which one shared table cannot hold.
    """

    get, dense = _reader(state, "a DiTTransformer2DModel state dict")

    def block(i: int) -> dict[str, dict[str, np.ndarray]]:
        prefix = f"transformer_blocks.{i}."
        qkv = [dense(prefix + name) for name in _QKV]
        joined = {key: by_head([part[key] for part in qkv], heads) for key in qkv[0]}
        return {"qkv": joined, **{ours: dense(prefix + name) for ours, name in _BLOCK.items()}}

    depth = 1 + max(
        (int(k.split(".")[1]) for k in state if k.startswith("transformer_blocks.")), default=-1
    )
    for i in range(1, depth):
        for name in (f"{_HIDDEN}.weight", f"{_HIDDEN}.bias", f"{_OUT}.weight", _LABELS):
            first, other = (get(f"transformer_blocks.{j}.norm1.emb.{name}") for j in (0, i))
            if not np.array_equal(first, other):
                raise invalid("weights", f"block {i} differs in {name}", "one embedding for all")
    kernel = get("pos_embed.proj.weight")  # [width, channels, patch, patch]
    if kernel.shape[-1] != patch:
        raise invalid("patch", patch, f"{kernel.shape[-1]}, the checkpoint's")
    blocks = [block(i) for i in range(depth)]
    embedding = "transformer_blocks.0.norm1.emb."
    return {
        "patch": {
            "kernel": kernel.transpose(2, 3, 1, 0).reshape(-1, kernel.shape[0]),
            "bias": get("pos_embed.proj.bias"),
        },
        "noise": {"hidden": dense(embedding + _HIDDEN), "out": dense(embedding + _OUT)},
        "labels": {"embedding": get(embedding + _LABELS)},
        "blocks": {
            name: {key: np.stack([b[name][key] for b in blocks]) for key in ("kernel", "bias")}
            for name in blocks[0]
        },
        "modulation": dense("proj_out_1"),
        "out": dense("proj_out_2"),
    }


# ours -> the names of the papers' code, for one block.
_OFFICIAL = {
    "modulation": "adaLN_modulation.1",
    "proj": "attn.proj",
    "expand": "mlp.fc1",
    "contract": "mlp.fc2",
}


def from_official(
    state: Mapping[str, np.ndarray], *, patch: int, heads: int, sit: bool = False
) -> dict[str, Any]:
    """Parameters of `DiT` (float32) from the state dict of a network of DiT's or SiT's own code.

    heads: of the model's attention, which its weights do not tell. sit: the weights are of SiT, for
    `jaxgen.nn.dit.SiT`, out_channels as many as the image has, and prediction="velocity": the half
    of the outputs that SiT never reads is left out, and the sign of the rest is turned. UsageError
    for a missing weight and another patch.
    """

    get, dense = _reader(state, "a state dict of DiT's or SiT's code")

    def block(i: int) -> dict[str, dict[str, np.ndarray]]:
        layers = {ours: dense(f"blocks.{i}.{name}") for ours, name in _OFFICIAL.items()}
        qkv = dense(f"blocks.{i}.attn.qkv")
        joined = {key: by_head(np.split(a, 3, axis=-1), heads) for key, a in qkv.items()}
        return {"qkv": joined, **layers}

    kernel = get("x_embedder.proj.weight")  # [width, channels, patch, patch]
    if kernel.shape[-1] != patch:
        raise invalid("patch", patch, f"{kernel.shape[-1]}, the checkpoint's")
    depth = 1 + max((int(k.split(".")[1]) for k in state if k.startswith("blocks.")), default=-1)
    blocks = [block(i) for i in range(depth)]
    out = dense("final_layer.linear")
    if sit:
        channels = kernel.shape[1]
        read = {k: a.reshape(*a.shape[:-1], patch**2, -1)[..., :channels] for k, a in out.items()}
        out = {k: -a.reshape(*a.shape[:-2], -1) for k, a in read.items()}
    return {
        "patch": {
            "kernel": kernel.transpose(2, 3, 1, 0).reshape(-1, kernel.shape[0]),
            "bias": get("x_embedder.proj.bias"),
        },
        "noise": {"hidden": dense("t_embedder.mlp.0"), "out": dense("t_embedder.mlp.2")},
        "labels": {"embedding": get("y_embedder.embedding_table.weight")},
        "blocks": {
            name: {key: np.stack([b[name][key] for b in blocks]) for key in ("kernel", "bias")}
            for name in blocks[0]
        },
        "modulation": dense("final_layer.adaLN_modulation.1"),
        "out": out,
    }


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


def by_head(layers: list[np.ndarray], heads: int) -> np.ndarray:
    """Queries', keys' and values' columns [..., heads * D] as one [..., heads * 3 * D]."""
    cut = [layer.reshape(*layer.shape[:-1], heads, -1) for layer in layers]
    return np.stack(cut, -2).reshape(*layers[0].shape[:-1], -1)


def by_layer(joined: np.ndarray, heads: int) -> list[np.ndarray]:
    """The inverse of `by_head`."""
    joined = np.asarray(joined)
    cut = joined.reshape(*joined.shape[:-1], heads, 3, -1)
    return [cut[..., i, :].reshape(*joined.shape[:-1], -1) for i in range(3)]


def _reader(
    state: Mapping[str, np.ndarray], what: str
) -> tuple[Callable[[str], np.ndarray], Callable[[str], dict[str, np.ndarray]]]:
    """(an array by name, a dense layer by name) of a state dict; what: for the message."""

    def get(name: str) -> np.ndarray:
        if name not in state:
            raise invalid("weights", name, f"{what}, which holds it")
        return np.asarray(state[name], np.float32)

    def dense(name: str) -> dict[str, np.ndarray]:
        return {"kernel": get(f"{name}.weight").T, "bias": get(f"{name}.bias")}

    return get, dense
