"""Quality of every solver at few network calls, on a trained diffusion model.

    python -m experiments.studies.few_steps --workdir runs/digits

Without guidance, 4, 8, 16 and 32 calls an image. Two columns: the Frechet distance of `--samples`
images, and for solvers of the probability flow the root mean square distance of the images
to those that the flow itself makes of the same noise (Heun, 200 steps). A solver that takes two
calls a step gets half as many steps; one that cannot take as few is left out there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments.studies.trained import Row, Subject, keep, parser, subject

BUDGETS = (4, 8, 16, 32)
# name -> (section, whether it integrates the probability flow).
SOLVERS: dict[str, tuple[Any, bool]] = {
    "euler": ("euler", True),
    "ddim": ("ddim", True),
    "heun": ("heun", True),
    "adams_bashforth 2": (dict(name="adams_bashforth", order=2), True),
    "adams_bashforth 3": (dict(name="adams_bashforth", order=3), True),
    "flowturbo": ("flowturbo", True),
    "dpmpp_2s": ("dpmpp_2s", True),
    "dpmpp_2m": ("dpmpp_2m", True),
    "dpmpp_3m": ("dpmpp_3m", True),
    "unipc 2": (dict(name="unipc", order=2), True),
    "unipc 3": (dict(name="unipc", order=3), True),
    "ddpm": (dict(name="ddpm", variance="small"), False),
    "ddim, eta .5": (dict(name="ddim", eta=0.5), False),
    "edm, churn 5": (dict(name="edm", s_churn=5.0), False),
    "dpmpp_sde_2m": ("dpmpp_sde_2m", False),
    "euler_maruyama": ("euler_maruyama", False),
    "predictor_corrector": ("predictor_corrector", False),
}


def steps_within(it: Subject, solver: Any, budget: int) -> int | None:
    """The most steps whose network calls stay within a budget, or None."""
    make = it.model.setup.method.sampler
    assert make is not None
    allowed = [
        n
        for n in range(1, budget + 1)
        if make(solver=solver, steps=n, guidance=1.0).calls <= budget
    ]
    return max(allowed, default=None)


def study(it: Subject, samples: int, names: Sequence[str] = ()) -> list[Row]:
    """A row for each solver and budget."""
    truth, _ = it.draw(samples, solver="heun", steps=200, guidance=1.0)
    reached = it.scores(truth)["frechet"]
    rows: list[Row] = [
        dict(solver="flow (heun, 200 steps)", steps=200, calls=400.0, frechet=reached, rms=0.0)
    ]
    for name, (section, flows) in SOLVERS.items():
        if names and name not in names:
            continue
        for budget in BUDGETS:
            steps = steps_within(it, section, budget)
            if steps is None:
                continue
            start = time.monotonic()
            images, calls = it.draw(samples, solver=section, steps=steps, guidance=1.0)
            off = float(np.sqrt(np.mean((images - truth) ** 2))) if flows else "-"
            distance = it.scores(images)["frechet"]
            rows.append(dict(solver=name, steps=steps, calls=calls, frechet=distance, rms=off))
            print(rows[-1], f"{time.monotonic() - start:.1f} s", flush=True)
    return rows


def picture(rows: Sequence[Row], floor: Row, title: str) -> plt.Figure:
    """Left: Frechet distance; right: distance to the flow's own images; both against calls."""
    figure, axes = plt.subplots(1, 2, figsize=(13, 5.2), layout="constrained")
    names = list(dict.fromkeys(row["solver"] for row in rows[1:]))
    colours = plt.get_cmap("tab20")(np.linspace(0, 1, max(len(names), 2)))
    for name, colour in zip(names, colours, strict=False):
        of_solver = [row for row in rows if row["solver"] == name]
        flows = of_solver[0]["rms"] != "-"
        calls = [r["calls"] for r in of_solver]
        style = dict(color=colour, marker="o", linestyle="-" if flows else ":", label=name)
        axes[0].plot(calls, [r["frechet"] for r in of_solver], **style)
        if flows:
            axes[1].plot(calls, [r["rms"] for r in of_solver], **style)
    axes[0].axhline(rows[0]["frechet"], color="k", linewidth=1, label="the flow itself")
    axes[0].axhline(floor["frechet"], color="k", linestyle="--", linewidth=1, label="train to test")
    axes[0].set_ylabel("Frechet distance (classifier features)")
    marks = [m for m in (0.3, 0.5, 1, 2, 5, 10, 20) if m <= max(r["frechet"] for r in rows)]
    axes[1].set_ylabel("root mean square distance to the flow's images")
    for each in axes:
        each.set(xscale="log", yscale="log", xlabel="network calls an image")
        each.set_xticks(BUDGETS, [str(b) for b in BUDGETS])
        each.minorticks_off()
        each.grid(alpha=0.3)
    axes[0].set_yticks(marks, [str(m) for m in marks])
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=9)
    figure.suptitle(f"{title}, no guidance; dotted: stochastic")
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, print the table and write the figure."""
    asked = parser(__doc__ or "", "few_steps.png")
    asked.add_argument("--only", nargs="*", default=(), choices=list(SOLVERS), help="these rows")
    given = asked.parse_args(arguments)
    if given.tiny:
        given.samples, given.only = 70, given.only or ["euler"]
    it = subject(given.workdir)
    rows = study(it, given.samples, given.only)
    title = f"{given.workdir.rstrip('/').split('/')[-1]}, {given.samples} images a point"
    keep(picture(rows, it.floor(given.samples), title), rows, given.out)


if __name__ == "__main__":
    main()
