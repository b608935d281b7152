"""From losses to an update: learners, their optimizers, averages, and nothing else that steps.

A `Learner` is a loss and the groups of parameters that it trains. `Training` says all that a run
needs besides data: learners, fresh parameters, optimizers, averages. `learn` turns it into `init`
and `update`, the same for one loss, for a generator against a discriminator, for a student and a
fake score. A wrap (LoRA, alignment, unlearning) is a function from `Method` to `Method` that
changes the `Training` (`retrained`) and what is made of the parameters (`on_params`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxgen import mesh
from jaxgen.errors import invalid, unknown
from jaxgen.method.constants import without_constants
from jaxgen.method.protocol import Averages, Batch, Method, Metrics, Sampler, Spec, TrainState
from jaxgen.method.streams import LEARNERS

PyTree = Any
LossFn = Callable[[PyTree, Batch, jax.Array, PyTree], tuple[jax.Array, tuple[Metrics, PyTree]]]
After = Callable[[PyTree, PyTree, Metrics], tuple[PyTree, PyTree, Metrics]]
Prepare = Callable[[TrainState, Batch, jax.Array, PyTree], tuple[TrainState, Batch, Metrics]]
Init = Callable[[jax.Array], TrainState]
Update = Callable[..., tuple[TrainState, Metrics]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learner:
    """A loss over named groups of parameters.

    loss(params, batch, key, extra) -> (scalar, (metrics, extra)), a mean over the examples given.
    params holds every group, and `params["frozen"]` what nobody trains; the batch has what `placed`
    adds (what is annealed counts in `seen`). A metric "loss" is reported in the place of its value,
    e.g. without penalties. trains: the groups that are differentiated: names, one
    name (whose optimizer then sees the group itself), or None for all. steps: of this learner in an
    update, each on a share of the batch of its own. carries: groups that the loss moves by itself
    (running statistics): it finds them in `extra` under their names, and leaves them there.
    after(params, extra, metrics) -> the same three, after each step: projections, codebooks.
    """

    loss: LossFn
    trains: tuple[str, ...] | str | None = None
    steps: int = 1
    carries: tuple[str, ...] = ()
    after: After | None = None

    def trained(self, params: Mapping[str, PyTree]) -> PyTree:
        """What the optimizer sees of all groups."""
        if self.trains is None:
            return dict(params)
        if isinstance(self.trains, str):
            return params[self.trains]
        return {name: params[name] for name in self.trains}

    def groups(self, trained: PyTree) -> dict[str, PyTree]:
        """The inverse of `trained`: what the optimizer has, as groups."""
        return {self.trains: trained} if isinstance(self.trains, str) else trained


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """All that a run trains by. A wrap is a change of it (`retrained`).

    learners: by name, in the order of their steps; each sees what those before it have changed.
    fresh(key) -> (params, extra): the first parameters, a dict of groups, and whatever else the
    state carries. optimizer: one for a single learner, or one for each under its name. averaged:
    the groups that are averaged; None: all. prepare(state, batch, key, frozen) -> (state, batch,
    metrics): what an update does first and without a gradient (rollouts, replay, data-dependent
    initialisation). frozen: arrays by name that the losses need and nobody trains, or functions
    without arguments that give them (what is loaded only to train): arguments of the update, never
    differentiated, averaged or saved. started(state) -> state: what follows where the parameters
    came from another run. needed: functions without arguments that training calls before all else,
    which open what sampling does without (other runs, rewards) and raise UsageError where it will
    not do. copies: groups by the group whose parameters they begin with, wherever
    those came from.
    """

    learners: Mapping[str, Learner]
    fresh: Callable[[jax.Array], tuple[dict[str, PyTree], PyTree]]
    optimizer: Any
    averages: Averages
    averaged: tuple[str, ...] | None = None
    accumulate: int = 1
    prepare: Prepare | None = None
    frozen: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    started: Callable[[TrainState], TrainState] | None = None
    needed: tuple[Callable[[], object], ...] = ()
    copies: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def check(self) -> None:
        """Open what is needed. Raises UsageError for what will not do."""
        for look in self.needed:
            look()

    def arrays(self) -> dict[str, PyTree]:
        """The frozen arrays themselves, after `check`."""
        self.check()
        return {n: held() if callable(held) else held for n, held in self.frozen.items()}

    @property
    def trained(self) -> set[str] | None:
        """The groups that some learner trains or carries; None: all."""
        names: set[str] = set()
        for learner in self.learners.values():
            if learner.trains is None:
                return None
            names |= {learner.trains} if isinstance(learner.trains, str) else set(learner.trains)
            names |= set(learner.carries)
        return names


def method_of(spec: Spec, training: Training, **functions: Any) -> Method:
    """The `Method` that trains so; functions: what else the family has (its sampler, ...)."""
    init, update = learn(training)
    return Method(spec=spec, training=training, init=init, update=update, **functions)


def single(
    loss: LossFn,
    fresh: Callable[[jax.Array], tuple[dict[str, PyTree], PyTree]],
    optimizer: optax.GradientTransformation,
    averages: Averages,
    *,
    accumulate: int = 1,
    project: Callable[[PyTree], PyTree] | None = None,
    **more: Any,
) -> Training:
    """The training of most families: one loss, all parameters, one optimizer.

    project: applied to all parameters after each step (EDM2's forced weight normalisation).
    """
    after: After | None = None
    if project is not None:
        known = project

        def after(params: PyTree, extra: PyTree, metrics: Metrics) -> Any:
            return known(params), extra, metrics

    learners = {"net": Learner(loss=loss, after=after)}
    return Training(
        learners=learners,
        fresh=fresh,
        optimizer=optimizer,
        averages=averages,
        accumulate=accumulate,
        **more,
    )


def learn(training: Training) -> tuple[Init, Update]:
    """`init(key) -> TrainState` and `update(state, batch, key, frozen) -> (TrainState, metrics)`.

    A batch is cut into as many batches as the learner with most steps takes, and each of those into
    `accumulate` microbatches; schedules count updates, however many steps an update has. frozen:
    None for the training's own, which are then constants of the program. Metrics: `loss`, the sum
    of the learners'; `grad_norm`, over all they train; with several learners each one's.
    """
    learners = dict(training.learners)
    shares = max(learner.steps for learner in learners.values())
    # One optimizer of one learner keeps its state bare, several keep theirs by name.
    bare = not isinstance(training.optimizer, Mapping) and len(learners) == 1
    optimizers = optimizers_of(training.optimizer, list(learners))

    def averaged(params: PyTree) -> PyTree:
        names = params if training.averaged is None else training.averaged
        return {name: params[name] for name in names if name in params}

    def init(key: jax.Array) -> TrainState:
        params, extra = training.fresh(key)
        params = copied(params, training.copies)
        for name, learner in learners.items():
            _check_groups(f"learner {name!r}", learner, params, training.frozen)
        opt_state = {
            n: optimizers[n].init(learner.trained(params)) for n, learner in learners.items()
        }
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=opt_state.popitem()[1] if bare else opt_state,
            ema=training.averages.init(averaged(params)),
            extra=extra,
        )

    def update(
        state: TrainState, batch: Batch, key: jax.Array, frozen: PyTree = None
    ) -> tuple[TrainState, Metrics]:
        frozen = training.arrays() if frozen is None else frozen
        own_size = batch["label"].shape[0]
        if own_size % (shares * training.accumulate):
            allowed = f"a multiple of {shares} steps x {training.accumulate} microbatches"
            raise invalid("config.data.batch_size", own_size, allowed)
        batch = placed(batch, state.step)
        metrics: Metrics = {}
        if training.prepare is not None:
            state, batch, metrics = training.prepare(state, batch, key, frozen)
        batches = cut(batch, shares) if shares > 1 else jax.tree.map(lambda a: a[None], batch)
        opt_states = {next(iter(learners)): state.opt_state} if bare else dict(state.opt_state)
        params, extra, count = dict(state.params), state.extra, 0
        values, norms = [], {}
        for name, learner in learners.items():
            keys = jnp.stack([_learner_key(key, count + n) for n in range(learner.steps)])
            count += learner.steps
            step = functools.partial(_step, training, learner, optimizers[name], frozen)
            carry, step_metrics = _steps(step, (params, opt_states[name], extra), batches, keys)
            params, opt_states[name], extra = carry
            values.append(step_metrics.pop("loss", step_metrics["value"]))
            del step_metrics["value"]
            norms[f"{name}_grad_norm"] = step_metrics.pop("norm")
            metrics |= step_metrics
        number = state.step + 1
        size = own_size * mesh.size("data")
        return TrainState(
            step=number,
            params=params,
            opt_state=opt_states.popitem()[1] if bare else opt_states,
            ema=training.averages.update(state.ema, averaged(params), number, size),
            extra=extra,
        ), {
            "loss": functools.reduce(jnp.add, values),
            **_norms(norms),
            **metrics,
        }

    return init, update


def copied(params: Mapping[str, PyTree], copies: Mapping[str, str]) -> dict[str, PyTree]:
    """The groups, and those that begin as copies of others (`Training.copies`)."""
    return {**params, **{n: jax.tree.map(jnp.copy, params[of]) for n, of in copies.items()}}


def _check_groups(
    option: str, learner: Learner, params: Mapping[str, PyTree], frozen: Mapping[str, Any]
) -> None:
    """Raise UsageError where a learner is to train what is frozen, or what there is not."""
    names = () if learner.trains is None else learner.trains
    for name in (names,) if isinstance(names, str) else names:
        if name in frozen or name == "frozen":
            raise invalid(option, f"to train {name!r}, which is frozen", ", ".join(params))
        if name not in params:
            raise unknown(option, name, params)


def _norms(norms: Metrics) -> Metrics:
    """The gradient's norm over all learners and, where there are several, of each."""
    if len(norms) == 1:
        return {"grad_norm": next(iter(norms.values()))}
    return {"grad_norm": optax.tree.norm(list(norms.values())), **norms}


def _learner_key(key: jax.Array, number: int) -> jax.Array:
    """The key of an update's learner's step: the update's own for the first of all."""
    return jax.random.fold_in(key, LEARNERS + number) if number else key


def _steps(step: Any, carry: Any, batches: Batch, keys: jax.Array) -> tuple[Any, Metrics]:
    """One step for each of keys [n] on as many of the batches [m >= n, ...]; metrics are means.

    Schedules count updates, so that after n steps they have moved by one.
    """
    if len(keys) == 1:
        return step(carry, (jax.tree.map(lambda a: a[0], batches), keys[0]))
    before = carry[1]

    def body(carry: Any, given: Any) -> tuple[Any, Metrics]:
        (params, opt_state, extra), metrics = step(carry, given)
        return (params, _scheduled(opt_state, before), extra), metrics

    given = (jax.tree.map(lambda a: a[: len(keys)], batches), keys)
    (params, opt_state, extra), many = jax.lax.scan(body, carry, given)
    opt_state = _scheduled(opt_state, before, ahead=1)
    return (params, opt_state, extra), jax.tree.map(lambda m: m.mean(0), many)


def _scheduled(state: PyTree, before: PyTree, ahead: int = 0) -> PyTree:
    """The optimizer's state with the schedules' counts of `before`, plus `ahead`."""

    def is_schedule(node: Any) -> bool:
        return isinstance(node, optax.ScaleByScheduleState)

    def pick(new: Any, old: Any) -> Any:
        return optax.ScaleByScheduleState(old.count + ahead) if is_schedule(new) else new

    return jax.tree.map(pick, state, before, is_leaf=is_schedule)


def _step(
    training: Training,
    learner: Learner,
    optimizer: optax.GradientTransformation,
    frozen: PyTree,
    carry: tuple[PyTree, PyTree, PyTree],
    given: tuple[Batch, jax.Array],
) -> tuple[tuple[PyTree, PyTree, PyTree], Metrics]:
    """One step of one learner: ((params, opt_state, extra), metrics with value and norm)."""
    (params, opt_state, extra), (batch, key) = carry, given
    trained = learner.trained(params)
    held = {n: a for n, a in params.items() if n not in learner.groups(trained)}
    held |= {"frozen": frozen} if frozen else {}
    carried = {n: params[n] for n in learner.carries if n in params}

    def loss(trained: PyTree, microbatch: Batch, key: jax.Array, extra: PyTree) -> Any:
        return learner.loss({**held, **learner.groups(trained)}, microbatch, key, extra)

    moved = {**(extra or {}), **carried} if carried else extra
    value, metrics, moved, grads = mean_gradient(
        loss, trained, batch, key, moved, training.accumulate
    )
    updates, opt_state = optimizer.update(grads, opt_state, trained)
    stepped = optax.apply_updates(trained, without_constants(updates))
    params = {**params, **learner.groups(stepped)}
    if carried:
        params |= {n: moved[n] for n in carried}
        moved = {n: a for n, a in moved.items() if n not in carried} or extra
    if learner.after is not None:
        params, moved, metrics = learner.after(params, moved, metrics)
    metrics = {**metrics, "value": value, "norm": optax.tree.norm(grads)}
    return (params, opt_state, moved), metrics


def mean_gradient(
    loss: LossFn, params: PyTree, batch: Batch, key: jax.Array, extra: PyTree, accumulate: int = 1
) -> tuple[jax.Array, Metrics, PyTree, PyTree]:
    """(value, metrics, extra, gradient) of a loss over a batch cut into `accumulate` microbatches.

    Values, metrics and gradients are means over the microbatches (and over devices, where this code
    sees one's part), so those of the whole batch up to rounding; `extra` goes from one to the next.
    accumulate must divide the batch.
    """
    gradient = jax.value_and_grad(loss, has_aux=True)
    if accumulate == 1:
        (value, (metrics, extra)), grads = gradient(params, batch, key, extra)
        return mesh.mean(value), mesh.mean(metrics), extra, mesh.mean_gradient(grads)

    def body(carry: PyTree, microbatch: Batch) -> tuple[PyTree, tuple[jax.Array, Metrics]]:
        total, extra = carry
        (value, (metrics, extra)), grads = gradient(params, microbatch, key, extra)
        return (jax.tree.map(jnp.add, total, grads), extra), (value, metrics)

    zeros = jax.tree.map(jnp.zeros_like, params)
    (grads, extra), (values, many) = jax.lax.scan(body, (zeros, extra), cut(batch, accumulate))
    grads = mesh.mean_gradient(jax.tree.map(lambda g: g / accumulate, grads))
    value, metrics = mesh.mean((values.mean(), jax.tree.map(lambda m: m.mean(0), many)))
    return value, metrics, extra, grads


def minimise(
    loss: Callable[..., jax.Array],
    optimizer: optax.GradientTransformation,
    params: PyTree,
    inputs: PyTree,
    *,
    project: Callable[[PyTree], PyTree] = lambda params: params,
    best: bool = False,
) -> tuple[PyTree, jax.Array]:
    """(params, losses [N]) after one step by loss(params, input) -> scalar for each of N inputs.

    For what is small and trained in one go, apart from runs: one scan, so that it can be jitted and
    vmapped over parameters and inputs. inputs: a pytree of arrays [N, ...]. project: applied to the
    parameters after each step. best: those before the step whose loss was least, not the last.
    """

    def body(carry: Any, given: Any) -> tuple[Any, jax.Array]:
        params, opt_state, kept = carry
        value, grads = jax.value_and_grad(loss)(params, given)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        stepped = optax.apply_updates(params, without_constants(updates))
        if best:
            least = jnp.minimum(value, kept[0])
            keep = lambda new, old: jnp.where(value < kept[0], new, old)
            kept = least, jax.tree.map(keep, params, kept[1])
        return (project(stepped), opt_state, kept), value

    kept: Any = (jnp.float32(jnp.inf), params) if best else ()
    (last, _, kept), losses = jax.lax.scan(body, (params, optimizer.init(params), kept), inputs)
    return kept[1] if best else last, losses


def placed(batch: Batch, step: jax.Array) -> Batch:
    """A batch that knows where in training it stands: `index`, `seen` and `microbatch` (0) [B].

    index: each example's place in the global batch, also where this code sees one device's part.
    seen: examples seen before this update. microbatch: its number, which `cut` counts.
    """
    size = batch["label"].shape[0]
    index = mesh.position("data") * size + jnp.arange(size, dtype=jnp.int32)
    seen = jnp.full(size, step.astype(jnp.float32) * size * mesh.size("data"))
    return {**batch, "index": index, "seen": seen, "microbatch": jnp.zeros((), jnp.int32)}


def cut(batch: Batch, count: int) -> Batch:
    """A batch as `count` equal ones: [B, ...] -> [count, B / count, ...].

    Number p holds every count-th example from p on, so that each device's examples stay on it.
    """
    whole = {k: a for k, a in batch.items() if k != "microbatch"}
    pieces = jax.tree.map(
        lambda a: a.reshape(a.shape[0] // count, count, *a.shape[1:]).swapaxes(0, 1), whole
    )
    return {**pieces, "microbatch": jnp.arange(count, dtype=jnp.int32)}


def optimizers_of(optimizer: Any, names: Sequence[str]) -> dict[str, optax.GradientTransformation]:
    """An optimizer for each of several networks: one for all, or a mapping with exactly `names`.

    Raises UsageError for other names.
    """
    if not isinstance(optimizer, Mapping):
        return dict.fromkeys(names, optimizer)
    if set(optimizer) != set(names):
        raise invalid(
            "config.optimizer",
            sorted(optimizer),
            f"one section, or one each for {', '.join(names)}",
        )
    return {name: optimizer[name] for name in names}


def retrained(
    method: Method, needed: Sequence[Callable[[], object]] = (), **changes: Any
) -> Method:
    """The same method with changes of its `Training`: what a wrap does to how it learns.

    needed: what is to be looked at besides, before training.
    """
    known = training_of(method, "wrap")
    training = dataclasses.replace(known, needed=(*known.needed, *needed), **changes)
    init, update = learn(training)
    return dataclasses.replace(method, training=training, init=init, update=update)


def training_of(method: Method, option: str) -> Training:
    """The method's `Training`. Raises UsageError for one that writes its own update."""
    if method.training is None:
        raise invalid(option, "a method with an update of its own", "methods made of learners")
    return method.training


def alone(base: Learner, loss: LossFn, group: str, beside: Sequence[str]) -> dict[str, Any]:
    """What `retrained` is told so that by `loss` a wrap's own group is trained and averaged alone.

    beside: groups that stay trained with it, where earlier wraps have brought them.
    """
    held = (base.trains,) if isinstance(base.trains, str) else base.trains or ()
    groups = (*(name for name in held if name in beside), group)
    learner = dataclasses.replace(base, loss=loss, trains=groups, after=None)
    return {"learners": {"net": learner}, "averaged": groups}


def only_learner(method: Method, option: str) -> Learner:
    """The method's one learner. Raises UsageError for a method that has several."""
    learners = training_of(method, option).learners
    if len(learners) != 1:
        raise invalid(option, f"a method of {len(learners)} losses ({', '.join(learners)})",
                      "a method with one loss")  # fmt: skip
    return next(iter(learners.values()))


def on_params(method: Method, change: Callable[[PyTree], PyTree]) -> Method:
    """The method whose sampler, likelihood, classifier and codes are of change(params).

    Its training is what it was. change: groups to groups, e.g. weights with adapters merged in.
    """

    def first(fn: Callable[..., Any] | None) -> Callable[..., Any] | None:
        if fn is None:
            return None
        known = fn
        return lambda params, *rest: known(None if params is None else change(params), *rest)

    def made(factory: Callable[..., Any] | None, wrap: Callable[[Any], Any]) -> Any:
        if factory is None:
            return None
        known = factory

        @functools.wraps(known)  # its signature is the schema of a config's section
        def build(*args: Any, **options: Any) -> Any:
            return wrap(known(*args, **options))

        return build

    def sampler(inner: Sampler) -> Sampler:
        fn = first(inner.fn)
        assert fn is not None
        return dataclasses.replace(
            inner,
            fn=fn,
            chain=first(inner.chain),
            denoiser=first(inner.denoiser),
            by_weight=first(inner.by_weight),
            log_probs=first(inner.log_probs),
        )

    return dataclasses.replace(
        method,
        sampler=made(method.sampler, sampler),
        log_prob=made(method.log_prob, first),
        label_error=first(method.label_error),
        encode=first(method.encode),
        decode=first(method.decode),
        scores=first(method.scores),
        plain=lambda params: method.plain(change(params)),
    )
