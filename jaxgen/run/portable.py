"""A model that travels: a folder with the parameters of one average, and what a workdir says.

    config.json        the run's config, and what it recorded; `exported` says what is in the folder
    model.safetensors  the parameters
    receipts/          what was measured of it
    samples/           its final grids
    tokenizer/         where samples are codes: the same folder of what decodes them
    README.md          a card for people, with what else `jaxgen.report.card` says

`jaxgen.run.model.load`, and so every command, takes it in the place of a workdir. Nothing in it is
code, and a file that is not the one written is an error.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxgen import files
from jaxgen.data import to_host
from jaxgen.errors import UsageError, invalid
from jaxgen.training.weights import dump, fingerprint, read

PyTree = Any

CONFIG, FILE, CARD, TOKENIZER = "config.json", "model.safetensors", "README.md", "tokenizer"
_OWN = (CONFIG, FILE, CARD, "receipts/*.json", "samples/*.png")
PATTERNS = (*_OWN, *(f"{TOKENIZER}/{name}" for name in _OWN))
"""Files of such a folder; nothing else is sent or fetched."""


def is_one(folder: str | Path) -> bool:
    """Whether a folder is an exported model, and no run's workdir."""
    return (Path(folder) / FILE).is_file() and not (Path(folder) / "checkpoints").is_dir()


def write(
    out: Path,
    said: Mapping[str, Any],
    params: PyTree,
    exported: Mapping[str, Any],
    contents: Mapping[str, bytes],
    tokenizer: Path | None = None,
) -> Path:
    """Write the folder, whole or not at all; `out` is new, or an empty folder.

    said: `config.json` of the run. exported: what is to be known of the parameters ("ema",
    "images", "step"). contents: further files by name. tokenizer: the exported folder of one, which
    is moved here. Raises UsageError where it cannot be written.
    """
    files.check("--out", out, directory=True)
    files.folder(out.parent)
    with files.writing(out), tempfile.TemporaryDirectory(dir=out.parent, prefix=".export") as home:
        folder = Path(home) / "model"
        parameters = to_host(params)
        written = {**contents, FILE: dump(parameters, {"images": str(exported["images"])})}
        if tokenizer is not None:
            for path in sorted(p for p in tokenizer.rglob("*") if p.is_file()):
                written[f"{TOKENIZER}/{path.relative_to(tokenizer)}"] = path.read_bytes()
        about = {
            **exported,
            "digest": fingerprint(parameters),
            "files": {
                name: hashlib.sha256(data).hexdigest()
                for name, data in written.items()
                if not name.endswith(CARD)
            },
        }
        recorded = {**said.get("recorded", {}), "exported": about}
        if tokenizer is not None:
            coding = {k: v for k, v in recorded["coding"].items() if k != "tokenizer"}
            recorded["coding"] = {**coding, "beside": TOKENIZER}
        text = json.dumps({**said, "recorded": recorded}, indent=2, sort_keys=True)
        for name, data in {**written, CONFIG: text.encode()}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        if out.is_dir():
            out.rmdir()
        os.replace(folder, out)
    return out


def check_new(option: str, out: Path) -> None:
    """Raise UsageError unless a folder can be written at `out`: new, or empty."""
    files.check(option, out, directory=True)
    if out.is_dir() and any(out.iterdir()):
        raise invalid(option, str(out), "a new folder, or an empty one")


def about(folder: str | Path) -> dict[str, Any]:
    """What an exported folder says of itself: ema, images, step, digest, files. UsageError."""
    found = files.read_json(Path(folder) / CONFIG).get("recorded", {}).get("exported")
    if not isinstance(found, dict) or not {"ema", "images", "step", "digest", "files"} <= set(
        found
    ):
        raise UsageError(f"{folder}: has {FILE}, but its {CONFIG} does not say what that is.")
    return found


def parameters(folder: str | Path) -> tuple[PyTree, dict[str, Any]]:
    """(parameters, `about`) of an exported folder. Raises UsageError for a damaged one."""
    said = about(folder)
    params, _ = read(Path(folder) / FILE)
    if fingerprint(params) != said["digest"]:
        raise UsageError(f"{Path(folder) / FILE}: not the parameters that {CONFIG} tells of.")
    return params, said


def verify(folder: str | Path) -> dict[str, Any]:
    """`about`, after every file was compared with its digest; people may change the card.

    Raises UsageError that names what is missing, changed, or newer than the export.
    """
    root, said = Path(folder), about(folder)
    there = {
        name
        for name in (p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in PATTERNS)
        and name not in (CONFIG, CARD, f"{TOKENIZER}/{CARD}")
    }
    if missing := sorted(set(said["files"]) - there):
        raise UsageError(f"{folder}: incomplete, without {', '.join(missing)}.")
    if more := sorted(there - set(said["files"])):
        raise UsageError(
            f"{folder}: has what was not exported with it: {', '.join(more)}. "
            f"Export it again: jaxgen export --workdir {folder} --out NEW"
        )
    for name, digest in said["files"].items():
        if hashlib.sha256((root / name).read_bytes()).hexdigest() != digest:
            raise UsageError(f"{root / name}: not the file that was exported (sha256 differs).")
    return said


def move(folder: Path, out: Path) -> None:
    """A folder to its place, which is new or empty."""
    with files.writing(out):
        files.folder(out.parent)
        if out.is_dir():
            out.rmdir()
        shutil.move(folder, out)
