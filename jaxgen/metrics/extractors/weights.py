"""Weights of published networks: found on this machine, checked, converted once. No network access.

A file of their names is read, converted to ours (`convert`) and kept as safetensors in
`cache_folder()`, named for the sha256 of the file that it came from. Safetensors holds no code; a
PyTorch file is read by `torch.load(weights_only=True)`, which runs none.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import os
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax
import numpy as np
import safetensors
import safetensors.numpy

from jaxgen import files
from jaxgen.errors import UsageError, invalid
from jaxgen.pretrained.layout import State
from jaxgen.pretrained.reading import read, unreadable

# Of the names and shapes of converted parameters: a file of another layout is not read.
LAYOUT = 1

PyTree = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origin:
    """Where the weights of one network come from.

    name: of the converted file. digests: sha256 by the published file's name, where it is known.
    torch: file names in PyTorch hub's cache; hub: a repository on the Hugging Face hub; package:
    (an installed package, a file in it). fetch: the lines that fetch them.
    """

    name: str
    fetch: tuple[str, ...]
    digests: Mapping[str, str] = dataclasses.field(default_factory=dict)
    torch: tuple[str, ...] = ()
    hub: str | None = None
    package: tuple[str, str] | None = None


def obtain(
    origin: Origin,
    convert: Callable[[State], PyTree],
    shapes: PyTree,
    weights: str | Path | None = None,
) -> tuple[PyTree, str]:
    """(parameters, digest) of the weights in a file, or where None in this machine's caches.

    convert: their state dict -> ours. shapes: of ours. weights: the published file (.pth, .pt, .bin
    or .safetensors) or one that was converted before. digest: sha256 of the published file, and
    ", unverified" after it where nothing says what it ought to be. Raises UsageError where there
    are no weights, with what fetches them; for a file that cannot be read, is not what its name
    says, or holds another network.
    """
    file = find(origin) if weights is None else Path(weights).expanduser()
    if not file.is_file():
        raise invalid("weights", str(file), "a file of weights", _how(origin))
    loaded = _converted(file, origin.name)
    if loaded is None:
        digest = _digest(file, origin)
        kept = cache_folder() / f"{origin.name}-{digest[:16]}.safetensors"
        loaded = _kept(kept, origin.name, digest)
        if loaded is None:
            params = convert(read(file))
            check(params, shapes, file)
            _keep(kept, origin.name, params, digest)
            loaded = params, digest
    check(loaded[0], shapes, file)
    return loaded


def cache_folder() -> Path:
    """Where converted weights are kept: jaxgen/extractors below XDG_CACHE_HOME or ~/.cache."""
    return _folder("XDG_CACHE_HOME", "~/.cache") / "jaxgen" / "extractors"


def find(origin: Origin) -> Path:
    """The file in PyTorch hub's cache, Hugging Face's, an installed package, or converted before.

    Raises UsageError where there is none, or several converted ones and no original.
    """
    hub = _folder("TORCH_HOME", "~/.cache/torch") / "hub" / "checkpoints"
    places = [hub / name for name in origin.torch]
    if origin.hub:
        places += _snapshots(origin.hub)
    if origin.package and (spec := importlib.util.find_spec(origin.package[0])):
        places += [Path(p) / origin.package[1] for p in spec.submodule_search_locations or ()]
    for place in places:
        if place.is_file():
            return place
    converted = sorted(cache_folder().glob(f"{origin.name}-*.safetensors"))
    if len(converted) > 1:
        raise invalid("weights", "None", f"one of {', '.join(map(str, converted))}")
    if not converted:
        raise UsageError(f"weights: none found for {origin.name!r}. {_how(origin)}")
    return converted[0]


def taken(state: State, name: str) -> np.ndarray:
    """A weight in float32; UsageError where the state dict has none of that name."""
    if name not in state:
        raise invalid("weights", f"no {name}", "the state dict of this network, which holds it")
    return np.asarray(state[name], np.float32)


def dense(state: State, name: str) -> dict[str, np.ndarray]:
    """A dense layer's kernel [in, out] and, where there is one, bias, of PyTorch's Linear."""
    layer = {"kernel": taken(state, f"{name}.weight").T}
    if f"{name}.bias" in state:
        layer["bias"] = taken(state, f"{name}.bias")
    return layer


def check(params: PyTree, shapes: PyTree, file: Path) -> None:
    """Raise UsageError where the parameters' names or shapes are not those of the network."""
    given, wanted = (flax.traverse_util.flatten_dict(tree, sep=".") for tree in (params, shapes))
    for name in sorted(set(given) ^ set(wanted)):
        raise invalid("weights", f"{file}, on {name}", "exactly the weights of this network")
    for name, leaf in wanted.items():
        size = np.shape(given[name])
        if size != leaf.shape:
            raise invalid("weights", f"{file}, whose {name} is {size}", f"{leaf.shape}")


def sha256(file: Path) -> str:
    """Of a file's bytes, in hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _digest(file: Path, origin: Origin) -> str:
    """sha256 of a published file; UsageError where it is not what is known, or its name says."""
    digest = sha256(file)
    blob = file.resolve().name
    claims = [
        origin.digests.get(file.name, ""),
        # Hugging Face's cache names large files for their sha256.
        blob if re.fullmatch("[0-9a-f]{64}", blob) else "",
        # PyTorch's convention: name-<first digits of sha256>.pth.
        *re.findall(r"-([0-9a-f]{8,64})\.(?:pth|pt)$", file.name),
    ]
    for claim in claims:
        if not digest.startswith(claim):
            allowed = f"sha256 {claim}: the file is cut short or altered"
            raise invalid("weights", f"{file} of sha256 {digest}", allowed, _how(origin))
    known = any(claims) or digest in origin.digests.values()
    return digest if known else f"{digest}, unverified"


def _converted(file: Path, name: str) -> tuple[PyTree, str] | None:
    """(params, digest) of a file that `_keep` wrote; None for any other."""
    if file.suffix != ".safetensors":
        return None
    try:
        with safetensors.safe_open(file, framework="numpy") as stored:
            about = stored.metadata() or {}
            if "jaxgen.extractor" not in about:
                return None
            flat = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, KeyError) as error:
        raise unreadable(file, error) from error
    if about["jaxgen.extractor"] != _label(name):
        given = about["jaxgen.extractor"]
        raise invalid("weights", f"{file}, of {given}", f"those of {_label(name)}")
    if about.get("parameters") != _parameters(flat):
        raise invalid("weights", str(file), "as it was written: its arrays have changed since")
    return flax.traverse_util.unflatten_dict(flat, sep="."), about["digest"]


def _kept(file: Path, name: str, digest: str) -> tuple[PyTree, str] | None:
    """What was converted before of a file of this digest, if it is whole."""
    try:
        loaded = _converted(file, name) if file.is_file() else None
    except UsageError as error:
        warnings.warn(f"{error} Converting again.", stacklevel=2)
        return None
    # The same file may be verified under one name and not under another.
    return None if loaded is None else (loaded[0], digest)


def _keep(file: Path, name: str, params: PyTree, digest: str) -> None:
    """Write converted parameters, whole or not at all; a warning where that cannot be done."""
    flat = flax.traverse_util.flatten_dict(params, sep=".")
    flat = {key: np.ascontiguousarray(value) for key, value in flat.items()}
    about = {"jaxgen.extractor": _label(name), "digest": digest, "parameters": _parameters(flat)}
    try:
        files.write(file, safetensors.numpy.save(flat, about))
    except files.Unwritable as error:
        warnings.warn(f"{error} Converted each time.", stacklevel=2)


def _label(name: str) -> str:
    return f"{name}, layout {LAYOUT}"


def _parameters(flat: Mapping[str, np.ndarray]) -> str:
    """sha256 of arrays by name: safetensors does not notice a flipped bit."""
    digest = hashlib.sha256()
    for name in sorted(flat):
        digest.update(f"{name} {flat[name].dtype} {flat[name].shape}".encode())
        digest.update(np.ascontiguousarray(flat[name]).tobytes())
    return digest.hexdigest()


def _snapshots(repository: str) -> list[Path]:
    """Files of weights in Hugging Face's cache, of the revision `main` that was fetched last."""
    home = _folder("HF_HOME", "~/.cache/huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    folder = hub / f"models--{repository.replace('/', '--')}"
    main = folder / "refs" / "main"
    if not main.is_file():
        return []
    snapshot = folder / "snapshots" / main.read_text().strip()
    return [snapshot / "model.safetensors", snapshot / "pytorch_model.bin"]


def _folder(variable: str, default: str) -> Path:
    return Path(os.environ.get(variable) or default).expanduser()


def _how(origin: Origin) -> str:
    lines = "\n  ".join(origin.fetch)
    return (
        f"Fetch them once:\n  {lines}\nor give a file as `weights`. Without any, the scores of "
        "the classifier's features (`jaxgen evaluate` as it comes) need no download."
    )
