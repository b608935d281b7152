"""Generative classifiers of every family beside discriminative ones: one table, one picture.

    python -m experiments.studies.classifiers --workdir runs/vae --workdir runs/glow

For each model of `--workdir` (all of one data set): how many test images it labels rightly, how far
its posterior can be believed as it is and at temperatures fitted on the other half of the images,
what that costs (network calls an image, and milliseconds of processor time of all cores, without
compilation), and what Gaussian noise in the images does. Every class gets every draw. Below them,
on the same images, the small network whose features the scores are in, and a logistic regression on
the pixels, both of the training half without noise. Bits per dimension are those of the model's
`receipts/likelihood_test.json`, if it has one.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from sklearn.linear_model import LogisticRegression

from experiments.studies.trained import Row, table
from jaxgen import api
from jaxgen.classify import noise_levels
from jaxgen.data import whole
from jaxgen.errors import invalid
from jaxgen.metrics import Training, cached
from jaxgen.metrics.receipt import plain
from jaxgen.metrics.scores.calibration import cross_fitted
from jaxgen.run.model import Model
from jaxgen.scoring import classify
from jaxgen.scoring.classify import images_of, judgement
from jaxgen.scoring.common import part

FEWEST = 10
"""Images in a bin of the reliability diagram, below which it is not drawn."""


def generative(
    model: Model, workdir: str, noise: Sequence[float], draws: int | None, limit: int
) -> Row:
    """A model's row. Classifies a first batch before the clock starts, so that all is compiled."""
    options = dict(rounds="one", draws=draws, seed=0)
    classify(model, workdir, limit=model.setup.classify.batch_size, **options)
    start = time.process_time()
    classified = classify(model, workdir, noise=noise, limit=limit, **options)
    passes = classified["images"] * (1 + sum(std > 0 for std in noise))
    family = model.setup.config.method.name.split(".")[0]
    return {
        "classifier": f"{Path(workdir).name} ({family})",
        "generative": True,
        "images_seen": model.images_seen,
        "bits_per_dim": bits(model, Path(workdir)),
        "cpu_seconds_per_image": (time.process_time() - start) / passes,
        **classified,
    }


def bits(model: Model, workdir: Path) -> dict[str, Any] | None:
    """value and kind of the likelihood's receipt, where it is of these parameters."""
    path = workdir / "receipts" / "likelihood_test.json"
    receipt = json.loads(path.read_text()) if path.is_file() else {}
    if (receipt.get("images_seen"), receipt.get("ema")) != (model.images_seen, model.ema):
        return None
    return {"value": receipt["bits_per_dim"], "kind": receipt["kind"]}


def discriminative(
    name: str,
    log_probabilities: Callable[[np.ndarray], np.ndarray],
    model: Model,
    noise: Sequence[float],
    limit: int,
) -> Row:
    """The row of fn(images [N, H, W, C]) -> ln p(label | image) [N, C], on the same images."""
    source, order = part(model.setup, "test", limit, 0)
    labels = source.labels[order]

    def scores(std: float) -> tuple[np.ndarray, float]:
        images = images_of(model.setup, source, order, std)
        log_probabilities(images)
        start = time.process_time()
        log_probs = log_probabilities(images)
        return log_probs, (time.process_time() - start) / len(images)

    clean, cost = scores(0.0)
    pair = cross_fitted(clean, labels)
    return {
        "classifier": name,
        "generative": False,
        "images": len(order),
        "images_seen": None,
        "bits_per_dim": None,
        "calls_per_image": 1.0,
        "cpu_seconds_per_image": cost,
        "temperatures": pair,
        **plain(judgement(clean, labels, pair)),
        "noise": [{"std": std, **plain(judgement(scores(std)[0], labels, pair))} for std in noise],
    }


def references(model: Model, workdir: str, noise: Sequence[float], limit: int) -> list[Row]:
    """The scores' classifier, kept in the workdir, and a logistic regression on pixels."""
    train, flip = whole(model.setup.source), model.setup.data.flip
    images, labels = train["image"], train["label"]
    path = Path(workdir) / "classifier.safetensors"
    network = cached(path, images, labels, model.setup.spec.num_classes, Training(flip=flip))
    linear = LogisticRegression(max_iter=5000).fit(images.reshape(len(images), -1), labels)

    def of_network(x: np.ndarray) -> np.ndarray:
        return np.log(np.maximum(network.probabilities(x), np.finfo(np.float32).tiny))

    def of_line(x: np.ndarray) -> np.ndarray:
        return linear.predict_log_proba(x.reshape(len(x), -1))

    return [
        discriminative("small network (discriminative)", of_network, model, noise, limit),
        discriminative("logistic regression (discriminative)", of_line, model, noise, limit),
    ]


def shown(row: Row) -> dict[str, Any]:
    """A row as the table has it."""
    tempered, low_high = row["tempered"], sorted(row["temperatures"])
    known = row["bits_per_dim"]
    bound = "" if known and known["kind"] == "exact" else "<= "
    return {
        "classifier": row["classifier"],
        "images seen": "-" if row["images_seen"] is None else f"{row['images_seen']:,}",
        "bits/dim": f"{bound}{known['value']:.3f}" if known else "-",
        "right": f"{100 * row['accuracy']:.1f} %",
        "NLL": row["nll"],
        "at T": tempered["nll"],
        "ECE": row["ece"],
        "ECE at T (floor)": f"{tempered['ece']:.4f} ({tempered['ece_floor']:.4f})",
        "T": "{:.3g}, {:.3g}".format(*low_high),
        "calls": f"{row['calls_per_image']:.0f}",
        "CPU ms": 1000 * row["cpu_seconds_per_image"],
        **{f"noise {n['std']:g}": f"{100 * n['accuracy']:.1f} %" for n in row["noise"]},
    }


def picture(rows: Sequence[Row], title: str) -> plt.Figure:
    """Accuracy against noise; reliability at the least noise there is, as is and tempered.

    Of clean images that are nearly all labelled rightly, a reliability diagram is one point.
    """
    figure, axes = plt.subplots(1, 3, figsize=(15, 5.2), layout="constrained")
    colours = iter(plt.get_cmap("tab10").colors)
    dashes = iter(("--", ":"))
    for row in rows:
        style = dict(color=next(colours, "tab:gray"), marker="o", markersize=4)
        if not row["generative"]:
            style |= dict(color="k", marker="s", linestyle=next(dashes))
        levels = {0.0: row["accuracy"], **{n["std"]: n["accuracy"] for n in row["noise"]}}
        points = sorted(levels.items())
        axes[0].plot(*zip(*points, strict=True), label=row["classifier"], **style)
        noisy = min((n for n in row["noise"] if n["std"]), key=lambda n: n["std"], default=row)
        for axis, section in zip(axes[1:], (noisy, noisy["tempered"]), strict=True):
            bins = section["reliability"]
            some = np.array(bins["count"]) >= FEWEST
            x, y = (np.array(bins[k], np.float64)[some] for k in ("confidence", "accuracy"))
            axis.plot(x, y, **style)
    least = noisy.get("std", 0.0)
    axes[0].set(xlabel="standard deviation of the noise, images in [-1, 1]", ylabel="share right")
    titles = ("posteriors as they are", "at clean images' temperature")
    for axis, name in zip(axes[1:], titles, strict=True):
        axis.plot([0, 1], [0, 1], color="0.7", linewidth=1, zorder=0)
        axis.set(xlabel="confidence", ylabel="share right", title=f"noise {least:g}: {name}")
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.set_ylim(0, 1.03)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=9)
    figure.suptitle(f"{title}; reliability in bins of {FEWEST} images or more")
    return figure


def same_data(models: Sequence[Model], workdirs: Sequence[str]) -> None:
    """Raises UsageError unless the models' test halves hold the same images."""
    first = whole(models[0].setup.test_source)["image"]
    for model, workdir in zip(models[1:], workdirs[1:], strict=True):
        if not np.array_equal(whole(model.setup.test_source)["image"], first):
            raise invalid("--workdir", workdir, f"models of the test images of {workdirs[0]}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, print the table and write figure and numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, action="append", help="may be repeated")
    parser.add_argument("--noise", type=float, nargs="*", default=[0.2, 0.4, 0.8])
    parser.add_argument("--draws", type=int, default=None, help="default: each config's own")
    parser.add_argument("--limit", type=int, default=0, help="test images (0: all)")
    parser.add_argument("--out", default="classifiers.png", help="the numbers go beside it as JSON")
    parser.add_argument("--tiny", action="store_true", help="a few images, one draw, one noise")
    given = parser.parse_args(arguments)
    if given.tiny:
        given.noise, given.draws, given.limit = [0.2], 1, 20
    models = [api.load(workdir) for workdir in given.workdir]
    same_data(models, given.workdir)
    noise_levels(models[0].setup.spec, given.noise)
    rows = []
    for model, workdir in zip(models, given.workdir, strict=True):
        rows.append(generative(model, workdir, given.noise, given.draws, given.limit))
        print(table([shown(rows[-1])]), flush=True)
    rows += references(models[0], given.workdir[0], given.noise, given.limit)
    path = Path(given.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(rows, f"{rows[0]['images']} test images").savefig(path, dpi=150)
    path.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
    print(table([shown(row) for row in rows]))
    print(f"{path}, {path.with_suffix('.json')}")


if __name__ == "__main__":
    main()
