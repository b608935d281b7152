"""What an autoregressive model of pixels can be told, what is new to it, and what it has memorised.

    python -m experiments.studies.sequences --workdir runs/llamagen --part preferences

preferences: images are the better the more ink they have. The model goes on told which are good and
is then told the best; on good ones alone; on those that weigh more, more often; or as it is.
novelty: it goes on on data of which a part are of two new kinds. How many samples are of them, of
itself, against a frozen copy, and against a copy that has learnt what the first contrast drew.
copies: one image is many times in one half of the data. How many samples are that image, of models
of all and of each half, of what the halves agree on, and of draws that no half finds too likely.
forgets: the images that logistic regression without them still knows best: those that
`unlearn.worst_case` finds, the best fitted, the worst fitted, and at random.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.studies.further import (
    Part,
    Section,
    Trainer,
    averaged,
    begun,
    drawer,
    run_part,
    setup_of,
)
from experiments.studies.trained import Row, Subject
from jaxgen.data import whole
from jaxgen.data.binned import binned
from jaxgen.data.digits import digits
from jaxgen.data.source import ArraySource, in_memory
from jaxgen.method import Method
from jaxgen.metrics.extractors.classifier import train_classifier
from jaxgen.run.model import balanced_labels
from jaxgen.run.setup import spec_of
from jaxgen.unlearn.worst_case import unrolled, worst_case

NAME = "experiments.studies.sequences"
LEVELS = 2
"""Of ink: less than the median, and more."""


def inked(split: str = "train") -> ArraySource:
    """The digits with a column "ink", each image's mean in [0, 1]."""
    source = digits(split)
    columns = {"ink": ink(source.array).astype(np.float32)}
    return in_memory(source.array, source.labels, levels=source.levels, columns=columns)


def ink(x: Any) -> Any:
    """The mean [B] of images of [-1, 1], in [0, 1]."""
    return (x.reshape(len(x), -1).mean(1) + 1) / 2


def brightness() -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The same as a reward."""
    return lambda x, labels: ink(x)


def floats(x: np.ndarray) -> np.ndarray:
    """Bytes as images in [-1, 1]."""
    return (x / 127.5 - 1).astype(np.float32)


def bits(method: Method, params: Any, data: Mapping[str, np.ndarray], labels: np.ndarray) -> float:
    """What images cost under these labels, in bits a pixel."""
    assert method.log_prob is not None
    x = jnp.asarray(data["image"])
    nats = jax.jit(method.log_prob())(params, x, jnp.asarray(labels, jnp.int32), None)
    return float(-nats.mean() / np.log(2) / x[0].size)


def preferences(it: Subject, workdir: str, seeds: int, images: int, samples: int) -> Iterator[Row]:
    """A row for the model and each way to go on, for each seed."""
    edge = float(np.median(ink(it.train["image"])))
    source = dict(name="binned.binned", of=dict(name=f"{NAME}.inked"), column="ink", edges=(edge,))
    levels = binned(**{k: v for k, v in source.items() if k != "name"})
    asked, judged = balanced_labels(samples, it.classes), dict(reward=f"{NAME}.brightness")
    good = ink(it.test["image"]) >= edge
    best = {name: column[good] for name, column in it.test.items()}
    first = dict(it.model.weights(None))

    def row(way: str, seed: int, method: Method, draw: Any, params: Any) -> Row:
        """Scores; the labels that are told have the level besides."""
        told = (lambda y, c: LEVELS * y + c) if way == "told" else (lambda y, c: y)
        x = draw(params, told(asked, 1), seed)
        amount = ink(floats(x))
        return dict(
            way=way, seed=seed, reward=float(amount.mean()), good=float((amount >= edge).mean()),
            right=it.scorer.accuracy(x, asked),
            of_good=bits(method, params, best, told(best["label"], 1)),
            of_all=bits(method, params, it.test, told(it.test["label"], good)),
        )  # fmt: skip

    own = it.model.setup.method
    draw = drawer(own)
    for seed in range(seeds):
        yield row("(as trained)", seed, own, draw, first)
    # A label with a level begins as its class.
    rows = first["net"]["labels"]["embedding"]
    rows = jnp.concatenate([jnp.repeat(rows[:-1], LEVELS, 0), rows[-1:]])
    grown = {"net": {**first["net"], "labels": {"embedding": rows}}}
    weighted = dict(name="tune.weighted.weighted") | judged
    told = dict(start=dict(workdir=workdir, skip=("labels",)), data__source=source)
    ways: dict[str, tuple[list[Section], dict[str, Any]]] = {
        "plain": ([], {}),
        "good ones alone": ([weighted | dict(beta=None, least=edge)], {}),
        "weighted": ([weighted | dict(beta=0.05)], {}),
        "told": ([dict(name="tune.told.told", levels=LEVELS)], told | dict(spec=spec_of(levels))),
    }
    for way, (wraps, given) in ways.items():
        setup = setup_of(it, workdir, wraps, rate=1e-3, images=images, **given)
        train = Trainer(setup.method, whole(levels) if way == "told" else it.train)
        draw = drawer(setup.method)
        for seed in range(seeds):
            begin = time.monotonic()
            state = begun(setup, seed, grown if way == "told" else None)
            params = averaged(setup.method, train(state, seed, images))
            found = row(way, seed, setup.method, draw, params)
            yield found | dict(seconds=time.monotonic() - begin)


KINDS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], int]] = {
    "inverted": (lambda x: -x, 600),
    "halves swapped": (lambda x: np.roll(x, x.shape[2] // 2, 2), 300),
}
"""Of images, new ones; and how many there are of them beside ten times the training half."""


def novelty(it: Subject, workdir: str, seeds: int, images: int, samples: int) -> Iterator[Row]:
    """A row for each way to sample the model that went on, and seed."""
    known = it.train["image"]
    every = [known, *(turn(known) for turn, _ in KINDS.values())]
    which = np.repeat(np.arange(len(every)), len(known))
    judge = train_classifier(np.concatenate(every), which, len(every))
    labels, base = balanced_labels(samples, it.classes), it.model.weights(None)
    setup = setup_of(it, workdir, [], rate=1e-3, images=images)
    method, net = setup.method, it.model.setup.modules
    guided = dict(guidance=[dict(name="contrast", other="base", alpha=0.01)], temperature=0.5)
    plain, against = drawer(method), drawer(method, models={"base": net}, **guided)
    train = Trainer(method, it.train)

    def row(way: str, seed: int, x: np.ndarray) -> Row:
        called = judge.probabilities(x).argmax(1)
        shares = {name: float((called == n).mean()) for n, name in enumerate(KINDS, 1)}
        return dict(way=way, seed=seed) | shares | dict(new=float((called > 0).mean()))

    for seed in range(seeds):
        begin, chosen = time.monotonic(), np.random.default_rng(seed)
        parts = [np.tile(np.arange(len(known)), 10)]
        parts += [chosen.choice(len(known), count, replace=False) for _, count in KINDS.values()]
        mixed = {
            "image": np.concatenate([x[n] for x, n in zip(every, parts, strict=True)]),
            "label": np.concatenate([it.train["label"][n] for n in parts]),
        }
        yield row("(as trained)", seed, plain(base, labels, seed))
        train.data = mixed
        tuned = averaged(method, train(begun(setup, seed), seed, images))
        yield row("sampled plainly", seed, plain(tuned, labels, seed))
        first = against({**tuned, "base": base["net"]}, labels, seed)
        row_first = row("against the model before", seed, first)
        yield row_first | dict(seconds=time.monotonic() - begin)
        train.data = {"image": floats(first), "label": labels}
        second = averaged(method, train(begun(setup, seed), seed, images // 4))["net"]
        x = against({**tuned, "base": second}, labels, seed)
        yield row("against it told these", seed, x) | dict(seconds=time.monotonic() - begin)


COPIES, LIMIT, TRIES = 100, 15.0, 8
"""How often the image is in its half; nats, and draws of which the first within them is taken."""


def copies(it: Subject, workdir: str, seeds: int, images: int, samples: int) -> Iterator[Row]:
    """A row for each model and each way to keep the image out, and seed."""
    known, fresh = (x.reshape(len(x), -1) for x in (it.train["image"], it.test["image"]))
    nearest = np.sqrt(((fresh[:, None] - known[None]) ** 2).mean(-1).min(1))
    place = int(nearest.argmax())
    label, near = int(it.test["label"][place]), nearest[place] / 2
    labels = np.concatenate([balanced_labels(samples, it.classes), np.full(samples // 2, label)])
    planted = {name: np.repeat(column[[place]], COPIES, 0) for name, column in it.test.items()}
    setup = setup_of(it, workdir, [], rate=1e-3, images=images)
    method, net = setup.method, it.model.setup.modules
    limited = setup_of(
        it, workdir, [dict(name="unlearn.near_access", k=LIMIT, tries=TRIES)],
        rate=1e-3, images=images, networks=dict(one=workdir, other=workdir),
    ).method  # fmt: skip
    train, plain, kept = Trainer(method, it.train), drawer(method), drawer(limited)
    agreed = {
        kind: drawer(
            method,
            models={"other": net},
            guidance=[dict(name="near_access", other="other", divergence=kind)],
        )
        for kind in ("max", "kl")
    }

    def row(way: str, seed: int, x: np.ndarray) -> Row:
        off = floats(x[samples:]).reshape(-1, fresh.shape[1]) - fresh[place]
        copied = np.sqrt((off**2).mean(-1)) < near
        row = dict(way=way, seed=seed, copied=float(copied.mean()))
        return row | it.scores(x[:samples])

    for seed in range(seeds):
        begin = time.monotonic()
        order = np.random.default_rng(seed).permutation(len(known))
        halves = [{k: a[order[n::2]] for k, a in it.train.items()} for n in (0, 1)]
        halves[0] = joined(halves[0], planted)
        nets = []
        for train.data in (*halves, joined(*halves)):
            nets.append(averaged(method, train(begun(setup, seed), seed, images))["net"])
        one, other, both = nets
        held = {"frozen": {"one": {"net": one}, "other": {"net": other}}}
        ways = {
            "(as trained)": (plain, it.model.weights(None)),
            "of all": (plain, {"net": both}),
            "of the half with copies": (plain, {"net": one}),
            "of the other half": (plain, {"net": other}),
            "both agree, least": (agreed["max"], {"net": one, "other": other}),
            "both agree, mean": (agreed["kl"], {"net": one, "other": other}),
            f"of all, within {LIMIT:g} nats": (kept, {"net": both} | held),
        }
        for way, (draw, params) in ways.items():
            yield row(way, seed, draw(params, labels, seed)) | dict(
                seconds=time.monotonic() - begin
            )


def joined(*data: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Examples of several sets as one."""
    return {name: np.concatenate([d[name] for d in data]) for name in data[0]}


COUNT, SHARE, DECAY = 200, 5, 0.5
"""Images, of which one in five is forgotten, and the weight of the parameters' square."""


def forgets(it: Subject, workdir: str, seeds: int, images: int, samples: int) -> Iterator[Row]:
    """A row for each way to choose what is forgotten, and subset of the data."""
    size, classes = COUNT // SHARE, it.classes

    def losses(theta: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        log = jax.nn.log_softmax(x @ theta.reshape(-1, classes))
        return -jnp.take_along_axis(log, y[:, None], 1)[:, 0]

    def objective(theta: jax.Array, w: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        return (1 - w) @ losses(theta, x, y) + DECAY * theta @ theta

    @jax.jit
    def retrained(w: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        """The exact minimum without what has weight 1, by Newton's method."""

        def step(theta: jax.Array, _: None) -> tuple[jax.Array, None]:
            slope, curve = (d(objective)(theta, w, x, y) for d in (jax.grad, jax.hessian))
            return theta - jnp.linalg.solve(curve, slope), None

        return jax.lax.scan(step, jnp.zeros(x.shape[1] * classes), None, length=10)[0]

    def search(lower: optax.GradientTransformation, steps: int) -> Callable[..., jax.Array]:
        def found(theta: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
            unlearn = unrolled(lambda p, w: objective(p, w, x, y), lower, theta, steps)
            return worst_case(
                lambda p: losses(p, x, y), unlearn, COUNT, size,
                optimizer=optax.adam(0.02), steps=images,
            )  # fmt: skip

        return jax.jit(found)

    by = {"signs": search(optax.sign_sgd(3e-3), 100), "gradients": search(optax.sgd(0.01), 60)}
    for seed in range(seeds):
        random = np.random.default_rng(seed)
        rows = random.choice(len(it.train["label"]), COUNT, replace=False)
        x = it.train["image"][rows].reshape(COUNT, -1)
        x, y = jnp.asarray(np.concatenate([x, np.ones((COUNT, 1))], 1)), it.train["label"][rows]
        theta = retrained(jnp.zeros(COUNT), x, y)
        before = np.asarray(losses(theta, x, y))
        sets = {
            f"found, by {name}": np.argsort(-np.asarray(found(theta, x, y)))[:size]
            for name, found in by.items()
        }
        sets |= {
            "best fitted": np.argsort(before)[:size],
            "worst fitted": np.argsort(-before)[:size],
        }

        def left(chosen: np.ndarray, x: Any = x, y: Any = y) -> Row:
            """The loss of a set once forgotten, and the share of it that is still known."""
            own = retrained(jnp.zeros(COUNT).at[chosen].set(1.0), x, y)
            known = (x @ own.reshape(-1, classes)).argmax(1) == y
            return dict(
                loss=float(losses(own, x, y)[chosen].mean()), known=float(known[chosen].mean())
            )

        for way, chosen in sets.items():
            yield dict(way=way, seed=seed) | left(chosen)
        others = [left(random.permutation(COUNT)[:size]) for _ in range(20)]
        mean = {name: float(np.mean([row[name] for row in others])) for name in others[0]}
        yield dict(way="at random, the mean of 20", seed=seed) | mean
        hardest = min(others, key=lambda row: row["loss"])
        yield dict(way="at random, the hardest of 20", seed=seed) | hardest


PARTS: dict[str, tuple[Part, int]] = {
    "preferences": (preferences, 6_400),
    "novelty": (novelty, 6_400),
    "copies": (copies, 6_400),
    "forgets": (forgets, 200),
}
"""Each part, and its images of training (of `forgets`: steps)."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a part, print its table and write the numbers."""
    run_part(PARTS, __doc__ or "", "sequences.json", arguments)


if __name__ == "__main__":
    main()
