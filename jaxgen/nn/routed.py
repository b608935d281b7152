"""Several networks in the place of one, each for classes of its own."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import config as configs
from jaxgen.errors import invalid
from jaxgen.nn.conditions import Condition

PyTree = Any


class Routed(nn.Module):
    """Networks that share their kind and nothing else: an example's label says whose it is.

    Song et al., "Multi-student Diffusion Distillation for Better One-step Generators" (2024): each
    student has fewer classes to learn. of: a section of this room. groups: labels, each in one
    group; "no label" goes with the first. Parameters have an axis of groups in front. A network
    that no label of a batch asks for is left out, so that samples cost one call if a batch's labels
    are of one group; a mixed batch costs a call for each. Raises UsageError for groups that are no
    partition of the labels.
    """

    of: Any
    groups: tuple[tuple[int, ...], ...]
    num_classes: int
    out_channels: int
    shape: tuple[int, ...] | None = None
    levels: int | None = None

    def __post_init__(self) -> None:
        """Check the groups."""
        labels = sorted(label for group in self.groups for label in group)
        if labels != list(range(self.num_classes)) or not all(self.groups):
            allowed = f"each of 0 to {self.num_classes - 1} in one group"
            raise invalid("config.model.groups", self.groups, allowed)
        super().__post_init__()

    def _network(self) -> nn.Module:
        """One of them, without parameters."""
        names = ("num_classes", "out_channels", "shape", "levels")
        room, option = configs.ROOMS["model"], "config.model.of"
        offered = configs.wanted(self.of, room, option, {n: getattr(self, n) for n in names})
        network: nn.Module = configs.build(self.of, room, option, **offered)
        return network

    @nn.compact
    def __call__(
        self, x: jax.Array, noise: jax.Array, condition: Any, *, train: bool = False
    ) -> jax.Array:
        """x [B, ...], noise [B], labels [B] (or conditions with "label") -> float32 [B, ...]."""
        network = self._network()
        told = condition.told if isinstance(condition, Condition) else condition
        labels = told["label"] if isinstance(told, dict) else told
        key = self.make_rng("dropout") if train and self.has_rng("dropout") else None

        def fresh(key: jax.Array) -> PyTree:
            init = lambda key: network.init(key, x, noise, condition)["params"]
            return jax.vmap(init)(jax.random.split(key, len(self.groups)))

        def step(out: jax.Array, student: tuple[PyTree, jax.Array]) -> tuple[jax.Array, None]:
            params, number = student
            own = group == number

            def run() -> jax.Array:
                rngs = None if key is None else {"dropout": jax.random.fold_in(key, number)}
                given = ({"params": params}, x, noise, condition)
                said: Any = network.apply(*given, train=train, rngs=rngs)
                return jnp.asarray(said, jnp.float32)

            said = jax.lax.cond(own.any(), run, lambda: jnp.zeros_like(out))
            return jnp.where(own.reshape(-1, *[1] * (out.ndim - 1)), said, out), None

        students = self.param("students", fresh)
        table = np.zeros(self.num_classes + 1, np.int32)
        for number, labelled in enumerate(self.groups):
            table[list(labelled)] = number
        group = jnp.asarray(table)[labels]
        start = jnp.zeros((*x.shape[:-1], self.out_channels), jnp.float32)
        numbers = jnp.arange(len(self.groups))
        return jax.lax.scan(step, start, (students, numbers))[0]
