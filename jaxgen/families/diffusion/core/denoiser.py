"""Denoisers: pure functions (keys, x, t, memory) -> (Prediction, memory) that hold their label.

Guidance maps denoisers to a denoiser; solvers consume one. `memory` is () for almost all; momentum,
caches and adaptive switches live there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.errors import UsageError, invalid
from jaxgen.families.diffusion.core.path import Path
from jaxgen.families.diffusion.core.prediction import (
    Prediction,
    input_scale,
    noise_condition,
    to_prediction,
)
from jaxgen.nn.conditions import Change, Condition, changed
from jaxgen.nn.layers import attention_maps

PyTree = Any
Memory = Any
Layer = int | str
"""A layer of self-attention: its number in a stack, or its block's name."""

Attending = Callable[[jax.Array, jax.Array, jax.Array, Any], tuple[Prediction, Any, jax.Array]]
"""(keys, x, t, memory) -> (Prediction, memory, map [B, h, w])."""


def _no_memory(x: jax.Array) -> Memory:
    return ()


def _one_call(t: float) -> float:
    return 1.0


@dataclasses.dataclass(frozen=True, eq=False)
class Denoiser:
    """call(keys[B], x[B, ...], t, memory) -> (Prediction, memory).

    t is one time () for the batch, or [B] where a solver gives each image its own. init(x) ->
    memory. calls(t): network evaluations that one call at time t costs, a plain number; a denoiser
    that this model does not have raises its UsageError there. path: the path that it denoises,
    where it knows. recondition(change): the same denoiser with change(y) in place of its condition
    vectors y [B, E] (a network's embedding of its condition), where it has such. perturb(layers):
    the same denoiser with the identity for the attention maps of these layers, and attend(layer): a
    call that also returns where that layer attends, [B, h, w] of mean 1, where it has
    self-attention.
    """

    call: Callable[[jax.Array, jax.Array, jax.Array, Memory], tuple[Prediction, Memory]]
    init: Callable[[jax.Array], Memory] = _no_memory
    calls: Callable[[float], float] = _one_call
    path: Path | None = None
    recondition: Callable[[Change], Denoiser] | None = None
    perturb: Callable[[tuple[Layer, ...]], Denoiser] | None = None
    attend: Callable[[Layer], Attending] | None = None

    def __call__(
        self, keys: jax.Array, x: jax.Array, t: jax.Array, memory: Memory = ()
    ) -> tuple[Prediction, Memory]:
        """Estimate both end points from x [B, ...] at time t."""
        return self.call(keys, x, t, memory)


def _itself(labels: Any) -> Any:
    return labels


def path_of(denoiser: Denoiser, path: Path | None) -> Path:
    """`path` where it is given, else the denoiser's own. Raises UsageError where there is none."""
    path = denoiser.path if path is None else path
    if path is None:
        raise invalid("guidance.path", None, "the path that the denoiser denoises", "path=linear()")
    return path


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A Flax network as a source of Predictions: how its input and output are to be read.

    model: module(x, noise, condition, *, train) -> [B, ..., C], or [..., 2 C] where the second half
    are logits of a learned variance. kind: one of `prediction.KINDS`. Whatever is called labels is
    labels [B], a mapping of conditions or a `Condition` (`jaxgen.nn.conditions`). told(labels): the
    condition that the model is given for them, e.g. with a number that is always the same. Raises
    UsageError for a model that multiplies the index of a noise level (`path.discrete`).
    """

    model: Any
    path: Path
    kind: str
    sigma_data: float = 0.5
    learned_variance: bool = False
    told: Callable[[Any], Any] = _itself

    def __post_init__(self) -> None:
        """Check that a path that tells the index has a network that takes it as it is."""
        scale = getattr(self.model, "time_scale", 1.0)
        if self.path.index is not None and self.kind != "edm" and scale != 1:
            allowed = "1 with a path of noise levels, whose networks are told the index"
            raise invalid("config.model.time_scale", scale, allowed)

    def output(
        self,
        params: PyTree,
        x: jax.Array,
        t: jax.Array,
        labels: Any,
        dropout: jax.Array | None = None,
        **options: Any,
    ) -> tuple[jax.Array, jax.Array | None]:
        """The network at x [B, ...], t [B] for labels: (its output, variance logits or None).

        dropout: a key; given, the network runs in training mode. options: what else this network
        takes when called.
        """
        return self.tapped(params, x, t, labels, dropout, (), **options)[:2]

    def tapped(
        self,
        params: PyTree,
        x: jax.Array,
        t: jax.Array,
        labels: Any,
        dropout: jax.Array | None,
        taps: tuple[Layer, ...],
        **options: Any,
    ) -> tuple[jax.Array, jax.Array | None, Mapping[Layer, jax.Array]]:
        """`output`, and the outputs of the layers in `taps`, for networks that have such.

        A tap is a number k, the output after k blocks, or a block's name.
        """
        if taps:
            options = {**options, "taps": taps}
        rngs = None if dropout is None else {"dropout": dropout}
        inputs = self._inputs(x, t, labels)
        train = dropout is not None
        try:
            out = self.model.apply({"params": params}, *inputs, train=train, rngs=rngs, **options)
        except TypeError as error:
            if not taps or "taps" not in str(error):
                raise
            name = type(self.model).__name__
            raise invalid("config.model", name, "a network whose layers can be tapped") from error
        out, outputs = out if taps else (out, {})
        return *self._halves(out), outputs

    def _inputs(self, x: jax.Array, t: jax.Array, labels: Any) -> tuple[jax.Array, jax.Array, Any]:
        """What the network is called with at x [B, ...], t [B]: image, noise, condition."""
        scale = input_scale(self.kind, t, self.path, sigma_data=self.sigma_data)
        scaled = scale.reshape(scale.shape + (1,) * (x.ndim - 1)) * x
        if isinstance(labels, Condition):
            condition: Any = Condition(self.told(labels.told), labels.change)
        else:
            condition = self.told(labels)
        return scaled, noise_condition(self.kind, t, self.path), condition

    def _halves(self, out: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        out = out.astype(jnp.float32)
        if not self.learned_variance:
            return out, None
        mean, variance = jnp.split(out, 2, axis=-1)
        return mean, variance

    def predict(self, params: PyTree, x: jax.Array, t: jax.Array, labels: Any) -> Prediction:
        """The Prediction at x [B, ...], t [] or [B] for labels."""
        out = self.output(params, x, jnp.broadcast_to(t, x.shape[:1]), labels)
        return self._prediction(out, x, t)

    def _prediction(
        self, output: tuple[jax.Array, jax.Array | None], x: jax.Array, t: jax.Array
    ) -> Prediction:
        out, variance = output
        return to_prediction(
            self.kind, out, x, t, self.path, sigma_data=self.sigma_data, variance=variance
        )

    def denoiser(self, params: PyTree, labels: Any) -> NetworkDenoiser:
        """The denoiser of these parameters for labels [B], or for another condition."""

        def call(
            keys: jax.Array, x: jax.Array, t: jax.Array, memory: Memory
        ) -> tuple[Prediction, Memory]:
            return self.predict(params, x, t, labels), memory

        return NetworkDenoiser(
            call,
            path=self.path,
            recondition=lambda change: self._reconditioned(params, labels, change),
            perturb=lambda layers: self.perturbed(layers).denoiser(params, labels),
            attend=lambda layer: self._attending(params, labels, layer),
            network=self,
            params=params,
            labels=labels,
        )

    def perturbed(self, layers: tuple[Layer, ...]) -> Network:
        """The same network with the identity for the attention maps of these layers.

        For networks with a field `identity_attention` (DiT, UNet).
        """
        if not hasattr(self.model, "identity_attention"):
            raise UsageError("guidance: this network has no attention maps to replace.")
        return dataclasses.replace(self, model=self.model.clone(identity_attention=layers))

    def _attending(self, params: PyTree, labels: Any, layer: Layer) -> Attending:
        """`denoiser`'s call that also returns where a layer attends; for DiT and UNet."""

        def call(
            keys: jax.Array, x: jax.Array, t: jax.Array, memory: Memory
        ) -> tuple[Prediction, Memory, jax.Array]:
            inputs = self._inputs(x, jnp.broadcast_to(t, x.shape[:1]), labels)
            out, state = self.model.apply({"params": params}, *inputs, mutable=["intermediates"])
            maps = attention_maps(state.get("intermediates", {}), x.shape[1], x.shape[2])
            if layer not in maps:
                allowed = ", ".join(map(str, maps)) or "nothing: this network has no maps"
                raise invalid("guidance.layer", layer, allowed)
            return self._prediction(self._halves(out), x, t), memory, maps[layer]

        return call

    def _reconditioned(self, params: PyTree, labels: Any, change: Change) -> Denoiser:
        """The denoiser whose condition's embedding [B, width] is changed before the network has it.

        For networks with a field `conditions`, which are told by `jaxgen.nn.conditions`.
        """
        if not hasattr(self.model, "conditions"):
            name = type(self.model).__name__
            allowed = "a network with `conditions` (jaxgen.nn.conditions), whose embedding is known"
            raise invalid("config.model", name, allowed)
        condition = changed(labels, change)

        def call(
            keys: jax.Array, x: jax.Array, t: jax.Array, memory: Memory
        ) -> tuple[Prediction, Memory]:
            return self.predict(params, x, t, condition), memory

        return Denoiser(
            call,
            path=self.path,
            recondition=lambda change: self._reconditioned(params, condition, change),
        )


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class NetworkDenoiser(Denoiser):
    """A denoiser that is one network at one set of parameters: `together` can batch such."""

    network: Network
    params: PyTree
    labels: Any


def together(
    denoisers: Sequence[Denoiser],
    keys: jax.Array,
    x: jax.Array,
    t: jax.Array,
    memories: Sequence[Memory],
) -> tuple[list[Prediction], list[Memory]]:
    """Call several denoisers at the same (x, t): one batched call where they share a network.

    Networks with the same parameters, told the same things, run once on the concatenation of their
    batches; all others run one after the other.
    """
    first = denoisers[0]
    shared = all(
        isinstance(d, NetworkDenoiser)
        and isinstance(first, NetworkDenoiser)
        and d.network is first.network
        and d.params is first.params
        and not isinstance(d.labels, Condition)
        and jax.tree.map(np.shape, d.labels) == jax.tree.map(np.shape, first.labels)
        for d in denoisers
    )
    if not shared or not isinstance(first, NetworkDenoiser):
        pairs = [d(keys, x, t, m) for d, m in zip(denoisers, memories, strict=True)]
        return [p for p, _ in pairs], [m for _, m in pairs]
    count = len(denoisers)
    every = [d.labels for d in denoisers if isinstance(d, NetworkDenoiser)]
    labels = jax.tree.map(lambda *predictions: jnp.concatenate(predictions), *every)
    times = jnp.tile(t, count) if t.ndim else t
    both = first.network.predict(first.params, jnp.concatenate([x] * count), times, labels)
    predictions = [
        jax.tree.map(lambda a, i=i: a[i * x.shape[0] : (i + 1) * x.shape[0]], both)
        for i in range(count)
    ]
    return predictions, list(memories)
