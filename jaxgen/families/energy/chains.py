"""Persistent chains: Langevin from uniform noise, kept in a ring in the state of training.

Tieleman, "Training Restricted Boltzmann Machines using Approximations to the Likelihood Gradient"
(2008); restarted now and then as Du & Mordatch, "Implicit Generation and Modeling with Energy-Based
Models" (2019).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.method.mcmc import chain, langevin
from jaxgen.method.ring import Ring, ring_of, turn, turned
from jaxgen.method.streams import LABEL, NOISE, fold

Score = Callable[[jax.Array, jax.Array], jax.Array]
"""ln p(x | label) up to a constant, [B], of x [B, ...] and labels [B]."""

START = 4
"""An example's stream of a chain that starts anew."""


@dataclasses.dataclass(frozen=True)
class Chains:
    """Chains in [-1, 1]^shape of `steps` Langevin moves a turn, of `step_size` and `noise`.

    size: how many are kept, a multiple of the batch. restart: the chance to start anew.
    """

    shape: tuple[int, ...]
    size: int
    restart: float
    steps: int
    step_size: float
    noise: float

    def __post_init__(self) -> None:
        """Raises UsageError for values out of range."""
        for name, value, low in (
            ("buffer", self.size, 1),
            ("steps", self.steps, 1),
            ("step_size", self.step_size, 1e-9),
            ("noise", self.noise, 0),
        ):
            if value < low:
                raise invalid(f"method.{name}", value, f"a number >= {low:g}")
        if not 0 <= self.restart <= 1:
            raise invalid("method.restart", self.restart, "0 <= restart <= 1")

    def start(self, keys: jax.Array) -> jax.Array:
        """Uniform noise, [B, *shape], each from its own key."""
        draw = lambda key: jax.random.uniform(key, self.shape, minval=-1.0, maxval=1.0)
        return jax.vmap(draw)(keys)

    def moved(
        self, score: Score, keys: jax.Array, x: jax.Array, labels: jax.Array, steps: int
    ) -> jax.Array:
        """x after `steps` moves."""
        kernel = langevin(lambda y: score(y, labels), self.step_size, self.noise)
        return chain(kernel, keys, x, steps)

    def ring(self, key: jax.Array, labels: jax.Array) -> Ring:
        """The chains of labels [size], all at their start."""
        return ring_of({"x": self.start(jax.random.split(key, self.size)), "label": labels})

    def turn(self, ring: Ring, score: Score, keys: jax.Array) -> tuple[Ring, jax.Array, jax.Array]:
        """(the ring, where those chains whose turn it is now are [B, *shape], their labels)."""
        held = turn(ring, keys.shape[0])
        again = jax.vmap(jax.random.uniform)(fold(keys, LABEL)) < self.restart
        again = again.reshape(-1, *(1,) * len(self.shape))
        x = jnp.where(again, self.start(fold(keys, START)), held["x"])
        x = self.moved(score, fold(keys, NOISE), x, held["label"], self.steps)
        return turned(ring, {**held, "x": x}), x, held["label"]
