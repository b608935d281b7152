"""Whether scores may be put side by side, and which of them is the best."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxgen.report.compare.receipts import Entry

# What a score found, and by which draws. Everything else that it says is how it was measured: a
# setting that is not known here is compared, not passed over.
FOUND = ("name", "value", "says", "error", "also", "threshold", "seed", "seconds")
# Of the scored samples: how they were read and turned into bytes. Whose they are may differ.
READ = ("shape", "dtype", "resizer", "resize", "quantiser", "quantise")
# Only known of samples that a receipt says the making of.
OF_MAKING = ("sampling.dtype",)
# The same data may lie elsewhere.
PLACES = ("path", "data_dir", "file")


class Difference(NamedTuple):
    """A setting in which receipts differ. values: label -> what the receipt says (None: nothing).

    scores: the names of the scores that it makes incomparable.
    """

    setting: str
    values: dict[str, Any]
    scores: tuple[str, ...]

    def __str__(self) -> str:
        """One line: the setting, each value with who has it, the scores."""
        holders: dict[str, list[str]] = {}
        for label, value in self.values.items():
            holders.setdefault(_short(value), []).append(label)
        said = "; ".join(f"{value} ({', '.join(who)})" for value, who in holders.items())
        return f"{', '.join(self.scores)}: {self.setting} is {said}"


def differences(entries: Sequence[Entry]) -> list[Difference]:
    """All settings in which a score of two or more entries was measured differently.

    Settings are all that a score says but its results, and of its receipt the reference (the data
    section where no receipt names one), the protocol of the labels, the dtype, and how samples were
    read. A setting that one receipt states and another does not is a difference.
    """
    about = _references(entries)
    differences_by_key: dict[str, Difference] = {}
    for name in dict.fromkeys(name for entry in entries for name in entry.scores):
        holders = [entry for entry in entries if name in entry.scores]
        said = {e.label: _settings(e, name) | about[e.label] for e in holders}
        for setting in dict.fromkeys(key for each in said.values() for key in each):
            values = {label: each.get(setting) for label, each in said.items()}
            if setting in OF_MAKING:
                values = {label: value for label, value in values.items() if value is not None}
            if len({_canonical(value) for value in values.values()}) > 1:
                key = _canonical([setting, values])
                scores = differences_by_key[key].scores if key in differences_by_key else ()
                differences_by_key[key] = Difference(setting, values, (*scores, name))
    return list(differences_by_key.values())


def shared(entries: Sequence[Entry]) -> list[str]:
    """Names of the scores that two or more entries have, in their order."""
    names = [name for entry in entries for name in entry.scores]
    return [name for name in dict.fromkeys(names) if names.count(name) > 1]


def best(entries: Sequence[Entry], name: str) -> dict[str, str]:
    """label -> "best", or "tied" where its interval meets the best one's; others are left out.

    Nobody is best where all values are equal, only one is finite, or no direction is better.
    """
    scores = {e.label: e.scores[name] for e in entries if name in e.scores}
    scores = {k: s for k, s in scores.items() if math.isfinite(s["value"])}
    directions = {score.get("better") for score in scores.values()}
    if len({s["value"] for s in scores.values()}) < 2 or directions not in ({"lower"}, {"higher"}):
        return {}
    pick = min if directions == {"lower"} else max
    first = pick(score["value"] for score in scores.values())
    leaders = [k for k, s in scores.items() if s["value"] == first]
    marks = dict.fromkeys(leaders, "best")
    top = scores[leaders[0]].get("interval")
    for label, score in scores.items():
        other = score.get("interval")
        if label not in marks and top and other and other[0] <= top[1] and top[0] <= other[1]:
            marks[label] = "tied"
    return marks


def _settings(entry: Entry, name: str) -> dict[str, Any]:
    """How a score was measured, less how its floor and its interval were."""
    settings = {
        key: value
        for key, value in entry.scores[name].items()
        if key not in FOUND and not key.startswith(("floor", "interval"))
    }
    sampling, samples = entry.receipt.get("sampling") or {}, entry.receipt.get("samples") or {}
    settings["sampling.labels"] = sampling.get("labels", samples.get("labels"))
    settings["sampling.dtype"] = sampling.get("dtype")
    return settings | {f"samples.{key}": samples[key] for key in READ if key in samples}


def _references(entries: Sequence[Entry]) -> dict[str, dict[str, Any]]:
    """label -> what its samples were compared with, said in one way for all."""
    references = {e.label: e.receipt.get("reference") for e in entries}
    data = {e.label: e.receipt.get("data") or {} for e in entries}
    if all(references.values()):
        # What has one digest is one set, whatever it is called where it lies.
        return {
            label: _flat("reference", {k: v for k, v in said.items() if k != "name"})
            if "sha256" in said
            else _flat("reference", said)
            for label, said in references.items()
            if said
        }
    if any(references.values()) and not all(data.values()):
        names = {label: (said or {}).get("name", said) for label, said in references.items()}
        return {label: {"reference": name} for label, name in names.items()}
    return {
        label: _flat("data", {k: v for k, v in section.items() if k in ("source", "train", "test")})
        for label, section in data.items()
    }


def _flat(prefix: str, value: Any) -> dict[str, Any]:
    """{"a": {"b": 1}} as {"prefix.a.b": 1}, without places."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    return dict(_leaves(prefix, value))


def _leaves(prefix: str, value: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, each in value.items():
        if key not in PLACES:
            yield from _flat(f"{prefix}.{key}", each).items()


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _short(value: Any) -> str:
    """A value for a message; of a digest, its beginning."""
    if value is None:
        return "not said"
    text = value if isinstance(value, str) else _canonical(value)
    return f"{text[:12]}..." if len(text) >= 40 and " " not in text else text
