"""Networks for the discrete family that are known exactly: posteriors by enumeration, counters."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.data.bars_and_stripes import bars_and_stripes
from jaxgen.families.discrete.core import Core, Tokens
from jaxgen.families.discrete.schedules import Schedule, linear
from jaxgen.method import Spec


@dataclasses.dataclass(frozen=True, eq=False)
class Posterior:
    """The exact posterior of each element under data that is uniform over `states` [S, N].

    Masks: the states that agree with what is seen. Uniform noise: by Bayes' rule at the share of
    noise at the time that it is told.
    """

    states: np.ndarray
    values: int
    schedule: Schedule | None = None

    def apply(self, variables: Any, x: jax.Array, labels: jax.Array, **options: Any) -> jax.Array:
        """Logits [B, N, V]."""
        del variables, labels
        states = jnp.asarray(self.states)
        agree = x[:, None] == states
        if self.schedule is None:
            log = jnp.where(agree | (x[:, None] == self.values), 0.0, -jnp.inf).sum(-1)
        else:
            share = self.schedule.share(options["noise"])[:, None, None]
            log = jnp.log(jnp.where(agree, 1 - share, 0.0) + share / self.values).sum(-1)
        weights = jax.nn.softmax(log, axis=-1)
        hot = jax.nn.one_hot(states, self.values)
        return jnp.log(jnp.einsum("bs,snv->bnv", weights, hot) + 1e-30)


@dataclasses.dataclass(frozen=True, eq=False)
class Counter:
    """Predicts, everywhere, how many elements are masked; surer of the earlier elements."""

    values: int
    sure: float = 9.0
    less: float = 0.5

    def apply(self, variables: Any, x: jax.Array, labels: jax.Array, **options: Any) -> jax.Array:
        """Logits [B, N, V]."""
        del variables, labels, options
        left = (x == self.values).sum(-1)
        strength = self.sure + self.less * jnp.arange(x.shape[1])[::-1]
        return jax.nn.one_hot(left, self.values)[:, None] * strength[:, None]


def bars(size: int) -> np.ndarray:
    """All bars and stripes as elements [S, size^2] of 0 and 1."""
    source = bars_and_stripes(size=size)
    images = source.images(np.arange(len(source)))
    return (images.reshape(len(images), -1) > 0).astype(np.int32)


def exact_core(
    states: np.ndarray, *, noise: str = "mask", schedule: Schedule | None = None
) -> Core:
    """A core whose network is the exact posterior of uniform data over `states`."""
    way = schedule or linear()
    spec = Spec(shape=(1, states.shape[1]), num_classes=1, levels=2, tokens=True)
    net = Posterior(states, 2, way if noise == "uniform" else None)
    return Core(spec, net, Tokens(2), way, noise, timed=noise == "uniform")


def frequencies(samples: np.ndarray, states: np.ndarray) -> tuple[np.ndarray, float]:
    """The share of samples [M, N] at each of the states, and the share at none of them."""
    code = (1 << np.arange(states.shape[1])).astype(np.int64)
    found = np.bincount(samples @ code, minlength=2 ** states.shape[1]) / len(samples)
    share = found[states @ code]
    return share, 1 - share.sum()


def total_variation(samples: np.ndarray, states: np.ndarray) -> float:
    """From the uniform law on `states`."""
    share, outside = frequencies(samples, states)
    return 0.5 * float(np.abs(share - 1 / len(states)).sum() + outside)
