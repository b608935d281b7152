"""Causal networks that are tables, so that laws of guided sequences are sums in float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shared.causal import method
from jaxgen.method import Method, Spec

SEEDS, COUNT, LENGTH, VALUES = 5, 3000, 4, 3
SPEC = Spec((1, LENGTH), 2, levels=VALUES, tokens=True)
EVERY = np.array(list(itertools.product(range(VALUES), repeat=LENGTH)))

CHAINS = np.array(
    [
        [[0.7, 0.2, 0.1], [0.15, 0.6, 0.25], [0.5, 0.1, 0.4]],
        [[0.2, 0.5, 0.3], [0.35, 0.2, 0.45], [0.1, 0.3, 0.6]],
    ]
)
STARTS = np.array([[0.5, 0.3, 0.2], [0.2, 0.25, 0.55]])
SHARES = np.array([0.35, 0.65])
"""Two classes of Markov chains, and how common each is: no two elements are as telling."""


class Table:
    """A Markov chain for each label; the null label is the mixture of all, by Bayes' rule."""

    group = 1

    def clone(self, **_: Any) -> Table:
        """Itself: it has no fields."""
        return self

    def apply(self, variables: Any, tokens: jax.Array, labels: jax.Array, **_: Any) -> jax.Array:
        """Logits [B, N, V] of tokens [B, N] for labels [B]: a chain's, or their number for none."""
        p = variables["params"]
        step = jnp.log(p["chains"])[:, tokens[:, :-1]]
        count, values = p["starts"].shape
        first = jnp.log(p["starts"])[:, None, None]
        start = jnp.broadcast_to(first, (count, len(tokens), 1, values))
        each = jnp.concatenate([start, step], 2)
        said = jnp.take_along_axis(each, tokens[None, ..., None], -1)[..., 0]
        before = jnp.cumsum(said, -1) - said + jnp.log(p["shares"])[:, None, None]
        mixed = jax.nn.logsumexp(jax.nn.log_softmax(before, 0)[..., None] + each, 0)
        every = jnp.concatenate([each, mixed[None]])
        return every[labels, jnp.arange(len(tokens))]


def table(chains: Any = CHAINS, starts: Any = STARTS, shares: Any = SHARES) -> dict[str, jax.Array]:
    """The parameters of a `Table`."""
    arrays = {"chains": chains, "starts": starts, "shares": shares}
    return {name: jnp.asarray(a, jnp.float32) for name, a in arrays.items()}


def family() -> Method:
    """The library's method around a `Table`."""
    return method(SPEC, Table())


def distribution(next_law: Callable[[tuple[int, ...]], np.ndarray]) -> np.ndarray:
    """P of EVERY [81] from next_law(the elements before) -> [V]."""
    probabilities = [
        np.prod([next_law(tuple(x[:n]))[x[n]] for n in range(LENGTH)]) for x in EVERY.tolist()
    ]
    return np.array(probabilities)


def conditional(before: tuple[int, ...], label: int, chains: np.ndarray = CHAINS) -> np.ndarray:
    """p(next | before, label)."""
    return chains[label, before[-1]] if before else STARTS[label]


def of_sequence(before: tuple[int, ...], label: int, chains: np.ndarray = CHAINS) -> float:
    """p(before | label)."""
    probabilities = [conditional(before[:n], label, chains)[before[n]] for n in range(len(before))]
    return float(np.prod(probabilities))


def marginal(before: tuple[int, ...], chains: np.ndarray = CHAINS) -> np.ndarray:
    """p(next | before), whatever the label."""
    joint = [SHARES[c] * of_sequence(before, c, chains) for c in (0, 1)]
    mixed = sum(j * conditional(before, c, chains) for c, j in enumerate(joint))
    return np.asarray(mixed / sum(joint))


def drawn(params: Any, label: int, **options: Any) -> np.ndarray:
    """Sequences for a label, as indices of EVERY [SEEDS, COUNT]."""
    built = family()
    assert built.sampler is not None
    keys = jnp.concatenate([jax.random.split(jax.random.key(s), COUNT) for s in range(SEEDS)])
    labels = jnp.full(len(keys), label)
    tokens = jax.jit(built.sampler(**options).fn)(params, keys, labels)
    places = VALUES ** np.arange(LENGTH - 1, -1, -1)
    return (np.asarray(tokens).reshape(SEEDS, COUNT, LENGTH) * places).sum(-1)


def distance(indices: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Total variation between samples [SEEDS, COUNT] and a law, over what exact draws have.

    The mean distance of n exact draws is sum sqrt(p (1 - p) / n) sqrt(2 / pi) / 2, nearly.
    """
    floor = np.sqrt(exact * (1 - exact) / COUNT).sum() * (2 / np.pi) ** 0.5 / 2
    shares = [np.bincount(i, minlength=len(EVERY)) / COUNT for i in indices]
    return np.array([np.abs(f - exact).sum() / 2 for f in shares]) / floor
