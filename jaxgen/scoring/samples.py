"""Scores of a model's samples, or of a tokenizer's reconstructions, with receipts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxgen import config as configs
from jaxgen import files
from jaxgen.data import Streamed, at_hand, whole
from jaxgen.data.pipeline import AT_ONCE
from jaxgen.errors import check_seed, invalid
from jaxgen.method import Method
from jaxgen.metrics import Classifier, Extractor, Sampling, Training, cached, extractors
from jaxgen.metrics.cautions import cautions
from jaxgen.metrics.evaluate import Seen, look, spread
from jaxgen.metrics.evaluate import evaluate as score
from jaxgen.metrics.extractors import lpips
from jaxgen.metrics.extractors.lpips import LPIPS
from jaxgen.metrics.receipt import receipt
from jaxgen.metrics.scores.memorisation import ranked
from jaxgen.metrics.scores.reconstruction import reconstruction
from jaxgen.metrics.scores.table import check_names
from jaxgen.report.pictures import BESIDE, NEAREST, beside, save_png, told
from jaxgen.run.model import Model, Samples, balanced_labels
from jaxgen.run.precision import single
from jaxgen.run.setup import Setup, make_sampler, sample_options
from jaxgen.scoring.common import Check, check_draws, local, other, receipt_name, score_line, write
from jaxgen.scoring.shared import Shared
from jaxgen.training import hosts
from jaxgen.training.checkpoint import write_atomic
from jaxgen.training.log import say

ELSEWHERE = "To have the scores all the same: --out scores.json."


@single
def evaluate(
    model: Model,
    workdir: str | Path,
    *,
    samples: int | None = None,
    guidance: Sequence[float] | None = None,
    sections: Any = None,
    ema: str | None = None,
    seed: int | None = None,
    features: str | None = None,
    weights: str | Path | None = None,
    scores: Sequence[str] | None = None,
    intervals: int | None = None,
    out: str | Path | None = None,
    check: Check = lambda: None,
    **changes: Any,
) -> dict[str, Any]:
    """Scores of balanced samples at each guidance scale, with floors and receipts.

    None: as the config's `evaluate` section says; no scales: once, as `sample` says. sections:
    guidance that is more than a scale, in the place of scales. features:
    names of extractors beside the classifier, with commas between, and weights for a single one
    (`metrics.extractors.load`). scores, intervals: see `metrics.table.compute`. changes: keywords
    of the method's sampler. Of a tokenizer, its reconstructions of the test half are scored, and
    `lpips` is one of the names; of a target, what the family can measure. What cannot be had of so
    few images is left out, with the reason, unless it was asked for by name. Writes
    `receipts/evaluate[_guidance_W].json`, whose name also says what the config does not, and of
    samples `samples/nearest_NAME.png`, some above the training images nearest to them
    (`report.pictures.beside`); out: all receipts into this file instead, and nothing into the
    workdir.
    Returns {"receipts": [...], "names": of the files, "classifier_test_accuracy": None where
    nothing was classified}.
    Many processes sample together and look at a part of the images each; the first one compares.
    """
    setup, options = model.setup, model.setup.evaluate
    count = options.samples if samples is None else samples
    seed = options.seed if seed is None else seed
    scales: Sequence[float | None] = (options.guidance if guidance is None else guidance) or (None,)
    if sections is not None:
        if guidance:
            raise invalid("--guidance", guidance, "scales, or --sample.guidance; not both")
        scales, changes = (None,), {**changes, "guidance": sections}
    check_evaluation(setup, count, scales, changes, seed, scores, intervals)
    if out is None:
        files.check("--workdir", Path(workdir) / "receipts", directory=True, fix=ELSEWHERE)
    else:
        files.check_out("--out", out, (".json",))
    differs = {
        **{
            key: other(value, setup.config.get("sample", {}).get(key))
            for key, value in changes.items()
        },
        **{"ema": other(ema, model.ema), "samples": other(count, options.samples)},
        **{"seed": other(seed, options.seed), "features": features, "intervals": intervals},
        "scores": None if scores is None else ",".join(scores),
    }
    judge = _judge(model, None if out else workdir, features, weights, check)
    receipts: list[dict[str, Any]] = []
    names: list[str] = []
    for scale in scales:
        check()
        asked = {**changes, **({} if scale is None else {"guidance": scale})}
        found, how, about, left_out, seen = _scored(
            model,
            judge,
            count,
            asked,
            seed=seed,
            ema=ema,
            scores=scores,
            intervals=intervals,
            check=check,
        )
        result = receipt(
            found,
            dataclasses.replace(how, dtype=_dtype(setup.config.get("model", {}))),
            data=configs.to_dict(setup.config.data),
            extra={
                "guidance": scale,
                **_known(model, judge),
                "left_out": left_out,
                "cautions": cautions(found, setup.spec.num_classes if judge is not None else None),
                **about,
            },
        )
        result = hosts.tell(result)
        say(f"{title(result)}:\n{lines(result)}")  # first of all: it may be all that is left
        receipts.append(result)
        if out is None:
            name = "evaluate" if scale is None else f"evaluate_guidance_{scale:g}"
            names.append(receipt_name(name, differs))
            write(workdir, names[-1], result)
            if seen is not None and setup.method.sampler is not None and hosts.first():
                path = Path(workdir) / "samples" / f"{NEAREST}{names[-1]}.png"
                save_png(path, *_nearest(seen))
    accuracy = None if judge is None else judge.accuracy
    evaluation = {"receipts": receipts, "names": names, "classifier_test_accuracy": accuracy}
    if out is not None:
        write_atomic(Path(out), files.json_text(evaluation) + "\n")
    return evaluation


def check_evaluation(
    setup: Setup,
    count: int,
    scales: Sequence[float | None] = (None,),
    changes: Mapping[str, Any] | None = None,
    seed: int = 0,
    scores: Sequence[str] | None = None,
    intervals: int | None = None,
) -> None:
    """Refuse what `evaluate` could only refuse after the samples. Raises UsageError."""
    if count < 2:
        raise invalid("--samples", count, "images >= 2")
    check_draws(intervals)
    check_seed("--seed", seed)
    check_names(scores)
    if setup.method.sampler is None:
        return
    for scale in scales:
        asked = {**(changes or {}), **({} if scale is None else {"guidance": scale})}
        make_sampler(setup, sample_options(setup, asked))


@dataclasses.dataclass(frozen=True, eq=False)
class _Judge:
    """The two halves, who looks at images, and how often the classifier is right of the test half.

    extractors: the classifier, and a list of others, as `metrics.evaluate.look` takes them. learnt:
    how many images the classifier learned from.
    """

    train: Mapping[str, Any]
    test: Mapping[str, Any]
    extractors: tuple[Extractor, list[Extractor]]
    perceptual: LPIPS | None
    accuracy: float
    learnt: int
    holdout: dict[str, Any] | None


def _scored(
    model: Model,
    judge: _Judge | None,
    count: int,
    asked: Mapping[str, Any],
    *,
    seed: int,
    ema: str | None,
    scores: Sequence[str] | None,
    intervals: int | None,
    check: Check,
) -> tuple[dict[str, Any], Sampling, dict[str, Any], dict[str, str], Seen | None]:
    """Scores by name, how the samples were made, what else is said of them, what is left out.

    And the samples beside the data, where there are data.
    """
    method, how = model.setup.method, Sampling(seed=seed, ema=ema or model.ema)
    found: dict[str, Any] = {}
    about: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    seen = None
    if judge is not None:
        test = judge.test
        if method.sampler is None:
            images, labels, how = _reconstructions(model, test, ema)
            found |= reconstruction(images, test["image"], judge.perceptual)
        else:
            labels = balanced_labels(count, model.setup.spec.num_classes)
            made = model.sample(labels, seed=seed, ema=ema, check=check, show=True, **asked)
            images, how = made.images, _sampling(made, seed)
            about["images_per_second"] = made.images_per_second
        check()
        seen = look(images, labels, judge.train, test, *judge.extractors)
        if hosts.first():
            values = score(seen, scores=scores, intervals=intervals, seed=seed, left_out=left_out)
            found |= {_named(k, method): v for k, v in values.items()}
        about |= seen.describe()
    if method.scores is not None:
        measured = method.scores(local(model.weights(ema)), jax.random.key(seed))
        for name, value in measured.items():
            better, says = method.meanings.get(name, (None, None))
            meaning = {} if says is None else {"better": better, "says": says}
            found[name] = {"value": float(value), "floor": None, **meaning}
    return found, how, about, {_named(k, method): why for k, why in left_out.items()}, seen


def _nearest(seen: Seen) -> tuple[np.ndarray, dict[str, str]]:
    """A picture of samples above the nearest training images, and what its file says.

    First the samples that are nearest of all, then some at even ranks.
    """
    distances, places = seen.nearest
    chosen = ranked(distances, BESIDE)
    about = {
        "distances": distances[chosen].round(4).tolist(),
        "fresh": round(float(np.median(seen.fresh)), 4),
        "samples": len(distances),
        "training": len(seen.learnt.images),
    }
    made, learnt = seen.made.images[chosen], seen.learnt.images[places[chosen]]
    return beside(made, learnt, len(chosen) // 2), told(about)


def _known(model: Model, judge: _Judge | None) -> dict[str, Any]:
    """What a receipt says of the model and of who judged it."""
    spec = model.setup.spec
    return {
        "images_seen": model.images_seen,
        "classifier_test_accuracy": None if judge is None else judge.accuracy,
        "classifier_training_images": None if judge is None else judge.learnt,
        **({} if spec.target else {"classes": list(spec.class_names)}),
        **({} if judge is None or judge.holdout is None else {"holdout": judge.holdout}),
    }


def _judge(
    model: Model, workdir: str | Path | None, features: str | None, weights: Any, check: Check
) -> _Judge | None:
    """Who scores images; None of a target, which has none.

    workdir: where the classifier is kept, or None for nowhere.
    """
    asked = [name for name in (features or "").split(",") if name not in ("", "classifier")]
    if weights is not None and len(asked) != 1:
        raise invalid("--weights", str(weights), "weights for a single network of --features")
    perceptual = None
    if "lpips" in asked:
        if model.setup.method.sampler is not None:
            allowed = "extractors of features: lpips compares images with their reconstructions"
            raise invalid("--features", "lpips of samples", allowed)
        asked.remove("lpips")
        perceptual = lpips.load(weights)
    real = model.tokenizer.setup if model.tokenizer is not None else model.setup
    networks = [name for name in asked if ":" not in name and name != "identity"]
    if networks and len(real.spec.shape) == 3 and real.spec.shape[-1] in (2, 4):
        allowed = "classifier: other networks look at grey images and at RGB, without alpha"
        raise invalid("--features", features, allowed)
    others = [Shared(extractors.load(name, weights)) for name in asked]
    check()
    if model.setup.spec.target is not None:
        return None
    sources = [real.source, real.test_source]
    if model.setup.spec.classes:
        how: dict[str, Any] = dict(whose="the classes of the model", fewer=True)
        sources = [
            half.relabelled(model.setup.spec.classes, "config.data.tokenizer", **how)
            for half in sources
        ]
    train, test = at_hand(sources[0]), at_hand(sources[1])
    if model.setup.method.sampler is None:
        test = whole(sources[1])
    learnt = _few(train)
    count, of = len(learnt["label"]), len(train["label"])
    some = "" if count == of else f" on {count} of the {of} training images, in their shares"
    say(f"classifier for the scores: training{some}, or from the cache")

    def network() -> Classifier:
        return cached(
            None if workdir is None else Path(workdir) / "classifier.safetensors",
            learnt["image"],
            learnt["label"],
            model.setup.spec.num_classes,
            training=Training(flip=model.setup.data.flip),
        )

    accuracy = None
    if hosts.first():
        accuracy = float(network().accuracy(test["image"], test["label"]))
    accuracy = hosts.tell(accuracy)
    say(f"classifier: {100 * accuracy:.2f} % of the test half right")
    # By now it is in the cache, which all processes can read.
    return _Judge(
        train, test, (Shared(network()), [*others]), perceptual, accuracy, count, real.holdout
    )


def _few(train: Mapping[str, Any]) -> Mapping[str, np.ndarray]:
    """What a classifier learns from: all, or as many as are held at once, in the same shares."""
    images = train["image"]
    if not isinstance(images, Streamed):
        return train
    count = max(2, AT_ONCE // max(1, images[:1].nbytes))
    places = spread(train["label"], count, 0)
    return {"image": images[places], "label": train["label"][places]}


def _sampling(made: Samples, seed: int) -> Sampling:
    options = dict(made.options)
    solver = options.pop("solver", None)
    return Sampling(
        labels="balanced",
        seed=seed,
        solver=None if solver is None else _name(solver),
        steps=made.steps,
        nfe=made.calls,
        guidance=options.pop("guidance", None),
        ema=made.ema,
        options=configs.to_dict(options),
    )


def _reconstructions(
    model: Model, test: Mapping[str, np.ndarray], ema: str | None
) -> tuple[np.ndarray, np.ndarray, Sampling]:
    images = model.decode(model.encode(test["image"], ema=ema), ema=ema)
    return images, test["label"], Sampling(labels="of the test half", ema=ema or model.ema)


def title(found: Mapping[str, Any]) -> str:
    """What a receipt is of, for a line or a column head."""
    if found["guidance"] is not None:
        return f"guidance {found['guidance']:g}"
    return "reconstructions" if found["sampling"]["labels"] == "of the test half" else "samples"


def lines(found: Mapping[str, Any]) -> str:
    """A receipt's scores, a line each with interval and floor; what is missing, and cautions."""
    scores = [s for s in found["scores"] if isinstance(s["value"], (int, float))]
    width = max((len(s["name"]) for s in scores), default=0)
    out = [f"  {s['name']:<{width}}  {score_line(s)}" for s in scores]
    out += [f"  {name} left out: {why}" for name, why in found.get("left_out", {}).items()]
    return "\n".join(out + [f"  CAUTION: {text}" for text in found.get("cautions", ())])


def _named(score: str, method: Method) -> str:
    """A score's name; a distance of reconstructions is rFID, not FID."""
    distance = score.startswith(("fid", "fd_"))
    return f"r{score}" if distance and method.sampler is None else score


def _dtype(model: Any) -> str:
    """The compute dtype of a model section, or of the first network of several."""
    found = dict(model)
    if "name" not in found and found:
        return _dtype(next(iter(found.values())))
    return str(found.get("dtype", "float32"))


def _name(section: Any) -> str:
    return section if isinstance(section, str) else str(dict(section).get("name"))
