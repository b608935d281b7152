"""A guided sampler in fewer calls: every way of `jaxgen.distill` on one trained model.

    python -m experiments.studies.distillation --workdir runs/digits

From a trained diffusion model, for each way and seed `--images` images of training at most. Then
the scores of samples of 1, 2 and 4 network calls against the teacher's of 20 steps with guidance
(two calls a step), by the same evaluator. As guidance itself takes samples away from the data, the
Frechet distance to samples of that teacher says how well the student has learnt it.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import NullLocator

from experiments.studies.further import BATCH, Section, Trainer, averaged, begun, drawer, setup_of
from experiments.studies.trained import Row, Subject, keep, parser, subject, written
from jaxgen.run.model import balanced_labels

CALLS = (4, 2, 1)
TOLD = (("w", "number"),)
RATE = 5e-4
Sampled = tuple[int, Any, Any, int]
"""Network calls, draw(params, labels, seed), params, images of training."""


def teacher(it: Subject, guidance: float) -> Iterator[Sampled]:
    """The model itself: at 20 steps, and at as few calls as the students."""
    method, params = it.model.setup.method, it.model.weights(None)
    yield 40, drawer(method, solver="ddim", steps=20, guidance=guidance), params, 0
    for calls in (4, 2):
        draw = drawer(method, solver="ddim", steps=calls // 2, guidance=guidance)
        yield calls, draw, params, 0


class Guided:
    """Told the weight (stage 1, a quarter of the images), then half the steps again and again."""

    def __init__(self, it: Subject, workdir: str, guidance: float, images: int) -> None:
        """Two setups: the second goes from 16 steps to one."""
        told = dict(rate=RATE, schedule="constant", model__conditions=TOLD)
        self.first, self.each, self.guidance = (
            images // 4,
            3 * images // 16 // BATCH * BATCH,
            guidance,
        )
        high = max(3.0, guidance)
        ways = (
            dict(name="distill.guidance.guided", high=high),
            dict(name="distill.guidance.progressive", high=high, steps=16, images=self.each),
        )
        self.setups = [setup_of(it, workdir, [way], images=images, **told) for way in ways]
        self.trainers = [Trainer(setup.method, it.train) for setup in self.setups]
        of = self.setups[1].method
        self.draw = {n: drawer(of, solver="ddim", steps=n, guidance=guidance) for n in CALLS}

    def __call__(self, seed: int) -> Iterator[Sampled]:
        """One student, taken as it passes 4, 2 and 1 steps."""
        stages = [setup.method for setup in self.setups]
        state = self.trainers[0](begun(self.setups[0], seed), seed, self.first)
        state, seen = begun(self.setups[1], seed, averaged(stages[0], state)), self.first
        for steps in (8, *CALLS):
            state, seen = self.trainers[1](state, seed, self.each), seen + self.each
            if steps in CALLS:
                yield steps, self.draw[steps], averaged(stages[1], state), seen


class Matching:
    """Its own samples are drawn to the teacher's law; a student for each number of calls."""

    def __init__(
        self, it: Subject, workdir: str, guidance: float, images: int,
        calls: Sequence[int] = CALLS, **options: Any,
    ) -> None:  # fmt: skip
        """A method for each; options: of the wrap."""
        way = dict(name="distill.matching", guidance=guidance) | options
        ways = {n: way | dict(calls=n) for n in calls}
        told = dict(rate=RATE, images=images)
        self.images = images
        self.setups = {n: setup_of(it, workdir, [way], **told) for n, way in ways.items()}
        self.trainers = {n: Trainer(s.method, it.train) for n, s in self.setups.items()}
        self.draw = {n: drawer(s.method) for n, s in self.setups.items()}

    def __call__(self, seed: int) -> Iterator[Sampled]:
        """Three students."""
        for n, setup in self.setups.items():
            state = self.trainers[n](begun(setup, seed), seed, self.images)
            yield n, self.draw[n], averaged(setup.method, state), self.images


class Consistency:
    """The same x0 all along the guided teacher's trajectories; one student for all calls."""

    def __init__(self, it: Subject, workdir: str, guidance: float, images: int) -> None:
        """One method."""
        way = dict(name="distill.consistency", steps=50, guidance=guidance)
        self.setup, self.images = setup_of(it, workdir, [way], rate=RATE, images=images), images
        self.trainer = Trainer(self.setup.method, it.train)
        self.draw = {n: drawer(self.setup.method, steps=n, guidance=1.0) for n in CALLS}

    def __call__(self, seed: int) -> Iterator[Sampled]:
        """One student."""
        state = self.trainer(begun(self.setup, seed), seed, self.images)
        for n in CALLS:
            yield n, self.draw[n], averaged(self.setup.method, state), self.images


class Adapter:
    """Told the weight by low-rank changes alone (AGD): as many steps, half the calls."""

    def __init__(self, it: Subject, workdir: str, guidance: float, images: int) -> None:
        """One method of three wraps."""
        ways: list[Section] = [
            dict(name="distill.guidance.guided", high=max(3.0, guidance), trajectory=8),
            dict(name="tune.lora", rank=8),
            dict(name="tune.only", match=r"\bw\b"),
        ]
        told = dict(rate=2e-3, images=images, model__conditions=TOLD)
        self.setup, self.images = setup_of(it, workdir, ways, **told), images
        self.trainer = Trainer(self.setup.method, it.train)
        self.draw = drawer(self.setup.method, solver="ddim", steps=20, guidance=guidance)

    def __call__(self, seed: int) -> Iterator[Sampled]:
        """One student of 20 steps."""
        state = self.trainer(begun(self.setup, seed), seed, self.images)
        yield 20, self.draw, averaged(self.setup.method, state), self.images


ONE = functools.partial(Matching, calls=(1,))
WAYS: dict[str, Any] = {
    "told w, then half the steps": Guided,
    "matching (DMD2)": Matching,
    "consistency": Consistency,
    "adapter told w (AGD)": Adapter,
    "matching, implicit (SIM)": functools.partial(ONE, by="implicit"),
    "matching, Jeffreys (f-distill)": functools.partial(ONE, divergence="jeffreys"),
    "matching, ratio (no teacher's score)": functools.partial(ONE, by="ratio"),
}


def studied(
    it: Subject, workdir: str, names: Sequence[str], asked: argparse.Namespace
) -> list[Row]:
    """A row for each way, number of calls and seed; asked: seeds, guidance, images and samples."""
    labels, rows = balanced_labels(asked.samples, it.classes), []
    (_, draw, params, _), *_ = teacher(it, asked.guidance)
    goal = draw(params, labels, 1000)

    def scored(name: str, seed: int, found: Iterator[Sampled]) -> None:
        begin = time.monotonic()
        for calls, draw, params, trained in found:
            images = draw(params, labels, seed)
            row = dict(way=name, calls=calls, seed=seed, images=trained) | it.scores(images)
            row |= dict(apart=it.between(images, goal), seconds=time.monotonic() - begin)
            rows.append(row)
            print(row, flush=True)

    for seed in range(asked.seeds):
        scored("teacher", seed, teacher(it, asked.guidance))
    for name in names:
        way = WAYS[name](it, workdir, asked.guidance, asked.images)
        for seed in range(asked.seeds):
            scored(name, seed, way(seed))
        jax.clear_caches()
    return rows


def shown(rows: Sequence[Row]) -> list[Row]:
    """A line for each way and number of calls: means over seeds, and the spread."""
    of = lambda name, calls: [r for r in rows if (r["way"], r["calls"]) == (name, calls)]
    best = np.mean([row["frechet"] for row in of("teacher", 40)])
    lines: list[Row] = []
    for name, calls in dict.fromkeys((row["way"], row["calls"]) for row in rows):
        own = of(name, calls)
        mean = lambda key, own=own: float(np.mean([row[key] for row in own]))
        ratios = [row["frechet"] / best for row in own]
        lines.append({
            "way": name, "calls": calls, "frechet": mean("frechet"),
            "over the teacher's": f"{np.mean(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            "to the teacher": mean("apart"),
            "precision": mean("precision"), "recall": mean("recall"),
            "accuracy": f"{100 * mean('accuracy'):.1f} %", "images": int(mean("images")),
        })  # fmt: skip
    return lines


def picture(rows: Sequence[Row], heading: str) -> plt.Figure:
    """Distances to the test images and to the teacher's samples by calls, every seed a point."""
    figure, both = plt.subplots(1, 2, figsize=(13, 5), layout="constrained")
    goal = [row for row in rows if (row["way"], row["calls"]) == ("teacher", 40)]
    names = {"frechet": "to the test images", "apart": "to samples of the teacher"}
    for axes, (key, of) in zip(both, names.items(), strict=True):
        level = np.mean([row[key] for row in goal])
        axes.axhline(level, color="black", lw=1, ls="--", label="teacher, 20 steps, 40 calls")
        for place, name in enumerate(dict.fromkeys(row["way"] for row in rows)):
            own = [row for row in rows if row["way"] == name and row["calls"] < 40]
            calls = sorted({row["calls"] for row in own})
            means = [np.mean([row[key] for row in own if row["calls"] == n]) for n in calls]
            axes.plot(calls, means, color=f"C{place}", label=name)
            axes.scatter(
                [row["calls"] for row in own], [row[key] for row in own], color=f"C{place}", s=14
            )
        label = f"Frechet distance {of}"
        axes.set(xscale="log", yscale="log", xlabel="network calls an image", ylabel=label)
        ticks = sorted({row["calls"] for row in rows} - {40})
        axes.set_xticks(ticks, [str(n) for n in ticks])
        low, high = axes.get_ylim()
        levels = [n for n in (0.3, 0.5, 1, 2, 3, 5, 10, 20, 30) if low < n < high]
        axes.set_yticks(levels, [f"{n:g}" for n in levels])
        for one in (axes.xaxis, axes.yaxis):
            one.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3)
    both[0].legend(fontsize=9)
    figure.suptitle(heading)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, print the table and write figure and numbers."""
    asked = parser(__doc__ or "", "distillation.png")
    asked.add_argument("--guidance", type=float, default=2.0, help="the teacher's weight")
    asked.add_argument("--images", type=int, default=80_000, help="of training, for each student")
    asked.add_argument("--seeds", type=int, default=3)
    asked.add_argument(
        "--only", nargs="*", default=list(WAYS), choices=list(WAYS),
        help="these ways; the rows of others, of an earlier run, stay",
    )  # fmt: skip
    given = asked.parse_args(arguments)
    if given.tiny:
        given.images, given.samples, given.seeds = 16 * BATCH, 100, 1
        given.only = given.only[:1]
    rows = studied(subject(given.workdir), given.workdir, given.only, given)
    named = lambda row: (row["way"], row["calls"], row["seed"])
    anew = {named(row) for row in rows}
    rows = [row for row in written(given.out) if named(row) not in anew] + rows
    heading = f"{given.workdir.rstrip('/').split('/')[-1]}: guidance {given.guidance:g} distilled"
    keep(picture(rows, heading), rows, given.out, shown(rows))


if __name__ == "__main__":
    main()
