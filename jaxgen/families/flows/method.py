"""`flow`: normalising flows as a Method, from any invertible network.

A network is a Flax module(x, labels, train=...) -> (z [B, D], ln |det dz/dx| [B]) with
`inverse(params, z, labels, guidance)`, `calls(guidance)` and `guidable`; z is standard normal. The
inverse of one that is guidable takes annealed=True too.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from jaxgen.errors import invalid
from jaxgen.method import (
    Averages,
    Batch,
    Likelihood,
    LossFn,
    Method,
    Metrics,
    Sampler,
    Spec,
    TrainState,
    check_dropout,
    drop_labels,
    dropout_key,
    exact_label_error,
    example_keys,
    fold,
    method_of,
    never_dropped,
    normal,
    single,
)
from jaxgen.method.learning import Prepare
from jaxgen.method.streams import NOISE

PyTree = Any
Noised = Callable[[jax.Array, jax.Array], jax.Array]
DROPPED = 1
"""The stream of an example's key that says whether its label is dropped."""


def density(
    model: Any, params: PyTree, x: jax.Array, labels: jax.Array, **kwargs: Any
) -> jax.Array:
    """ln p(x | label) in nats [B]: ln N(z; 0, I) + ln |det dz/dx|."""
    z, log_det = model.apply({"params": params}, x, labels, **kwargs)
    return log_det - 0.5 * ((z**2).sum(-1) + z.shape[-1] * math.log(2 * math.pi))


def denoise(
    model: Any, params: PyTree, x: jax.Array, labels: jax.Array, noise_std: float
) -> jax.Array:
    """x + noise_std^2 grad ln p(x): Tweedie's posterior mean, if p is of data with that noise.

    Zhai et al. 2024, eq. 7.
    """
    score = jax.grad(lambda x: density(model, params, x, labels).sum())(x)
    return x + noise_std**2 * score


def likelihood_loss(spec: Spec, model: Any, noised: Noised, label_dropout: float) -> LossFn:
    """Minus ln p of noised examples, in nats per dimension."""

    def loss(
        params: PyTree, batch: Batch, key: jax.Array, extra: PyTree
    ) -> tuple[jax.Array, tuple[Metrics, PyTree]]:
        keys = example_keys(key, batch)
        x = noised(batch["image"], fold(keys, NOISE))
        labels = drop_labels(fold(keys, DROPPED), batch["label"], label_dropout, spec.null_label)
        rng = dropout_key(key, batch)
        log_probs = density(model, params["net"], x, labels, train=True, rngs={"dropout": rng})
        value = -log_probs.mean() / spec.size
        return value, ({"bits_per_dim": value / math.log(2)}, extra)

    return loss


def first_batch(model: Any, noised: Noised) -> Prepare:
    """Before the first update: the network set from the first batch, and averages with it."""

    def prepare(
        state: TrainState, batch: Batch, key: jax.Array, frozen: PyTree
    ) -> tuple[TrainState, Batch, Metrics]:
        def start(params: PyTree) -> PyTree:
            x = noised(batch["image"], fold(example_keys(key, batch), NOISE))
            _, new = model.apply(
                {"params": params["net"]}, x, batch["label"], initialise=True, mutable=["params"]
            )
            return {**params, "net": new["params"]}

        done = state.extra["initialised"]
        params = jax.lax.cond(done, lambda p: p, start, state.params)

        def following(average: PyTree) -> PyTree:
            fresh = {group: params[group] for group in average}
            return jax.tree.map(lambda a, b: jnp.where(done, a, b), average, fresh)

        ema = {name: following(average) for name, average in state.ema.items()}
        extra = {"initialised": jnp.ones((), bool)}
        return state.replace(params=params, ema=ema, extra=extra), batch, {}

    return prepare


def flow(
    spec: Spec,
    model: Any,
    optimizer: optax.GradientTransformation,
    averages: Averages,
    *,
    noise: Literal["uniform", "gaussian"] = "uniform",
    noise_std: float = 0.05,
    label_dropout: float = 0.0,
    accumulate: int = 1,
) -> Method:
    """Train by exact likelihood; sample by the inverse.

    noise: what is added to the images. "uniform" is dequantisation, with which the likelihood
    bounds that of the discrete images; "gaussian", of standard deviation noise_std, gives better
    samples (Zhai et al. 2024, sec. 3.2), which are then denoised by the flow's own score.
    label_dropout: share of labels dropped, which guidance needs. Metrics: loss is nats per
    dimension. A network with `initialise` (Glow's actnorm) is set from the first batch.

    Raises UsageError for values out of range.
    """
    _check(spec, noise, noise_std, label_dropout)
    has_start = "initialise" in inspect.signature(model.__call__).parameters

    def noised(x: jax.Array, keys: jax.Array) -> jax.Array:
        if noise == "gaussian":
            return x + noise_std * normal(keys, spec.shape)
        return x if spec.levels is None else spec.dequantise(x, keys)

    def fresh(key: jax.Array) -> tuple[dict[str, PyTree], PyTree]:
        example = jnp.zeros((1, *spec.shape))
        params = {"net": model.init(key, example, jnp.zeros(1, jnp.int32))["params"]}
        return params, {"initialised": jnp.zeros((), bool)} if has_start else ()

    def sampler(
        *,
        temperature: float = 1.0,
        guidance: float = 1.0,
        annealed: bool = False,
        denoised: bool = noise == "gaussian",
    ) -> Sampler:
        """Samples by the inverse flow. temperature: standard deviation of the latents. guidance:
        extrapolates each step's shift and scale from those without a label; annealed: less of it
        for the first places of an image than for the last. denoised: one step of the flow's score,
        for models trained with Gaussian noise."""  # fmt: skip
        if temperature < 0:
            raise invalid("sample.temperature", temperature, "temperature >= 0")
        if guidance != 1.0 and not model.guidable:
            raise invalid("sample.guidance", guidance, "1: this flow cannot be guided")
        if annealed and not model.guidable:
            raise invalid("sample.annealed", annealed, "False: this flow cannot be guided")
        if guidance != 1.0 and label_dropout == 0:
            raise never_dropped(guidance, "sample.guidance")
        if denoised and noise != "gaussian":
            raise invalid("sample.denoised", denoised, "False where noise is 'uniform'")

        options = {"annealed": True} if annealed else {}

        def by_weight(
            params: PyTree, keys: jax.Array, labels: jax.Array, weights: float | jax.Array
        ) -> jax.Array:
            z = temperature * normal(keys, (spec.size,))
            x = model.inverse(params["net"], z, labels, weights, **options)
            if denoised:
                x = denoise(model, params["net"], x, labels, noise_std)
            return x

        @jax.jit
        def draw(params: PyTree, keys: jax.Array, labels: jax.Array) -> jax.Array:
            return by_weight(params, keys, labels, guidance)

        calls, guided = model.calls(guidance) + denoised, model.guidable and label_dropout > 0
        return Sampler(draw, calls, by_weight=by_weight if guided else None)

    def log_prob() -> Callable[..., jax.Array]:
        """The exact density; nothing is drawn for it."""
        return lambda params, x, labels, keys: density(model, params["net"], x, labels)

    loss = likelihood_loss(spec, model, noised, label_dropout)
    training = single(loss, fresh, optimizer, averages, accumulate=accumulate)
    if has_start:
        # What came from another run is initialised already.
        training = dataclasses.replace(
            training,
            prepare=first_batch(model, noised),
            started=lambda state: state.replace(extra={"initialised": jnp.ones((), bool)}),
        )
    return method_of(
        spec,
        training,
        sampler=sampler,
        log_prob=log_prob,
        likelihood=Likelihood(exact=True, mass=False),
        label_error=exact_label_error(log_prob()),
        label_noise=False,
        separable=not has_start,
    )


def _check(spec: Spec, noise: str, noise_std: float, label_dropout: float) -> None:
    """Refuse values out of range, and tokens."""
    if noise not in ("uniform", "gaussian"):
        raise invalid("method.noise", noise, "'uniform', 'gaussian'")
    if noise_std <= 0:
        raise invalid("method.noise_std", noise_std, "noise_std > 0")
    check_dropout(label_dropout)
    if spec.tokens:
        raise invalid("method", "a flow", "a source of images or latents, not of tokens")
