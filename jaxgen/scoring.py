"""Score, classify and measure likelihoods with a trained model, and write the receipts."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import __version__
from jaxgen import config as configs
from jaxgen.classify import classify as classify_images
from jaxgen.data import Source, normalise, to_host, whole
from jaxgen.errors import UsageError, invalid
from jaxgen.method import Spec, fold
from jaxgen.metrics import Sampling, Training, cached, extractors, sets
from jaxgen.metrics.evaluate import Extractor
from jaxgen.metrics.evaluate import evaluate as score
from jaxgen.metrics.files import evaluate_sets
from jaxgen.metrics.receipt import receipt
from jaxgen.metrics.reconstruction import reconstruction
from jaxgen.metrics.sets import Set
from jaxgen.model import Model, Samples, balanced_labels
from jaxgen.setup import Setup
from jaxgen.training import hosts
from jaxgen.training.checkpoint import write_atomic
from jaxgen.training.log import progress, say

Check = Callable[[], None]


def evaluate(
    model: Model,
    workdir: str | Path,
    *,
    samples: int | None = None,
    guidance: Sequence[float] | None = None,
    ema: str | None = None,
    seed: int | None = None,
    features: str | None = None,
    weights: str | Path | None = None,
    check: Check = lambda: None,
    **changes: Any,
) -> dict[str, Any]:
    """Scores of balanced samples at each guidance scale, with floors and receipts.

    None: as the config's `evaluate` section says; no scales: once, as `sample` says. features: the
    name of an extractor beside the classifier, and its weights (`metrics.extractors.load`).
    changes: keywords of the method's sampler. Of a tokenizer, its reconstructions of the test half
    are scored; of a target, what the family can measure. Writes
    `receipts/evaluate[_guidance_W].json`; returns {"receipts": [...], "classifier_test_accuracy":
    None where nothing was classified}.
    Many processes sample together; the first one scores.
    """
    parts, options = model.parts, model.parts.evaluate
    count = options.samples if samples is None else samples
    if count < 1:
        raise invalid("--samples", count, "images >= 1")
    seed = options.seed if seed is None else seed
    others = [extractors.load(features, weights)] if features not in (None, "classifier") else []
    check()
    accuracy = None
    if parts.spec.target is None:
        real = model.tokenizer.parts if model.tokenizer is not None else parts
        train, test = whole(real.source), whole(real.test_source)
        say("classifier for the scores: training, or from the cache")
        if hosts.first():
            network = cached(
                Path(workdir) / "classifier.safetensors",
                train["image"],
                train["label"],
                parts.spec.num_classes,
                training=Training(flip=parts.data.flip),
            )
            accuracy = float(network.accuracy(test["image"], test["label"]))
        accuracy = hosts.tell(accuracy)
        say(f"classifier: {100 * accuracy:.2f} % of the test half right")
    scales: Sequence[float | None] = (options.guidance if guidance is None else guidance) or (None,)
    receipts = []
    for scale in scales:
        check()
        asked = {**changes, **({} if scale is None else {"guidance": scale})}
        scores: dict[str, Any] = {}
        speed: dict[str, Any] = {}
        if parts.spec.target is None:
            if parts.method.sampler is None:
                images, labels, how = _reconstructions(model, test, ema)
                scores |= reconstruction(images, test["image"])
            else:
                labels = balanced_labels(count, parts.spec.num_classes)
                made = model.sample(labels, seed=seed, ema=ema, check=check, show=True, **asked)
                images, how = made.images, _sampling(made, seed)
                speed["images_per_second"] = made.images_per_second
            check()
            if hosts.first():
                scores |= score(images, labels, train, test, network, extractors=others, seed=seed)
        else:
            how = Sampling(seed=seed, ema=ema or model.ema)
        if parts.method.scores is not None:
            own = parts.method.scores(_local(model.weights(ema)), jax.random.key(seed))
            scores |= {k: {"value": float(v), "floor": None} for k, v in own.items()}
        found = receipt(
            scores,
            dataclasses.replace(how, dtype=_dtype(parts.config.get("model", {}))),
            data=configs.to_dict(parts.config.data),
            extra={
                "guidance": scale,
                "images_seen": model.images_seen,
                "classifier_test_accuracy": accuracy,
                **speed,
            },
        )
        found = hosts.tell(found)
        name = "evaluate" if scale is None else f"evaluate_guidance_{scale:g}"
        _write(workdir, name, found)
        receipts.append(found)
        say(f"{title(found)}: {one_line(found)}")
    return {"receipts": receipts, "classifier_test_accuracy": accuracy}


def evaluate_files(
    samples: str | Path,
    reference: str | Path,
    *,
    train: str | Path | None = None,
    features: str | None = None,
    weights: str | Path | None = None,
    scores: Sequence[str] | None = None,
    range: str | None = None,
    intervals: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
) -> dict[str, Any]:
    """Scores of images or features in files, whoever made them: `metrics.files.evaluate_sets`.

    samples, reference, train: see `metrics.sets.load`. features: the name of an extractor and its
    weights, "classifier" or "identity"; None: identity for arrays [N, d]; for images the standard
    Inception network if its weights are here, and otherwise a classifier trained on the
    reference's labels. out: a file for the receipt, too.
    """
    if intervals is not None and (intervals < 0 or intervals == 1):
        raise invalid("--intervals", intervals, "0, or 2 and more")
    if out is not None and Path(out).suffix != ".json":
        raise invalid("--out", str(out), "a name that ends in .json")
    made = sets.load(samples, option="--samples", range=range)
    known = sets.load(reference, option="--reference", range=range)
    learnt = None if train is None else sets.load(train, option="--train", range=range)
    asked = _extractor(features, weights, made, known)
    found = evaluate_sets(
        made,
        known,
        features=asked,
        scores=scores,
        train=learnt,
        intervals=intervals,
        seed=seed,
        say=say,
    )
    for name, entry in found["scores"].items():
        say(f"{name:>24} {score_line(entry)}")
    if out is not None:
        write_atomic(Path(out), json.dumps(found, indent=2, sort_keys=True) + "\n")
    return found


def _extractor(
    features: str | None, weights: str | Path | None, samples: Set, reference: Set
) -> str | Extractor:
    if features in ("identity", "classifier"):
        return features
    if features is None:
        if samples.images is None:
            return "identity"
        try:
            return extractors.load("inception", weights)
        except UsageError:
            if weights is not None or reference.labels is None:
                raise
            say("no weights of the Inception network here: a classifier of the reference instead")
            return "classifier"
    return extractors.load(features, weights)


def score_line(score: Mapping[str, Any]) -> str:
    """A score of `evaluate_files`: value, interval and floor."""
    line = f"{score['value']:.6g}"
    if score.get("interval"):
        line += " [{:.4g}, {:.4g}]".format(*score["interval"])
    return line + ("" if score["floor"] is None else f"  (floor {score['floor']:.4g})")


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


def one_line(found: Mapping[str, Any]) -> str:
    """A receipt's scores in one line, each with its floor."""
    return ", ".join(
        f"{s['name']} {s['value']:.4g}"
        + ("" if s["floor"] is None else f" (floor {s['floor']:.4g})")
        for s in found["scores"]
        if isinstance(s["value"], (int, float))
    )


def _dtype(model: Any) -> str:
    """The compute dtype of a model section, or of the first network of several."""
    found = dict(model)
    if "name" not in found and found:
        return _dtype(next(iter(found.values())))
    return str(found.get("dtype", "float32"))


def _name(section: Any) -> str:
    return section if isinstance(section, str) else str(dict(section).get("name"))


def classify(
    model: Model,
    workdir: str | Path,
    *,
    split: str = "test",
    draws: int | None = None,
    limit: int | None = None,
    ema: str | None = None,
    seed: int | None = None,
    check: Check = lambda: None,
) -> dict[str, Any]:
    """Accuracy of the generative classifier on a split, with its cost.

    split: "train" or "test", the config's names of the halves. None: as the config's `classify`
    section says. Writes `receipts/classify_SPLIT.json` and returns what it holds.
    """
    parts, options = model.parts, model.parts.classify
    if parts.method.label_error is None:
        raise invalid("classify", "a method without a likelihood", "families that can classify")
    draws = options.draws if draws is None else draws
    if not parts.method.label_noise:
        draws = min(draws, 1)  # the likelihood is exact: more would say the same again
    limit = options.limit if limit is None else limit
    seed = options.seed if seed is None else seed
    source, order = _part(parts, split, limit, seed)
    params = jax.device_put(_local(model.weights(ema)))
    root = jax.random.key(seed)
    right, calls, size = 0, 0.0, options.batch_size
    start = time.monotonic()
    with progress("classify", len(order)) as advance:
        for first in range(0, len(order), size):
            check()
            chosen = order[first : first + size]
            images = normalise({"image": jnp.asarray(source.images(chosen))})["image"]
            keys = jax.vmap(lambda i: jax.random.fold_in(root, i))(jnp.asarray(chosen))
            found = classify_images(
                parts.method, params, np.asarray(images), keys, draws=draws, batch=1000
            )
            right += int((found.labels == source.labels[chosen]).sum())
            calls += found.calls * len(chosen)
            done = first + len(chosen)
            advance(done, f"accuracy {100 * right / done:.2f} %")
    result = {
        "split": split,
        "images": len(order),
        "accuracy": right / len(order),
        "draws": draws,
        "calls_per_image": calls / len(order),
        "seconds": time.monotonic() - start,
        "seed": seed,
        "ema": ema or model.ema,
        "images_seen": model.images_seen,
        "jaxgen": __version__,
        "jax": jax.__version__,
    }
    _write(workdir, f"classify_{split}", result)
    return result


def likelihood(
    model: Model,
    workdir: str | Path,
    *,
    split: str = "test",
    draws: int | None = None,
    limit: int | None = None,
    ema: str | None = None,
    seed: int | None = None,
    check: Check = lambda: None,
    **options: Any,
) -> dict[str, Any]:
    """Mean log-likelihood of a split given its labels, in nats and in bits per dimension.

    Continuous models are asked at examples dequantised by uniform noise, which bounds the
    probability of the discrete example from below (Theis et al. 2016). Beside it the bits per
    dimension of pixels (or tokens) independent given the label, and independent of it, from counts
    of the training half. options: keywords of the method's `log_prob`. draws: noise draws averaged,
    where there is noise. Writes `receipts/likelihood_SPLIT.json` and returns what it holds.

    Raises UsageError for a method without a likelihood.
    """
    parts, section, kind = model.parts, model.parts.likelihood, model.parts.method.likelihood
    if parts.method.log_prob is None or kind is None:
        raise invalid("likelihood", "a method without a likelihood", "families that have one")
    draws = section.draws if draws is None else draws
    limit = section.limit if limit is None else limit
    seed = section.seed if seed is None else seed
    if draws < 1:
        raise invalid("--draws", draws, "draws >= 1")
    source, order = _part(parts, split, limit, seed)
    spec = parts.spec
    noisy = not kind.mass and spec.levels is not None
    random = noisy or not kind.exact
    if not random:
        draws = 1
    root, size = jax.random.key(seed), section.batch_size
    start, total = time.monotonic(), np.zeros(len(order))
    with progress("likelihood", len(order)) as advance:
        for first in range(0, len(order), size):
            check()
            chosen = order[first : first + size]
            batch = normalise({"image": jnp.asarray(source.images(chosen))})["image"]
            keys = jax.vmap(lambda i: jax.random.fold_in(root, i))(jnp.asarray(chosen))
            for draw in range(draws):
                x = spec.dequantise(batch, fold(fold(keys, draw), 0)) if noisy else batch
                found = model.log_prob(
                    np.asarray(x),
                    source.labels[chosen],
                    keys=fold(keys, draw),
                    ema=ema,
                    batch_size=min(size, len(order)),
                    **options,
                )
                total[first : first + len(chosen)] += found / draws
            advance(first + len(chosen), f"{-total[: first + len(chosen)].mean():.2f} nats")
    if noisy:
        total += spec.size * np.log(spec.width)
    bits = -total / (spec.size * np.log(2))
    of_mass = kind.mass or noisy
    result = {
        "split": split,
        "images": len(order),
        "nats": float(total.mean()),
        "bits_per_dim": float(bits.mean()),
        "bits_per_dim_standard_error": float(bits.std(ddof=1) / np.sqrt(len(bits)))
        if len(bits) > 1
        else None,
        "kind": "exact" if kind.exact and not noisy else "lower bound on the log-likelihood",
        "formula": _formula(spec, of_mass, noisy),
        "draws": draws,
        "seconds": time.monotonic() - start,
        "seed": seed,
        "ema": ema or model.ema,
        "images_seen": model.images_seen,
        "jaxgen": __version__,
        "jax": jax.__version__,
        **(_independent(parts, source, order) if of_mass else {}),
    }
    _write(workdir, f"likelihood_{split}", result)
    say(likelihood_line(result))
    return result


def likelihood_line(found: Mapping[str, Any]) -> str:
    """A likelihood's result in one line."""
    baseline = ""
    if "independent_bits_per_dim" in found:
        baseline = (
            f"; independent elements {found['independent_bits_per_dim']:.4f}, given the label "
            f"{found['independent_given_label_bits_per_dim']:.4f}"
        )
    return (
        f"log-likelihood of {found['images']} {found['split']} images: {found['nats']:.3f} nats, "
        f"{found['bits_per_dim']:.4f} bits/dim ({found['kind']}; {found['formula']}){baseline}"
    )


def _formula(spec: Spec, mass: bool, noisy: bool) -> str:
    size = f"{spec.size} ln 2"
    if not mass:
        return f"-ln p(x | y) / ({size}), a density"
    if noisy:
        return f"-(E ln p(x + u | y) + {spec.size} ln {spec.width:.6g}) / ({size}), u uniform"
    return f"-ln P(x | y) / ({size}), {spec.levels} levels"


def _independent(parts: Setup, source: Source, order: np.ndarray) -> dict[str, float]:
    """Bits per dimension of independent elements, add-one counts of the training half."""
    spec, levels = parts.spec, parts.spec.levels
    assert levels is not None

    def tokens(images: np.ndarray) -> np.ndarray:
        image = normalise({"image": jnp.asarray(images)})["image"]
        return np.asarray(spec.to_tokens(image)).reshape(len(images), -1)

    half = whole(parts.source)
    train, test = tokens(half["image"]), tokens(source.images(order))
    place = np.arange(spec.size)

    def bits(train: np.ndarray, test: np.ndarray) -> np.ndarray:
        counts = np.ones((spec.size, levels), np.float64)
        np.add.at(counts, (place[None], train), 1)
        log = np.log2(counts / counts.sum(1, keepdims=True))
        return -log[place[None], test].mean(1)

    labels = source.labels[order]
    given = np.concatenate(
        [bits(train[half["label"] == c], test[labels == c]) for c in range(spec.num_classes)]
    )
    return {
        "independent_bits_per_dim": float(bits(train, test).mean()),
        "independent_given_label_bits_per_dim": float(given.mean()),
    }


def _part(parts: Setup, split: str, limit: int, seed: int) -> tuple[Source, np.ndarray]:
    """A half and the places in it: all, or a random part (sources are often sorted by class)."""
    if limit < 0:
        raise invalid("--limit", limit, "images >= 1, or 0 for all")
    if parts.spec.target is not None:
        raise invalid("config.data.source", "a target without examples", "a source with examples")
    source = parts.source if split == "train" else parts.test_source
    return source, np.random.default_rng(seed).permutation(len(source))[: limit or None]


def _local(params: Any) -> Any:
    """Parameters for a program of this process alone."""
    return params if jax.process_count() == 1 else to_host(params)


def _write(workdir: str | Path, name: str, content: Any) -> None:
    path = Path(workdir) / "receipts" / f"{name}.json"
    write_atomic(path, json.dumps(content, indent=2, sort_keys=True) + "\n")
