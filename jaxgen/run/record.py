"""What a workdir says of its data, so that a trained model needs none.

`config.json` is the config of the run and one key more, `recorded`, which training writes and no
user sets: what examples are like, how images became them, and what else a run was told by others.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from jaxgen import config as configs
from jaxgen.data import Coding, Source
from jaxgen.errors import invalid
from jaxgen.files import local, read_json
from jaxgen.method import Spec
from jaxgen.run.setup import Setup, differences, other_data, text_order
from jaxgen.training.checkpoint import has_checkpoints, write_atomic

FILE, KEY = "config.json", "recorded"


def save(workdir: Path, setup: Setup, **more: Any) -> None:
    """Write `config.json`: the config, and `recorded`. more: further entries of that."""
    said = {KEY: {**record_of(setup, workdir), **more}}
    text = json.dumps({**configs.to_dict(setup.config), **said}, indent=2, sort_keys=True)
    write_atomic(workdir / FILE, text)


def saved_config(workdir: str | Path) -> ml_collections.ConfigDict:
    """The config that a run left in its workdir. Raises UsageError where there is none."""
    config = _read(Path(workdir))
    config.pop(KEY, None)
    return ml_collections.ConfigDict(config)


def recorded(workdir: str | Path) -> dict[str, Any]:
    """What else `config.json` says: `spec`, `coding`, ...; {} of a run that recorded nothing."""
    found: dict[str, Any] = _read(Path(workdir)).get(KEY, {})
    return found


def before(workdir: Path) -> dict[str, Any]:
    """`recorded` of a workdir that may be new; {} of one whose run has no checkpoint yet."""
    return recorded(workdir) if has_checkpoints(workdir) else {}


def class_order(workdir: Path) -> Callable[[Source], Sequence[str]] | None:
    """The order in which a run that goes on has the classes of a source; None of a new run."""
    if not (workdir / FILE).is_file() or not has_checkpoints(workdir):
        return None
    spec = spec_of_record(recorded(workdir))
    if spec is None:
        return text_order
    return lambda source: spec.classes or source.class_names


def record_of(setup: Setup, workdir: Path) -> dict[str, Any]:
    """`spec`, and `coding` where examples are codes, as JSON has them."""
    spec = {f.name: getattr(setup.spec, f.name) for f in dataclasses.fields(Spec)}
    spec["target"] = setup.spec.target is not None
    spec["columns"] = {k: dataclasses.asdict(c) for k, c in setup.spec.columns.items()}
    found: dict[str, Any] = {"spec": spec}
    if setup.coding is not None:
        found["coding"] = dataclasses.asdict(setup.coding)
        tokenizer = tokenizer_of(setup, workdir)
        if tokenizer is not None:
            found["coding"]["tokenizer"] = os.path.abspath(tokenizer)
            found["coding"]["beside"] = os.path.relpath(tokenizer, workdir)
    return found


def spec_of_record(said: Mapping[str, Any]) -> Spec | None:
    """The Spec; None where none is recorded, and of a target, which the config alone says."""
    if "spec" not in said or said["spec"]["target"]:
        return None
    fields = {**said["spec"], "target": None}
    fields |= {name: tuple(fields[name]) for name in ("shape", "classes")}
    return Spec(**fields)


def coding_of_record(said: Mapping[str, Any]) -> Coding | None:
    """The Coding, or None where examples are no codes."""
    if "coding" not in said:
        return None
    return Coding(**{k: v for k, v in said["coding"].items() if k != "beside"})


def tokenizer_of(setup: Setup, workdir: Path) -> Path | None:
    """Where the tokenizer is whose codes the examples are; None where there is none.

    Where the config says; or else as far from the workdir as it was in training, so that the two
    may move together; or where it was then. Raises UsageError where it is in none of these places.
    """
    said = recorded(workdir).get("coding", {}) if (workdir / FILE).is_file() else {}
    own = None if setup.coding is None else setup.coding.tokenizer
    beside = workdir / said["beside"] if "beside" in said else None
    found = (setup.data.tokenizer, beside, said.get("tokenizer"), own)
    places = list(
        dict.fromkeys(
            os.path.normpath(local("config.data.tokenizer", place)) for place in found if place
        )
    )
    if not places:
        return None
    for place in places:
        if (Path(place) / FILE).is_file():
            return Path(place)
    raise invalid(
        "--tokenizer",
        " and ".join(places),
        f"the workdir of the tokenizer (it has a {FILE})",
        "Say where it is now: --tokenizer DIR (of `jaxgen train`: --config.data.tokenizer=DIR).",
    )


def check_same_data(workdir: Path, setup: Setup) -> None:
    """Refuse to go on with a run on data of other classes, another order of them, or other codes.

    Raises UsageError that says what both are.
    """
    said = recorded(workdir) if (workdir / FILE).is_file() else {}
    spec, coding = spec_of_record(said), coding_of_record(said)
    if spec is not None and differences(setup.spec, spec):
        raise other_data("config.data.source", setup.spec, spec)
    if coding is not None and dataclasses.replace(coding, tokenizer=None) != dataclasses.replace(
        setup.coding or Coding(), tokenizer=None
    ):
        given = f"codes of {setup.coding}"
        raise invalid("config.data.source", given, f"{coding}, as the model was trained on")


def _read(workdir: Path) -> dict[str, Any]:
    path = local("--workdir", workdir) / FILE
    if not path.is_file():
        raise invalid("--workdir", str(workdir), f"the folder of a run (it has a {FILE})")
    return read_json(path)
