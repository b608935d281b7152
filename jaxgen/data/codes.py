"""Codes that a tokenizer wrote (`jaxgen tokenize`): array records of tokens or latent moments.

A folder holds one `SPLIT.array_record` a split, a record an example (int32 label, then the code,
little-endian), and `codes.json`, written last, so a folder that has it is whole.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from grain.sources import ArrayRecordDataSource

from jaxgen.data import order
from jaxgen.data.source import Coding, Source, check_labels, check_split
from jaxgen.errors import invalid
from jaxgen.files import local

FORMAT = 1
_DTYPES = {"tokens": np.dtype("<i4"), "latents": np.dtype("<f4")}


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class CodeSource(Source):
    """Codes of one split. tokenizer: the workdir that made them; digest: of its parameters.

    Tokens are int32 (h, w). Of latents the records hold mean and standard deviation; examples are
    (mean + std * eps - shift) * scale, eps from (seed, position) in training and 0 elsewhere.
    """

    path: str
    kind: str
    tokenizer: str
    ema: str
    digest: str
    scale: float
    shift: float
    has_flips: bool

    @property
    def flippable(self) -> bool:
        """Whether the codes of the mirrored images are stored: codes cannot be mirrored."""
        return self.has_flips

    def images(self, indices: np.ndarray) -> np.ndarray:
        """Codes [n, *shape] at `indices` [n]: int32 tokens, or the scaled means, float32."""
        found = self._records(indices, np.zeros(len(indices), bool))
        return found if self.tokens else self._scaled(found, 0.0)

    def draw(
        self, indices: np.ndarray, *, positions: np.ndarray, seed: int, flip: bool
    ) -> np.ndarray:
        """Codes as training sees them: of the mirrored image where the coin says so, and noised."""
        coins = order.flips(seed, positions) if flip else np.zeros(len(indices), bool)
        found = self._records(indices, coins)
        return (
            found if self.tokens else self._scaled(found, order.noise(seed, positions, self.shape))
        )

    @property
    def coding(self) -> Coding:
        """What decoding needs without these files."""
        return Coding(
            tokenizer=self.tokenizer,
            ema=self.ema,
            digest=self.digest,
            scale=self.scale,
            shift=self.shift,
        )

    def _scaled(self, moments: np.ndarray, eps: np.ndarray | float) -> np.ndarray:
        mean, std = np.split(moments, 2, axis=-1)
        return ((mean + std * eps - self.shift) * self.scale).astype(np.float32)

    def _records(self, indices: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
        records = _open(self.path).__getitems__((indices + mirrored * len(self)).tolist())
        shape = self.shape if self.tokens else (*self.shape[:-1], 2 * self.shape[-1])
        rows = np.frombuffer(b"".join(r[4:] for r in records), _DTYPES[self.kind])
        return rows.reshape(len(indices), *shape).astype(rows.dtype.newbyteorder("="))


@functools.lru_cache(maxsize=8)
def _open(path: str) -> ArrayRecordDataSource:
    return ArrayRecordDataSource(path)


def codes(path: str, split: str = "train") -> CodeSource:
    """The codes of a split in a folder that `jaxgen tokenize` wrote.

    Raises UsageError for a folder that is none or not whole.
    """
    folder = local("source.path", path)
    about = read_about(folder)
    check_split(split, sorted(about["splits"]))
    file = folder / f"{split}.array_record"
    count, has_flips = about["splits"][split], about["flips"]
    have = len(_open(str(file))) if file.is_file() else 0
    if have != count * (1 + has_flips):
        raise invalid("source.path", str(file), f"{count * (1 + has_flips)} records, not {have}")
    step = 4096
    labels = np.concatenate(
        [
            np.frombuffer(b"".join(r[:4] for r in _open(str(file)).__getitems__(rows)), "<i4")
            for rows in (list(range(i, min(i + step, count))) for i in range(0, count, step))
        ]
    )
    labels, names = check_labels(labels, about["class_names"])
    return CodeSource(
        labels=labels,
        class_names=names,
        shape=tuple(about["shape"]),
        levels=about["levels"],
        tokens=about["kind"] == "tokens",
        path=str(file),
        kind=about["kind"],
        tokenizer=about["tokenizer"],
        ema=about["ema"],
        digest=about["digest"],
        scale=about["scale"],
        shift=about["shift"],
        has_flips=has_flips,
    )


def read_about(folder: Path) -> dict[str, Any]:
    """What `codes.json` says. Raises UsageError where there is none that can be read."""
    file = folder / "codes.json"
    if not file.is_file():
        raise invalid("source.path", str(folder), "a folder that `jaxgen tokenize` wrote")
    try:
        about: dict[str, Any] = json.loads(file.read_text())
    except ValueError as error:
        raise invalid("source.path", str(file), "readable JSON", str(error)) from error
    if about.get("format") != FORMAT or about.get("kind") not in _DTYPES:
        raise invalid("source.path", str(file), f"codes of format {FORMAT}")
    return about


def write_split(
    folder: Path, split: str, kind: str, parts: Iterable[tuple[np.ndarray, np.ndarray]]
) -> int:
    """Write (labels [n], codes [n, ...]) one after another; the file appears when it is whole."""
    file = folder / f"{split}.array_record"
    partial = file.with_suffix(".partial")
    writer, count = ArrayRecordWriter(str(partial), "group_size:1"), 0
    for labels, rows in parts:
        rows = np.ascontiguousarray(rows, _DTYPES[kind])
        for label, row in zip(np.asarray(labels, "<i4"), rows, strict=True):
            writer.write(label.tobytes() + row.tobytes())
            count += 1
    writer.close()
    partial.replace(file)
    return count


def about(
    *,
    kind: str,
    shape: Sequence[int],
    levels: int | None,
    class_names: Sequence[str],
    splits: dict[str, int],
    flips: bool,
    scale: float,
    shift: float,
    **made_by: Any,
) -> str:
    """The text of `codes.json`. made_by: tokenizer, ema, digest, images_seen."""
    return json.dumps(
        {
            "format": FORMAT,
            "kind": kind,
            "shape": list(shape),
            "levels": levels,
            "class_names": list(class_names),
            "splits": splits,
            "flips": flips,
            "scale": scale,
            "shift": shift,
            **made_by,
        },
        indent=2,
    )
