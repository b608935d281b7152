"""Plans from processes of their own, what helps where one does not fit, and the best of many."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jaxgen.errors import Failure, UsageError
from jaxgen.plan.machine import environment

# Tried in turn where a step does not fit: what to give up first.
REMEDIES = (
    ("mesh.data=1", "mesh.fsdp=-1"),
    ("model.remat=dots",),
    ("model.remat=full",),
    ("train.accumulate=2",),
    ("train.accumulate=4",),
    ("model.remat=full", "train.accumulate=4", "mesh.data=1", "mesh.fsdp=-1"),
)


POOR = 0.6
"""A bound of the MFU below this is said, with what would help."""


def ask(config: str, overrides: Sequence[str], topology: str, what: str) -> dict[str, Any]:
    """`jaxgen.plan.plan` in a process that can compile for the topology.

    Raises UsageError for what that one refuses, Failure where it dies.
    """
    request = dict(config=config, overrides=list(overrides), topology=topology, what=what)
    done = subprocess.run(
        [sys.executable, "-m", "jaxgen.plan"],
        input=json.dumps(request),
        env=environment(topology, os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except json.JSONDecodeError:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise Failure(f"plan: the compiling process ended with {done.returncode}: {last}") from None
    if "error" in answer:
        raise UsageError(answer["error"])
    return answer


def remedies(
    config: str, overrides: Sequence[str], topology: str, what: str, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """What was tried for a step that does not fit, up to the first that does."""
    tried = []
    for change in REMEDIES:
        say(f"Does not fit; trying {' '.join(change)}.")
        try:
            answer = ask(config, [*overrides, *change], topology, what)
        except UsageError as error:
            answer = {"error": str(error), "fits": False}
        tried.append({"change": list(change), **answer})
        if answer["fits"]:
            break
    return tried


def poor(answer: dict[str, Any]) -> bool:
    """Whether a training step that fits cannot reach `POOR` of the chips' arithmetic."""
    line = answer.get("roofline")
    fits = answer["fits"] and answer["what"] == "train"
    return bool(fits and line and line["mfu_bound_overlapped"] < POOR)


def improvements(
    config: str,
    overrides: Sequence[str],
    topology: str,
    answer: dict[str, Any],
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """What was tried for a poor training step, up to the first that is not poor any more.

    Parameters cut over eight devices, and four times the batch with and without it.
    """
    batch = f"data.batch_size={4 * answer['images']}"
    cut = ("mesh.data=-1", "mesh.fsdp=8")
    tried = []
    for change in (cut, (batch,), (*cut, batch)):
        bound = 100 * answer["roofline"]["mfu_bound_overlapped"]
        say(f"At most {bound:.0f} % MFU; trying {' '.join(change)}.")
        try:
            other = ask(config, [*overrides, *change], topology, "train")
        except UsageError as error:
            other = {"error": str(error), "fits": False}
        tried.append({"change": list(change), **other})
        if other["fits"] and not poor(other):
            break
    return tried


def combinations(text: str) -> list[list[str]]:
    """ "a=1,2;b=x,y" as all overrides: [["a=1", "b=x"], ...]. Brackets keep their commas."""
    choices = []
    for entry in filter(None, text.split(";")):
        key, _, values = entry.partition("=")
        if not values:
            raise UsageError(f"--sweep: got {entry!r}; allowed: KEY=VALUE,VALUE;KEY=VALUE,...")
        choices.append([f"{key.strip()}={value}" for value in _values(values)])
    return [list(each) for each in itertools.product(*choices)]


def _values(text: str) -> Iterable[str]:
    depth, start = 0, 0
    for i, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            yield text[start:i]
            start = i + 1
    yield text[start:]


def sweep(
    config: str,
    overrides: Sequence[str],
    topology: str,
    what: str,
    text: str,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """A plan for each combination, the fastest that fits first; what is refused last."""
    rows = []
    for change in combinations(text):
        say(f"Compiling {' '.join(change)}.")
        try:
            answer = ask(config, [*overrides, *change], topology, what)
        except UsageError as error:
            answer = {"error": str(error), "fits": False}
        rows.append({"change": change, **answer})

    def rank(row: dict[str, Any]) -> tuple[bool, float]:
        line = row.get("roofline") or {}
        return not row["fits"], -line.get("images_per_second_bound", 0.0)

    return sorted(rows, key=rank)
