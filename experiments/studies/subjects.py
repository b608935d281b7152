"""New subjects and controls on a trained model, from few images, each beside what lacks it.

    python -m experiments.studies.subjects --workdir runs/digits --part dreambooth

dreambooth: a class of its own for six mirrored images of another, with and without the prior.
domainstudio: a domain of ten inverted images, with and without relations to the source.
hypernet: a network that says low-rank changes from one image: does its contrast carry over?
preference: four faded references, by preferences: the best checkpoint and the last.
inclusive, concepts, control, prompts: see `experiments.studies.controls`.

A part's rows take the place of those that --out's JSON has of it; the figure is of all in there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.studies import controls
from experiments.studies.further import (
    SHORT,
    SOLVED,
    Section,
    Trainer,
    averaged,
    begun,
    floats,
    setup_of,
)
from experiments.studies.strips import picture, strip
from experiments.studies.trained import Row, Subject, keep, parser, shown, subject, written
from jaxgen.frozen import rewards
from jaxgen.run.model import balanced_labels

NAME = "experiments.studies.subjects"
RATE, SMALL = 5e-4, 16
"""Where there are few images: the learning rate, and the batch."""
NEW, PARENT, FEW = "mirrored", 7, 6
"""Of dreambooth: the new class, the class that it comes from, and its images."""
RELATED = (3.0, 10.0)
"""Weights of both relations."""
HEADS = r"\bblocks\.(qkv|proj)\.kernel$"
REFERENCES, LOOK, WIDTH, LOUD, FURTHER = 4, 0.5, 0.15, 10.0, 160
"""Of preference: how many references, their contrast, how far one may be from it, the reward's
factor, images between two looks."""


def dreambooth(it: Subject, workdir: str, seeds: int, images: int, samples: int) -> Iterator[Row]:
    """Distances of the new class, of its parent and of all others to test images of each."""
    known = it.model.setup.spec
    names = (*known.class_names, NEW)
    parents = {NEW: names[PARENT]}
    told: Section = dict(
        spec=dataclasses.replace(known, num_classes=len(names), classes=names),
        start=dict(workdir=workdir, parents=parents),
    )
    learnt, real = (h["image"][h["label"] == PARENT][:, :, ::-1] for h in (it.train, it.test))
    label, rest = len(names) - 1, np.delete(np.arange(it.classes), PARENT)
    labels = np.repeat([label, PARENT, -1], samples)
    labels[2 * samples :] = np.resize(rest, samples)

    def measured(way: str, seed: int, x: np.ndarray) -> Row:
        new, parent, others = np.split(x, 3)
        row = dict(way=way, seed=seed, new=it.between(new, real))
        row["parent"] = float(it.distance(parent, labels[samples : 2 * samples])["value"])
        row["others"] = float(it.distance(others, labels[2 * samples :])["value"])
        return row | strip(np.concatenate([new[:5], parent[:5]]))

    floor = dict(way="(images)", seed=0, new=it.between(learnt, real))
    yield floor | strip(chosen(learnt, FEW, 0))
    wrap = dict(name="tune.dreambooth", parents=parents, sample=SHORT)
    ways: dict[str, tuple[int, list[Section]]] = {
        "(as trained)": (0, []),
        "without the prior": (images, []),
        "with the prior": (images, [wrap]),
    }
    for way, (count, wraps) in ways.items():
        setup = setup_of(it, workdir, wraps, rate=RATE, images=images, batch=SMALL, **told)
        draw, train = floats(setup.method, **SOLVED), Trainer(setup.method, it.train, SMALL)
        for seed in range(seeds):
            own = {"image": chosen(learnt, FEW, seed), "label": np.full(FEW, label, np.int32)}
            state = begun(setup, seed)
            state = train.on(own)(state, seed, count) if count else state
            yield measured(way, seed, draw(averaged(setup.method, state), labels, seed))


def chosen(images: np.ndarray, count: int, seed: int) -> np.ndarray:
    """So many of the images."""
    return np.random.default_rng(seed).permutation(images)[:count]


def domainstudio(it: Subject, workdir: str, seeds: int, images: int, samples: int) -> Iterator[Row]:
    """Samples' brightness; inverted back, how unlike those of a class are, and their scores."""
    labels = balanced_labels(samples, it.classes)
    first = np.concatenate([np.flatnonzero(labels == c)[:5] for c in (3, 8)])

    def measured(way: str, seed: int, x: np.ndarray, labels: np.ndarray) -> Row:
        row = dict(way=way, seed=seed, brightness=float(x.mean()))
        return row | dict(variety=variety(it.scorer.features(-x), labels))

    real = measured("(images)", 0, -it.test["image"], it.test["label"])
    few = -it.train["image"][one_each(it, range(it.classes), 0)]
    yield real | it.floor(samples) | strip(few)
    ways: dict[str, tuple[int, list[Section]]] = {
        "(as trained)": (0, []),
        "without relations": (images, []),
    }
    for weight in RELATED:
        related = dict(name="relations.relations", image=weight, high=weight)
        ways[f"relations, {weight:g}"] = (images, [related, dict(name="relations.detail")])
    for way, (count, added) in ways.items():
        told: Section = dict(rate=RATE, images=images, batch=SMALL, method__terms=added)
        setup = setup_of(it, workdir, [], **told)
        draw, train = floats(setup.method, **SOLVED), Trainer(setup.method, it.train, SMALL)
        for seed in range(seeds):
            rows = one_each(it, range(it.classes), seed)
            own = {"image": -it.train["image"][rows], "label": it.train["label"][rows]}
            state = begun(setup, seed)
            state = train.on(own)(state, seed, count) if count else state
            x = draw(averaged(setup.method, state), labels, seed)
            yield measured(way, seed, x, labels) | it.scores(-x) | strip(x[first])


def one_each(it: Subject, classes: Any, seed: int) -> np.ndarray:
    """A row of the training half for each of these classes."""
    chance = np.random.default_rng(seed)
    return np.array([chance.choice(np.flatnonzero(it.train["label"] == c)) for c in classes])


def variety(features: np.ndarray, labels: np.ndarray) -> float:
    """The mean distance of two with the same label, of features [N, D]: the classes' mean."""
    each = []
    for own in (features[labels == c] for c in np.unique(labels)):
        apart = np.linalg.norm(own[:, None] - own, axis=-1)
        each.append(apart.sum() / max(len(own) * (len(own) - 1), 1))
    return float(np.mean(each))


def hypernet(it: Subject, workdir: str, seeds: int, images: int, samples: int) -> Iterator[Row]:
    """How the contrast of samples goes with that of references of other classes, and accuracy."""
    labels = balanced_labels(samples, it.classes)
    wrap = dict(name="tune.hypernet", match=HEADS, rank=2)
    setup = setup_of(it, workdir, [wrap], rate=1e-3, images=images, batch=SMALL)
    train = Trainer(setup.method, it.train, SMALL)
    draw, own = floats(setup.method, **SOLVED), floats(it.model.setup.method, **SOLVED)

    def measured(way: str, seed: int, x: np.ndarray, told: np.ndarray) -> Row:
        made = np.asarray(contrast(x))
        with np.errstate(invalid="ignore"):  # an untrained model's samples are all alike
            row = dict(way=way, seed=seed, correlation=float(np.corrcoef(made, told)[0, 1]))
        row["off"] = float(np.abs(made - told).mean())
        row["accuracy"] = it.scorer.accuracy(np.asarray(restored(x)), labels)
        return row | strip(x[:10])

    for seed in range(seeds):
        chance = np.random.default_rng(seed)
        many: Section = {name: np.repeat(half, 8, 0) for name, half in it.train.items()}
        many["image"] = faded(many["image"], chance.uniform(0.2, 1, len(many["label"])))
        # References of another class than the sample's: the label says nothing of them.
        rows = [chance.choice(np.flatnonzero(it.test["label"] != c)) for c in labels]
        told = faded(it.test["image"][rows], chance.uniform(0.2, 1, samples))
        if not seed:
            yield dict(way="(references)", seed=0) | strip(told[:10])
        base, asked = own(it.model.weights(None), labels, seed), np.asarray(contrast(told))
        yield measured("(as trained)", seed, base, asked)
        state = train.on(many)(begun(setup, seed), seed, images)
        params = averaged(setup.method, state)
        x = draw(params, labels, seed, reference=told)
        row = measured("hypernetwork", seed, x, asked)
        yield row | dict(untold=float((draw(params, labels, seed) == base).all()))


def faded(images: Any, share: Any) -> jax.Array:
    """Images [N, ...] in [-1, 1] with so much of their ink, a number or one for each."""
    each = jnp.reshape(jnp.asarray(share), (-1, *(1,) * (images.ndim - 1)))
    return jnp.clip(each * (images + 1) - 1, -1, 1)


def contrast(images: Any) -> jax.Array:
    """[N]: the mean of the six brightest elements, in [0, 1]."""
    return (jnp.sort(jnp.reshape(images, (len(images), -1)))[:, -6:].mean(1) + 1) / 2


def restored(images: Any) -> jax.Array:
    """Images whose contrast is 1."""
    return faded(images, 1 / jnp.maximum(contrast(images), 0.1))


def look() -> rewards.Reward:
    """ln of how like the references' an image's contrast is."""
    return lambda x, labels: -(((contrast(x) - LOOK) / WIDTH) ** 2) / 2


def harmony(*, file: str) -> rewards.Reward:
    """`LOUD` times the harmonic mean of the look and of p(label | x restored) by a classifier."""
    judge = rewards.classifier(file=file)
    mean = rewards.harmonic(first=look(), second=lambda x, labels: judge(restored(x), labels))
    return lambda x, labels: LOUD * mean(x, labels)


def preference(it: Subject, workdir: str, seeds: int, images: int, samples: int) -> Iterator[Row]:
    """What a classifier that no training sees makes of samples of all labels: best and last.

    The best by the reward of samples of other noise, with the classifier of training.
    """
    labels = balanced_labels(samples, it.classes)
    files = [f"{workdir}/{name}.safetensors" for name in ("guide", "classifier")]
    known, judge = (jax.jit(harmony(file=file)) for file in files)
    likeness: Any = look()
    step = min(FURTHER, images)

    def measured(way: str, seed: int, x: np.ndarray, at: int) -> Row:
        row = dict(way=way, seed=seed, reward=float(judge(x, labels).mean()) / LOUD)
        row["look"] = float(jnp.exp(likeness(x, labels)).mean())
        row["accuracy"] = it.scorer.accuracy(np.asarray(restored(x)), labels)
        return row | {"after": at} | strip(x[:10])

    wrap = dict(name="tune.preference.dpo", data=True, similarity=1.0, beta=0.5, draws=1,
                reward=dict(name=f"{NAME}.harmony", file=files[0]), sample=SHORT)  # fmt: skip
    ways: dict[str, list[Section]] = {"references alone": [], "with preferences": [wrap]}
    for way, wraps in ways.items():
        told: Section = dict(images=images, batch=SMALL, schedule="constant")
        setup = setup_of(it, workdir, wraps, rate=RATE, **told)
        draw, train = floats(setup.method, **SOLVED), Trainer(setup.method, it.train, SMALL)
        for seed in range(seeds):
            classes = np.random.default_rng(seed).permutation(it.classes)[:REFERENCES]
            rows = one_each(it, classes, seed)
            own = {"image": faded(it.train["image"][rows], LOOK), "label": it.train["label"][rows]}
            state, best, curve = begun(setup, seed), None, []
            for count in range(0, images + 1, step):
                state = train.on(own)(state, seed, step) if count else state
                params = averaged(setup.method, state)
                if not wraps and not count:
                    if not seed:
                        yield dict(way="(references)", seed=0) | strip(own["image"])
                    yield measured("(as trained)", seed, draw(params, labels, seed), 0)
                curve.append(float(known(draw(params, labels, 1000 + seed), labels).mean()) / LOUD)
                if curve[-1] == max(curve):
                    best = (params, count)
            assert best is not None
            for said, (held, at) in {"best": best, "last": (params, count)}.items():
                row = measured(f"{way}, {said}", seed, draw(held, labels, seed), at)
                if said == "best":
                    del row["strip"]
                yield row | dict(curve=curve)


PARTS = {
    "dreambooth": (dreambooth, 9_600, 200),
    "domainstudio": (domainstudio, 12_800, 200),
    "hypernet": (hypernet, 6_400, 300),
    "preference": (preference, 1_600, 60),
} | controls.PARTS
"""Of each: the function, images of training for each way, and samples."""
TITLES = {
    "dreambooth": "A new class from six images (DreamBooth)",
    "domainstudio": "A domain from ten images (DomainStudio)",
    "hypernet": "The contrast of one reference (hypernetwork)",
    "preference": "A look from four references, by preferences",
    "inclusive": "A class drawn evenly (ITI-GEN)",
    "concepts": "One code, one look: a code a line (CoCoIns)",
    "control": "One call, told a coarse image (CCM)",
    "prompts": "Which class? A label found for each image (PEZ)",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run parts, print their tables and write figure and numbers."""
    asked = parser(__doc__ or "", "subjects.png")
    asked.add_argument("--part", nargs="*", choices=list(PARTS), default=list(PARTS))
    asked.add_argument(
        "--images", type=int, help="of training, for each way (of each part its own)"
    )
    asked.add_argument("--seeds", type=int, default=3)
    asked.set_defaults(samples=None)
    given = asked.parse_args(arguments)
    if given.tiny:
        given.images, given.samples, given.seeds = 128, 70, 1
    it, rows = subject(given.workdir), written(given.out)
    for name in given.part:
        part, images, samples = PARTS[name]
        own: list[Row] = []
        sizes = (given.images or images, given.samples or samples)
        for row in part(it, given.workdir, given.seeds, *sizes):
            if row["seed"]:
                row.pop("strip", None)
            own.append({"part": name} | row)
            print({k: v for k, v in own[-1].items() if k != "strip"}, flush=True)
        rows = [row for row in rows if row["part"] != name] + own
        keep(picture(rows, TITLES), rows, given.out, shown(own))


if __name__ == "__main__":
    main()
