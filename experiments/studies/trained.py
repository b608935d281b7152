"""What the studies of a trained model share: the model, its data, who scores, and the drawing."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np

from jaxgen import api
from jaxgen.data import to_host, whole
from jaxgen.metrics import Training, cached
from jaxgen.metrics.evaluate import feature_scores
from jaxgen.metrics.extractors.classifier import Classifier
from jaxgen.metrics.scores.table import Side
from jaxgen.metrics.sets.quantise import finite, quantise
from jaxgen.metrics.sets.reading import of_bytes
from jaxgen.metrics.sets.side import side, title
from jaxgen.run.model import Model, balanced_labels
from jaxgen.run.setup import make_sampler, sample_options
from jaxgen.training.checkpoint import write_atomic

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Subject:
    """A trained model on its data. scorer: the classifier whose features and opinion score.

    guide: another classifier (seed 1), which guidance may ask, so that no sampler sees its judge.
    """

    model: Model
    train: Mapping[str, np.ndarray]
    test: Mapping[str, np.ndarray]
    scorer: Classifier
    guide: Classifier

    @property
    def classes(self) -> int:
        """The number of labels."""
        return self.model.setup.spec.num_classes

    def draw(self, count: int, *, params: Any = None, **options: Any) -> tuple[np.ndarray, float]:
        """(images [count, H, W, C] of balanced labels, seed 0, and network calls an image).

        The noise of image i is the same whatever the options. One batch, one program.
        """
        setup = self.model.setup
        chosen = make_sampler(setup, sample_options(setup, options))
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(np.arange(count))
        weights = self.model.weights(None) if params is None else params
        images = chosen.fn(weights, keys, balanced_labels(count, self.classes))
        return to_host(images), chosen.calls

    def scores(self, images: np.ndarray) -> Row:
        """Frechet distance, precision, recall and accuracy of images of balanced labels.

        Images that are not finite are wrong, and left out of the rest; where fewer than half are
        finite the rest is NaN.
        """
        labels, good = balanced_labels(len(images), self.classes), finite(images)
        if good.mean() < 0.5:
            return dict(frechet=np.nan, precision=np.nan, recall=np.nan, accuracy=0.0)
        made = self._side(images[good], labels[good])
        scored = self._scores(made)
        assert made.probabilities is not None
        right = (made.probabilities.argmax(1) == labels[good]).sum() / len(images)
        return scored | {"accuracy": float(right)}

    def distance(self, images: np.ndarray, labels: np.ndarray) -> Row:
        """The Frechet distance of images of some classes to the test half's of these.

        {"value", "interval", ...} as `jaxgen.metrics.evaluate.feature_scores` gives it.
        """
        halves = (self._learnt, self._known)
        some = [h.rows(np.flatnonzero(np.isin(h.labels, labels))) for h in halves]
        scored = feature_scores(self.scorer, self._side(images, labels), *some, scores=["fid"])
        return scored[title("fid", self.scorer, None)]

    def between(self, images: np.ndarray, others: np.ndarray) -> float:
        """The Frechet distance of two sets of images of balanced labels."""
        here, there = (
            self._side(x, balanced_labels(len(x), self.classes)) for x in (images, others)
        )
        scored = feature_scores(self.scorer, here, there, there, scores=["fid"], intervals=0)
        return float(scored[title("fid", self.scorer, None)]["value"])

    def floor(self, count: int) -> Row:
        """The scores that `count` images of the training half have against the test half."""
        order = np.argsort(self.train["label"], kind="stable")
        rows = np.random.default_rng(0).permutation(order)[:count]
        scored = self._scores(self._side(self.train["image"][rows], self.train["label"][rows]))
        images, labels = quantise(self.test["image"]), self.test["label"]
        return scored | {"accuracy": self.scorer.accuracy(images, labels)}

    def _scores(self, made: Side) -> Row:
        names = {"fid": "frechet", "precision_k3": "precision", "recall_k3": "recall"}
        scored = feature_scores(
            self.scorer, made, self._learnt, self._known, scores=[*names], intervals=0
        )
        return {
            said: scored[title(name, self.scorer, None)]["value"] for name, said in names.items()
        }

    def _side(self, images: np.ndarray, labels: np.ndarray) -> Side:
        return side(of_bytes(quantise(images), labels, "images"), self.scorer, "images")

    @functools.cached_property
    def _learnt(self) -> Side:
        return self._side(self.train["image"], self.train["label"])

    @functools.cached_property
    def _known(self) -> Side:
        return self._side(self.test["image"], self.test["label"])


def subject(workdir: str | Path) -> Subject:
    """The model of a workdir with its data; the classifiers are trained once and kept there."""
    model = api.load(workdir)
    train, test = whole(model.setup.source), whole(model.setup.test_source)
    flip, classes = model.setup.data.flip, model.setup.spec.num_classes

    def judge(name: str, seed: int) -> Classifier:
        path, how = Path(workdir) / name, Training(flip=flip, seed=seed)
        return cached(path, train["image"], train["label"], classes, training=how)

    scorer, guide = judge("classifier.safetensors", 0), judge("guide.safetensors", 1)
    return Subject(model, train, test, scorer, guide)


def parser(description: str, out: str) -> argparse.ArgumentParser:
    """--workdir, --samples, --out; `description` is the module's."""
    arguments = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--workdir", required=True, help="of a trained model")
    arguments.add_argument("--samples", type=int, default=1000, help="images a point")
    arguments.add_argument("--tiny", action="store_true", help="one row, of few images")
    arguments.add_argument(
        "--out", default=out, help="the figure; the numbers go beside it as JSON"
    )
    return arguments


def table(rows: Sequence[Row]) -> str:
    """Rows as Markdown; numbers to four digits."""
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "-|" * len(names)]
    for row in rows:
        cells = [f"{row[n]:.4g}" if isinstance(row[n], float) else str(row[n]) for n in names]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def shown(rows: Sequence[Row]) -> list[Row]:
    """A line for each way: means over seeds and their standard deviation, of what is a number."""
    lines: list[Row] = []
    for name in dict.fromkeys(row["way"] for row in rows):
        own = [row for row in rows if row["way"] == name]
        line: Row = {"way": name}
        for key in own[0]:
            if key == "seed" or not isinstance(own[0][key], int | float):
                continue
            values = np.array([row.get(key, np.nan) for row in own])
            if not np.isnan(values).all():
                spread = f" +- {values.std(ddof=1):.2g}" if values.std() > 0 else ""
                line[key] = f"{values.mean():.4g}{spread}"
        lines.append(line)
    keys = list(dict.fromkeys(key for line in lines for key in line))
    return [{key: line.get(key, "-") for key in keys} for line in lines]


def write(rows: Sequence[Row], out: str | Path) -> None:
    """The rows as JSON beside the figure `out`."""
    path = Path(out).with_suffix(".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = [{k: None if v != v else v for k, v in row.items()} for row in rows]  # JSON has no NaN
    write_atomic(path, json.dumps(plain, indent=1) + "\n")


def written(out: str | Path) -> list[Row]:
    """The rows that `write` left, none where it did not."""
    path = Path(out).with_suffix(".json")
    rows = json.loads(path.read_text()) if path.exists() else []
    return [{k: float("nan") if v is None else v for k, v in row.items()} for row in rows]


def keep(
    figure: plt.Figure, rows: Sequence[Row], out: str | Path, shown: Sequence[Row] | None = None
) -> None:
    """Write the figure and, beside it, the rows as JSON; print the table, of `shown` if given."""
    write(rows, out)
    path = Path(out)
    figure.savefig(path, dpi=150)
    print(table(shown or rows))
    print(f"{path}, {path.with_suffix('.json')}")
