"""Method: what a family of models gives the training loop, and the way from a loss to an update.

A `Method` is a frozen dataclass of pure functions. The loop, the checkpoints, the sharding, the
evaluator and the command line know nothing else about a family. Most families differ only in their
loss: `gradient_update` turns it into `update`. Families with several optimizers (adversarial,
distillation) write their own `update` out of the same parts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax.core import FrozenDict

from jaxgen import mesh
from jaxgen.errors import invalid
from jaxgen.method.chain import Chain
from jaxgen.method.columns import Column

PyTree = Any
Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a source of data looks like.

    shape: one example's, (H, W, C) for images in [-1, 1], (h, w) for tokens. Labels are int32 in
    [0, num_classes); `null_label`, one past the last, stands for "no label". levels: how many
    values an element can take: 256 for bytes, the vocabulary for tokens, None where any real number
    may come (latents). tokens: examples are int32 in [0, levels) rather than images. target: what a
    source without examples asks for (`jaxgen.data.source.Target`), else None. classes: their names,
    () where the source has none. columns: what else batches hold of each example, by name.
    """

    shape: tuple[int, ...]
    num_classes: int
    levels: int | None = 256
    tokens: bool = False
    target: Any = None
    classes: tuple[str, ...] = ()
    columns: Mapping[str, Column] = FrozenDict()

    def __post_init__(self) -> None:
        """Columns frozen, so that a Spec can be hashed; from JSON too."""
        read = {k: c if isinstance(c, Column) else Column(**c) for k, c in self.columns.items()}
        object.__setattr__(self, "columns", FrozenDict(read))

    @property
    def class_names(self) -> tuple[str, ...]:
        """A name for every class: its number where the source has none."""
        return self.classes or tuple(str(i) for i in range(self.num_classes))

    @property
    def null_label(self) -> int:
        """The label that stands for "no label": one past the last class."""
        return self.num_classes

    @property
    def size(self) -> int:
        """Elements of an example."""
        return math.prod(self.shape)

    @property
    def width(self) -> float:
        """The distance between two neighbouring values of an image in [-1, 1]."""
        return 2.0 / (self._levels - 1)

    @property
    def _levels(self) -> int:
        if self.levels is None:
            raise invalid(
                "config.data.source", "real-valued examples", "a source with discrete values"
            )
        return self.levels

    def to_tokens(self, x: jax.Array) -> jax.Array:
        """Images in [-1, 1] as the nearest of the levels, int32, the same shape; tokens as is."""
        top = self._levels - 1
        if self.tokens:
            return x.astype(jnp.int32)
        return jnp.clip(jnp.round((x + 1) * (top / 2)), 0, top).astype(jnp.int32)

    def from_tokens(self, tokens: jax.Array) -> jax.Array:
        """The inverse of `to_tokens`: float32 images in [-1, 1], or the tokens as they are."""
        if self.tokens:
            return tokens
        return tokens.astype(jnp.float32) * self.width - 1

    def dequantise(self, x: jax.Array, keys: jax.Array) -> jax.Array:
        """Images [B, *shape] with uniform noise of one level's width, keys [B] (Theis et al. 2016).

        ln of the probability of an image is at least E ln p(dequantised) + size ln width.
        """
        noise = jax.vmap(lambda k: jax.random.uniform(k, self.shape, minval=-0.5, maxval=0.5))(keys)
        return x + self.width * noise


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """What the numbers of `Method.log_prob` are.

    exact: of the model itself, up to rounding or a solver's tolerance; otherwise a lower bound in
    expectation. mass: probabilities of the discrete example; otherwise a density over [-1, 1]^d,
    which `Spec.dequantise` turns into a bound on the mass.
    """

    exact: bool
    mass: bool


class TrainState(flax.struct.PyTreeNode):
    """All that training changes; a pytree of arrays, so a checkpoint of it is the whole run.

    step: int32 (), updates done. params: trained parameters. opt_state: the optimizer's.
    ema: name -> averaged params. extra: whatever else a method carries (loss histories, replay
    buffers, codebook counts); () for most.
    """

    step: jax.Array
    params: PyTree
    opt_state: PyTree
    ema: Mapping[str, PyTree]
    extra: PyTree = ()


class Averages(Protocol):
    """Running averages of parameters (see `jaxgen.training.ema`)."""

    def init(self, params: PyTree) -> dict[str, PyTree]:
        """Fresh averages, equal to `params`."""
        ...

    def update(
        self, averages: Mapping[str, PyTree], params: PyTree, step: jax.Array, batch_size: int
    ) -> dict[str, PyTree]:
        """Averages after the update numbered `step` (1 for the first) on `batch_size` images."""
        ...


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A compiled-once sampler: `fn(params, keys[B], labels[B]) -> samples[B, *shape]`.

    Sample i is a function of keys[i] and labels[i] alone. `calls`: network evaluations per sample
    (NFE), guidance branches included; `steps`: solver steps (0 where the notion does not exist).
    chain(params, label ()) -> Chain: the same sampler, for images of one label, taken apart into
    steps that steering may repeat; None where it does not go in steps. denoiser(params, labels[B])
    -> what its solver asks, guidance included; None where labels alone do not say it. Another model
    may be guided by it or stitched to it.
    """

    fn: Callable[[PyTree, jax.Array, jax.Array], Any]
    calls: float
    steps: int = 0
    chain: Callable[[PyTree, jax.Array], Chain] | None = None
    denoiser: Callable[[PyTree, Any], Any] | None = None

    def __call__(self, params: PyTree, keys: jax.Array, labels: jax.Array) -> Any:
        """Draw one sample for each key and label."""
        return self.fn(params, keys, labels)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """A family of models, as pure functions. Fields that a family does not have are None.

    init(key) -> TrainState. update(state, batch, key) -> (TrainState, metrics), where batch has
    `image` [B, *shape] (float32, or int32 tokens; absent where the source is a target) and `label`
    [B] int32, and key is the step's own. metrics has "loss".
    sampler(**options) -> Sampler; its signature is the schema of a config's `sample` section.
    log_prob(**options) -> fn(params, x[B, *shape], labels[B], keys[B]) -> nats [B]; `likelihood`
    says what they are.
    label_error(params, x[B], labels[B], keys[B], draw[B], draws) -> [B]: estimate number `draw` of
    `draws` of -log p(x | label) up to a term that does not depend on the label; the same key and
    draw give the same noise for every label. label_noise: False where it ignores keys and draws,
    so that one draw is all there is.
    encode(params, x[B, *shape]) -> code and decode(params, code) -> x: tokenizers; `code` is the
    Spec of a code, its levels None for latents.
    scores(params, key) -> name -> value: what the family alone knows to measure.
    train_flops() -> floating-point operations to train on one example; None: counted from `update`.
    separable: the gradient of a batch is the mean over its parts, whatever the cut, so that
    `update` may see one device's part (`mesh.Layout.via`).
    """

    spec: Spec
    init: Callable[[jax.Array], TrainState]
    update: Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]
    sampler: Callable[..., Sampler] | None = None
    log_prob: Callable[..., Callable[..., jax.Array]] | None = None
    likelihood: Likelihood | None = None
    label_error: Callable[..., jax.Array] | None = None
    label_noise: bool = True
    encode: Callable[[PyTree, jax.Array], jax.Array] | None = None
    decode: Callable[[PyTree, jax.Array], jax.Array] | None = None
    code: Spec | None = None
    scores: Callable[[PyTree, jax.Array], dict[str, Any]] | None = None
    train_flops: Callable[[], float] | None = None
    separable: bool = False


def fold(keys: jax.Array, number: int | jax.Array) -> jax.Array:
    """fold_in of one number into each of keys [B]."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)


def normal(keys: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Standard normal noise [B, *shape], row i from keys[i] alone."""
    return jax.vmap(lambda k: jax.random.normal(k, shape, dtype))(keys)


def no_label(labels: jax.Array, null_label: int) -> jax.Array:
    """ "No label" for each of labels [B]; of descriptions [B, ...] in their place, NaN."""
    integers = jnp.issubdtype(labels.dtype, jnp.integer)
    return jnp.full_like(labels, null_label if integers else jnp.nan)


def drop_labels(keys: jax.Array, labels: jax.Array, share: float, null_label: int) -> jax.Array:
    """labels [B] with a share of them replaced by "no label" (Ho & Salimans 2022); keys [B].

    Or descriptions [B, ...] in their place (see `no_label`).
    """
    dropped = jax.vmap(jax.random.uniform)(keys) < share
    dropped = dropped.reshape(-1, *[1] * (labels.ndim - 1))
    return jnp.where(dropped, no_label(labels, null_label), labels)


def exact_label_error(
    log_prob: Callable[[PyTree, jax.Array, jax.Array, jax.Array], jax.Array],
) -> Callable[..., jax.Array]:
    """A `label_error` from fn(params, x, labels, keys) -> nats: Bayes' rule with equal priors.

    The key of a draw is fold_in(key, draw), the same for every label.
    """

    def error(
        params: PyTree,
        x: jax.Array,
        labels: jax.Array,
        keys: jax.Array,
        draw: jax.Array,
        draws: int,
    ) -> jax.Array:
        del draws
        return -log_prob(params, x, labels, jax.vmap(jax.random.fold_in)(keys, draw))

    return error


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


def example_keys(key: jax.Array, batch: Batch) -> jax.Array:
    """One key per example, from the step's key and its place in the global batch: keys [B].

    The place comes from `batch["index"]`, never from a rank or a device, so the noise is the same
    on any number of devices, hosts and microbatches.
    """
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(batch["index"])


def dropout_key(key: jax.Array, batch: Batch) -> jax.Array:
    """The key of a microbatch for `nn.parallel.Dropout`, apart from every example's."""
    return jax.random.fold_in(jax.random.fold_in(key, 2**32 - 1), batch["part"])


def placed(batch: Batch, step: jax.Array) -> Batch:
    """A batch that knows where in training it stands: `index`, `seen` and `part` (0) [B].

    index: each example's place in the global batch, also where this code sees one device's part.
    seen: examples seen before this update. part: the microbatch, which `cut` counts.
    """
    size = batch["label"].shape[0]
    index = mesh.position("data") * size + jnp.arange(size, dtype=jnp.int32)
    seen = jnp.full(size, step.astype(jnp.float32) * size * mesh.size("data"))
    return {**batch, "index": index, "seen": seen, "part": jnp.zeros((), jnp.int32)}


LossFn = Callable[[PyTree, Batch, jax.Array, PyTree], tuple[jax.Array, tuple[Metrics, PyTree]]]


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

    def body(carry: PyTree, part: Batch) -> tuple[PyTree, tuple[jax.Array, Metrics]]:
        total, extra = carry
        (value, (metrics, extra)), grads = gradient(params, part, key, extra)
        return (jax.tree.map(jnp.add, total, grads), extra), (value, metrics)

    zeros = jax.tree.map(jnp.zeros_like, params)
    (grads, extra), (values, many) = jax.lax.scan(body, (zeros, extra), cut(batch, accumulate))
    grads = mesh.mean_gradient(jax.tree.map(lambda g: g / accumulate, grads))
    value, metrics = mesh.mean((values.mean(), jax.tree.map(lambda m: m.mean(0), many)))
    return value, metrics, extra, grads


def cut(batch: Batch, parts: int) -> Batch:
    """A batch as `parts` equal ones: [B, ...] -> [parts, B / parts, ...].

    Part p holds every parts-th example from p on, so that each device's examples stay on it.
    """
    whole = {k: a for k, a in batch.items() if k != "part"}
    pieces = jax.tree.map(
        lambda a: a.reshape(a.shape[0] // parts, parts, *a.shape[1:]).swapaxes(0, 1), whole
    )
    return {**pieces, "part": jnp.arange(parts, dtype=jnp.int32)}


def gradient_update(
    loss: LossFn,
    optimizer: optax.GradientTransformation,
    averages: Averages,
    *,
    accumulate: int = 1,
    project: Callable[[PyTree], PyTree] | None = None,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]:
    """Turn a loss into an update: gradient, accumulation, optimizer step, projection, averages.

    loss(params, batch, key, extra) -> (scalar, (metrics, extra)), a mean over the examples given;
    the batch has what `placed` adds (what is annealed counts in `seen`). accumulate: the number of
    microbatches a batch is cut into (must divide B); the gradient is the mean over them, so the
    result is that of the whole batch up to rounding. project: applied to the parameters after each
    step (EDM2's forced weight normalisation). Clipping is a part of `optimizer`.
    """

    def update(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        size = batch["label"].shape[0] * mesh.size("data")
        batch = placed(batch, state.step)
        value, metrics, extra, grads = mean_gradient(
            loss, state.params, batch, key, state.extra, accumulate
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        if project is not None:
            params = project(params)
        step = state.step + 1
        ema = averages.update(state.ema, params, step, size)
        metrics = {"loss": value, "grad_norm": optax.global_norm(grads), **metrics}
        return TrainState(step, params, opt_state, ema, extra), metrics

    return update
