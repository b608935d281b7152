"""Receipts as found: read, checked, and given names to be told apart by."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxgen.errors import UsageError, invalid
from jaxgen.scoring.common import most, samples_of

NOT_FINITE = ("nan", "inf", "-inf")
WANTED = "a receipt as `jaxgen evaluate` writes it"


@dataclasses.dataclass(frozen=True)
class Entry:
    """A receipt: what it holds, and whose it is.

    label: tells it from the others compared. run: the same for all receipts of one run. workdir:
    where its samples and config lie, or None for a receipt by itself.
    """

    label: str
    run: str
    path: Path
    receipt: Mapping[str, Any]
    workdir: Path | None

    @property
    def scores(self) -> dict[str, Mapping[str, Any]]:
        """name -> score."""
        return {score["name"]: score for score in self.receipt["scores"]}

    @property
    def guidance(self) -> float | None:
        """The guidance scale that the receipt is of, or None where it names none."""
        scale = self.receipt.get("guidance")
        return float(scale) if isinstance(scale, (int, float)) else None

    @property
    def images_seen(self) -> int | None:
        """Training images seen by the model, where the receipt says so."""
        seen = self.receipt.get("images_seen")
        return int(seen) if isinstance(seen, (int, float)) else None


def entries(runs: Sequence[str | Path]) -> list[Entry]:
    """The receipts of all runs, in their order, each with a label of its own.

    A run is a workdir (its `receipts/*.json` that hold scores, of the largest number of samples) or
    one receipt's file.
    Raises UsageError for a run without receipts, one that cannot be read, and one given twice.
    """
    files = [(str(run), path) for run in runs for path in _files(Path(run))]
    for path, count in Counter(path.resolve() for _, path in files).items():
        if count > 1:
            raise invalid("RUN", str(path), "every receipt once", f"It was given {count} times.")
    receipts = [(run, path, read(path)) for run, path in files]
    receipts = [(run, path, held) for run, path, held in receipts if "scores" in held]
    # Of a workdir's, quick looks at fewer samples are left to be named.
    largest = {run: most(h for r, _, h in receipts if r == run) for run in map(str, runs)}
    receipts = [
        each
        for each in receipts
        if each[1] == Path(each[0]) or samples_of(each[2]) == largest[each[0]]
    ]
    for run in runs:
        if str(run) not in [r for r, _, _ in receipts]:
            raise invalid("RUN", str(run), "a workdir whose receipts hold scores, or a receipt",
                          "`jaxgen evaluate --workdir ...` writes them.")  # fmt: skip
    names = _shortest([run for run, _, _ in receipts])
    labels = [names[run] for run, _, _ in receipts]
    for run in names:
        places = [i for i, (other, _, _) in enumerate(receipts) if other == run]
        for i, title in zip(places, _titles([receipts[i][2] for i in places]), strict=True):
            labels[i] = f"{labels[i]}, {title}" if title else labels[i]
    return [
        Entry(label, names[run], path, held, _workdir(path))
        for label, (run, path, held) in zip(_distinct(labels, receipts), receipts, strict=True)
    ]


def read(path: Path) -> dict[str, Any]:
    """A receipt's JSON, checked where it holds scores. Raises UsageError naming the file."""
    try:
        receipt = json.loads(path.read_text())
    except OSError as error:
        raise invalid("RUN", str(path), "a file that can be read", str(error)) from error
    except ValueError as error:
        raise UsageError(f"{path}: not readable as JSON: {error}; allowed: {WANTED}.") from error
    if isinstance(receipt, dict) and isinstance(receipt.get("scores"), dict):
        # Of files, scores are an object by name; of a model, a list.
        scores = receipt["scores"].items()
        receipt["scores"] = [{**s, "name": n} if isinstance(s, dict) else s for n, s in scores]
    trouble = next(_troubles(receipt), None)
    if trouble is not None:
        raise UsageError(f"{path}: {trouble}; allowed: {WANTED}.")
    if "scores" in receipt:
        receipt["scores"] = [_numbers(score) for score in receipt["scores"]]
    return dict(receipt)


def _files(run: Path) -> list[Path]:
    if run.is_file():
        return [run]
    files = sorted((run / "receipts").glob("*.json")) if run.is_dir() else []
    if not files:
        what = f"{run}, which has no receipts/*.json" if run.is_dir() else str(run)
        raise invalid("RUN", what, "a workdir with receipts/*.json, or a receipt's file")
    return files


def _troubles(receipt: Any) -> Iterator[str]:
    """What keeps parsed JSON from being a receipt."""
    if not isinstance(receipt, dict):
        yield f"got {type(receipt).__name__}, not an object"
        return
    for key in ("sampling", "data", "reference", "samples", "versions"):
        # Of a classifier's receipt, other things bear these names.
        if "scores" in receipt and not isinstance(receipt.get(key) or {}, dict):
            yield f"{key} is {receipt[key]!r}, not an object"
    scores = receipt.get("scores", [])
    if not isinstance(scores, list) or ("scores" in receipt and not scores):
        yield "scores is not a list of scores"
        return
    for score in scores:
        if not isinstance(score, dict) or not isinstance(score.get("name"), str):
            yield f"{str(score)[:60]!r} is no score: it has no name"
            return
        for key, value in ((k, score.get(k)) for k in ("value", "floor", "error")):
            if not (_number(value) or (value is None and key != "value")):
                yield f"{score['name']}: {key} is {value!r}, not a number"
        interval = score.get("interval")
        if interval is not None and not (
            isinstance(interval, list) and len(interval) == 2 and all(map(_number, interval))
        ):
            yield f"{score['name']}: interval is {interval!r}, not [low, high]"
    for name, count in Counter(score["name"] for score in scores).items():
        if count > 1:
            yield f"{name}: {count} scores of one name"


def _number(value: Any) -> bool:
    return (isinstance(value, (int, float)) and not isinstance(value, bool)) or value in NOT_FINITE


def _numbers(score: Mapping[str, Any]) -> dict[str, Any]:
    """A score whose "nan" and "inf" are floats again."""

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(v) for v in value]
        return float(value) if value in NOT_FINITE else value

    results = ("value", "floor", "interval", "error")
    return {k: plain(v) if k in results else v for k, v in score.items()}


def _workdir(path: Path) -> Path | None:
    """The run that a receipt lies in."""
    folder = path.resolve().parent
    is_run = folder.name == "receipts" and (folder.parent / "config.json").is_file()
    return folder.parent if is_run else None


def _titles(held: Sequence[Mapping[str, Any]]) -> list[str]:
    """What tells the receipts of one run apart, as far as guidance and images seen do."""
    words: list[list[str]] = [[] for _ in held]
    for key, form in (("guidance", "guidance {:g}"), ("images_seen", "{:,.0f} images")):
        values = [receipt.get(key) for receipt in held]
        if len(set(map(str, values))) > 1:
            for said, value in zip(words, values, strict=True):
                if isinstance(value, (int, float)):
                    said.append(form.format(value))
    return [", ".join(said) for said in words]


def _shortest(runs: Sequence[str]) -> dict[str, str]:
    """run -> as few of its path's last parts as tell the runs apart."""
    components = {run: Path(run).resolve().with_suffix("").parts for run in runs}
    # A folder's name may hold a dot, which is no suffix.
    components |= {run: Path(run).resolve().parts for run in runs if Path(run).is_dir()}
    for length in range(1, max(map(len, components.values())) + 1):
        names = {run: "/".join(whole[-length:]) for run, whole in components.items()}
        if len(set(names.values())) == len(names):
            return names
    return {run: run for run in runs}


def _distinct(labels: list[str], receipts: Sequence[tuple[str, Path, Any]]) -> list[str]:
    """Labels, with the file's name where two are the same."""
    counts = Counter(labels)
    return [
        label if counts[label] == 1 else f"{label} ({path.stem})"
        for label, (_, path, _) in zip(labels, receipts, strict=True)
    ]
