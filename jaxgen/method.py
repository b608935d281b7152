"""Method: what a family of models gives the training loop, and the way from a loss to an update.

A `Method` is a frozen dataclass of pure functions. The loop, the checkpoints, the sharding, the
evaluator and the command line know nothing else about a family. Most families differ only in their
loss: `gradient_update` turns it into `update`. Families with several optimizers (adversarial,
distillation) write their own `update` out of the same parts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp
import optax

PyTree = Any
Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a source of data looks like: one example's shape (H, W, C) and the number of classes.

    Labels are int32 in [0, num_classes); `null_label`, one past the last, stands for "no label".
    """

    shape: tuple[int, ...]
    num_classes: int

    @property
    def null_label(self) -> int:
        """The label that stands for "no label": one past the last class."""
        return self.num_classes


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
    """

    fn: Callable[[PyTree, jax.Array, jax.Array], jax.Array]
    calls: float
    steps: int = 0

    def __call__(self, params: PyTree, keys: jax.Array, labels: jax.Array) -> jax.Array:
        """Draw one sample for each key and label."""
        return self.fn(params, keys, labels)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """A family of models, as pure functions. Fields that a family does not have are None.

    init(key) -> TrainState. update(state, batch, key) -> (TrainState, metrics), where batch has
    `image` [B, *shape] float32 and `label` [B] int32 and key is the step's own.
    sampler(**options) -> Sampler; its signature is the schema of a config's `sample` section.
    log_prob(**options) -> fn(params, x[B, *shape], labels[B], keys[B]) -> nats [B].
    label_error(params, x[B], labels[B], keys[B], draw[B], draws) -> [B]: estimate number `draw` of
    `draws` of -log p(x | label) up to a term that does not depend on the label; the same key and
    draw give the same noise for every label. Exact families ignore keys and draws.
    """

    spec: Spec
    init: Callable[[jax.Array], TrainState]
    update: Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]
    sampler: Callable[..., Sampler]
    log_prob: Callable[..., Callable[..., jax.Array]] | None = None
    label_error: Callable[..., jax.Array] | None = None
    encode: Callable[..., jax.Array] | None = None
    decode: Callable[..., jax.Array] | None = None


def example_keys(key: jax.Array, batch: Batch) -> jax.Array:
    """One key per example, from the step's key and its place in the global batch: keys [B].

    The place comes from `batch["index"]`, never from a rank or a device, so the noise is the same
    on any number of devices, hosts and microbatches.
    """
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(batch["index"])


LossFn = Callable[[PyTree, Batch, jax.Array, PyTree], tuple[jax.Array, tuple[Metrics, PyTree]]]


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
    `batch["index"]` is each example's place in the global batch. accumulate: the number of
    microbatches a batch is cut into (must divide B); the gradient is the mean over them, so the
    result is that of the whole batch up to rounding. project: applied to the parameters after each
    step (EDM2's forced weight normalisation). Clipping is a part of `optimizer`.
    """

    def update(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        size = batch["label"].shape[0]
        batch = {**batch, "index": jnp.arange(size, dtype=jnp.int32)}
        gradient = jax.value_and_grad(loss, has_aux=True)
        if accumulate == 1:
            (value, (metrics, extra)), grads = gradient(state.params, batch, key, state.extra)
        else:
            # (B,) -> (accumulate, B / accumulate) with each device's examples staying on it.
            micro = jax.tree.map(
                lambda a: a.reshape(size // accumulate, accumulate, *a.shape[1:]).swapaxes(0, 1),
                batch,
            )

            def body(carry: PyTree, part: Batch) -> tuple[PyTree, tuple[jax.Array, Metrics]]:
                total, extra = carry
                (value, (metrics, extra)), grads = gradient(state.params, part, key, extra)
                return (jax.tree.map(jnp.add, total, grads), extra), (value, metrics)

            zeros = jax.tree.map(jnp.zeros_like, state.params)
            (grads, extra), (values, many) = jax.lax.scan(body, (zeros, state.extra), micro)
            grads = jax.tree.map(lambda g: g / accumulate, grads)
            value, metrics = values.mean(), jax.tree.map(lambda m: m.mean(0), many)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        if project is not None:
            params = project(params)
        step = state.step + 1
        ema = averages.update(state.ema, params, step, size)
        metrics = {"loss": value, "grad_norm": optax.global_norm(grads), **metrics}
        return TrainState(step, params, opt_state, ema, extra), metrics

    return update
