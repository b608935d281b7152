"""How likely a model finds a half of its data, in nats and in bits per dimension."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import __version__, files
from jaxgen.data import Source, normalise
from jaxgen.errors import check_seed, invalid
from jaxgen.method import Spec, fold
from jaxgen.method.streams import NOISE
from jaxgen.run.model import Model
from jaxgen.run.precision import single
from jaxgen.run.setup import Setup
from jaxgen.scoring.common import Check, other, receipt_name, write
from jaxgen.scoring.given import chosen as chosen_of
from jaxgen.training.log import progress, say


@single
def likelihood(
    model: Model,
    workdir: str | Path,
    *,
    split: str = "test",
    images: str | Path | None = None,
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
    where there is noise. images: labelled ones, in the place of a split (`scoring.given`): each
    one's nats are then among the results, and the baselines, which need the training half, are not.
    Writes `receipts/likelihood_SPLIT.json`, whose name also says what the config does not, and
    returns what it holds.

    Raises UsageError for a method without a likelihood, and images without labels.
    """
    setup, section, kind = model.setup, model.setup.likelihood, model.setup.method.likelihood
    if setup.method.log_prob is None or kind is None:
        raise invalid("likelihood", "a method without a likelihood", "families that have one")
    usual_limit = section.limit if images is None else 0
    draws = section.draws if draws is None else draws
    limit = usual_limit if limit is None else limit
    seed = check_seed("--seed", section.seed if seed is None else seed)
    if draws < 1:
        raise invalid("--draws", draws, "draws >= 1")
    files.check("--workdir", Path(workdir) / "receipts", directory=True)
    asked = chosen_of(model, split, images, limit, seed)
    source, order = asked.source, asked.order
    if not asked.labelled:
        allowed = "images with labels: sub-folders named as classes, or a .npz with labels"
        raise invalid("--images", str(images), allowed)
    spec = setup.spec
    noisy = not kind.mass and spec.levels is not None
    random = noisy or not kind.exact
    differs = {"draws": other(draws, section.draws) if random else None}
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
                x = spec.dequantise(batch, fold(fold(keys, draw), NOISE)) if noisy else batch
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
        **asked.about,
        "images": len(order),
        "classes": list(spec.class_names),
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
        **(_independent(setup, source, order) if of_mass and images is None else {}),
        **({} if images is None else {"places": order.tolist(), "nats_of_each": total.tolist()}),
    }
    say(likelihood_line(result))
    differs |= {
        **{"limit": other(limit, usual_limit), "seed": other(seed, section.seed)},
        **{"ema": other(result["ema"], model.ema), **options},
    }
    write(workdir, receipt_name(f"likelihood_{asked.name}", differs), result)
    return result


MEANING = (
    "How many bits a pixel (or token) takes when the model is used to compress real images it "
    "never saw."
)


def measures(found: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """What a report shows of a likelihood: measure -> whose -> value, interval, meaning."""
    about = {"value": found["bits_per_dim"], "better": "lower", "says": MEANING}
    error = found.get("bits_per_dim_standard_error")
    if error is not None:
        about["interval"] = [about["value"] - 1.96 * error, about["value"] + 1.96 * error]
    shown = {"model": about}
    for whose, key in (
        ("each pixel for itself, given the class", "independent_given_label_bits_per_dim"),
        ("each pixel for itself", "independent_bits_per_dim"),
    ):
        if key in found:
            shown[whose] = {"value": found[key]}
    return {"bits_per_dim": shown}


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


def _independent(setup: Setup, source: Source, order: np.ndarray) -> dict[str, float]:
    """Bits per dimension of independent elements, add-one counts of the training half."""
    spec, levels = setup.spec, setup.spec.levels
    assert levels is not None

    def tokens(images: np.ndarray) -> np.ndarray:
        image = normalise({"image": jnp.asarray(images)})["image"]
        return np.asarray(spec.to_tokens(image)).reshape(len(images), -1)

    train, test = setup.source, tokens(source.images(order))
    place = np.arange(spec.size)

    def counted(places: np.ndarray) -> np.ndarray:
        """How often each level is at each element of training images, read a few at a time."""
        counts = np.zeros((spec.size, levels), np.int64)
        for start in range(0, len(places), 1024):
            found = tokens(train.images(places[start : start + 1024]))
            np.add.at(counts, (place[None], found), 1)
        return counts

    def bits(counts: np.ndarray, test: np.ndarray) -> np.ndarray:
        log = np.log2((counts + 1.0) / (counts + 1.0).sum(1, keepdims=True))
        return -log[place[None], test].mean(1)

    labels, whole, given = source.labels[order], np.zeros((spec.size, levels), np.int64), []
    for label in range(spec.num_classes):
        counts = counted(np.flatnonzero(train.labels == label))
        whole += counts
        given.append(bits(counts, test[labels == label]))
    return {
        "independent_bits_per_dim": float(bits(whole, test).mean()),
        "independent_given_label_bits_per_dim": float(np.concatenate(given).mean()),
    }
