"""Controls of a trained model, told by rows, codes, images and words: parts of `subjects`.

inclusive: a class that is uneven in ink, and a row of the label table for each of two categories,
by eight images of each: how even are samples?
concepts: codes, each of which is to make the same look in every class: ink and slant.
control: a one-call consistency model and a branch that is told 4x4 means of 2x2 elements.
prompts: a label for an image by gradients of the model's own error, hard (PEZ) and soft.
"""

from __future__ import annotations

import dataclasses
import itertools
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

NAME, SMALL = "experiments.studies.controls", 32
CLASS, BOLD, EACH = 1, 0.8, 8
"""Of inclusive: the class, the quantile of its ink above which an image is bold, images of each."""
CODES, CODE = 20, 4
"""Of concepts: how many are told, and their size."""
PROBLEMS, DRAWS, STEPS, RATE = 20, 16, 60, 0.05
"""Of prompts: how many of each kind, noises of an image, and the search's steps and rate."""
SEARCHES = ("hard (PEZ)", "soft, then the nearest", "all tried")


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
    told: dict[str, Any] = dict(batch=SMALL, spec=spec, start=start)
    setup = setup_of(it, workdir, [wrap], rate=2e-2, images=images, **told)
    draw, train = floats(setup.method, **SOLVED), Trainer(setup.method, it.train, SMALL)
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
    told: dict[str, Any] = dict(batch=SMALL, model__conditions=(("code", "vector", CODE),))
    setup = setup_of(it, workdir, [wrap], rate=1e-3, images=images, **told)
    draw, train = floats(setup.method, **SOLVED), Trainer(setup.method, it.train, SMALL)
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
    setup = setup_of(it, workdir, [own], rate=5e-4, images=images)
    state = Trainer(setup.method, it.train)(begun(setup, 0), 0, images)
    base, plain = averaged(setup.method, state), floats(setup.method, steps=1, guidance=1.0)
    known = it.model.setup
    spec = dataclasses.replace(known.spec, columns={"coarse": Column(known.spec.shape, "float32")})
    model = dict(name="control.controlled", model=known.config.model.to_dict(), column="coarse")
    wraps: list[Any] = [dict(name="distill.consistency", teacher=None, steps=8), "tune.control"]
    told: dict[str, Any] = dict(batch=SMALL, spec=spec, model=model)
    branch = setup_of(it, workdir, wraps, rate=2e-3, images=images, **told)
    learnt = {**it.train, "coarse": coarse(it.train["image"])}
    train = Trainer(branch.method, learnt, SMALL)
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
    """The share of prompts whose words each search finds, all begun at others.

    One label: of a test image. Two: of four images that the model draws when it is told the mean of
    two rows, where many soft prompts are as good. images and samples are not looked at.
    """
    method, params = it.model.setup.method, it.model.weights(None)
    draw, find = floats(method, **SOLVED), searches(it)
    table = jnp.asarray(params["net"]["labels"]["embedding"])
    for seed in range(seeds):
        chance, found = np.random.default_rng(seed), dict[str, Row]()
        order = np.stack([chance.permutation(it.classes) for _ in range(PROBLEMS)])
        one = [chance.choice(np.flatnonzero(it.test["label"] == c)) for c in order[:, 0]]
        mixed = []
        for pair in order[:, :2]:
            rows = table.at[0].set(table[pair].mean(0))
            net = {**params["net"], "labels": {"embedding": rows}}
            mixed.append(draw({**params, "net": net}, np.zeros(4, np.int32), seed))
        given = {"one": it.test["image"][one][:, None], "two": np.stack(mixed)}
        keys = jax.random.split(jax.random.key(seed), PROBLEMS)
        for count, (name, x) in enumerate(given.items(), 1):
            ways = find(params, jnp.asarray(x), jnp.asarray(order[:, -count:]), keys)
            for way, words in zip(SEARCHES, map(np.asarray, ways), strict=True):
                right = np.sort(words, 1) == np.sort(order[:, :count], 1)
                row = found.setdefault(way, dict(way=way, seed=seed))
                row[name] = float(right.all(1).mean())
                if name == "one":
                    row |= strip(draw(params, words[:10, 0], seed))
        yield dict(way="(images)", seed=seed) | strip(given["one"][:10, 0])
        yield from found.values()


def searches(it: Subject) -> Callable[..., Any]:
    """fn(params, images [P, n, ...], first [P, N], keys [P]) -> words [P, N] of each of `SEARCHES`.

    All by the model's error at `DRAWS` times, of the images in turn, told the mean of N rows.
    """
    denoiser = denoiser_factory(it.model.setup.method)
    assert denoiser is not None
    told, rule, every = denoiser(guidance=()), optax.adam(RATE), jnp.arange(STEPS)

    def search(params: Any, images: jax.Array, first: jax.Array, key: jax.Array) -> Any:
        table = params["net"]["labels"]["embedding"][: it.classes]
        keys, blank = jax.random.split(key, DRAWS), jnp.full(DRAWS, it.classes)
        asked: Any = told(params, blank)
        noise = jax.random.normal(key, (DRAWS, *images.shape[1:]))
        t = (jnp.arange(DRAWS) + 0.5) / DRAWS
        pair = Prediction(jnp.resize(images, noise.shape), noise)
        x, goal = pair.mix(asked.path, t), pair.velocity(asked.path, t)

        def loss(prompt: jax.Array) -> jax.Array:
            changed = asked.recondition(lambda y: jnp.broadcast_to(prompt.mean(0), y.shape))
            said = changed(keys, x, t, changed.init(x))[0].velocity(asked.path, t)
            return ((said - goal) ** 2).mean()

        begin = table[first]
        hard, _ = pez(loss, table, begin, rule, steps=STEPS)
        soft, _ = minimise(lambda prompt, _: loss(prompt), rule, begin, every)
        pairs = np.stack(list(itertools.combinations(range(it.classes), first.shape[0])))
        tried = jax.lax.map(lambda words: loss(table[words]), jnp.asarray(pairs))
        return hard, nearest(soft, table), jnp.asarray(pairs)[tried.argmin()]

    return jax.jit(lambda params, *each: jax.lax.map(lambda e: search(params, *e), each))


PARTS = {
    "inclusive": (inclusive, 4_800, 200),
    "concepts": (concepts, 19_200, 300),
    "control": (control, 19_200, 300),
    "prompts": (prompts, 1, 1),
}
"""Of each: the function, images of training for each way, and samples."""
