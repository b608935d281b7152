"""Rewriting a layer: the new value exactly, other keys changed least of all ways to have it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.shared.check import Check, below, control, near
from jaxgen.method import minimise
from jaxgen.tune.rewriting import directions, fitted, rewritten, second_moment

PAPER = "Rewriting a Deep Generative Model"
ENTRY = "jaxgen.tune.rewriting.rewritten"
D, OUT, COUNT, SEVERAL = 12, 5, 2000, 3


def drift(kernel: jax.Array, before: jax.Array, moment: jax.Array) -> float:
    """E |(W - W0) k|^2 over the keys of the data."""
    change = kernel - before
    return float(jnp.trace(change.T @ moment @ change))


def solved(kernel: Any, moment: Any, keys: Any, values: Any) -> np.ndarray:
    """The minimum of that under keys W = values, from its conditions as a whole, in float64.

    keys [S, D], values [S, out].
    """
    w, c, k, v = (np.asarray(a, np.float64) for a in (kernel, moment, keys, values))
    system = np.block([[2 * c, k.T], [k, np.zeros((len(k), len(k)))]])
    return np.linalg.solve(system, np.concatenate([2 * c @ w, v]))[: len(w)]


def checks() -> list[Check]:
    """A linear layer and its conditions; then several keys through a layer that is not linear."""
    k = jax.random.split(jax.random.key(0), 6)
    mixing = jax.random.normal(k[0], (D, D)) * jnp.geomspace(1.0, 0.1, D)[:, None] / D**0.5
    keys = jax.random.normal(k[1], (COUNT, D)) @ mixing
    kernel, moment = jax.random.normal(k[2], (D, OUT)), second_moment(keys)
    key, value = keys[0], jax.random.normal(k[3], (OUT,))
    edited = rewritten(kernel, moment, key, value)
    exact = solved(kernel, moment, key[None], value[None])
    results = [
        below("new value missed", jnp.abs(key @ edited - value).max(), 1e-4),
        below("kernel off the exact minimum", np.abs(edited - exact).max(), 1e-3),
    ]
    loss = lambda w, _: ((key @ w - value) ** 2).sum()
    tuned = minimise(loss, optax.sgd(0.1), kernel, jnp.arange(500))[0]
    least = drift(jnp.asarray(exact), kernel, moment)
    results.append(below("new value missed by descent", jnp.abs(key @ tuned - value).max(), 1e-4))
    check = "other keys' change over the least"
    results.append(below(check, drift(edited, kernel, moment) / least - 1, 1e-3))
    results.append(
        control(below(f"{check}, by descent", drift(tuned, kernel, moment) / least - 1, 1e-3))
    )

    some = keys[:SEVERAL]
    wanted = 0.5 * jax.random.normal(k[4], (SEVERAL, OUT))
    error = lambda w: ((jnp.tanh(some @ w) - jnp.tanh(wanted)) ** 2).mean()
    tx = optax.adam(optax.cosine_decay_schedule(0.1, 3000))
    basis = directions(moment, some, SEVERAL)
    # The layer can be inverted, so that the least change is known here too.
    least = drift(jnp.asarray(solved(kernel, moment, some, wanted)), kernel, moment)
    found = {
        "in the span": fitted(error, kernel, basis, tx, 3000),
        "of any kind": minimise(lambda w, _: error(w), tx, kernel, jnp.arange(3000))[0],
    }
    for name, w in found.items():
        results.append(below(f"error of several values, changes {name}", error(w), 1e-4))
        over = drift(w, kernel, moment) / least - 1
        kept = near(f"other keys' change over the least, changes {name}", over, 0.0, 1e-3)
        results.append(kept if name == "in the span" else control(kept))
    return results
