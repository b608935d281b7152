"""Heads: what a network's outputs say about the next element, or the next group of elements.

A head has `outputs` (numbers it needs for a group), `log_prob(out[B, N, outputs], tokens[B, N, g])
-> nats [B, N]` for the groups, and `logits(out[B, outputs], chosen) -> [B, levels]`: of the next
element of a group, when `chosen` (a list of int32 [B]) are those before it. exp(log_prob) is the
product of the softmaxes of `logits`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid

MIN_LOG_SCALE = -7.0


@dataclasses.dataclass(frozen=True)
class Softmax:
    """One logit per level; groups of one element."""

    levels: int

    @property
    def outputs(self) -> int:
        """Numbers for a group."""
        return self.levels

    def log_prob(self, out: jax.Array, tokens: jax.Array) -> jax.Array:
        """ln p of tokens [B, N, 1] under logits [B, N, levels]: [B, N]."""
        log = jax.nn.log_softmax(out.astype(jnp.float32), axis=-1)
        return jnp.take_along_axis(log, tokens, axis=-1)[..., 0]

    def logits(self, out: jax.Array, chosen: Sequence[jax.Array]) -> jax.Array:
        """The outputs themselves."""
        del chosen
        return out.astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class LogisticMixture:
    """A mixture of discretised logistics over a pixel (Salimans et al. 2017, eq. 1 to 3).

    Level v of `levels` stands for x = 2 v / (levels - 1) - 1. A component gives x the mass of its
    logistic between x - h and x + h, h = 1 / (levels - 1), open to the outside at both ends, so
    the masses sum to 1. The components' weights are shared by a pixel's channels, and the mean of a
    channel moves by tanh(coefficient) times each channel before it.

    Outputs of a pixel of C channels: K logits of the weights, K x C means, K x C log scales (from
    -7), K x C (C - 1) / 2 coefficients: 10 K for colour.
    """

    levels: int
    group: int
    components: int

    @property
    def outputs(self) -> int:
        """Numbers for a group."""
        c = self.group
        return self.components * (1 + 2 * c + c * (c - 1) // 2)

    def log_prob(self, out: jax.Array, tokens: jax.Array) -> jax.Array:
        """ln p of pixels [B, N, C] under outputs [B, N, outputs]: [B, N]."""
        chosen = [tokens[..., c] for c in range(self.group)]
        return jax.nn.logsumexp(self._joint(out, chosen), axis=-1)

    def logits(self, out: jax.Array, chosen: Sequence[jax.Array]) -> jax.Array:
        """ln p of every level of channel len(chosen), with a constant: [B, levels]."""
        weights = self._joint(out, chosen)
        mean, log_scale = self._component(out, chosen)
        level = jnp.arange(self.levels)
        log = self._mass(level, mean[..., None], log_scale[..., None])
        return jax.nn.logsumexp(weights[..., None] + log, axis=-2)

    def _joint(self, out: jax.Array, chosen: Sequence[jax.Array]) -> jax.Array:
        """ln p(component, the first channels): [..., K]."""
        total = jax.nn.log_softmax(out[..., : self.components].astype(jnp.float32), axis=-1)
        for c, level in enumerate(chosen):
            total += self._mass(level[..., None], *self._component(out, chosen[:c]))
        return total

    def _component(
        self, out: jax.Array, chosen: Sequence[jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        """Means and log scales [..., K] of channel len(chosen) after the channels before it."""
        k, c, channel = self.components, self.group, len(chosen)
        parameters = out[..., k:].astype(jnp.float32).reshape(*out.shape[:-1], -1, k)
        mean, log_scale = parameters[..., channel, :], parameters[..., c + channel, :]
        first = 2 * c + channel * (channel - 1) // 2
        for j, level in enumerate(chosen):
            mean += jnp.tanh(parameters[..., first + j, :]) * self._value(level)[..., None]
        return mean, jnp.maximum(log_scale, MIN_LOG_SCALE)

    def _value(self, level: jax.Array) -> jax.Array:
        return level * (2 / (self.levels - 1)) - 1.0

    def _mass(self, level: jax.Array, mean: jax.Array, log_scale: jax.Array) -> jax.Array:
        """ln of a component's mass of a level, exact in float32 however small.

        s(b) - s(a) = s(b) s(-a) (1 - exp(a - b)), s the logistic function; s(b) alone at the lower
        end and s(-a) alone at the upper.
        """
        half = 1 / (self.levels - 1)
        sharp = jnp.exp(-log_scale)
        centred = self._value(level) - mean
        below = jax.nn.log_sigmoid((centred + half) * sharp)
        above = jax.nn.log_sigmoid(-(centred - half) * sharp)
        width = jnp.log(-jnp.expm1(-2 * half * sharp))
        inside = below + above + width
        return jnp.where(level == 0, below, jnp.where(level == self.levels - 1, above, inside))


def softmax(*, levels: int, group: int) -> Softmax:
    """A softmax over the levels.

    Raises UsageError for a network that predicts several elements in one go.
    """
    if group != 1:
        raise invalid("method.head", "softmax", f"logistic_mixture: the network predicts {group}")
    return Softmax(levels)


def logistic_mixture(components: int = 10, *, levels: int, group: int) -> LogisticMixture:
    """Discretised logistics over evenly spaced levels; UsageError for components < 1."""
    if components < 1:
        raise invalid("method.head.components", components, "components >= 1")
    if levels < 2:
        raise invalid("method.head", f"{levels} levels", "at least 2 levels")
    return LogisticMixture(levels, group, components)
