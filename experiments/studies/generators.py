"""What one can do to a trained GAN, each with the mechanism that the claim names and without it.

    python -m experiments.studies.generators --workdir runs/digits_gan --plain runs/digits_gan_plain

tokens: the row of one class is another's; it is tuned by a classifier, with diversity and without.
direction: thin digits become bold along the difference of two encodings, or by nearness to one.
expansion: two new domains along dormant directions of the latents, with replay and without.
rewriting: one layer gives one class a mark, by the least change of other keys, or by descent.
repulsion: a digit is unlearnt away from the parameters of a model adapted to it, or not.

What scores is a classifier that no way sees. The figure has the first seed's samples.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from experiments.studies.further import (
    BATCH,
    Part,
    Section,
    Trainer,
    averaged,
    begun,
    sampled,
    setup_of,
)
from experiments.studies.trained import Row, Subject, parser, shown, subject, table, write
from jaxgen.config import ROOMS, part
from jaxgen.method import Batch, Method, Spec, encoder_of, example_keys, minimise, training_of
from jaxgen.metrics import cached
from jaxgen.metrics.sets.quantise import quantise
from jaxgen.run.model import balanced_labels
from jaxgen.tune.changes import added, shapes, training_changes
from jaxgen.tune.directional import GROUP
from jaxgen.tune.expansion import dormant, expansion, placed
from jaxgen.tune.rewriting import directions, fitted, inputs_of, rewritten, second_moment

NAME = "experiments.studies.generators"
ADAM = dict(optimizer__b1=0.0, optimizer__b2=0.99)
"""As the model was trained."""
SHOWN = 10
"""Images in a row of the figure."""
CLASS, OTHER = 8, 1
"""The class whose row is tuned, and whose row it has at first."""


def variety(images: np.ndarray) -> float:
    """The mean distance of two of these images [N, ...] of [-1, 1], over the root of their size."""
    flat = images.reshape(len(images), -1).astype(np.float64)
    square = ((flat[:, None] - flat[None]) ** 2).mean(-1)
    return float(np.sqrt(square).sum() / (len(flat) * (len(flat) - 1)))


def in_class(images: np.ndarray, labels: np.ndarray) -> float:
    """The mean of the classes' variety."""
    return float(np.mean([variety(images[labels == c]) for c in np.unique(labels)]))


def right(it: Subject, images: np.ndarray, labels: np.ndarray) -> float:
    """The share of images that the classifier which scores calls by their labels."""
    return it.scorer.accuracy(quantise(images), labels)


def tokens(it: Subject, workdir: str, seeds: int, images: int, samples: int) -> Iterator[Row]:
    """A row for the model, with class `CLASS` at another's row, and that row tuned in two ways."""
    labels, own, weights = balanced_labels(samples, it.classes), it.model.setup.method, groups(it)
    mine = labels == CLASS
    rows = np.array(weights["generator"]["labels"]["embedding"])
    rows[CLASS] = rows[OTHER]
    generator = {**weights["generator"], "labels": {"embedding": rows}}
    wrong = {**weights, "generator": generator}
    judged = dict(name="classifier", file=f"{workdir}/guide.safetensors")
    plain = sampled(own)
    before = {seed: plain(weights, labels, seed) for seed in range(seeds)}

    def row(way: str, seed: int, x: np.ndarray) -> Row:
        found = it.distance(x[mine], labels[mine])["value"]
        return dict(
            way=way, seed=seed, images=[x[mine][:SHOWN]],
            right=right(it, x[mine], labels[mine]), variety=variety(x[mine]), frechet=found,
            others=float((x[~mine] == before[seed][~mine]).all()),
        )  # fmt: skip

    for seed in range(seeds):
        yield row("(as trained)", seed, before[seed])
        yield row(f"at the row of {OTHER}", seed, plain(wrong, labels, seed))
    for way, diversity in (("tuned, with diversity", 2.0), ("tuned, without", 0.0)):
        wrap = dict(name="tune.tokens", classes=(CLASS,), reward=judged, diversity=diversity)
        setup = setup_of(it, workdir, [wrap], rate=3e-2, images=images)
        train, draw = Trainer(setup.method, it.train), sampled(setup.method)
        for seed in range(seeds):
            begin = time.monotonic()
            state = train(begun(setup, seed, wrong), seed, images)
            x = draw(averaged(setup.method, state), labels, seed)
            yield row(way, seed, x) | dict(seconds=time.monotonic() - begin)


def nearness(
    method: Method, *, spec: Spec, encoder: Any, target: Sequence[float], match: str
) -> Method:
    """`tune.directional` with 1 - cos(E(x), target) for its loss: the paper's global one."""
    encode = encoder_of(part(encoder, ROOMS["encoder"], "nearness.encoder"))
    names = [n for n in shapes(method, "nearness") if re.search(match, n.replace("/", "."))]
    assert method.sampler is not None
    draw, goal = method.sampler().fn, jnp.asarray(target)

    def loss(params: Any, batch: Batch, key: jax.Array, extra: Any) -> Any:
        x = draw(added(params, GROUP), example_keys(key, batch), batch["label"])
        cosine = optax.losses.cosine_similarity(encode.apply(params["frozen"]["near"], x), goal)
        return 1 - cosine.mean(), ({}, extra)

    frozen = {**training_of(method, "nearness").frozen, "near": encode.params}
    return training_changes(method, names, GROUP, loss, frozen=frozen)


def bold(data: Mapping[str, np.ndarray]) -> np.ndarray:
    """Which images have more ink than the median of their class: bool [N]."""
    ink = data["image"].mean((1, 2, 3))
    return ink > np.array([np.median(ink[data["label"] == c]) for c in data["label"]])


def direction(it: Subject, workdir: str, seeds: int, images: int, samples: int) -> Iterator[Row]:
    """A row for the model, moved along the direction, and moved to where it leads; each seed."""
    # As CLIP knows styles: an encoder that was taught thin and bold beside the classes.
    file, thick = Path(workdir) / "thickness.safetensors", bold(it.train)
    kinds = it.train["label"] + it.classes * thick
    features = cached(file, it.train["image"], kinds, 2 * it.classes).features(it.train["image"])
    thin, there = (features[thick == side].mean(0) for side in (False, True))
    common = dict(encoder=dict(name="classifier", file=str(file)), match=r"^generator\..*\.kernel$")
    towards, goal = (tuple(map(float, a)) for a in (there - thin, there))
    ways: dict[str, Section | None] = {
        "(as trained)": None,
        "along the direction": common | dict(name="tune.directional", direction=towards),
        "by nearness": common | dict(name=f"{NAME}.nearness", target=goal),
    }
    labels = balanced_labels(samples, it.classes)
    for way, wrap in ways.items():
        setup = setup_of(it, workdir, [wrap] if wrap else [], rate=5e-4, images=images)
        train, draw = Trainer(setup.method, it.train), sampled(setup.method)
        for seed in range(seeds):
            begin, state = time.monotonic(), begun(setup, seed)
            state = train(state, seed, images) if wrap else state
            x = draw(averaged(setup.method, state), labels, seed)
            yield dict(
                way=way, seed=seed, images=[x[:SHOWN]], ink=float((x.mean() + 1) / 2),
                variety=in_class(x, labels), right=right(it, x, labels),
                seconds=time.monotonic() - begin,
            )  # fmt: skip


TURNS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "inverted": (lambda x: -x, lambda x: -x),
    "turned": (lambda x: x.swapaxes(1, 2)[:, ::-1], lambda x: x[:, ::-1].swapaxes(1, 2)),
}
"""Each new domain's images of the old one's [N, H, W, C], and back."""


def apart(x: jax.Array, y: jax.Array) -> jax.Array:
    """The energy distance of two sets of each class, x [C, N, D] and y [C, M, D]; the mean."""

    def mean(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.sqrt(((a[:, :, None] - b[:, None]) ** 2).sum(-1) + 1e-6).mean()

    # Among its own an image is no partner of itself.
    own = lambda a: mean(a, a) * a.shape[1] / (a.shape[1] - 1)
    return 2 * mean(x, y) - own(x) - own(y)


def by_class(x: Any, classes: int) -> Any:
    """Images of labels 0, 1, ..., 0, 1, ... as [C, N, D]."""
    return x.reshape(-1, classes, x[0].size).swapaxes(0, 1)


def domains(it: Subject) -> list[Callable[[jax.Array], jax.Array]]:
    """The loss of each new domain's samples, of balanced labels: how far they are from its data."""
    count = np.bincount(it.train["label"]).min()
    each = [it.train["image"][it.train["label"] == c][:count] for c in range(it.classes)]
    data = np.stack(each, 1).reshape(-1, *each[0].shape[1:])
    goals = [jnp.asarray(by_class(turn(data), it.classes)) for turn, _ in TURNS.values()]
    return [lambda x, y=y: apart(by_class(x, it.classes), y) for y in goals]


def expanded(it: Subject, workdir: str, seeds: int, images: int, samples: int) -> Iterator[Row]:
    """A row for the model, and the expanded one with replay and without, for each seed."""
    shift, batch = 4.0, 16 * it.classes
    generator, old = it.model.setup.modules["generator"], groups(it)["generator"]
    assert it.model.setup.method.sampler is not None
    latents = it.model.setup.method.sampler().latents
    size = jax.eval_shape(latents, jax.random.split(jax.random.key(0), 1)).shape[1]
    kernel = jnp.asarray(old["hidden0"]["kernel"])[:size]
    labels = balanced_labels(samples, it.classes)

    @jax.jit
    def generate(params: Any, z: jax.Array) -> jax.Array:
        label = jnp.arange(len(z)) % it.classes
        return generator.apply({"params": params}, z, label)

    found, felt = dormant(kernel, len(TURNS))
    felt = float(felt.max() / jnp.linalg.norm(kernel, 2))
    steps = images // batch
    rate = optax.adam(optax.cosine_decay_schedule(5e-4, steps), b1=0.5)

    def fit(replay: float) -> Any:
        loss = expansion(generate, old, found, domains(it), shift=shift, replay=replay)

        def each(key: jax.Array) -> Any:
            step = lambda params, k: loss(params, jax.random.normal(k, (batch, size)))
            return minimise(step, rate, old, jax.random.split(key, steps))[0]

        return jax.jit(each)

    ways = {"(as trained)": None, "with replay": fit(30.0), "without": fit(0.0)}
    for way, run in ways.items():
        for seed in range(seeds):
            begin, keys = time.monotonic(), jax.random.split(jax.random.key(seed), samples)
            params = old if run is None else run(jax.random.key(100 + seed))
            z = latents(keys)
            at = lambda p, *told, z=z: np.asarray(generate(p, placed(z, found, jnp.array(told))))
            base, before = at(params, 0.0, 0.0), at(old, 0.0, 0.0)
            row: Row = dict(way=way, seed=seed, images=[base[:SHOWN]], felt=felt)
            row["base moved"] = float(np.sqrt(((base - before) ** 2).mean()) / before.std())
            row["base"] = it.scores(base)["frechet"]
            for number, (name, (_, back)) in enumerate(TURNS.items()):
                x = at(params, *(shift * np.eye(len(TURNS))[number]))
                row["images"].append(x[:SHOWN])
                scored = it.scores(back(x))
                row |= {name: scored["frechet"], f"{name}, right": scored["accuracy"]}
            x = at(params, shift, shift)
            row["images"].append(x[:SHOWN])
            for _, back in TURNS.values():
                x = back(x)
            row["both, right"] = right(it, x, labels)
            yield row | dict(seconds=time.monotonic() - begin)


MARKED, KEYS = 7, 10
"""The class that is given a mark, and how many of its keys are told together."""
MARK = np.s_[:2, :2]


def rewriting(it: Subject, workdir: str, seeds: int, images: int, samples: int) -> Iterator[Row]:
    """A row for the model, and its last layer told of one key, or of several, in two ways each."""
    generator, weights = it.model.setup.modules["generator"], groups(it)
    old = weights["generator"]
    kernel, bias = (jnp.asarray(old["out"][n]) for n in ("kernel", "bias"))
    sampler = it.model.setup.method.sampler()
    place = np.zeros(it.model.setup.spec.shape, bool)
    place[MARK] = True
    bright, place = jnp.full(bias.shape, jnp.arctanh(0.95)) - bias, jnp.asarray(place.ravel())

    def keys_of(key: jax.Array, labels: np.ndarray) -> jax.Array:
        z = sampler.latents(jax.random.split(key, len(labels)))
        apply = lambda: generator.apply({"params": old}, z, jnp.asarray(labels))
        return inputs_of(apply, "out")

    @jax.jit
    def kernels(random: jax.Array) -> tuple[jax.Array, ...]:
        parts, steps = jax.random.split(random), jnp.arange(300)
        moment = second_moment(keys_of(parts[0], balanced_labels(images, it.classes)))
        some = keys_of(parts[1], np.full(images // it.classes, MARKED))
        key, some = some.mean(0), some[:KEYS]
        value = jnp.where(place, bright, key @ kernel)
        goal = jnp.tanh(jnp.where(place, bright, some @ kernel) + bias)
        error = lambda w: ((jnp.tanh(some @ w + bias) - goal) ** 2).mean()
        single = lambda w, _: ((key @ w - value) ** 2).sum()
        # The error falls to a quarter with each step.
        slope = optax.sgd(0.25 / (key @ key))
        rate = optax.adam(optax.cosine_decay_schedule(1e-2, len(steps)))
        basis = directions(moment, some, KEYS)
        return (
            kernel,
            rewritten(kernel, moment, key, value),
            minimise(single, slope, kernel, steps)[0],
            fitted(error, kernel, basis, rate, len(steps)),
            minimise(lambda w, _: error(w), rate, kernel, steps)[0],
        )

    labels, draw = balanced_labels(samples, it.classes), sampled(it.model.setup.method)
    several = f"{KEYS} keys, in their span", f"{KEYS} keys, by descent"
    ways = ("(as trained)", "rewritten", "by descent", *several)
    mine = labels == MARKED
    for seed in range(seeds):
        before = draw(weights, labels, seed)
        for way, changed in zip(ways, kernels(jax.random.key(100 + seed)), strict=True):
            net = {**old, "out": {"kernel": changed, "bias": bias}}
            x = draw({**weights, "generator": net}, labels, seed)
            mark = (x[:, MARK[0], MARK[1]].mean((1, 2, 3)) + 1) / 2
            moved = np.sqrt(((x - before)[~mine] ** 2).mean()) / before.std()
            yield dict(
                way=way, seed=seed, images=[x[mine][:SHOWN], x[~mine][:SHOWN]],
                mark=float(mark[mine].mean()), elsewhere=float(mark[~mine].mean()),
                moved=float(moved), right=right(it, x, labels),
            )  # fmt: skip


GONE, FEW = 3, 20
"""The digit that is unlearnt, and of how many of its images the model is told."""


def repulsion(it: Subject, workdir: str, seeds: int, images: int, samples: int) -> Iterator[Row]:
    """A row for a GAN without labels, adapted, and unlearnt in each way, for each seed."""
    gone = it.train["label"] == GONE
    few = {name: column[gone][:FEW] for name, column in it.train.items()}
    rest = {name: column[~gone] for name, column in it.train.items()}
    labels = balanced_labels(samples, it.classes)
    options: dict[str, Any] = dict(rate=5e-4, images=images, schedule="constant", **ADAM)
    setup = setup_of(it, workdir, [], **options)
    method, draw = setup.method, sampled(setup.method)

    def share(params: Any, seed: int) -> tuple[float, np.ndarray, np.ndarray]:
        """Of the digit among samples; these, and which they are."""
        x = draw(params, labels, seed)
        gone = it.scorer.probabilities(quantise(x)).argmax(1) == GONE
        return float(gone.mean()), x, gone

    def row(way: str, seed: int, params: Any) -> Row:
        found, x, called = share(params, seed)
        # No score here looks at the labels of what is scored, but at whose test images it is for.
        kept = np.resize(np.delete(np.arange(it.classes), GONE), (~called).sum())
        rest = it.distance(x[~called], kept)["value"] if len(kept) > 1 else float("nan")
        # What becomes of latents that made the digit.
        which = made.setdefault(seed, np.flatnonzero(called)[: 2 * SHOWN])
        shown = dict(images=[x[which[:SHOWN]], x[which[SHOWN:]]], framed=called[which])
        return dict(way=way, seed=seed, share=found, frechet=rest) | shown

    adapt = Trainer(method, few)
    adapted: dict[int, Any] = {}
    made: dict[int, np.ndarray] = {}
    for seed in range(seeds):
        state = begun(setup, seed)
        yield row("(as trained)", seed, averaged(method, state))
        state = adapt(state, seed, images)
        adapted[seed] = state.params
        yield row("adapted to it", seed, averaged(method, state))
    start = begun(setup, 0).params["generator"]
    square = float(np.mean([far(adapted[seed]["generator"], start) for seed in adapted]))
    ways: dict[str, Section] = {
        "nothing repelled": {},
        "exponential": dict(kind="exponential", weight=5.0, a=1 / square),
        "exponential, ten times": dict(kind="exponential", weight=50.0, a=1 / square),
        "inverse": dict(kind="inverse", weight=5 * square),
        "negative": dict(kind="negative", weight=5 / square),
    }
    for way, told in ways.items():
        wraps = [dict(name="unlearn.repulsion", adapted="teacher", **told)] if told else []
        own = setup_of(it, workdir, wraps, **options)
        train = Trainer(own.method, rest)
        for seed in range(seeds):
            state, begin = begun(own, seed), time.monotonic()
            if told:
                train.frozen = {"teacher": adapted[seed]}
            found: Row = {}
            for seen in (images // 8, images // 4, images // 2):
                state = train(state, seed, seen - int(state.step) * BATCH)
                found[f"at {seen:,}"] = share(averaged(own.method, state), seed)[0]
            state = train(state, seed, images - int(state.step) * BATCH)
            found = row(way, seed, averaged(own.method, state)) | found
            moved = far(state.params["generator"], adapted[seed]["generator"]) / square
            yield found | dict(apart=moved**0.5, seconds=time.monotonic() - begin)


def far(a: Any, b: Any) -> float:
    """The squared distance of two trees."""
    return float(optax.tree.norm(optax.tree.sub(a, b), squared=True))


def groups(it: Subject) -> dict[str, Any]:
    """The groups as the sampler has them, on the device."""
    return jax.tree.map(jnp.asarray, it.model.weights(None))


PARTS: dict[str, tuple[Part, int]] = {
    "tokens": (tokens, 40_000),
    "direction": (direction, 25_600),
    "expansion": (expanded, 320_000),
    "rewriting": (rewriting, 20_000),
    "repulsion": (repulsion, 10_240),
}
"""Each part, and its images of training (of `rewriting`: samples whose keys are looked at)."""

PICTURED = {
    "tokens": (f"at the row of {OTHER}", "tuned, with diversity", "tuned, without"),
    "direction": ("(as trained)", "along the direction", "by nearness"),
    "expansion": ("(as trained)", "with replay", "without"),
    "rewriting": ("(as trained)", "rewritten", "by descent"),
    "repulsion": ("(as trained)", "exponential", "nothing repelled"),
}
"""Of each part: the ways whose samples the figure has, before, with and without."""
TITLES = {
    "tokens": f"the row of class {CLASS},\nby a classifier",
    "direction": "bolder",
    "expansion": "two domains more:\nthe old one, inverted,\nturned, both",
    "rewriting": f"a mark on the {MARKED}s:\nthese, and others",
    "repulsion": f"{GONE}s unlearnt\n(framed: called {GONE})",
}


def picture(pictures: Mapping[str, Mapping[str, Row]]) -> plt.Figure:
    """Samples of each part (rows) before, with and without its mechanism."""
    parts = [name for name in PICTURED if name in pictures]
    heights = [len(next(iter(pictures[name].values()))["images"]) for name in parts]
    figure, axes = plt.subplots(
        len(parts), 3, figsize=(13, 0.4 * sum(heights) + 0.4 * len(parts)), squeeze=False,
        layout="constrained", gridspec_kw=dict(height_ratios=heights),
    )  # fmt: skip
    for row, name in zip(axes, parts, strict=True):
        for cell, way in zip(row, PICTURED[name], strict=True):
            cell.set(xticks=[], yticks=[])
            cell.set_title(way.strip("()"), fontsize=10)
            if way in pictures[name]:
                montage(cell, **pictures[name][way])
        row[0].set_ylabel(TITLES[name], fontsize=10, rotation=0, ha="right", va="center")
    return figure


def montage(axes: plt.Axes, images: Sequence[np.ndarray], framed: Any = ()) -> None:
    """Rows of grey images on a light ground, some of them in a red frame."""
    height, wide = images[0].shape[1] + 2, images[0].shape[2] + 2
    canvas = np.full((len(images) * height, max(map(len, images)) * wide), 1.0)
    for y, row in enumerate(images):
        for x, image in enumerate(row):
            top, left = y * height + 1, x * wide + 1
            canvas[top : top + height - 2, left : left + wide - 2] = -image[..., 0]
            if len(framed) and framed[y * SHOWN + x]:
                corner, size = (left - 1, top - 1), (wide - 1, height - 1)
                axes.add_patch(plt.Rectangle(corner, *size, fill=False, color="C3", lw=1.5))
    axes.imshow(canvas, cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
    axes.spines[:].set_visible(False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the parts, print a table of each and write the figure and the numbers."""
    asked = parser(__doc__ or "", "generators.png")
    asked.add_argument("--plain", help="of one without labels, which `repulsion` is about")
    asked.add_argument("--part", nargs="*", choices=list(PARTS), default=list(PARTS))
    asked.add_argument("--images", type=int, help="of training, in place of each part's own")
    asked.add_argument("--seeds", type=int, default=3)
    given = asked.parse_args(arguments)
    if given.tiny:
        given.images, given.samples, given.seeds = 320, 700, 1
    if "repulsion" in given.part and given.plain is None:
        asked.error("--plain: the part repulsion needs a model without labels")
    rows: list[Row] = []
    pictures: dict[str, dict[str, Row]] = {}
    for name in given.part:
        run, images = PARTS[name]
        workdir = given.plain if name == "repulsion" else given.workdir
        seen = pictures[name] = {}
        found: list[Row] = []
        for row in run(
            subject(workdir), workdir, given.seeds, given.images or images, given.samples
        ):
            drawn = {key: row.pop(key) for key in ("images", "framed") if key in row}
            seen.setdefault(row["way"], drawn)
            found.append(row)
            print(row, flush=True)
        print(table(shown(found)))
        rows += [{"part": name} | row for row in found]
        write(rows, given.out)
        figure = picture(pictures)
        figure.savefig(Path(given.out), dpi=150)
        plt.close(figure)
    print(given.out)


if __name__ == "__main__":
    main()
