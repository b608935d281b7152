"""Forgetting a class by every method: what is gone, what is kept, and how soon it is back.

    python -m experiments.studies.unlearning --workdir runs/digits

From a trained diffusion model, for each method and seed `--images` images of training. Then: the
share of samples for the forgotten class that a classifier, which no method sees, calls by it; the
Frechet distance of samples of all other classes to their test images, with its interval, and over
the trained model's; after how many images of plain training on all classes the classifier calls
`BACK` of its samples by the class again; and how well the model's own error tells the class's
training images from its test images (area under the curve: 0.5, not at all), where it has one.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from sklearn.metrics import roc_auc_score

from experiments.studies.further import (
    BATCH,
    SOLVED,
    Section,
    Trainer,
    averaged,
    begun,
    drawer,
    setup_of,
)
from experiments.studies.trained import Row, Subject, keep, parser, subject
from jaxgen.data import normalise
from jaxgen.method import Method, TrainState
from jaxgen.run.setup import Setup

BACK, LOOK, DRAWS = 0.8, 4, 8
"""Share of samples at which a class is back; updates between looks; draws of an error."""
FEW = dict(solver="ddim", steps=6, guidance=1.0)


def methods(gone: int, instead: int) -> Mapping[str, Section | None]:
    """name -> the wrap; None: the model as it was."""
    # Of a batch a tenth is of the class: its examples are to count as much as all others.
    forget: Section = dict(name="unlearn.forget", classes=(gone,), weight=10.0)
    return {
        "(as trained)": None,
        "the rest alone": forget | dict(weight=0.0),
        "relabel": forget | dict(substitute=instead),
        "negative": forget | dict(target="negative"),
        "guidance, no data": dict(
            name="unlearn.forget", classes=(gone,), target="guidance", substitute=instead,
            preserve=1.0, retain=0.0, sample=FEW,
        ),
        "redact": dict(name="unlearn.redact", classes=(gone,), reference=instead),
        "student": dict(name="distill.matching", by="implicit", instead={str(gone): instead}),
    }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is forgotten, what stands in, and how long everything takes."""

    gone: int
    instead: int
    images: int
    samples: int
    limit: int


def setup(it: Subject, workdir: str, wrap: Section | None, images: int) -> Setup:
    """The model's own config, to train on from it with a wrap at a rate that moves it."""
    rate = 1e-2 if wrap is not None and wrap["name"] == "unlearn.redact" else 5e-4
    wraps, schedule = ([], "constant") if wrap is None else ([wrap], "cosine")
    return setup_of(it, workdir, wraps, rate=rate, images=images, schedule=schedule)


def membership(it: Subject, method: Method, params: Any, label: int) -> float:
    """How well the error of the class's images tells training images from test images; NaN: none.

    The area under the curve of the mean of `DRAWS` estimates of -ln p(image | label).
    """
    if method.label_error is None:
        return float("nan")
    error = method.label_error
    halves = [h["image"][h["label"] == label] for h in (it.train, it.test)]
    x = normalise({"image": jnp.asarray(np.concatenate(halves))})["image"]
    keys, labels = jax.random.split(jax.random.key(0), len(x)), jnp.full(len(x), label)

    @jax.jit
    def mean(params: Any, x: jax.Array) -> jax.Array:
        one = lambda n: error(params, x, labels, keys, jnp.full(len(x), n), DRAWS)
        return jax.lax.map(one, jnp.arange(DRAWS)).mean(0)

    seen = np.repeat([1, 0], [len(h) for h in halves])
    return float(roc_auc_score(seen, -np.asarray(mean(params, x))))


def studied(it: Subject, workdir: str, names: Sequence[str], seeds: int, asked: Asked) -> list[Row]:
    """A row for each method and seed."""
    rows: list[Row] = []
    plain = setup(it, workdir, None, asked.images)
    again = Trainer(plain.method, it.train)
    look = drawer(plain.method, **SOLVED)
    kept = np.resize(np.delete(np.arange(it.classes), asked.gone), asked.samples)
    labels = np.concatenate([np.full(asked.samples // 4, asked.gone), kept])
    for name, wrap in methods(asked.gone, asked.instead).items():
        if name not in names:
            continue
        own = setup(it, workdir, wrap, asked.images)
        method, train = own.method, Trainer(own.method, it.train)
        draw = drawer(method, **({} if name == "student" else SOLVED))
        for seed in range(seeds):
            start = time.monotonic()
            state = begun(own, seed)
            if wrap is not None:
                state = train(state, seed, asked.images)
            params = averaged(method, state)
            images = draw(params, labels, seed)
            called = it.scorer.probabilities(images[: -len(kept)]).argmax(1)
            distance = it.distance(images[-len(kept) :], kept)
            row = dict(
                method=name,
                seed=seed,
                forgotten=float((called == asked.gone).mean()),
                instead=float((called == asked.instead).mean()),
                frechet=distance["value"],
                interval=distance["interval"] or [float("nan")] * 2,
                member=membership(it, method, params, asked.gone),
                seconds=time.monotonic() - start,
            )
            state = begun(plain, seed, method.plain(params))
            row["back"] = relearnt(it, again, look, state, seed, asked)
            rows.append(row)
            print(row, flush=True)
    return rows


def relearnt(
    it: Subject, again: Trainer, look: Any, state: TrainState, seed: int, asked: Asked
) -> float:
    """Images of plain training until the class is back; NaN: not within the limit."""
    labels = np.full(100, asked.gone)
    for updates in range(0, asked.limit // BATCH + 1, LOOK):
        called = it.scorer.probabilities(look(state.params, labels, seed)).argmax(1)
        if (called == asked.gone).mean() >= BACK:
            return float(updates * BATCH)
        state = again(state, 1000 + seed, LOOK * BATCH)
    return float("nan")


def shown(rows: Sequence[Row]) -> list[Row]:
    """A row for each method: means over seeds, and the spread of what differs."""
    lines: list[Row] = []
    trained = np.mean([row["frechet"] for row in rows if row["method"] == rows[0]["method"]])
    for name in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == name]
        of = lambda key, own=own: np.array([row[key] for row in own], np.float64)
        low, high = of("interval").mean(0)
        back = of("back")
        later = f" ({np.isnan(back).sum()} not)" if np.isnan(back).any() else ""
        lines.append({
            "method": name,
            "still called by it": f"{100 * of('forgotten').mean():.1f} %",
            "called the other": f"{100 * of('instead').mean():.1f} %",
            "frechet, the rest": f"{of('frechet').mean():.3f} ({low:.3f} to {high:.3f})",
            "spread of seeds": float(of("frechet").std(ddof=1)) if len(own) > 1 else "-",
            "over the trained model's": float(of("frechet").mean() / trained),
            "back after": f"{np.nanmean(back):.0f}{later}" if (back == back).any() else "never",
            "member AUC": float(of("member").mean()),
            "s": float(of("seconds").mean()),
        })  # fmt: skip
    return lines


def picture(rows: Sequence[Row], title: str) -> plt.Figure:
    """Left: what is left of the class against what the rest has suffered; right: how soon back."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5.2), layout="constrained")
    names = list(dict.fromkeys(row["method"] for row in rows))
    for place, (name, colour) in enumerate(zip(names, plt.get_cmap("tab10").colors, strict=False)):
        own = [row for row in rows if row["method"] == name]
        ends = np.array([row["interval"] for row in own])
        values = np.array([row["frechet"] for row in own])
        left.errorbar([100 * row["forgotten"] for row in own], values,
                      np.abs(ends.T - values), fmt="o", color=colour, label=name)  # fmt: skip
        right.scatter([row["back"] for row in own], [place] * len(own), color=colour)
    left.set(xlabel="samples still called by the class, %", ylabel="Frechet distance of the rest")
    right.set(xlabel=f"images of training until {100 * BACK:.0f} % are called by it again")
    right.set_yticks(range(len(names)), names)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    left.legend(fontsize=9)
    figure.suptitle(title)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, print the table and write figure and numbers."""
    asked = parser(__doc__ or "", "unlearning.png")
    asked.add_argument("--forget", type=int, default=3, help="the class")
    asked.add_argument("--instead", type=int, default=0, help="the class in its place")
    asked.add_argument("--images", type=int, default=15_000, help="of training, for each method")
    asked.add_argument("--limit", type=int, default=5_120, help="images to learn it again in")
    asked.add_argument("--seeds", type=int, default=3)
    names = list(methods(0, 1))
    asked.add_argument("--only", nargs="*", default=names, choices=names, help="these methods")
    given = asked.parse_args(arguments)
    if given.tiny:
        given.images, given.samples, given.limit, given.seeds = 2 * BATCH, 90, BATCH, 1
        given.only = ["(as trained)", "redact"]
    what = Asked(given.forget, given.instead, given.images, given.samples, given.limit)
    rows = studied(subject(given.workdir), given.workdir, given.only, given.seeds, what)
    title = f"{given.workdir.rstrip('/').split('/')[-1]}: class {given.forget} forgotten"
    keep(picture(rows, title), rows, given.out, shown(rows))


if __name__ == "__main__":
    main()
