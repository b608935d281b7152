"""Students that are not their teacher: small ones, each of some classes, and one of black boxes.

    python -m experiments.studies.students --workdir runs/digits --part several

several: one-call students of a fraction of the teacher's parameters. One of all classes, and five
of two classes each, by the same number of images in all; each is trained on the data first.
director: two teachers, either of which knows half of the classes and draws any digit for the rest,
can only be asked for samples. A student that draws any digit, but knows two classes, asks as a
judge directs it; asks evenly; and asks one teacher alone. The judge is not who scores.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.studies.further import (
    BATCH,
    SOLVED,
    Section,
    Trainer,
    averaged,
    begun,
    drawer,
    run_part,
    setup_of,
)
from experiments.studies.trained import Row, Subject
from jaxgen.run.model import balanced_labels

SMALL = dict(name="dit.DiT", patch=2, width=32, depth=2, heads=2)
PAIRS = ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9))
KNOWN = (0, 1)
"""The classes that the student of two teachers has before it asks."""
HALVES = {"a": (0, 1, 2, 3, 4), "b": (5, 6, 7, 8, 9)}
"""What either teacher knows."""
FEW = dict(solver="ddim", steps=5, guidance=1.0)


def several(it: Subject, workdir: str, seeds: int, images: int, samples: int) -> Iterator[Row]:
    """The teacher's rows; then for each kind of student, and seed, one after either stage."""
    labels, teacher = balanced_labels(samples, it.classes), it.model.weights(None)
    count = lambda params: sum(a.size for a in jax.tree.leaves(params["net"]))
    draw = drawer(it.model.setup.method, **SOLVED)
    for seed in range(seeds):
        row = dict(way="(teacher, 19 calls)", seed=seed, parameters=count(teacher))
        yield row | it.scores(draw(teacher, labels, seed))
    everyone = (tuple(range(it.classes)),)
    for name, groups in (("one student", everyone), ("a student for two classes", PAIRS)):
        model = dict(name="routed.Routed", of=SMALL, groups=groups)
        first, second = (
            setup_of(it, workdir, wraps, rate=rate, images=images, model=model, start=None)
            for wraps, rate in (([], 4e-3), ([dict(name="distill.matching")], 1e-3))
        )
        stages = [(s.method, Trainer(s.method, it.train)) for s in (first, second)]
        draws = [drawer(first.method, **SOLVED), drawer(second.method)]
        for seed in range(seeds):
            begin, params = time.monotonic(), None
            for setup, (method, train), draw, calls in zip(
                (first, second), stages, draws, (19, 1), strict=True
            ):
                params = averaged(method, train(begun(setup, seed, params), seed, images))
                said = f"{name}, {'before' if calls > 1 else 'one call'}"
                row = dict(way=said, seed=seed, parameters=count(params) // len(groups))
                row |= it.scores(draw(params, labels, seed))
                yield row | dict(seconds=time.monotonic() - begin)


def blind(params: Mapping[str, Any], classes: Sequence[int]) -> dict[str, Any]:
    """The parameters with all rows but those of `classes` as if there were no label.

    Of a network with one table of labels, the last row of which is "no label".
    """

    def changed(path: Any, a: jax.Array) -> jax.Array:
        if "labels" not in jax.tree_util.keystr(path):
            return a
        some = np.isin(np.arange(len(a)), classes)
        return jax.numpy.where(some[:, None], a, a[-1])

    return jax.tree_util.tree_map_with_path(changed, dict(params))


def director(it: Subject, workdir: str, seeds: int, images: int, samples: int) -> Iterator[Row]:
    """For each way to ask, number of questions and seed: a row."""
    labels = balanced_labels(samples, it.classes)
    known = it.model.weights(None)
    teachers = {name: blind(known, classes) for name, classes in HALVES.items()}
    judge = dict(name="classifier", file=f"{workdir}/guide.safetensors")
    wrap = dict(name="distill.pool", reward=judge, margin=0.1, memory=0.9, sample=FEW, own=FEW)
    ways: dict[str, Section] = {
        "directed": dict(teachers=("a", "b")),
        "evenly": dict(teachers=("a", "b"), explore=1.0),
        "of one teacher": dict(teachers=("a",)),
    }
    own = drawer(it.model.setup.method, **SOLVED)
    for seed in range(seeds):
        for name, params in {**teachers, "student": blind(known, KNOWN)}.items():
            yield dict(way=f"({name})", seed=seed) | it.scores(own(params, labels, seed))
    for name, options in ways.items():
        networks = dict.fromkeys(options["teachers"], workdir)
        setup = setup_of(it, workdir, [wrap | options], rate=2e-3, images=images, networks=networks)
        train, draw = Trainer(setup.method, it.train), drawer(setup.method, **SOLVED)
        train.frozen = {n: teachers[n] for n in networks}
        for seed in range(seeds):
            begin, state = time.monotonic(), begun(setup, seed, blind(known, KNOWN))
            for share in (4, 4, 2):
                state = train(state, seed, images // share)
                row = dict(way=f"{name}, {int(state.step) * BATCH} asked", seed=seed)
                row |= it.scores(draw(averaged(setup.method, state), labels, seed))
                yield row | dict(seconds=time.monotonic() - begin)


PARTS = {"several": (several, 40_000), "director": (director, 12_800)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a part, print its table and write the numbers."""
    run_part(PARTS, __doc__ or "", "students.json", arguments)


if __name__ == "__main__":
    main()
