"""TR0N: a network translates conditions into latents of a frozen generator; Langevin refines them.

Liu et al. 2023, "TR0N: Translator Networks for 0-Shot Plug-and-Play Conditional Generation". The
generator's own draws are the training set, so that there is no data, and neither network changes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.method import fold, normal
from jaxgen.steer.langevin import plug_and_play

COMPONENT, LATENT = range(2)
"""A draw's streams: which Gaussian, and a point of it."""

PyTree = Any
Map = Callable[[jax.Array], jax.Array]
Distance = Callable[[jax.Array, jax.Array], jax.Array]


class Mixture(NamedTuple):
    """Mixtures of K Gaussians: logits [B, K], means and log-deviations [B, K, D], axis by axis."""

    logits: jax.Array
    means: jax.Array
    log_stds: jax.Array

    def log_prob(self, z: jax.Array) -> jax.Array:
        """ln of the density in nats [B] at z [B, D]."""
        apart = (z[:, None] - self.means) * jnp.exp(-self.log_stds)
        each = -0.5 * (apart**2 + math.log(2 * math.pi)) - self.log_stds
        return jax.nn.logsumexp(jax.nn.log_softmax(self.logits) + each.sum(-1), axis=-1)

    def draw(self, keys: jax.Array) -> jax.Array:
        """A draw of each [B, D], by keys [B]."""
        which = jax.vmap(jax.random.categorical)(fold(keys, COMPONENT), self.logits)
        rows = jnp.arange(len(which))
        fresh = normal(fold(keys, LATENT), self.means.shape[2:])
        return self.means[rows, which] + jnp.exp(self.log_stds[rows, which]) * fresh


class Translator(nn.Module):
    """h(c): a mixture of `components` Gaussians over latents of `size`, by `depth` dense layers."""

    size: int
    components: int = 10
    width: int = 256
    depth: int = 2

    @nn.compact
    def __call__(self, c: jax.Array) -> Mixture:
        """Conditions [B, C] -> Mixture [B]."""
        if min(self.size, self.components, self.width, self.depth) < 1:
            raise invalid("steer.components", self.components, "sizes >= 1")
        h = c
        for number in range(self.depth):
            h = nn.silu(nn.Dense(self.width, name=f"layer{number}")(h))
        shape = (c.shape[0], self.components, self.size)
        logits = nn.Dense(self.components, name="logits")(h)
        means = nn.Dense(shape[1] * shape[2], name="means")(h)
        log_stds = nn.Dense(shape[1] * shape[2], name="log_stds")(h)
        return Mixture(logits, means.reshape(shape), log_stds.reshape(shape))


@dataclasses.dataclass(frozen=True, eq=False)
class TR0N:
    """The translator, the frozen generator G and the frozen auxiliary f.

    generate(z [B, D]) -> x for z ~ N(0, I); auxiliary(x) -> conditions [B, C], such as a
    classifier's probabilities. D is `translator.size`.
    """

    translator: Translator
    generate: Map
    auxiliary: Map

    def init(self, key: jax.Array) -> PyTree:
        """The translator's parameters."""
        z = jnp.zeros((1, self.translator.size))
        return self.translator.init(key, self.auxiliary(self.generate(z)))["params"]

    def mixture(self, params: PyTree, c: jax.Array) -> Mixture:
        """h(c) for conditions [B, C]."""
        parameters: Any = self.translator.apply({"params": params}, c)
        return parameters

    def loss(self, params: PyTree, keys: jax.Array) -> jax.Array:
        """The mean of -ln h(z | f(G(z))) over latents z drawn by keys [B], in nats."""
        z = normal(keys, (self.translator.size,))
        c = jax.lax.stop_gradient(self.auxiliary(self.generate(z)))
        return -self.mixture(params, c).log_prob(z).mean()

    def latents(
        self,
        params: PyTree,
        c: jax.Array,
        distance: Distance,
        *,
        strength: float,
        steps: int,
        speed: float,
    ) -> Map:
        """keys [B] -> latents [B, D] for conditions c [B, C].

        z ~ h(c), and then `steps` of Langevin dynamics z - speed grad E + sqrt(2 speed) N(0, I) on
        E = strength distance(c, f(G(z))) + |z|^2 / 2 (their eq. 5); distance(c, found) -> [B]. It
        samples exp(-E), up to the step's bias, in as many of its modes as h(c) starts in. No steps:
        the translator's draws.
        """
        if not speed > 0 or strength < 0:
            raise invalid("steer.speed", (speed, strength), "speed > 0 and strength >= 0")

        def closeness(x: jax.Array) -> jax.Array:
            return -strength * distance(c, self.auxiliary(x))

        return plug_and_play(
            jnp.zeros_like, self.generate, closeness, (self.translator.size,), steps=steps,
            prior=speed, condition=speed, noise=math.sqrt(2 * speed),
            start=self.mixture(params, c).draw,
        )  # fmt: skip
