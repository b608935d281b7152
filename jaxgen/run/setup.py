"""A checked config as objects: sources, networks, method, averages, sizes.

Everything that a config says is checked here, before a workdir is touched or anything compiled.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from jaxgen import config as configs
from jaxgen.data import Coding, Source, Target, normalise
from jaxgen.data.classes import listed, natural
from jaxgen.data.folder import FolderSource
from jaxgen.data.holdout import held_out
from jaxgen.errors import Failure, UsageError, check_seed, invalid, unknown
from jaxgen.mesh import Layout, within
from jaxgen.method import Method, Sampler, Spec, update_with
from jaxgen.nn import own
from jaxgen.nn.flops import count
from jaxgen.run.networks import Other, opened
from jaxgen.run.start import StartOptions, options_of
from jaxgen.steer.sampler import steered
from jaxgen.training.ema import Averages
from jaxgen.training.hosts import HostOptions, join
from jaxgen.training.log import say
from jaxgen.training.optim import optimizer
from jaxgen.training.sharding import check_batch, make_layout


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """`config.data`: a source, how it is split, and the pipeline's settings.

    source: a section or a name in `jaxgen.data`. train, test: the source's names of its halves.
    batch_size: global. flip: random horizontal flips. workers: reader processes (0: threads).
    prefetch: batches kept on the device ahead of the step. tokenizer: the workdir of the tokenizer
    whose codes the source holds, where it is not the one that the codes themselves name. holds:
    what the source is meant to hold, as {"shape", "num_classes", "levels"?, "tokens"?}: `jaxgen
    plan` then needs no data, and data that hold something else are refused. holdout: the share of
    the training half, by content, that is the test half in the place of the source's own (0: none),
    drawn by holdout_seed (`data.holdout`).
    """

    source: Any
    batch_size: int = 256
    train: str = "train"
    test: str = "test"
    flip: bool = False
    workers: int = 0
    prefetch: int = 2
    tokenizer: str | None = None
    holds: Any = None
    holdout: float = 0.0
    holdout_seed: int = 0


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """`config.train`: all lengths in images seen.

    images: the whole run. accumulate: microbatches per update. log_every, sample_every: how often
    a line of metrics and a sample grid are written (0: never). preview_per_label: rows of the grid.
    """

    images: int
    accumulate: int = 1
    log_every: int = 10_000
    sample_every: int = 0
    preview_per_label: int = 8


@dataclasses.dataclass(frozen=True)
class CheckpointOptions:
    """`config.checkpoint`: every: images between saves (0: only at the end).

    keep_last, keep_best (by training loss), keep_every (images): what stays. snapshot_every:
    images between snapshots of the power-function averages, and one at the end (0: none).
    """

    every: int = 0
    keep_last: int = 2
    keep_best: int = 0
    keep_every: int = 0
    snapshot_every: int = 0


@dataclasses.dataclass(frozen=True)
class LogOptions:
    """`config.log`: TensorBoard events in the workdir; W&B project name, or None."""

    tensorboard: bool = True
    wandb: str | None = None


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """`config.evaluate`: at_end: part of `train`. guidance: scales to score at, one receipt each.

    Without scales, samples are scored once, as the config's `sample` section makes them. samples:
    how many, labels balanced. batch_size: images per call of the compiled sampler.
    """

    at_end: bool = True
    samples: int = 2000
    guidance: tuple[float, ...] = ()
    batch_size: int = 200
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class ClassifyOptions:
    """`config.classify`: at_end: part of `train`. draws: noise draws per class at most.

    limit: images of the split to classify (0: all). batch_size: images per compiled call.
    """

    at_end: bool = True
    draws: int = 16
    limit: int = 0
    batch_size: int = 100
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class LikelihoodOptions:
    """`config.likelihood`: at_end: part of `train`. limit: images of the split (0: all).

    batch_size: images per compiled call. draws: estimates averaged, where each is random.
    """

    at_end: bool = False
    limit: int = 0
    batch_size: int = 100
    draws: int = 1
    seed: int = 0


SECTIONS = {
    "data": DataOptions,
    "train": TrainOptions,
    "checkpoint": CheckpointOptions,
    "log": LogOptions,
    "ema": Averages,
    "evaluate": EvaluateOptions,
    "classify": ClassifyOptions,
    "likelihood": LikelihoodOptions,
    "hosts": HostOptions,
}
"""Sections that are plain options; the other keys of `TOP` name callables."""

BESIDES = ("models", "adapters")
"""Changes of how one samples that are no options of a sampler: other models, other parameters."""

TOP = (
    *("seed", "model", "method", "optimizer", "sample", "mesh", "start", "networks", "wrap"),
    *SECTIONS,
)


@dataclasses.dataclass(frozen=True)
class Setup:
    """A checked config and what it says, as objects.

    coding: how images became the examples, where these are codes. opened: the training half, where
    it had to be opened to know the spec; `source` opens it when first asked for. held: what the
    run recorded of its `holdout` when it began. trusted: of a config that came with a model, the
    modules besides jaxgen's own that it may name. own: the names outside of jaxgen that it is
    built from.
    """

    config: ml_collections.ConfigDict
    data: DataOptions
    train: TrainOptions
    checkpoint: CheckpointOptions
    log: LogOptions
    ema: Averages
    evaluate: EvaluateOptions
    classify: ClassifyOptions
    likelihood: LikelihoodOptions
    hosts: HostOptions
    spec: Spec
    coding: Coding | None
    method: Method
    modules: Any
    layout: Layout
    networks: Mapping[str, Other]
    start: StartOptions | None
    opened: Source | None = None
    held: Mapping[str, Any] | None = None
    trusted: tuple[str, ...] | None = None
    own: tuple[str, ...] = ()

    @property
    def mesh(self) -> jax.sharding.Mesh:
        """The devices, as the layout has them."""
        return self.layout.mesh

    @property
    def steps(self) -> int:
        """Updates in the whole run."""
        return math.ceil(self.train.images / self.data.batch_size)

    def every(self, images: int) -> int:
        """A period in images as a period in steps; 0 stays 0 (never)."""
        return 0 if images <= 0 else max(1, round(images / self.data.batch_size))

    @functools.cached_property
    def source(self) -> Source:
        """The training half. Raises UsageError where it is not there, or holds something else."""
        return self._halves[0] if self.data.holdout else self._whole

    @functools.cached_property
    def test_source(self) -> Source:
        """The test half; classes may be missing. Raises UsageError as `source` does."""
        if self.data.holdout:
            return self._halves[1]
        try:
            return self._open(self.data.test, fewer=True)
        except UsageError as error:
            raise UsageError(
                f"config.data.test: got {self.data.test!r}, a half for scoring that cannot be "
                f"opened. {error} A part of the training half in its place: "
                "--config.data.holdout=0.1"
            ) from error

    @property
    def holdout(self) -> dict[str, Any] | None:
        """What a receipt says of the halves where the one was held out of the other."""
        return self._halves[2] if self.data.holdout else None

    @functools.cached_property
    def _halves(self) -> tuple[Source, Source, dict[str, Any]]:
        found = held_out(self._whole, self.data.holdout, self.data.holdout_seed)
        if self.held not in (None, found[2]):
            raise invalid(
                "config.data.source",
                f"data that are held out as {found[2]}",
                f"those that the run began with, {self.held}",
                "Images have come, gone or changed, so that halves would not be what they were.",
            )
        return found

    @functools.cached_property
    def _whole(self) -> Source:
        """What the source calls its training half."""
        if self.opened is not None:
            return self.opened
        return self._open(self.data.train)

    def _open(self, split: str, fewer: bool = False) -> Source:
        """A half, with the labels that the model was trained with, matched by name."""
        with configs.foreign(self.trusted):
            source = open_source(self.data, split)
        ours, wanted = set(source.class_names), self.spec
        if wanted.classes and (
            ours == set(wanted.classes) or (fewer and ours < set(wanted.classes))
        ):
            source = source.relabelled(wanted.classes, "config.data.source", fewer=fewer)
        elif fewer and not wanted.classes and source.num_classes < wanted.num_classes:
            wanted = dataclasses.replace(wanted, num_classes=source.num_classes)
        found = spec_of(source)
        if differences(found, wanted):
            raise other_data("config.data.source", found, self.spec)
        return source


def open_source(data: DataOptions, split: str) -> Source:
    """The source of a data section, at one of its splits; what it left out is said."""
    source: Source = configs.build(
        data.source, configs.ROOMS["source"], "config.data.source", split=split
    )
    for note in source.notes:
        say(note)
    return source


def text_order(source: Source) -> tuple[str, ...]:
    """The classes in the order that a run had them which recorded none: folders sorted as text."""
    inner: Any = source
    while not isinstance(inner, FolderSource):
        inner = getattr(inner, "of", None) or next(iter(getattr(inner, "sources", ())), None)
        if inner is None:
            return source.class_names
    named = source.class_names == natural(source.class_names)
    return tuple(sorted(source.class_names)) if named else source.class_names


def set_up(
    config: ml_collections.ConfigDict,
    *,
    devices: Sequence[Any] | None = None,
    data: bool = True,
    spec: Spec | None = None,
    coding: Coding | None = None,
    classes: Callable[[Source], Sequence[str]] | None = None,
    trusted: Sequence[str] | None = None,
    joining: bool = True,
) -> Setup:
    """Build and check all that a config says. Raises UsageError naming the option at fault.

    Joins the other processes of the run first, as `config.hosts` says; with joining=False only
    those that can be found, and what a launcher half says is passed over. trusted: of a config that
    came with a model, the modules besides jaxgen's own that it may name; None: of the user's own.

    devices: in place of those of this run. data=False: where the config says what its source
    holds, that source is not opened before it is asked for. spec, coding: of a source that need not
    be opened either, since a trained model says what it holds (`run.record`). classes: the order
    that a run which goes on has them in, where they are the same.
    """
    with configs.foreign(trusted), configs.collecting() as names, answering(names):
        setup = _set_up(config, devices, data, spec, coding, classes, joining)
    return dataclasses.replace(
        setup, trusted=None if trusted is None else tuple(trusted), own=tuple(sorted(names))
    )


@contextlib.contextmanager
def answering(names: Collection[str]) -> Iterator[None]:
    """Turns errors in the user's own code, or in how it is called, into one message.

    names: what of the config is not jaxgen's.
    """
    try:
        yield
    except (UsageError, Failure):
        raise
    except Exception as error:
        if not names or jax.errors.JaxRuntimeError in type(error).__mro__:
            raise
        raise UsageError(
            f"config: {', '.join(sorted(names))} cannot be used as this method uses it: "
            f"{configs.told(error)}. What each kind of part is called with, docs/extending.md says."
        ) from error


def trace_own(setup: Setup) -> None:
    """Trace the update and the sampler of a config with parts that are not jaxgen's.

    So that what they do wrong is said before the run. Raises UsageError.
    """
    if not setup.own:
        return
    method = setup.method
    state = jax.eval_shape(method.init, jax.random.key(0))
    with answering(setup.own):
        jax.eval_shape(
            lambda s, b, f: update_with(method, s, normalise(b), jax.random.key(0), f),
            state,
            abstract_batch(setup),
            method.frozen,
        )
        if method.sampler is not None:
            sampler = make_sampler(setup, sample_options(setup, {}))
            keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
            labels = jax.ShapeDtypeStruct((2,), jnp.int32)
            jax.eval_shape(within(setup.layout, sampler.fn), state.params, keys, labels)


def _set_up(
    config: ml_collections.ConfigDict,
    devices: Sequence[Any] | None,
    data: bool,
    spec: Spec | None,
    coding: Coding | None,
    classes: Callable[[Source], Sequence[str]] | None,
    joining: bool,
) -> Setup:
    for key in config:
        if key not in TOP:
            raise unknown(f"config.{key}", key, TOP)
    for key in ("data", "method", "train"):
        if key not in config:
            raise invalid(f"config.{key}", "nothing", f"a section (all: {', '.join(TOP)})")
    options: dict[str, Any] = {}
    for key, cls in SECTIONS.items():
        section = config.get(key, {"half_life": (50_000,)} if key == "ema" else {})
        keywords = configs.check(cls, dict(section), f"config.{key}")
        options[key] = cls(**keywords)
    check_seed("config.seed", config.get("seed", 0))
    reading, train = options["data"], options["train"]
    if train.images < 1:
        raise invalid("config.train.images", train.images, "images >= 1")
    if not 0 <= reading.holdout < 1:
        raise invalid("config.data.holdout", reading.holdout, "0 for none, or a share below 1")
    if train.accumulate < 1:
        raise invalid("config.train.accumulate", train.accumulate, "microbatches >= 1")
    if devices is None:
        join(options["hosts"], lonely=not joining)
    sizes = configs.check(make_layout, dict(config.get("mesh", {})), "config.mesh", {"devices"})
    layout = make_layout(**sizes, devices=devices)
    check_batch(reading.batch_size, layout.mesh, train.accumulate)
    declared = None if reading.holds is None else _declared(reading.holds)
    source = None
    if spec is None and (data or declared is None):
        source = open_source(reading, reading.train)
        before = source.class_names if classes is None else classes(source)
        if set(before) == set(source.class_names):
            source = source.relabelled(before, "config.data.source")
        spec, coding = spec_of(source), source.coding
    spec = declared if spec is None else spec
    assert spec is not None
    if declared is not None and differences(spec, declared):
        raise invalid(
            "config.data.holds",
            declared,
            f"what the source holds: {spec}",
            "Other data on purpose: config.data.holds=None.",
        )
    modules = _each(config.get("model", {}), functools.partial(_network, spec=spec), "model")
    run = dict(images=train.images, batch_size=reading.batch_size)

    def make_optimizer(section: Any, option: str) -> Any:
        keywords = {k: section[k] for k in section}
        label = keywords.pop("name", "adamw")
        return optimizer(
            **configs.check(optimizer, {"name": label, **keywords}, option, run), **run
        )

    tx = _each(config.get("optimizer", {"name": "adamw"}), make_optimizer, "optimizer")
    networks = opened(config.get("networks"))
    room = configs.ROOMS["method"]
    own = configs.wanted(config.method, room, "config.method", {"networks": networks})
    method = configs.build(
        config.method,
        room,
        "config.method",
        spec=spec,
        model=modules,
        optimizer=tx,
        averages=options["ema"],
        accumulate=train.accumulate,
        **own,
    )
    method = wrapped(method, config.get("wrap", ()), spec=spec, networks=networks)
    setup = Setup(
        config=config,
        opened=source,
        spec=spec,
        coding=coding,
        method=method,
        modules=modules,
        layout=layout,
        networks=networks,
        start=options_of(config.get("start")),
        **options,
    )
    # A bad sampler, an image size that a network cannot take: said now, not after training.
    if method.sampler is not None:
        make_sampler(setup, sample_options(setup, {}))
    jax.eval_shape(method.init, jax.random.key(0))
    return setup


def wrapped(method: Method, sections: Any, **offered: Any) -> Method:
    """The method through each of `config.wrap` in order: functions from Method to Method.

    offered: what a wrap may ask for besides the method (`spec`, `networks`).
    """
    if isinstance(sections, str) or hasattr(sections, "keys"):
        sections = (sections,)
    for number, section in enumerate(sections or ()):
        option = f"config.wrap[{number}]"
        own = configs.wanted(section, configs.ROOMS["wrap"], option, offered)
        method = configs.build(section, configs.ROOMS["wrap"], option, method=method, **own)
    return method


def _declared(section: Any) -> Spec:
    keywords = configs.check(Spec, dict(section), "config.data.holds", {"target"})
    return Spec(**{**keywords, "shape": tuple(keywords["shape"])})


def spec_of(source: Source) -> Spec:
    """What a method is told of a source."""
    return Spec(
        shape=tuple(source.shape),
        num_classes=source.num_classes,
        levels=source.levels,
        tokens=source.tokens,
        target=source if isinstance(source, Target) else None,
        classes=tuple(source.class_names),
        columns=source.columns,
    )


def differences(a: Spec, b: Spec) -> list[str]:
    """The names of what two specs say differently; classes without names agree with any."""
    names = [f.name for f in dataclasses.fields(Spec) if f.name != "target"]
    if not (a.classes and b.classes):
        names.remove("classes")
    return [name for name in names if getattr(a, name) != getattr(b, name)]


def other_data(option: str, given: Spec, wanted: Spec) -> UsageError:
    """The error where data hold something else than a model was trained on."""
    found = differences(given, wanted)

    def said(spec: Spec) -> str:
        shown = {"classes": listed(spec.class_names)}
        return "; ".join(f"{name} {shown.get(name, getattr(spec, name))}" for name in found)

    return invalid(option, f"data of {said(given)}", f"{said(wanted)}, as the model was trained on")


def _network(section: Any, option: str, *, spec: Spec) -> Any:
    """A network, told of the data what its signature asks for."""
    offered = dict(
        num_classes=spec.num_classes,
        out_channels=spec.shape[-1],
        shape=spec.shape,
        levels=spec.levels,
    )
    room = configs.ROOMS["model"]
    name = section if isinstance(section, str) else dict(section).get("name", "")
    section = own.adapted(section, configs.resolve(name, room, option))
    return configs.build(section, room, option, **configs.wanted(section, room, option, offered))


def sample_options(setup: Setup, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of `method.sampler`, and `steer`: the config's `sample` with changes, checked.

    A change may also be one of `BESIDES`, which `jaxgen.run.model` reads. Raises UsageError that
    names what this family's sampler can be told.
    """
    sampler = setup.method.sampler
    if sampler is None:
        raise invalid("sample", "a method that does not generate", "families with a sampler")
    allowed = [*inspect.signature(sampler).parameters, "steer", *BESIDES]
    for key in changes:
        if key not in allowed:
            raise invalid(
                f"--{key}", changes[key], f"options of this model's sampler: {', '.join(allowed)}"
            )
    options = {**setup.config.get("sample", {}), **changes}
    apart = {"steer": configs.to_dict(options.pop("steer", None))}
    apart |= {key: configs.to_dict(options.pop(key)) for key in BESIDES if key in changes}
    checked = configs.check(sampler, options, "config.sample")
    return {**checked, **{k: v for k, v in apart.items() if v is not None}}


def make_sampler(setup: Setup, options: Mapping[str, Any], **given: Any) -> Sampler:
    """The sampler of checked options (`sample_options`), steered where they say so.

    given: further keywords of the method's sampler.
    """
    make = setup.method.sampler
    assert make is not None  # `sample_options` has refused
    own = {k: v for k, v in options.items() if k not in ("steer", *BESIDES)}
    sampler = make(**own, **given)
    return steered(sampler, options["steer"]) if "steer" in options else sampler


def abstract_batch(setup: Setup) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch as sources give it: bytes, tokens, or real numbers; labels; columns."""
    size, kind = setup.data.batch_size, jnp.float32
    if setup.spec.levels is not None:
        kind = jnp.int32 if setup.spec.tokens else jnp.uint8
    batch = {"label": jax.ShapeDtypeStruct((size,), jnp.int32)}
    if setup.spec.target is None:
        batch["image"] = jax.ShapeDtypeStruct((size, *setup.spec.shape), kind)
    for name, column in setup.spec.columns.items():
        batch[name] = jax.ShapeDtypeStruct((size, *column.shape), jnp.dtype(column.dtype))
    return batch


def train_flops(setup: Setup) -> float:
    """Useful floating-point operations to train on one example, two a multiply-add.

    By the method, or else those of its update as written, recomputation included.
    """
    if setup.method.train_flops is not None:
        return setup.method.train_flops()
    state = jax.eval_shape(setup.method.init, jax.random.key(0))
    update = jax.make_jaxpr(
        lambda s, b, f: update_with(setup.method, s, normalise(b), jax.random.key(0), f)
    )
    traced = update(state, abstract_batch(setup), setup.method.frozen)
    return 2 * count(traced.jaxpr) / setup.data.batch_size


def _each(section: Any, make: Any, option: str) -> Any:
    """Build one section, or each of a dict of sections (families with several networks)."""
    if (
        isinstance(section, str)
        or "name" in section
        or option == "optimizer"
        and not _nested(section)
    ):
        return make(
            section if not isinstance(section, str) else {"name": section}, f"config.{option}"
        )
    return {k: make(section[k], f"config.{option}.{k}") for k in section}


def _nested(section: Any) -> bool:
    return bool(section) and all(hasattr(section[k], "keys") for k in section)
