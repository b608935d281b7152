"""Files and folders of other people's weights, read without running what is in them.

Safetensors hold arrays alone. A PyTorch file is a pickle, which can run code: it is read by
`torch.load(weights_only=True)`, which runs none, where PyTorch is installed, and not otherwise.
"""

from __future__ import annotations

import importlib
import importlib.util
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from jaxgen import files
from jaxgen.errors import UsageError, invalid
from jaxgen.pretrained.layout import Found, State

TORCH = (".pt", ".pth", ".bin", ".ckpt")
PICKLES = (".pkl", ".pickle")
GROUPS = ("ema", "model_ema", "model", "state_dict")
"""Under which of these names a training checkpoint keeps the weights that samples are made with."""
PREFIXES = ("module.", "_orig_mod.", "model.")
INDEX = ".safetensors.index.json"
PARTS = ("transformer", "unet", "vae", "vqvae")
"""Networks of a pipeline of diffusers that have weights for us."""
SAFE = (
    "Convert it where you trust it: safetensors.torch.save_file("
    "{k: v.contiguous() for k, v in torch.load(FILE)['ema'].items()}, 'x.safetensors')."
)


def read(file: Path, groups: Sequence[str] = ()) -> State:
    """The state dict of a safetensors or PyTorch file: name -> array.

    groups: names under which a PyTorch file may hold it, the first of them that it has; () of a
    file that is one state dict. Raises UsageError for a file that is neither, is cut short, or
    holds more than arrays; and for a PyTorch file where PyTorch is not installed.
    """
    if file.suffix == ".safetensors":
        return _safetensors(file)
    if importlib.util.find_spec("torch") is None:
        allowed = "a .safetensors file, or PyTorch to read this one"
        raise invalid("weights", str(file), allowed, 'pip install "jaxgen[parity]"')
    torch = importlib.import_module("torch")
    try:
        held = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise refused(file, "pickled objects besides arrays, which can run code") from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise unreadable(file, error) from error
    for name in groups:
        if isinstance(held, Mapping) and isinstance(held.get(name), Mapping):
            held = held[name]
    if not isinstance(held, Mapping):
        raise invalid("weights", str(file), "a file of one state dict: names and arrays")
    if groups:
        held = {k: v for k, v in held.items() if torch.is_tensor(v)}
    if not held or not all(torch.is_tensor(v) for v in held.values()):
        raise invalid("weights", str(file), "a file of one state dict: names and arrays")
    return {k: (v.float() if v.is_floating_point() else v).numpy() for k, v in held.items()}


def opened(place: Path) -> dict[str, Found]:
    """What is at a place: networks by their part in a pipeline, or one called "".

    place: a .safetensors or PyTorch file; a folder with config.json and weights, as diffusers saves
    a network, or with model_index.json and a folder for each part. Raises UsageError.
    """
    if place.is_dir():
        index = place / "model_index.json"
        return _pipeline(place, files.read_json(index)) if index.is_file() else {"": _folder(place)}
    if not place.exists():
        allowed = "a .safetensors or PyTorch file, or a folder as diffusers writes it"
        raise invalid("SOURCE", str(place), allowed)
    if place.suffix in PICKLES:
        raise refused(place, "a pickle, which can run code")
    if place.suffix not in (".safetensors", *TORCH):
        kinds = ", ".join((".safetensors", *TORCH))
        raise invalid("SOURCE", str(place), f"a file that ends in {kinds}, or a folder")
    return {"": Found(plain(read(place, GROUPS)))}


def refused(file: Path, what: str) -> UsageError:
    """The error of a file that is not opened, with the safe way."""
    return invalid("weights", f"{file}, {what}", "arrays alone (.safetensors)", SAFE)


def plain(state: State) -> State:
    """A state dict without the prefixes that wrappers put before every name."""
    for prefix in PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): array for name, array in state.items()}
    return state


def _pipeline(place: Path, index: Mapping[str, Any]) -> dict[str, Found]:
    parts = [p for p in PARTS if isinstance(index.get(p), list) and index[p][0] is not None]
    missing = [part for part in parts if not (place / part).is_dir()]
    if missing or not parts:
        allowed = f"a folder with its parts: {', '.join(parts or PARTS)}"
        raise invalid("SOURCE", f"{place} without {', '.join(missing or PARTS)}", allowed)
    file = place / "scheduler" / "scheduler_config.json"
    scheduler = files.read_json(file) if file.is_file() else {}
    found = {part: _folder(place / part) for part in parts}
    return {part: Found(one.state, one.about, scheduler) for part, one in found.items()}


def _folder(place: Path) -> Found:
    """One network in a folder: its config.json, and its weights in one file or several."""
    about = files.read_json(place / "config.json") if (place / "config.json").is_file() else {}
    indices = sorted(place.glob(f"*{INDEX}"))
    names = sorted(place.glob("*.safetensors"))
    if indices:
        parts = sorted(set(files.read_json(indices[0]).get("weight_map", {}).values()))
        # A name is a file beside the index, and leads nowhere else.
        names = [place / Path(str(part)).name for part in parts]
    whole = [n for n in names if not re.search(r"\.(fp16|bf16|non_ema)\.", n.name)] or names
    if not indices and len(whole) > 1:
        listed = ", ".join(n.name for n in whole)
        raise invalid("SOURCE", f"{place} with {listed}", "a folder with one of these, or the file")
    if not whole:
        whole = [n for suffix in TORCH for n in sorted(place.glob(f"*{suffix}"))][:1]
    if not whole:
        raise invalid("SOURCE", str(place), "a folder with weights (.safetensors)")
    state: dict[str, np.ndarray] = {}
    for file in whole:
        state |= read(file, GROUPS)
    return Found(plain(state), about)


def _safetensors(file: Path) -> State:
    try:
        state = safetensors.numpy.load_file(file)
    except (safetensors.SafetensorError, OSError, KeyError) as error:
        raise unreadable(file, error) from error
    return {
        k: a.astype(np.float32) if a.dtype == ml_dtypes.bfloat16 else a for k, a in state.items()
    }


def unreadable(file: Path, error: Exception) -> UsageError:
    """The error of a file of weights that is not whole."""
    reason = str(error).strip().split("\n")[0][:200]
    return invalid("weights", str(file), f"a whole file of weights ({reason})")
