"""Fidelity against diversity of a trained diffusion model, for every guidance, over its scale.

    python -m experiments.studies.guidance --workdir runs/digits --weak runs/digits_weak

One table and one figure: Frechet distance, precision, recall and a classifier's accuracy of
`--samples` images a point. All points have the same noise, so that what differs is the guidance.
Each is written as it comes, and --resume draws only what is missing.
--weak: a worse model of the same network, for autoguidance; without it that row is left out.
Guidance that asks a classifier asks another one than the scores do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments.studies.trained import Row, Subject, keep, parser, subject, write, written
from jaxgen import api
from jaxgen.metrics.extractors.classifier import ConvNet

Sections = list[Any]


def after(*names: str, **options: Any) -> Callable[[float], Sections]:
    """Classifier-free guidance of a weight, and sections after it; options of the last one."""
    last = dict(name=names[-1], **options)
    return lambda w: [dict(name="cfg.cfg", weight=w), *names[:-1], last]


def alone(name: str, **options: Any) -> Callable[[float], Sections]:
    """One section of a weight."""
    return lambda w: [dict(name=name, weight=w, **options)]


CFG = (1.5, 2.0, 3.0, 5.0)
# name -> (what makes its sections of a scale, scales).
STUDIED: dict[str, tuple[Callable[[float], Sections], Sequence[float]]] = {
    "cfg": (alone("cfg.cfg"), (0.0, 1.0, *CFG)),
    "limited interval": (after("interval.limit", low=0.2, high=0.8), CFG),
    "apg": (after("apg.apg", radius=2.5, momentum=-0.5), CFG),
    "cfg_zero": (after("cfg_zero.cfg_zero"), CFG),
    "rescale": (after("rescale.rescale"), CFG),
    "cads": (after("cads.cads"), CFG),
    "adaptive_guidance": (after("adaptive.adaptive_guidance"), CFG),
    "diffier": (after("diffier.diffier"), CFG),
    "dynamic threshold": (after("threshold.dynamic"), CFG),
    "cfgpp": (after("cfgpp.cfgpp"), (0.2, 0.4, 0.6, 1.0)),
    "dynamic_cfg": (
        lambda w: ["cfg.cfg", dict(name="dynamic_cfg.dynamic_cfg", weights=(1.0, w))],
        CFG,
    ),
    "gfcg": (alone("gfcg.gfcg"), (0.5, 1.0, 2.0, 4.0)),
    "cfg 1.5 and gfcg": (
        lambda w: [dict(name="cfg.cfg", weight=1.5), dict(name="gfcg.gfcg", weight=w)],
        (0.5, 1.0, 2.0, 4.0),
    ),
    "elucd": (alone("elucd.elucd"), (0.5, 1.0, 2.0, 4.0)),
    "universal": (alone("universal.universal"), (0.5, 1.0, 2.0, 4.0)),
    "pag": (lambda w: [dict(name="pag.pag", layers=[1], scale=w)], (0.5, 1.0, 2.0, 4.0)),
    "sag": (lambda w: [dict(name="sag.sag", layer=2, scale=w)], (0.25, 0.5, 1.0, 2.0)),
    "blur guidance": (lambda w: [dict(name="sag.sag", scale=w)], (0.25, 0.5, 1.0, 2.0)),
    "autoguidance": (alone("autoguidance.autoguidance"), CFG),
}


def sampled(name: str, steps: int) -> dict[str, Any]:
    """How a guidance is sampled: by Heun, but where it is stated for one solver, by as many calls.

    steps: of Heun's method, two network calls each but for the last.
    """
    if name == "cfgpp":
        return dict(solver="ddim", steps=2 * steps - 1)
    return dict(solver="heun", steps=steps)


def branches(it: Subject) -> dict[str, Any]:
    """What guidance may ask: the guide's logits of clean estimates, and its log p(label)."""
    network = ConvNet(it.classes)

    def logits(x0: jax.Array, t: jax.Array) -> jax.Array:
        outputs: Any = network.apply({"params": it.guide.params}, jnp.clip(x0, -1, 1))
        return outputs[1]

    def of_label(params: Any, labels: jax.Array) -> Any:
        def log_prob(x0: jax.Array, t: jax.Array) -> jax.Array:
            each = jax.nn.log_softmax(logits(x0, t))
            return jnp.take_along_axis(each, labels[:, None], axis=1)[:, 0]

        return log_prob

    return {"logits": lambda params, labels: logits, "log_prob": of_label, "evaluate": of_label}


def study(
    it: Subject,
    samples: int,
    weak: Any = None,
    names: Sequence[str] = (),
    steps: int = 10,
    known: Sequence[Row] = (),
) -> Iterator[Row]:
    """A row for each guidance and scale; `weak`: parameters, or None to leave autoguidance out.

    known: rows that need not be drawn; they come in their places.
    """
    there = {(row["guidance"], row["scale"]): row for row in known}
    params = it.model.weights(None)
    if weak is not None:
        params = {**params, "weak": weak["net"]}
    for name, (make, scales) in STUDIED.items():
        left_out = (names and name not in names) or (name == "autoguidance" and weak is None)
        for scale in scales:
            if (name, scale) in there:
                yield there[name, scale]
                continue
            if left_out:
                continue
            start = time.monotonic()
            options = dict(guidance=make(scale), branches=branches(it), **sampled(name, steps))
            images, calls = it.draw(samples, params=params, **options)
            row = dict(guidance=name, scale=scale, calls=calls) | it.scores(images)
            print(row, f"{time.monotonic() - start:.1f} s", flush=True)
            yield row


def picture(rows: Sequence[Row], floor: Row, title: str, samples: int) -> plt.Figure:
    """Left: precision against recall; right: Frechet distance against the share of wrong labels."""
    least = 0.5 / samples  # stands for none on a logarithmic axis
    rows, (floor,) = (
        [r | {"wrong": max(1 - r["accuracy"], least)} for r in group] for group in (rows, [floor])
    )
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5.2), layout="constrained")
    names = list(dict.fromkeys(row["guidance"] for row in rows))
    colours = plt.get_cmap("tab20")(np.linspace(0, 1, max(len(names), 2)))
    panels = ((left, "recall", "precision"), (right, "wrong", "frechet"))
    for name, colour in zip(names, colours, strict=False):
        of_guidance = [row for row in rows if row["guidance"] == name]
        for axes, x, y in panels:
            style = dict(color=colour, linewidth=2.5 if name == "cfg" else 1.2, marker="o")
            axes.plot(
                [r[x] for r in of_guidance],
                [r[y] for r in of_guidance],
                markersize=4,
                label=name,
                **style,
            )
            axes.plot(
                of_guidance[-1][x], of_guidance[-1][y], marker="s", markersize=8, color=colour
            )
    for axes, x, y in panels:
        axes.plot(floor[x], floor[y], "k*", markersize=14, label="training images")
        axes.set(xlabel=x, ylabel=y)
        axes.grid(alpha=0.3)
    right.set(xscale="log", yscale="log", ylabel="Frechet distance (classifier features)")
    right.set_xlabel(f"labels that a classifier does not agree with; leftmost: none of {samples}")
    marks = [m for m in (0.5, 1, 2, 5, 10, 20) if m <= max(r["frechet"] for r in rows)]
    right.set_yticks(marks, [str(m) for m in marks])
    right.minorticks_off()
    figure.legend(*left.get_legend_handles_labels(), loc="outside right center", fontsize=9)
    figure.suptitle(f"{title}: squares mark each guidance's largest scale")
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, print the table and write the figure."""
    asked = parser(__doc__ or "", "guidance.png")
    asked.add_argument("--weak", help="workdir of a worse model of the same network")
    asked.add_argument("--steps", type=int, default=10, help="of Heun's method")
    asked.add_argument("--only", nargs="*", default=(), choices=list(STUDIED), help="these rows")
    asked.add_argument(
        "--resume",
        action="store_true",
        help="draw only what the JSON beside --out has not; of the same models, samples and steps",
    )
    given = asked.parse_args(arguments)
    if given.tiny:
        given.samples, given.steps, given.only = 70, 2, given.only or ["cfg"]
    it = subject(given.workdir)
    weak = None if given.weak is None else api.load(given.weak).weights(None)
    known = written(given.out) if given.resume else []
    rows: list[Row] = []
    for row in study(it, given.samples, weak, given.only, given.steps, known):
        rows.append(row)
        write([*rows, *(other for other in known if other not in rows)], given.out)
    floor = it.floor(given.samples)
    rows.append(dict(guidance="(training images)", scale="", calls="") | floor)
    title = f"{given.workdir.rstrip('/').split('/')[-1]}, {given.samples} images a point"
    keep(picture(rows[:-1], floor, title, given.samples), rows, given.out)


if __name__ == "__main__":
    main()
