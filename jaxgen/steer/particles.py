"""Sequential Monte Carlo: weighted particles through a chain of steps, resampled when few count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.method.chain import RESAMPLING
from jaxgen.steer.resample import effective_size, log_mean_exp, normalised, systematic, take

PyTree = Any
Step = Callable[[PyTree, Any], tuple[PyTree, jax.Array]]


class Particles(NamedTuple):
    """K weighted samples of one law.

    x [K, ...] and log_weights [K]: averages under the law are `mean`. log_normaliser (): an
    estimate, in nats, of the logarithm of what the weights' target integrates to; its exponential
    is unbiased for the discretised chain. ess [steps]: effective sizes before resampling;
    resampled [steps]: where it was done.
    """

    x: Any
    log_weights: jax.Array
    log_normaliser: jax.Array
    ess: jax.Array
    resampled: jax.Array

    def mean(self, values: jax.Array) -> jax.Array:
        """The weighted mean of values [K, ...]."""
        return jnp.tensordot(normalised(self.log_weights), values, 1)

    def equal(self, key: jax.Array) -> jax.Array:
        """x resampled to equal weights, [K, ...]."""
        return take(self.x, systematic(key, self.log_weights))


def smc(
    step: Step, state: PyTree, inputs: PyTree, keys: jax.Array, threshold: float = 0.5
) -> Particles:
    """Run step(state, input) -> (state, log-weight increments [K]) over inputs' leading axis.

    state: a pytree of arrays [K, ...], and of scalars that all particles share. keys [K]: the first
    gives resampling its draws. Weights are carried until ESS < threshold K; then the particles are
    resampled systematically and all weights are 1 again. threshold = 0: never (importance
    sampling); equal weights are never resampled.
    """
    check_threshold(threshold)
    count = keys.shape[0]
    draw = jax.random.fold_in(keys[0], RESAMPLING)

    def body(carry: Any, numbered: Any) -> tuple[Any, Any]:
        state, log_weights, total = carry
        number, given = numbered
        state, change = step(state, given)
        log_weights = log_weights + change.astype(jnp.float32)
        ess = effective_size(log_weights)
        poor = ess < threshold * count
        kept = systematic(jax.random.fold_in(draw, number), log_weights)
        indices = jnp.where(poor, kept, jnp.arange(count, dtype=kept.dtype))
        total = total + jnp.where(poor, log_mean_exp(log_weights), 0.0)
        log_weights = jnp.where(poor, 0.0, log_weights)
        return (take(state, indices), log_weights, total), (ess, poor)

    steps = jax.tree.leaves(inputs)[0].shape[0]
    start = (state, jnp.zeros(count, jnp.float32), jnp.float32(0.0))
    (state, log_weights, total), (ess, poor) = jax.lax.scan(
        body, start, (jnp.arange(steps), inputs)
    )
    return Particles(state, log_weights, total + log_mean_exp(log_weights), ess, poor)


def check_threshold(threshold: float) -> None:
    """Raises UsageError unless 0 <= threshold <= 1."""
    if not 0 <= threshold <= 1:
        raise invalid("steer.threshold", threshold, "0 (never resample) to 1")
