"""LoRA in files: ours, peft's folders, diffusers' single files; read and written.

Layers are named as in the network that the file is for: ours (`net.blocks.3.qkv`, the layers of a
stack by number), or, of a `DiT`, diffusers' and the paper's code (`pretrained.dit`). What is read
has each layer's alpha / rank in its B, so layers may differ in both. Safetensors alone are read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util as trees
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from jaxgen import files
from jaxgen.errors import invalid, unknown
from jaxgen.nn.placement import STACKED
from jaxgen.pretrained.dit import Factors, adapter_layers, diffusers_layers
from jaxgen.training.weights import dump
from jaxgen.training.weights import read as read_weights

PyTree = Any
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PEFT, DIFFUSERS = "base_model.model.", "transformer."
PREFIXES = (PEFT, DIFFUSERS, "unet.")
METADATA = "lora_adapter_metadata"
BESIDES = ("use_dora", "modules_to_save", "lora_bias", "fan_in_fan_out", "layers_to_transform")
"""Of a peft config: what is more than W + (alpha / r) B A, or names layers otherwise."""
LAYOUTS = ("jaxgen", "peft", "diffusers")


def read(place: str | Path, params: PyTree, *, heads: int | None = None) -> PyTree:
    """The change of `params` that is in a file or folder, as `params["lora"]` of scale 1.

    place: a file that `save` or diffusers wrote, or a folder of peft's. params: groups of
    arrays, or of their shapes. heads: of the network's attention, which diffusers' and the paper's
    names need. Raises UsageError for what cannot be read, what is no LoRA, and an adapter of
    another network, with what does not fit.
    """
    folder = files.local("adapter", str(place))
    file = folder / WEIGHTS if folder.is_dir() else folder
    arrays, about = _opened(file)
    kernels = {n: w for n, w in trees.flatten_dict(params, sep=".").items() if n[:5] != "lora."}
    if "rank" in about:
        known, scale = load(file)
        flat = trees.flatten_dict(known, sep=".")
        names = [n.removesuffix(".a") for n in flat if n.endswith(".a")]
        found = {n: Factors(flat[f"{n}.a"], scale * flat[f"{n}.b"]) for n in names}
    else:
        layers = _layers(arrays, _config(folder, about), str(place))
        found = _stacked(adapter_layers(layers, heads), kernels)
    trouble = [
        f"{n}: {(*f.a.shape[:-1], f.b.shape[-1])} there, "
        f"{tuple(kernels[n].shape) if n in kernels else 'nothing'} here"
        for n, f in found.items()
        if n not in kernels or (*f.a.shape[:-1], f.b.shape[-1]) != tuple(kernels[n].shape)
    ]
    if trouble:
        more = f" and {len(trouble) - 4} more" if len(trouble) > 4 else ""
        raise invalid("adapter", str(place), "an adapter of this network",
                      f"It differs in {'; '.join(trouble[:4])}{more}.")  # fmt: skip
    return trees.unflatten_dict({n: {"a": f.a, "b": f.b} for n, f in found.items()}, sep=".")


def write(
    place: str | Path,
    changes: PyTree,
    *,
    rank: int,
    alpha: float,
    layout: str = "jaxgen",
    heads: int | None = None,
) -> Path:
    """Write `params["lora"]`: "jaxgen" and "diffusers" a file, "peft" a folder; returns its place.

    "peft" has our names of layers, "diffusers" those of its `DiTTransformer2DModel`. Raises
    UsageError for another layout, and for layers that it has no name or form for.
    """
    place = files.local("adapter", str(place))
    if layout not in LAYOUTS:
        raise unknown("layout", layout, LAYOUTS)
    if layout == "jaxgen":
        save(place, changes, rank=rank, alpha=alpha)
        return place
    layers = _unstacked(changes)
    prefix = PEFT
    if layout == "diffusers":
        layers, prefix = diffusers_layers(layers, heads), DIFFUSERS
    arrays = {}
    for name, (a, b) in layers.items():
        if a.ndim not in (2, 4):
            raise invalid("layout", f"{layout!r} of {name} {a.shape}", "matrices and convolutions")
        axes = (1, 0) if a.ndim == 2 else (3, 2, 0, 1)
        arrays[f"{prefix}{name}.lora_A.weight"] = np.ascontiguousarray(a.transpose(axes))
        b = np.ascontiguousarray(b.T)
        arrays[f"{prefix}{name}.lora_B.weight"] = b if a.ndim == 2 else b[:, :, None, None]
    config = {"r": rank, "lora_alpha": alpha, "target_modules": sorted(layers)}
    if layout == "diffusers":
        said = {f"{prefix}{k}": v for k, v in config.items()}
        about = {"format": "pt", METADATA: json.dumps(said, indent=2, sort_keys=True)}
        files.write(place, to_bytes(arrays, about))
        return place
    whole = {"peft_type": "LORA", "task_type": None, "base_model_name_or_path": None, **config,
             "bias": "none", "init_lora_weights": True}  # fmt: skip
    files.write(place / WEIGHTS, to_bytes(arrays, {"format": "pt"}))
    files.write(place / CONFIG, files.json_text(whole).encode())
    return place


def save(path: files.Place, adapter: PyTree, *, rank: int, alpha: float) -> None:
    """`params["lora"]` as safetensors, with rank and alpha, without which it means nothing."""
    files.write(path, dump(adapter, {"rank": str(rank), "alpha": str(alpha)}))


def load(path: files.Place) -> tuple[PyTree, float]:
    """(the adapter, its scale alpha / rank) of a file that `save` wrote. Raises UsageError."""
    adapter, about = read_weights(path)
    if not {"rank", "alpha"} <= set(about):
        raise invalid("tune.lora", str(path), "a file of an adapter with its rank and alpha")
    return adapter, float(about["alpha"]) / int(about["rank"])


def _opened(file: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays and metadata. Raises UsageError."""
    if not file.is_file():
        raise invalid("adapter", str(file), f"a .safetensors file, or a folder with {WEIGHTS}")
    try:
        with safe_open(str(file), framework="numpy") as held:
            names = list(held.keys())
            return {n: held.get_tensor(n) for n in names}, held.metadata() or {}
    except (OSError, SafetensorError) as error:
        allowed = "a whole safetensors file (other forms can run code)"
        raise invalid("adapter", str(file), allowed, str(error)) from error


def _config(folder: Path, about: Mapping[str, str]) -> dict[str, Any]:
    """What peft's folder or diffusers' metadata say of ranks and alphas; nothing: {}."""
    if folder.is_dir():
        return dict(files.read_json(folder / CONFIG))
    try:
        said = json.loads(about.get(METADATA, "{}"))
    except ValueError as error:
        raise invalid("adapter", str(folder), "metadata that are JSON", str(error)) from error
    return {k.removeprefix("transformer.").removeprefix("unet."): v for k, v in said.items()}


def _layers(
    arrays: Mapping[str, np.ndarray], config: Mapping[str, Any], place: str
) -> dict[str, Factors]:
    """Each layer's change by its name in the file, scaled by its alpha / rank."""
    more = [name for name in BESIDES if config.get(name)]
    if more or config.get("peft_type", "LORA") != "LORA":
        given = f"{place} with {', '.join(more) or config['peft_type']}"
        raise invalid("adapter", given, "plain LoRA")
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        module, _, kind = name.removesuffix(".weight").rpartition(".")
        prefix = next((p for p in PREFIXES if module.startswith(p)), "")
        found.setdefault(module.removeprefix(prefix), {})[kind] = array.astype(np.float32)
    layers = {}
    for module, held in found.items():
        if not {"lora_A", "lora_B"} <= set(held) <= {"lora_A", "lora_B", "alpha"}:
            given = f"{place}, whose {module or 'arrays'} has {', '.join(sorted(held))}"
            raise invalid("adapter", given, "lora_A and lora_B of each layer")
        a, b = held["lora_A"], held["lora_B"]
        rank = a.shape[0]
        usual = _of(config, "alpha_pattern", module, "lora_alpha", rank)
        alpha = float(np.asarray(held.get("alpha", usual)).item())
        scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
        axes = (1, 0) if a.ndim == 2 else (2, 3, 1, 0)
        layers[module] = Factors(a.transpose(axes), scale * b.reshape(b.shape[0], rank).T)
    return layers


def _of(config: Mapping[str, Any], pattern: str, module: str, usual: str, default: Any) -> Any:
    """A layer's own number, by the end of its name, or the usual one."""
    own = {k: v for k, v in (config.get(pattern) or {}).items() if f".{module}".endswith(f".{k}")}
    return next(iter(own.values())) if own else config.get(usual, default)


def _stacked(layers: Mapping[str, Factors], kernels: Mapping[str, Any]) -> dict[str, Factors]:
    """Layers by our kernels' names; those of a stack together, with ranks made equal by zeros."""
    found: dict[str, Factors] = {}
    several: dict[str, dict[int, Factors]] = {}
    for name, factors in layers.items():
        words = name.split(".")
        numbers = [i for i, word in enumerate(words) if word.isdecimal()]
        ways = {".".join((*words[:i], *words[i + 1 :], "kernel")): int(words[i]) for i in numbers}
        stack = next((n for n in ways if n in kernels and STACKED.search(n)), None)
        if f"{name}.kernel" in kernels or stack is None:
            found[f"{name}.kernel"] = factors
        else:
            several.setdefault(stack, {})[ways[stack]] = factors
    for name, own in several.items():
        rank = max(f.b.shape[0] for f in own.values())
        first, depth = next(iter(own.values())), max(kernels[name].shape[0], 1 + max(own))
        a = np.zeros((depth, *first.a.shape[:-1], rank), np.float32)
        b = np.zeros((depth, rank, first.b.shape[1]), np.float32)
        for number, f in own.items():
            a[number, ..., : f.b.shape[0]], b[number, : f.b.shape[0]] = f
        found[name] = Factors(a, b)
    return found


def _unstacked(changes: PyTree) -> dict[str, Factors]:
    """The inverse of `_stacked`: every layer of a stack for itself."""
    flat = trees.flatten_dict(changes, sep=".")
    layers = {}
    for name in (n.removesuffix(".kernel.a") for n in flat if n.endswith(".kernel.a")):
        a, b = (np.asarray(flat[f"{name}.kernel.{k}"], np.float32) for k in "ab")
        stack = STACKED.search(f"{name}.kernel")
        if stack is None:
            layers[name] = Factors(a, b)
            continue
        for i in range(len(a)):
            layers[f"{name[: stack.end()]}{i}.{name[stack.end() :]}"] = Factors(a[i], b[i])
    return layers
