"""Tuning a trained model: adapters, rewards and contrasts, each against what is known of it.

    python -m experiments.studies.tuning --workdir runs/digits --part adapters

adapters: the model goes on on faded images, of half the contrast, all of it, by LoRA or by its
biases: parameters trained, and the Frechet distance with the samples' contrast doubled again.
rewards: samples are to have more ink. Mean reward before and after, beside that of the law
p_ref exp(r / beta), which the model's own samples tell by their weights.
contrast: the model against a frozen copy, on its own data. Scores without guidance, before and
after: DDO in three rounds, and CCA.
tokens: one class's row of the label table, by a classifier. What another says of its samples.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.studies.further import (
    SOLVED,
    Part,
    Section,
    Trainer,
    averaged,
    begun,
    drawer,
    floats,
    run_part,
    setup_of,
)
from experiments.studies.trained import Row, Subject
from jaxgen.data import normalise
from jaxgen.run.model import balanced_labels

FEW = dict(solver="heun", steps=5)
DRAWN = dict(solver="ancestral.ddpm", steps=6)
BETA, INK, CLASS = 0.5, 12.0, 8
NAME = "experiments.studies.tuning"
LAYERS = r"\b(qkv|proj|expand|contract)\.kernel$"
"""All kernels of the blocks but those of the modulation."""


def ink() -> Callable[[jax.Array, jax.Array], jax.Array]:
    """A reward [B]: how bright an image is."""
    return lambda x, labels: INK * x.reshape(len(x), -1).mean(1)


def adapters(it: Subject, workdir: str, seeds: int, images: int, samples: int) -> Iterator[Row]:
    """A row for each way to go on on faded images, and seed."""
    only = dict(name="tune.only", match=r"\bbias$")
    ways: dict[str, tuple[list[Section], float]] = {
        "everything": ([], 5e-4),
        "LoRA, rank 1": ([dict(name="tune.lora", rank=1, match=LAYERS)], 1e-3),
        "LoRA, rank 4": ([dict(name="tune.lora", rank=4, match=LAYERS)], 1e-3),
        "biases": ([only], 2e-3),
    }  # fmt: skip
    images_of = lambda x: np.asarray(normalise({"image": x})["image"])
    faded = {**it.train, "image": (images_of(it.train["image"]) - 1) / 2}
    labels = balanced_labels(samples, it.classes)

    def scored(draw: Any, params: Any, seed: int) -> Row:
        # Undone in the samples, not done to the test images: distances as of all others.
        return it.scores(np.clip(2 * draw(params, labels, seed) + 1, -1, 1))

    for name, (wraps, rate) in ways.items():
        setup = setup_of(it, workdir, wraps, rate=rate, images=images)
        method, train = setup.method, Trainer(setup.method, faded)
        draw = floats(method, **SOLVED)
        for seed in range(seeds):
            begin = time.monotonic()
            state = begun(setup, seed)
            groups = method.training.trained or set(state.params)
            count = sum(a.size for g in groups for a in jax.tree.leaves(state.params[g]))
            if name == "everything":
                before = scored(draw, averaged(method, state), seed)
                yield dict(way="(as trained)", seed=seed, trained=0) | before
            state = train(state, seed, images)
            row = dict(way=name, seed=seed, trained=count)
            row |= scored(draw, averaged(method, state), seed)
            yield row | dict(seconds=time.monotonic() - begin)


def rewards(it: Subject, workdir: str, seeds: int, images: int, samples: int) -> Iterator[Row]:
    """A row for each way to more ink, and seed."""
    judged = dict(reward=f"{NAME}.ink", beta=BETA)
    grouped = dict(group=8, normalise=False, sample=DRAWN)
    ways: dict[str, tuple[Section, float, int]] = {
        "GRPO": (dict(name="tune.grpo.grpo") | grouped | judged, 4e-4, images),
        "DPO": (dict(name="tune.preference.dpo", sample=FEW) | judged, 2e-4, images),
        "weighted data": (dict(name="tune.weighted.weighted") | judged, 5e-4, 4 * images),
    }  # fmt: skip
    labels = balanced_labels(samples, it.classes)
    method, params = it.model.setup.method, it.model.weights(None)
    for solver, options in (("ddpm", DRAWN), ("heun", SOLVED)):
        for seed in range(seeds):
            x = floats(method, **options)(params, labels, seed)
            r = np.asarray(ink()(jnp.asarray(x), jnp.asarray(labels)))
            # By class: the law is tilted in each.
            each = [r[labels == c] for c in range(it.classes)]
            goal = np.mean([(a * softmax(a / BETA)).sum() for a in each])
            row = dict(way=f"(as trained, {solver})", seed=seed, reward=float(r.mean()))
            yield row | dict(goal=float(goal)) | it.scores(x)
    for name, (wrap, rate, count) in ways.items():
        setup = setup_of(it, workdir, [wrap], rate=rate, images=count)
        train = Trainer(setup.method, it.train)
        draw = floats(setup.method, **(DRAWN if name == "GRPO" else SOLVED))
        for seed in range(seeds):
            begin = time.monotonic()
            state = train(begun(setup, seed), seed, count)
            x = draw(averaged(setup.method, state), labels, seed)
            reward = float(ink()(jnp.asarray(x), jnp.asarray(labels)).mean())
            row = dict(way=name, seed=seed, reward=reward, goal=float("nan"))
            yield row | it.scores(x) | dict(seconds=time.monotonic() - begin)


def softmax(x: np.ndarray) -> np.ndarray:
    """Weights [N] in proportion to exp(x)."""
    weights = np.exp(x - x.max())
    return weights / weights.sum()


def contrast(it: Subject, workdir: str, seeds: int, images: int, samples: int) -> Iterator[Row]:
    """A row for the model as trained, three rounds of DDO and CCA, and each seed."""
    labels = balanced_labels(samples, it.classes)
    own = drawer(it.model.setup.method, **SOLVED)
    for guidance in (1.0, 2.0):
        own = drawer(it.model.setup.method, **SOLVED | dict(guidance=guidance))
        for seed in range(seeds):
            found = it.scores(own(it.model.weights(None), labels, seed))
            yield dict(way=f"(as trained, guidance {guidance:g})", seed=seed) | found
    near = dict(solver="heun", steps=8)
    ways: dict[str, tuple[Section, int, float, int]] = {
        "DDO": (dict(name="tune.contrast.ddo", sample=near), 3, 3e-5, images),
        "CCA": (dict(name="tune.contrast.cca", beta=0.1), 1, 1e-4, 4 * images),
    }  # fmt: skip
    for name, (wrap, rounds, rate, count) in ways.items():
        setup = setup_of(it, workdir, [wrap], rate=rate, images=count)
        train, draw = Trainer(setup.method, it.train), drawer(setup.method, **SOLVED)
        for seed in range(seeds):
            params = dict(it.model.weights(None))
            for number in range(rounds):
                begin = time.monotonic()
                # A round is against the result of the one before.
                train.frozen = {"teacher": params}
                state = train(begun(setup, seed, params), seed, count)
                params = averaged(setup.method, state)
                row = dict(way=f"{name}, round {number + 1}", seed=seed)
                row |= it.scores(draw(params, labels, seed))
                yield row | dict(seconds=time.monotonic() - begin)


def tokens(it: Subject, workdir: str, seeds: int, images: int, samples: int) -> Iterator[Row]:
    """Rows before and after class `CLASS` was tuned, for each seed; others: are theirs equal."""
    labels, own = balanced_labels(samples, it.classes), it.model.setup.method
    judged = dict(name="classifier", file=f"{workdir}/guide.safetensors")
    wrap = dict(
        name="tune.tokens", classes=(CLASS,), reward=judged, sample=FEW | dict(guidance=1.0)
    )
    setup = setup_of(it, workdir, [wrap | dict(last=2)], rate=2e-2, images=images)
    train, mine = Trainer(setup.method, it.train), labels == CLASS
    draws = [drawer(method, **SOLVED) for method in (own, setup.method)]
    for seed in range(seeds):
        state = train(begun(setup, seed), seed, images)
        params = (it.model.weights(None), averaged(setup.method, state))
        made = [draw(p, labels, seed) for draw, p in zip(draws, params, strict=True)]
        for way, x in zip(("(as trained)", "tokens"), made, strict=True):
            said = it.scorer.probabilities(x[mine])
            yield dict(
                way=way,
                seed=seed,
                agrees=float((said.argmax(1) == CLASS).mean()),
                likelihood=float(np.log(said[:, CLASS]).mean()),
                frechet=float(it.distance(x[mine], labels[mine])["value"]),
                others=float((x[~mine] == made[0][~mine]).all()),
            )


PARTS: dict[str, tuple[Part, int]] = {
    "adapters": (adapters, 40_000),
    "rewards": (rewards, 8_000),
    "contrast": (contrast, 2_560),
    "tokens": (tokens, 12_800),
}
"""Each part, and its images of training."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a part, print its table and write the numbers."""
    run_part(PARTS, __doc__ or "", "tuning.json", arguments)


if __name__ == "__main__":
    main()
