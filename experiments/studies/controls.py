"""Controls of a trained model, told by rows, codes, images and words: parts of `subjects`.

inclusive: a class that is uneven in ink, and a row of the label table for each of two categories,
by eight images of each: how even are samples?
concepts: codes, each of which is to make the same look in every class: ink and slant.
control: a one-call consistency model and a branch that is told 4x4 means of 2x2 elements.
prompts: a label for an image by gradients of the model's own error, hard (PEZ) and soft.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.studies.further import (
    SHORT,
    SOLVED,
    Trainer,
    averaged,
    begun,
    floats,
    setup_of,
)
from experiments.studies.strips import strip
from experiments.studies.trained import Row, Subject
from jaxgen.families.diffusion.core.prediction import Prediction
from jaxgen.method import denoiser_factory, minimise
from jaxgen.method.columns import Column
from jaxgen.steer.pez import nearest, pez

NAME = "experiments.studies.controls"
CLASS, BOLD, EACH = 1, 0.8, 8
"""Of inclusive: the class, the quantile of its ink above which an image is bold, images of each."""
CODES, CODE = 20, 4
"""Of concepts: how many are told, and their size."""
CONSISTENT = 3
"""Of control: images of training of the consistency model, over those of the branch."""
PROBLEMS, DRAWS, STEPS, RATE = 3, 16, 40, 0.05
"""Of prompts: images of each class, noises of an image, and the search's steps and rate."""
SEARCHES = ("soft, nearest at last", "soft, best nearest", "hard (PEZ)", "all rows tried")


def ink(images: Any) -> Any:
    """[N]: the mean of images [N, ...]."""
    return images.reshape(len(images), -1).mean(1)


def inclusive(it: Subject, workdir: str, seeds: int, images: int, samples: int) -> Iterator[Row]:
    """The share of bold samples: of the class, and of its two categories, drawn evenly."""
    known, both = it.model.setup.spec, ("light", "bold")
    names = (*known.class_names, *both)
    spec = dataclasses.replace(known, num_classes=len(names), classes=names)
    of = names[CLASS]
    wrap = dict(name="tune.inclusive", classes=both, parent=of, last=2, sample=SHORT)
    start = dict(workdir=workdir, parents=dict.fromkeys(both, of))
    setup = setup_of(it, workdir, [wrap], rate=2e-2, images=images, spec=spec, start=start)
    draw, train = floats(setup.method, **SOLVED), Trainer(setup.method, it.train)
    learnt, real = (h["image"][h["label"] == CLASS] for h in (it.train, it.test))
    limit = np.quantile(ink(learnt), BOLD)
    labels = np.repeat([it.classes, it.classes + 1, CLASS], [samples, samples, 2 * samples])

    def measured(way: str, seed: int, x: np.ndarray) -> Row:
        light, heavy = np.split(ink(x) > limit, [len(x) // 2])
        row = dict(way=way, seed=seed, bold=float((ink(x) > limit).mean()))
        row |= {"of the first half": float(light.mean()), "of the second": float(heavy.mean())}
        row["accuracy"] = float((it.scorer.probabilities(x).argmax(1) == CLASS).mean())
        return row | strip(np.concatenate([x[:5], x[len(x) // 2 :][:5]]))

    def few(seed: int) -> np.ndarray:
        mixed = np.random.default_rng(seed).permutation(learnt)
        bold = ink(mixed) > limit
        return np.concatenate([mixed[~bold][:EACH], mixed[bold][:EACH]])

    yield measured("(test images)", 0, real) | strip(few(0)[[*range(5), *range(-5, 0)]])
    for seed in range(seeds):
        kinds = np.repeat(np.arange(it.classes, it.classes + 2, dtype=np.int32), EACH)
        state = begun(setup, seed)
        state = train.on({"image": few(seed), "label": kinds})(state, seed, images)
        x = draw(averaged(setup.method, state), labels, seed)
        yield measured("(the class)", seed, x[2 * samples :])
        yield measured("categories, evenly", seed, x[: 2 * samples])


def look(*, mean: Sequence[float], std: Sequence[float]) -> Callable[[jax.Array], jax.Array]:
    """An encoder: ink and slant [N, 2] of images, less their mean and over their deviation."""

    def features(x: jax.Array) -> jax.Array:
        weight = (x[..., 0] + 1) / 2 + 1e-3
        place = jnp.arange(x.shape[1], dtype=jnp.float32)
        total = weight.sum((1, 2))
        down = place - ((weight.sum(2) @ place) / total)[:, None]
        right = place - ((weight.sum(1) @ place) / total)[:, None]
        along = jnp.einsum("nij,ni,nj->n", weight, down, right)
        slant = along / jnp.einsum("nij,ni,ni->n", weight, down, down)
        both = jnp.stack([weight.mean((1, 2)), slant], 1)
        return (both - jnp.asarray(mean)) / jnp.asarray(std)

    return features


def concepts(it: Subject, workdir: str, seeds: int, images: int, samples: int) -> Iterator[Row]:
    """How far the looks of two samples of different labels are: of one code, and of two.

    Looks are ink and slant, less the mean of all samples of the label.
    """
    plain = np.asarray(look(mean=(0, 0), std=(1, 1))(jnp.asarray(it.train["image"])))
    scale = dict(mean=plain.mean(0).tolist(), std=plain.std(0).tolist())
    seen = jax.jit(look(**scale))
    wrap = dict(name="tune.concepts", encoder=dict(name=f"{NAME}.look", **scale))
    told = dict(model__conditions=(("code", "vector", CODE),))
    setup = setup_of(it, workdir, [wrap], rate=2e-3, images=images, **told)
    draw, train = floats(setup.method, **SOLVED), Trainer(setup.method, it.train)
    labels = np.resize(np.arange(it.classes), samples // it.classes * it.classes)
    number = np.arange(len(labels)) // it.classes % CODES

    def measured(way: str, seed: int, x: np.ndarray) -> Row:
        f = np.asarray(seen(x))
        own = np.stack([f[labels == c].mean(0) for c in range(it.classes)])
        f = f - own[labels]
        apart = np.sqrt(((f[:, None] - f) ** 2).mean(-1))
        other = labels[:, None] != labels
        same = number[:, None] == number
        near, far = apart[other & same].mean(), apart[other & ~same].mean()
        row = {"way": way, "seed": seed, "one code": float(near), "two codes": float(far)}
        row |= {"ratio": float(near / far), "accuracy": it.scorer.accuracy(x, labels)}
        return row | strip(x[[*range(5), *range(it.classes, it.classes + 5)]])

    for seed in range(seeds):
        codes = np.random.default_rng(seed).normal(size=(CODES, CODE)).astype(np.float32)[number]
        first = begun(setup, seed)
        for way, count in (("(as trained)", 0), ("codes", images)):
            state = train(first, seed, count)
            x = draw(averaged(setup.method, state), labels, seed, code=codes)
            yield measured(way, seed, x)


def coarse(images: Any) -> np.ndarray:
    """Images [N, H, W, C] of the means of 2x2 elements, as large as they were."""
    n, h, w, c = images.shape
    means = np.asarray(images, np.float32).reshape(n, h // 2, 2, w // 2, 2, c).mean((2, 4))
    return means.repeat(2, 1).repeat(2, 2)


def control(it: Subject, workdir: str, seeds: int, images: int, samples: int) -> Iterator[Row]:
    """How far the means of one-call samples are from those that they were told, of test images."""
    own = dict(name="distill.consistency", steps=50)
    setup = setup_of(it, workdir, [own], rate=5e-4, images=CONSISTENT * images)
    state = Trainer(setup.method, it.train)(begun(setup, 0), 0, CONSISTENT * images)
    base, plain = averaged(setup.method, state), floats(setup.method, steps=1, guidance=1.0)
    known = it.model.setup
    spec = dataclasses.replace(known.spec, columns={"coarse": Column(known.spec.shape, "float32")})
    model = dict(name="control.controlled", model=known.config.model.to_dict(), column="coarse")
    wraps: list[Any] = [dict(name="distill.consistency", teacher=None, steps=8), "tune.control"]
    branch = setup_of(it, workdir, wraps, rate=1e-3, images=images, spec=spec, model=model)
    train = Trainer(branch.method, {**it.train, "coarse": coarse(it.train["image"])})
    draw = floats(branch.method, steps=1, guidance=1.0)
    rows = np.random.default_rng(0).permutation(len(it.test["label"]))[:samples]
    goal, labels = coarse(it.test["image"][rows]), it.test["label"][rows]

    def measured(way: str, seed: int, x: np.ndarray) -> Row:
        off = np.sqrt(((coarse(x) - goal) ** 2).mean((1, 2, 3))).mean()
        row = dict(way=way, seed=seed, off=float(off), accuracy=it.scorer.accuracy(x, labels))
        return row | dict(frechet=float(it.distance(x, labels)["value"])) | strip(x[:10])

    yield dict(way="(told)", seed=0) | strip(goal[:10])
    for seed in range(seeds):
        before = plain(base, labels, seed)
        yield measured("(one call)", seed, before)
        state = train(begun(branch, seed, base), seed, images)
        params = averaged(branch.method, state)
        row = measured("one call, told", seed, draw(params, labels, seed, coarse=goal))
        yield row | dict(untold=float((draw(params, labels, seed) == before).all()))


def prompts(it: Subject, workdir: str, seeds: int, images: int, samples: int) -> Iterator[Row]:
    """The share of test images whose class each search ends at, all begun at another class.

    images and samples are not looked at: nothing is trained.
    """
    method, params = it.model.setup.method, it.model.weights(None)
    draw, of = floats(method, **SOLVED), denoiser_factory(method)
    assert of is not None
    denoiser = of(guidance=())
    rule, every = optax.adam(RATE), jnp.arange(STEPS)

    def search(params: Any, image: jax.Array, first: jax.Array, key: jax.Array) -> Any:
        table = params["net"]["labels"]["embedding"][: it.classes]
        keys, blank = jax.random.split(key, DRAWS), jnp.full(DRAWS, it.classes)
        asked: Any = denoiser(params, blank)
        noise = jax.random.normal(key, (DRAWS, *image.shape))
        t = (jnp.arange(DRAWS) + 0.5) / DRAWS
        pair = Prediction(jnp.broadcast_to(image, noise.shape), noise)
        x, goal = pair.mix(asked.path, t), pair.velocity(asked.path, t)

        def loss(prompt: jax.Array) -> jax.Array:
            told = asked.recondition(lambda y: jnp.broadcast_to(prompt, y.shape))
            said = told(keys, x, t, told.init(x))[0].velocity(asked.path, t)
            return ((said - goal) ** 2).mean()

        def soft(prompt: jax.Array, number: jax.Array) -> jax.Array:
            there = loss(table[nearest(prompt, table)])
            return loss(prompt) + jax.lax.stop_gradient(there - loss(prompt))

        begin = table[first][None]
        hard, _ = pez(loss, table, begin, rule, steps=STEPS)
        last, _ = minimise(lambda prompt, _: loss(prompt), rule, begin, every)
        best, _ = minimise(soft, rule, begin, every, best=True)
        each = jax.lax.map(lambda row: loss(row[None]), table)
        return nearest(last, table)[0], nearest(best, table)[0], hard[0], each.argmin()

    run = jax.jit(lambda params, *each: jax.lax.map(lambda e: search(params, *e), each))
    for seed in range(seeds):
        chance = np.random.default_rng(seed)
        labels = np.tile(np.arange(it.classes), PROBLEMS)
        rows = [chance.choice(np.flatnonzero(it.test["label"] == c)) for c in labels]
        first = (labels + chance.integers(1, it.classes, len(labels))) % it.classes
        keys = jax.random.split(jax.random.key(seed), len(labels))
        given = jnp.asarray(it.test["image"][rows])
        yield dict(way="(images)", seed=seed) | strip(given[:10])
        words = run(params, given, jnp.asarray(first), keys)
        for way, found in zip(SEARCHES, map(np.asarray, words), strict=True):
            row = dict(way=way, seed=seed, found=float((found == labels).mean()))
            yield row | strip(draw(params, found[:10], seed))


PARTS = {
    "inclusive": (inclusive, 3_200, 250),
    "concepts": (concepts, 12_800, 400),
    "control": (control, 12_800, 400),
    "prompts": (prompts, 1, 1),
}
"""Of each: the function, images of training for each way, and samples."""
