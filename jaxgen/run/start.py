"""`start` of a config: initial parameters from another run, read only where the run has none yet.

    start="runs/base"
    start=dict(workdir="runs/base", ema="half_life_50000", skip=(r"\\.labels\\.",))
    start=dict(file="base.safetensors")
    start=dict(workdir="runs/base", parents={"my dog": "dog"})

Parameters are taken by their dotted names (`net.blocks.qkv.kernel`). What the other run does not
have is initialised as if there were no start, and said; a name that both have with other shapes is
an error that lists them, unless `skip` matches it. Where this run has the other's classes and more,
label tables take the rows of the shared ones by name, and a new one's from the class that `parents`
names (`jaxgen.run.growth`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxgen.data import to_host
from jaxgen.data.classes import mismatch
from jaxgen.errors import UsageError, invalid
from jaxgen.files import local
from jaxgen.method import Method, TrainState
from jaxgen.method.learning import copied
from jaxgen.run.growth import growth, said
from jaxgen.training.log import say
from jaxgen.training.weights import fingerprint, read

PyTree = Any
MOST = 8
"""Names that a message lists before it counts."""


@dataclasses.dataclass(frozen=True)
class StartOptions:
    """`config.start`: a run's `workdir` (and which average, `ema`), or a `file` of parameters.

    skip: regular expressions of dotted names that are not taken. parents: for new classes, by name,
    the class of the other run that each begins as.
    """

    workdir: str | None = None
    file: str | None = None
    ema: str | None = None
    skip: tuple[str, ...] = ()
    parents: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        """Raises UsageError unless there is one source, and for what is no regular expression."""
        if (self.workdir is None) == (self.file is None):
            raise invalid("config.start", dataclasses.asdict(self), "a workdir or a file")
        if self.file is not None and self.ema is not None:
            raise invalid("config.start.ema", self.ema, "None with a file")
        if self.file is not None and self.parents:
            allowed = "None with a file, which does not say its classes"
            raise invalid("config.start.parents", dict(self.parents), allowed)
        for pattern in self.skip:
            try:
                re.compile(pattern)
            except re.error as error:
                raise invalid(
                    "config.start.skip", pattern, f"a regular expression ({error})"
                ) from error


def source_of(
    options: StartOptions, groups: Collection[str]
) -> tuple[PyTree, str, tuple[str, ...]]:
    """(parameters on the host, where they are from, the names of their classes if they are known).

    groups: those of this run. Of a run with a wrap that this one lacks (adapters), the parameters
    are what its sampler has: merged.
    """
    if options.file is not None:
        file = local("config.start.file", options.file)
        if not file.is_file():
            raise invalid("config.start.file", options.file, "an existing .safetensors file")
        return read(file)[0], options.file, ()
    from jaxgen.run.model import load

    assert options.workdir is not None
    model = load(options.workdir)
    # An average may leave out what sampling does not need (a discriminator).
    found = {**model.params.get("params", {}), **model.weights(options.ema)}
    found.pop("frozen", None)
    plain = model.setup.method.plain(found)
    if set(found) - set(plain) - set(groups):
        found = plain
    place = f"{options.workdir} ({model.images_seen} images)"
    return to_host(found), place, model.setup.spec.classes


def initial(
    method: Method, options: StartOptions, classes: Sequence[str] = (), models: Any = ()
) -> tuple[Callable[[TrainState], TrainState], dict[str, str]]:
    """What gives a fresh state the parameters, and averages, of another run; and what it was.

    classes: the names of this run's; a run of other classes, or of the same in another order, is
    refused unless `skip` leaves something of it out (what holds its labels), or this one has more.
    models: this run's networks. All that can be wrong is found here, before anything is written or
    compiled. Raises UsageError.
    """
    abstract = jax.eval_shape(method.init, jax.random.key(0)).params
    source, place, theirs_are = source_of(options, abstract)
    theirs, ours = _named(source), _named(abstract)
    skipped = {n for n in ours if any(re.search(p, n) for p in options.skip)}
    shared = {n for n in ours if n in theirs and n not in skipped}
    grows = growth(theirs_are, classes, options.parents, models)
    same = grows is not None or not (theirs_are and classes) or tuple(classes) == theirs_are
    if not same and not skipped & set(theirs):
        error = mismatch(f"config.start {place}", theirs_are, classes, "the classes of this run")
        raise UsageError(f"{error} What holds labels can be left out: config.start.skip=(regex,).")
    if not shared:
        raise invalid("config.start", place, "a run that shares parameters with this one",
                      f"It has {_listed(theirs)}; this run has {_listed(ours)}.")  # fmt: skip
    differ = [n for n in ours if n in shared and np.shape(theirs[n]) != ours[n].shape]
    wider = (
        []
        if grows is None
        else [n for n in differ if grows.axis(np.shape(theirs[n]), ours[n].shape) is not None]
    )
    differ = [n for n in differ if n not in wider]
    if differ:
        lines = [f"{n}: {np.shape(theirs[n])} there, {ours[n].shape} here" for n in differ]
        raise invalid("config.start", place, "parameters of the same shapes",
                      f"These differ: {_listed(lines, '; ')}. Leave them fresh with "
                      "config.start.skip=(regex, ...).")  # fmt: skip
    say(f"Starting from {place}: {len(shared)} of {len(ours)} arrays.")
    if grows is not None and wider:
        say(f"New classes: {said(grows, theirs_are, classes)}. With rows more: {_listed(wider)}.")
    copies = {} if method.training is None else method.training.copies
    fresh = [n for n in ours if n not in shared and n.partition(".")[0] not in copies]
    left = [n for n in theirs if n not in ours]
    for what, names in (("Initialised anew", fresh), ("Not used of it", left)):
        if names:
            say(f"{what}: {_listed(names)}.")
    for group, of in copies.items():
        say(f"{group} begins as a copy of {of}.")

    def taken(path: Any, leaf: Any) -> Any:
        name = _name(path)
        if name in wider:
            assert grows is not None
            return grows.grown(np.asarray(theirs[name]), leaf)
        return np.asarray(theirs[name], leaf.dtype) if name in shared else leaf

    def started(state: TrainState) -> TrainState:
        params = jax.tree_util.tree_map_with_path(taken, to_host(state.params))
        params = to_host(copied(params, copies))
        averages = {n: {group: params[group] for group in a} for n, a in state.ema.items()}
        state = state.replace(params=params, ema=averages)
        follow = None if method.training is None else method.training.started
        return state if follow is None else follow(state)

    digest = fingerprint(source)
    return started, {"from": place, "digest": digest}


def options_of(section: Any) -> StartOptions | None:
    """`config.start` as options; a plain string is a workdir."""
    from jaxgen import config as configs

    if section is None:
        return None
    keywords: dict[str, Any] = {"workdir": section} if isinstance(section, str) else dict(section)
    return StartOptions(**configs.check(StartOptions, keywords, "config.start"))


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _named(tree: PyTree) -> dict[str, Any]:
    return {_name(p): a for p, a in jax.tree_util.tree_leaves_with_path(tree)}


def _listed(names: Iterable[str], comma: str = ", ") -> str:
    names = list(names)
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    return comma.join(names[:MOST]) + more
