"""ln p(x | c) / p_ref(x | c): how much more a model likes x than a frozen copy of it does.

For every family that classifies: likelihoods exact, or by errors at noise that both share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.method import Method, teacher_of

PyTree = Any
LogRatio = Callable[[PyTree, jax.Array, jax.Array, jax.Array], jax.Array]


def log_ratio(
    model: Method, networks: Mapping[str, Any], teacher: str, option: str, draws: int
) -> LogRatio:
    """fn(params, x [B, ...], labels [B], keys [B]) -> nats [B], of networks[teacher] as p_ref.

    params have the copy's under ["frozen"][teacher]. draws: errors that it is estimated by, where
    likelihoods are not exact; the same keys are the same noise, whatever x and label. Training
    needs `having(networks, [teacher], "label_error")`. Raises UsageError: no such network, a method
    that does not classify.
    """
    if model.label_error is None:
        raise invalid(option, "a method without likelihoods", "methods that classify")
    error, other = model.label_error, teacher_of(networks, teacher, option)

    def ratio(params: PyTree, x: jax.Array, labels: jax.Array, keys: jax.Array) -> jax.Array:
        held, reference = params["frozen"][teacher], other.method.label_error

        def draw(n: jax.Array) -> jax.Array:
            each = jnp.full(labels.shape, n)
            ours = error(params, x, labels, keys, each, draws)
            return reference(held, x, labels, keys, each, draws) - ours

        return jax.vmap(draw)(jnp.arange(draws)).mean(0)

    return ratio
