"""`mean_flow` and `shortcut`: networks of two times that jump from noise to data in few steps.

The network is u(z, t, h, label), the mean velocity of the probability flow from z at time t back to
time t - h: z_{t-h} = z_t - h u. At h = 0 it is flow matching's velocity. It reads the two numbers
(t, h) as its noise [B, 2], as every network with a `NoiseEmbedding` does; give such a network
time_scale=1 for `mean_flow`, whose loss has the network's derivative in t.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxgen.config import ROOMS, part
from jaxgen.errors import invalid
from jaxgen.families.diffusion.core.path import Path, expand
from jaxgen.families.diffusion.core.sampler import prior
from jaxgen.families.diffusion.core.times import Times
from jaxgen.families.diffusion.terms.base import example_mean
from jaxgen.families.diffusion.terms.loss import Draws
from jaxgen.method import (
    Averages,
    Batch,
    LossFn,
    Method,
    Metrics,
    Sampler,
    Spec,
    dropout_key,
    example_keys,
    fold,
    method_of,
    single,
)
from jaxgen.method.streams import OTHER, STEP_TIME, TIME

PyTree = Any
SECOND, PLACE = 2, 4
"""An example's streams, beside those of all methods: its second time, a jump's place."""

Jump = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""u(z [B, ...], t [B], h [B]) -> [B, ...] at fixed parameters and labels."""


def mean_flow_target(
    u: Jump, z: jax.Array, v: jax.Array, t: jax.Array, h: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(u, v - h du/dt) at z_t, whose velocity is v (Geng et al. 2025).

    du/dt runs along the flow with the end time t - h fixed: one forward derivative with tangents
    (v, 1, 1).
    """
    ones = jnp.ones_like(t)
    out, slope = jax.jvp(u, (z, t, h), (v, ones, ones))
    return out, v - expand(h, v) * slope


def shortcut_target(u: Jump, z: jax.Array, t: jax.Array, h: jax.Array) -> jax.Array:
    """The mean velocity over h of two jumps of h / 2 (Frans et al. 2024)."""
    half = h / 2
    first = u(z, t, half)
    return (first + u(z - expand(half, z) * first, t - half, half)) / 2


def mean_flow(
    spec: Spec,
    model: Any,
    optimizer: optax.GradientTransformation,
    averages: Averages,
    *,
    path: Path | str = "linear",
    times: Any = "uniform",
    coupling: Any = "independent",
    share: float = 0.25,
    power: float = 1.0,
    accumulate: int = 1,
) -> Method:
    """MeanFlow (Geng et al. 2025): the mean velocity by its own differential identity, one stage.

    spec: the data. model: a Flax module(x, noise [B, 2], labels, *, train). times: two draws are t
    and t - h. coupling: as `denoising`'s. share: of examples with h > 0; the rest is flow matching.
    power: an example's squared error is divided by (itself + 1e-3)^power, without a gradient (their
    adaptive weight; 0: none, 1: theirs). Labels are given, guidance is not offered. Parameters are
    {"net": ...}.

    Raises UsageError for values out of range.
    """
    if power < 0:
        raise invalid("method.power", power, "power >= 0")
    route, draws = _path_and_draws(spec, path, times, coupling, share)

    def loss(
        params: PyTree, batch: Batch, key: jax.Array, extra: PyTree
    ) -> tuple[jax.Array, tuple[Metrics, PyTree]]:
        u, x0, keys = _jump(model, params, batch, key), *_data(batch, key)
        step, index = jax.random.fold_in(key, STEP_TIME), batch["index"]
        a, b = (
            draws.times.draw(fold(keys, stream), step, index, route, ())[0]
            for stream in (TIME, SECOND)
        )
        jumps = jax.vmap(jax.random.uniform)(fold(keys, OTHER)) < share
        t, h = jnp.where(jumps, jnp.maximum(a, b), a), jnp.where(jumps, jnp.abs(a - b), 0.0)
        _, z, v = draws.at(route, "velocity", x0, keys, t)
        out, wanted = mean_flow_target(u, z, v, t, h)
        error = example_mean((out - jax.lax.stop_gradient(wanted)) ** 2)
        weight = 1 / (jax.lax.stop_gradient(error) + 1e-3) ** power
        return (weight * error).mean(), ({"mse": error.mean()}, extra)

    return _method(spec, model, optimizer, averages, route, draws, loss, accumulate)


def shortcut(
    spec: Spec,
    model: Any,
    optimizer: optax.GradientTransformation,
    averages: Averages,
    *,
    path: Path | str = "linear",
    times: Any = "uniform",
    coupling: Any = "independent",
    share: float = 0.25,
    levels: int = 7,
    accumulate: int = 1,
) -> Method:
    """Shortcut models (Frans et al. 2024): a jump of h learns what two jumps of h / 2 do.

    spec, model, coupling, times (of the rest): as `mean_flow`. share: of examples with a jump,
    h = 2^-k with k uniform in 0 to levels - 1, t a multiple of h; the rest is flow matching, h = 0.
    Half of the smallest jump is flow matching's too. Targets come from the current parameters,
    where the paper takes an average of them. Sample with a power of two of steps.

    Raises UsageError for values out of range.
    """
    if levels < 1:
        raise invalid("method.levels", levels, "levels >= 1")
    route, draws = _path_and_draws(spec, path, times, coupling, share)

    def loss(
        params: PyTree, batch: Batch, key: jax.Array, extra: PyTree
    ) -> tuple[jax.Array, tuple[Metrics, PyTree]]:
        u, x0, keys = _jump(model, params, batch, key), *_data(batch, key)
        step, index = jax.random.fold_in(key, STEP_TIME), batch["index"]
        free = draws.times.draw(fold(keys, TIME), step, index, route, ())[0]
        k = jax.vmap(lambda a: jax.random.randint(a, (), 0, levels))(fold(keys, SECOND))
        jumps = jax.vmap(jax.random.uniform)(fold(keys, OTHER)) < share
        h = jnp.exp2(-k.astype(jnp.float32))
        place = jnp.floor(jax.vmap(jax.random.uniform)(fold(keys, PLACE)) * jnp.exp2(k)) + 1
        t, h = jnp.where(jumps, place * h, free), jnp.where(jumps, h, 0.0)
        _, z, v = draws.at(route, "velocity", x0, keys, t)

        def halves(z: jax.Array, t: jax.Array, half: jax.Array) -> jax.Array:
            # Half of the smallest jump is nobody's whole jump: it stands for h = 0.
            return u(z, t, jnp.where(half < 2.0 ** (1 - levels), 0.0, half))

        wanted = jnp.where(expand(jumps, z), shortcut_target(halves, z, t, h), v)
        error = example_mean((u(z, t, h) - jax.lax.stop_gradient(wanted)) ** 2)
        return error.mean(), ({"mse": error.mean()}, extra)

    return _method(spec, model, optimizer, averages, route, draws, loss, accumulate)


def _path_and_draws(
    spec: Spec, path: Path | str, times: Any, coupling: Any, share: float
) -> tuple[Path, Draws]:
    """The path of a config, and what of its training is random."""
    if not 0 <= share <= 1:
        raise invalid("method.share", share, "0 <= share <= 1")
    sampled: Times = part(times, ROOMS["times"], "method.times")
    if jax.tree.leaves(jax.eval_shape(sampled.init)):
        raise invalid("method.times", times, "times without a state, such as 'uniform'")
    pairing = part(coupling, "jaxgen.families.diffusion.core.coupling", "method.coupling")
    draws = Draws(times=sampled, num_classes=spec.num_classes, coupling=pairing)
    route: Path = part(path, ROOMS["path"], "method.path")
    if route.index is not None:
        raise invalid("method.path", path, "a path whose networks are told times, not an index")
    return route, draws


def _data(batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    return batch["image"].astype(jnp.float32), example_keys(key, batch)


def _jump(model: Any, params: PyTree, batch: Batch, key: jax.Array) -> Jump:
    """The network in training mode as a function of (z, t, h)."""
    rngs = {"dropout": dropout_key(key, batch)}

    def u(z: jax.Array, t: jax.Array, h: jax.Array) -> jax.Array:
        noise, net = jnp.stack([t, h], -1), {"params": params["net"]}
        return model.apply(net, z, noise, batch["label"], train=True, rngs=rngs)

    return u


def _method(
    spec: Spec,
    model: Any,
    optimizer: optax.GradientTransformation,
    averages: Averages,
    path: Path,
    draws: Draws,
    loss: LossFn,
    accumulate: int,
) -> Method:
    def fresh(key: jax.Array) -> tuple[dict[str, PyTree], PyTree]:
        x, label = jnp.zeros((1, *spec.shape)), jnp.zeros(1, jnp.int32)
        params = {"net": model.init(key, x, jnp.zeros((1, 2)), label)["params"]}
        return params, ()

    def sampler(*, steps: int = 1) -> Sampler:
        """Jumps of 1 / steps from noise at t=1 to data at t=0; raises UsageError: steps < 1."""
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise invalid("sample.steps", steps, "an integer >= 1")

        @jax.jit
        def draw(params: PyTree, keys: jax.Array, labels: jax.Array) -> jax.Array:
            def jump(z: jax.Array, t: jax.Array) -> tuple[jax.Array, None]:
                noise = jnp.broadcast_to(jnp.stack([t, 1 / steps]), (z.shape[0], 2))
                return z - model.apply({"params": params["net"]}, z, noise, labels) / steps, None

            times = 1 - jnp.arange(steps) / steps
            return jax.lax.scan(jump, prior(path, keys, tuple(spec.shape)), times)[0]

        return Sampler(draw, steps, steps)

    training = single(loss, fresh, optimizer, averages, accumulate=accumulate)
    return method_of(spec, training, sampler=sampler, separable=not draws.coupling.whole_batch)
