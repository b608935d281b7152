"""How well a model classifies, how far its posteriors can be believed, and at what cost."""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import __version__, files
from jaxgen.classify import Classification, add_noise, halving, noise_levels
from jaxgen.classify import classify as classify_images
from jaxgen.data import Source, normalise
from jaxgen.errors import check_seed, invalid, unknown
from jaxgen.metrics.receipt import plain
from jaxgen.metrics.scores import calibration
from jaxgen.run.model import Model
from jaxgen.run.precision import single
from jaxgen.run.setup import Setup
from jaxgen.scoring.common import Check, local, other, receipt_name, write
from jaxgen.scoring.given import chosen
from jaxgen.training.log import progress, say

ROUNDS = ("halving", "one")
Temperatures = tuple[float, float]


@single
def classify(
    model: Model,
    workdir: str | Path,
    *,
    split: str = "test",
    images: str | Path | None = None,
    draws: int | None = None,
    rounds: str = "halving",
    noise: Sequence[float] = (),
    limit: int | None = None,
    ema: str | None = None,
    seed: int | None = None,
    check: Check = lambda: None,
) -> dict[str, Any]:
    """Accuracy and calibration of the generative classifier on a split, with its cost.

    split: "train" or "test", the config's names of the halves. images: a folder, a .npy or a .npz
    in the place of a half (`scoring.given`), all of them unless `limit` says fewer: what each one
    was taken for is then among the results, accuracy and calibration where they have labels.
    rounds: "halving" drops the hopeless classes; "one" gives every class every draw, for posteriors
    that elimination has not sharpened.
    noise: standard deviations of Gaussian noise, at each of which the images are classified again
    (`jaxgen.classify.add_noise`). None: as the config's `classify` section says.

    Calibration is of the softmax of the scores (priors are equal), and again at temperatures fitted
    on the other half of the clean images (`calibration.cross_fitted`), null for one image. Writes
    `receipts/classify_SPLIT.json`, whose name also says what the config does not, and returns what
    it holds. Raises UsageError.
    """
    setup, options = model.setup, model.setup.classify
    if setup.method.label_error is None:
        raise invalid("classify", "a method without a likelihood", "families that can classify")
    if rounds not in ROUNDS:
        raise unknown("--rounds", rounds, ROUNDS)
    levels = noise_levels(setup.spec, noise)
    usual_draws, usual_limit = options.draws, options.limit if images is None else 0
    draws = usual_draws if draws is None else draws
    if draws < 1:
        raise invalid("--draws", draws, "draws >= 1")
    limit = usual_limit if limit is None else limit
    files.check("--workdir", Path(workdir) / "receipts", directory=True)
    seed = check_seed("--seed", options.seed if seed is None else seed)
    asked = chosen(model, split, images, limit, seed)
    if not setup.method.label_noise:  # the likelihood is exact: more would say the same again
        draws = usual_draws = 1
    source, order = asked.source, asked.order
    labels = source.labels[order]
    params = jax.device_put(local(model.weights(ema)))
    schedule = halving(setup.spec.num_classes, draws) if rounds == "halving" else ((draws, 1),)

    def run(std: float) -> tuple[Classification, float]:
        start = time.monotonic()
        found = _classified(setup, params, source, order, draws, schedule, std, seed, check)
        return found, time.monotonic() - start

    def entry(found: Classification, seconds: float) -> dict[str, Any]:
        cost = {"calls_per_image": found.calls, "seconds": seconds}
        if not asked.labelled:
            return cost
        return {**judgement(found.scores, labels, temperatures), **cost}

    found, seconds = run(0.0)
    fitted = asked.labelled and len(labels) > 1
    temperatures = calibration.cross_fitted(found.scores, labels) if fitted else None
    clean = entry(found, seconds)
    noisy = [{"std": std, **(entry(*run(std)) if std else clean)} for std in levels]
    result = {
        **asked.about,
        "images": len(order),
        "classes": list(setup.spec.class_names),
        **clean,
        **(_told(found, order, setup.spec.class_names) if images is not None else {}),
        "bins": calibration.BINS,
        "temperatures": temperatures,
        "draws": draws,
        "rounds": schedule,
        "posterior": _posterior(setup, draws, len(schedule)),
        **({"noise": noisy, "noise_is": _noise_is(setup)} if levels else {}),
        "seed": seed,
        "ema": ema or model.ema,
        "images_seen": model.images_seen,
        "jaxgen": __version__,
        "jax": jax.__version__,
    }
    result = plain(result)
    say(classification_line(result))
    differs = {
        **{"draws": other(draws, usual_draws), "rounds": other(rounds, ROUNDS[0])},
        **{"noise": list(levels) or None, "limit": other(limit, usual_limit)},
        **{"ema": other(result["ema"], model.ema), "seed": other(seed, options.seed)},
    }
    write(workdir, receipt_name(f"classify_{asked.name}", differs), result)
    return result


def images_of(
    setup: Setup, source: Source, chosen: np.ndarray, std: float = 0.0, seed: int = 0
) -> np.ndarray:
    """Images [n, *shape] in [-1, 1] at places `chosen` [n] of a half, with noise of their own."""
    clean = normalise({"image": jnp.asarray(source.images(chosen))})["image"]
    root = jax.random.fold_in(jax.random.key(seed), 2**32 - 1)  # apart from the classifier's keys
    keys = jax.vmap(lambda i: jax.random.fold_in(root, i))(jnp.asarray(chosen))
    return np.asarray(add_noise(setup.spec, clean, keys, std))


def judgement(
    scores: np.ndarray, labels: np.ndarray, temperatures: Temperatures | None
) -> dict[str, Any]:
    """`calibration.summary` with its bins; the same as "tempered" at `cross_fitted`'s pair."""

    def at(temperature: float | np.ndarray) -> dict[str, Any]:
        p = np.exp(calibration.log_posterior(scores, temperature))
        bins = dataclasses.asdict(calibration.reliability(p, labels))
        summary = calibration.summary(scores, labels, temperature=temperature)
        return {**summary, "reliability": bins}

    if temperatures is None:
        return {**at(1.0), "tempered": None}
    return {**at(1.0), "tempered": at(calibration.alternating(temperatures, len(labels)))}


def measures(found: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """What a report shows of a classification: measure -> whose -> value, floor, meaning."""
    shown: dict[str, dict[str, dict[str, Any]]] = {}
    for name, (better, says) in calibration.MEANINGS.items():
        for whose, each in (("as it is", found), ("tempered", found.get("tempered") or {})):
            if name in each:
                about = {"value": each[name], "better": better, "says": says}
                if name == "ece":
                    about |= {"floor": each["ece_floor"], "floor_is": "if calibrated"}
                shown.setdefault(name, {})[whose] = about
    return shown


def classification_line(found: Mapping[str, Any]) -> str:
    """A classification's result in one line."""
    cost = f"{found['calls_per_image']:.0f} network calls an image, {found['seconds']:.1f} s"
    if "accuracy" not in found:
        counts = collections.Counter(found["names"]).most_common()
        said = ", ".join(f"{count} {name}" for name, count in counts[:10])
        more = f" and {len(counts) - 10} classes more" if len(counts) > 10 else ""
        return f"generative classifier: of {found['images']} images {said}{more}; {cost}"
    tempered = found["tempered"]
    line = (
        f"generative classifier: {100 * found['accuracy']:.2f} % of {found['images']} "
        f"{found['split']} images, {cost}; "
        f"calibration error {found['ece']:.4f} (floor {found['ece_floor']:.4f})"
    )
    if tempered is not None:
        low, high = sorted(found["temperatures"])
        line += (
            f", {tempered['ece']:.4f} ({tempered['ece_floor']:.4f}) at temperatures "
            f"{low:.3g} and {high:.3g}"
        )
    for level in found.get("noise", ()):
        line += f"; noise {level['std']:g}: {100 * level['accuracy']:.2f} %"
    return line


def _classified(
    setup: Setup,
    params: Any,
    source: Source,
    order: np.ndarray,
    draws: int,
    schedule: Sequence[tuple[int, int]],
    std: float,
    seed: int,
    check: Check,
) -> Classification:
    """The classification of the images at places `order`, a batch at a time."""
    root, size, found = jax.random.key(seed), setup.classify.batch_size, []
    right = 0
    with progress("classify" + (f", noise {std:g}" if std else ""), len(order)) as advance:
        for first in range(0, len(order), size):
            check()
            chosen = order[first : first + size]
            images = images_of(setup, source, chosen, std, seed)
            keys = jax.vmap(lambda i: jax.random.fold_in(root, i))(jnp.asarray(chosen))
            found.append(
                classify_images(
                    setup.method, params, images, keys, draws=draws, rounds=schedule, batch=1000
                )
            )
            right += int((found[-1].labels == source.labels[chosen]).sum())
            done = first + len(chosen)
            advance(done, f"accuracy {100 * right / done:.2f} %")
    return Classification(
        np.concatenate([f.labels for f in found]),
        np.concatenate([f.scores for f in found]),
        sum(f.calls * len(f.labels) for f in found) / len(order),
    )


def _told(found: Classification, order: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Of each image its place in what was given, its label, and the label's name."""
    labels = found.labels.tolist()
    return {"places": order.tolist(), "labels": labels, "names": [names[y] for y in labels]}


def _posterior(setup: Setup, draws: int, rounds: int) -> str:
    """How the probabilities that calibration is of come about."""
    what = "ln p(image | label)"
    if setup.method.label_noise:
        plural = f"the mean of {draws} estimates" if draws > 1 else "one estimate"
        what = f"{plural} of a bound on {what}, the noise shared by the labels"
    dropped = "; a dropped label's by the draws before it was dropped" if rounds > 1 else ""
    return f"softmax over labels of {what}, in nats{dropped}; equal priors"


def _noise_is(setup: Setup) -> str:
    return (
        "Gaussian, std in units of [-1, 1], one draw an image at every std; then rounded to the "
        f"nearest of {setup.spec.levels} levels, so clipped; tempered at the clean temperatures"
    )
