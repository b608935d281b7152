"""What the studies of a trained model that is trained on share: its config with a wrap, and steps.

All happens in one process: a program is compiled once for all seeds.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.studies.trained import Row, Subject, parser, shown, subject, table, write
from jaxgen import config as configs
from jaxgen.data import normalise, to_host
from jaxgen.method import Method, Spec, TrainState, sampling_params, update_with, with_frozen
from jaxgen.method.learning import copied
from jaxgen.metrics.sets.quantise import quantise
from jaxgen.run import start
from jaxgen.run.setup import TOP, Setup, set_up

BATCH = 128
ROWS = 128
"""Of a step's key: which rows of the data the batch has."""
SOLVED = dict(solver="heun", steps=10, guidance=1.0)
"""How samples are drawn that are scored."""
SHORT = dict(solver="heun", steps=5, guidance=1.0)
"""How they are drawn within a step of training."""
Section = dict[str, Any]
Part = Callable[[Subject, str, int, int, int], Iterator[Row]]
"""(the model, its workdir, seeds, images of training, samples) -> rows with "way" and "seed"."""


def setup_of(
    it: Subject, workdir: str, wraps: Sequence[Section], *, rate: float, images: int,
    schedule: str = "cosine", batch: int = BATCH, spec: Spec | None = None, **told: Any,
) -> Setup:  # fmt: skip
    """The model's own config, to train on from it by Adam with wraps, for `images` images.

    spec: of other data than the model's (more classes, columns). told: further assignments to the
    config, `__` for a dot (`model__conditions`).
    """
    config = configs.ml_collections.ConfigDict(configs.to_dict(it.model.setup.config))
    sections: Section = dict(
        wrap=list(wraps),
        networks={"teacher": workdir},
        start=workdir,
        optimizer=dict(name="adam", learning_rate=rate, schedule=schedule),
        sample={},
        ema={"half_life": (2000,)},
    )
    sections |= {"train.images": images, "data.batch_size": batch}
    sections |= {name.replace("__", "."): value for name, value in told.items()}
    configs.override(config, [f"{key}={value!r}" for key, value in sections.items()], TOP)
    return set_up(config, spec=spec or it.model.setup.spec, coding=it.model.setup.coding)


def begun(setup: Setup, seed: int, params: Mapping[str, Any] | None = None) -> TrainState:
    """A first state with the parameters of the model that it starts from, or these groups.

    Fresh where the setup starts from none; what begins as a copy of a group is one of these.
    """
    method = setup.method
    state = jax.jit(method.init)(jax.random.key(seed))
    if setup.start is not None:
        first = start.initial(method, setup.start, setup.spec.classes, setup.modules)[0]
        state = first(state)
    if params is None:
        return state
    known = {**state.params, **{k: a for k, a in params.items() if k in state.params}}
    known = copied(known, method.training.copies)
    averages = {name: {g: known[g] for g in a} for name, a in state.ema.items()}
    return state.replace(params=known, ema=averages)


class Trainer:
    """Updates of a method on random batches of a data set; compiled once for any number of them."""

    def __init__(self, method: Method, data: Mapping[str, np.ndarray], batch: int = BATCH) -> None:
        """data: "image" [N, H, W, C], "label" [N] and columns [N, ...], which the device holds."""
        self.data = {name: jnp.asarray(array) for name, array in data.items()}
        self.frozen, self.batch = method.frozen, batch

        @jax.jit
        def run(state: TrainState, data: Any, frozen: Any, seed: jax.Array, count: Any) -> Any:
            def step(_: Any, state: TrainState) -> TrainState:
                key = jax.random.fold_in(jax.random.key(seed), state.step)
                rows = jax.random.fold_in(key, ROWS)
                chosen = jax.random.randint(rows, (batch,), 0, len(data["label"]))
                some = normalise({name: array[chosen] for name, array in data.items()})
                return update_with(method, state, some, key, frozen)[0]

            return jax.lax.fori_loop(0, count, step, state)

        self.run = run

    def __call__(self, state: TrainState, seed: int, images: int) -> TrainState:
        """The state after updates on so many images, rounded up to a batch."""
        return self.run(state, self.data, self.frozen, jnp.uint32(seed), -(-images // self.batch))

    def on(self, data: Mapping[str, np.ndarray]) -> Trainer:
        """The same program, if it is of as many examples, on other data."""
        other = copy.copy(self)
        other.data = {name: jnp.asarray(array) for name, array in data.items()}
        return other


def sampled(method: Method, **options: Any) -> Any:
    """draw(params, labels, seed, **told) -> images as they are drawn; told: columns of each."""
    assert method.sampler is not None
    fn = jax.jit(method.sampler(**options).fn)

    def draw(params: Any, labels: np.ndarray, seed: int, **told: np.ndarray) -> np.ndarray:
        keys = jax.random.split(jax.random.key(seed), len(labels))
        condition: Any = jnp.asarray(labels, jnp.int32)
        condition = {"label": condition, **told} if told else condition
        return to_host(fn(params, keys, condition))

    return draw


def drawer(method: Method, **options: Any) -> Any:
    """draw(params, labels, seed, **told) -> images as bytes."""
    draw = sampled(method, **options)
    return lambda *asked, **told: quantise(draw(*asked, **told))


def floats(method: Method, **options: Any) -> Callable[..., np.ndarray]:
    """draw(params, labels, seed, **told) -> images in [-1, 1]."""
    draw = drawer(method, **options)
    return lambda *asked, **told: np.asarray(normalise({"image": draw(*asked, **told)})["image"])


def averaged(method: Method, state: TrainState) -> dict[str, Any]:
    """What the method's functions take, by the first average."""
    average = next(iter(state.ema.values()))
    return with_frozen(method, sampling_params(method, state.params, average))


def run_part(
    parts: Mapping[str, tuple[Part, int]], about: str, out: str, arguments: Sequence[str] | None
) -> None:
    """Run a part as the command line says, print its table and write the numbers.

    parts: each with its images of training.
    """
    asked = parser(about, out)
    asked.add_argument("--part", choices=list(parts), required=True)
    asked.add_argument("--images", type=int, help="of training, in place of the part's own")
    asked.add_argument("--seeds", type=int, default=3)
    given = asked.parse_args(arguments)
    if given.tiny:
        given.images, given.samples, given.seeds = 256, 700, 1
    part, images = parts[given.part]
    rows: list[Row] = []
    model = subject(given.workdir)
    for row in part(model, given.workdir, given.seeds, given.images or images, given.samples):
        rows.append(row)
        print(row, flush=True)
    write(rows, given.out)
    print(table(shown(rows)))
