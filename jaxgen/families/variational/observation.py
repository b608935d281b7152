"""p(x | z): what a decoder's outputs say about an image. Named by `method.observation`.

Each has `outputs` (numbers a network gives per element), `log_prob(params, x)` in nats [...],
`mean(params)` and `sample(params, key)`; params are [..., *shape, outputs], x is [..., *shape] in
[-1, 1]. `mass`: whether log_prob is of the discrete image.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.method import Spec


@dataclasses.dataclass(frozen=True)
class Bernoulli:
    """Binary images (levels = 2): one logit per element."""

    spec: Spec
    outputs: int = 1
    mass: bool = True

    def log_prob(self, params: jax.Array, x: jax.Array) -> jax.Array:
        """Nats of each image."""
        logits = params[..., 0]
        return _total(jax.nn.log_sigmoid(jnp.sign(x) * logits), self.spec)

    def mean(self, params: jax.Array) -> jax.Array:
        """2 p - 1."""
        return 2 * jax.nn.sigmoid(params[..., 0]) - 1

    def sample(self, params: jax.Array, key: jax.Array) -> jax.Array:
        """-1 or 1."""
        white = jax.random.bernoulli(key, jax.nn.sigmoid(params[..., 0]))
        return jnp.where(white, 1.0, -1.0)


@dataclasses.dataclass(frozen=True)
class Categorical:
    """Any levels: one logit for each value of each element."""

    spec: Spec
    mass: bool = True

    @property
    def outputs(self) -> int:
        """One per level."""
        assert self.spec.levels is not None
        return self.spec.levels

    def log_prob(self, params: jax.Array, x: jax.Array) -> jax.Array:
        """Nats of each image."""
        tokens = self.spec.to_tokens(x)[..., None]
        chosen = jnp.take_along_axis(jax.nn.log_softmax(params), tokens, -1)[..., 0]
        return _total(chosen, self.spec)

    def mean(self, params: jax.Array) -> jax.Array:
        """The expected value."""
        values = self.spec.from_tokens(jnp.arange(self.outputs))
        return jax.nn.softmax(params) @ values

    def sample(self, params: jax.Array, key: jax.Array) -> jax.Array:
        """One value per element."""
        return self.spec.from_tokens(jax.random.categorical(key, params))


@dataclasses.dataclass(frozen=True)
class Logistic:
    """A discretised logistic (Kingma et al. 2016; Salimans et al. 2017): a mean and a log-scale.

    The mass of a value is the logistic's between half a level below and above it; the lowest and
    highest values take the tails.
    """

    spec: Spec
    outputs: int = 2
    mass: bool = True

    def log_prob(self, params: jax.Array, x: jax.Array) -> jax.Array:
        """Nats of each image."""
        mean, log_scale = self._parts(params)
        half, inverse = self.spec.width / 2, jnp.exp(-log_scale)
        upper, lower = (x - mean + half) * inverse, (x - mean - half) * inverse
        top, bottom = x > 1 - half, x < -1 + half
        # ln (sigmoid(b) - sigmoid(a)) = ln sigmoid(b) + ln sigmoid(-a) + ln (1 - e^(a - b)).
        inside = (
            jax.nn.log_sigmoid(upper)
            + jax.nn.log_sigmoid(-lower)
            + jnp.log(-jnp.expm1(-2 * half * inverse))
        )
        edges = jnp.where(top, jax.nn.log_sigmoid(-lower), jax.nn.log_sigmoid(upper))
        return _total(jnp.where(top | bottom, edges, inside), self.spec)

    def mean(self, params: jax.Array) -> jax.Array:
        """The logistic's location, inside [-1, 1]."""
        return jnp.clip(self._parts(params)[0], -1, 1)

    def sample(self, params: jax.Array, key: jax.Array) -> jax.Array:
        """One value per element."""
        mean, log_scale = self._parts(params)
        drawn = mean + jnp.exp(log_scale) * jax.random.logistic(key, mean.shape)
        return self.spec.from_tokens(self.spec.to_tokens(drawn))

    def _parts(self, params: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean, and log-scale bounded below at a hundredth of a level's width."""
        floor = math.log(self.spec.width / 100)
        return params[..., 0], floor + jax.nn.softplus(params[..., 1] - floor)


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """Real-valued images: a mean and a log standard deviation per element. A density."""

    spec: Spec
    outputs: int = 2
    mass: bool = False

    def log_prob(self, params: jax.Array, x: jax.Array) -> jax.Array:
        """Nats of each image, by density."""
        mean, log_std = params[..., 0], params[..., 1]
        square = ((x - mean) * jnp.exp(-log_std)) ** 2
        return _total(-0.5 * (square + math.log(2 * math.pi)) - log_std, self.spec)

    def mean(self, params: jax.Array) -> jax.Array:
        """The mean."""
        return params[..., 0]

    def sample(self, params: jax.Array, key: jax.Array) -> jax.Array:
        """A draw."""
        mean = params[..., 0]
        return mean + jnp.exp(params[..., 1]) * jax.random.normal(key, mean.shape)


def bernoulli(spec: Spec) -> Bernoulli:
    """For binary images. Raises UsageError for others."""
    if spec.levels != 2 or spec.tokens:
        raise invalid("method.observation", "bernoulli", "images with 2 levels", _have(spec))
    return Bernoulli(spec)


def categorical(spec: Spec) -> Categorical:
    """For images of few levels, or any. Raises UsageError for tokens and real values."""
    return Categorical(_images(spec, "categorical"))


def logistic(spec: Spec) -> Logistic:
    """For images of many levels. Raises UsageError for tokens and real values."""
    return Logistic(_images(spec, "logistic"))


def gaussian(spec: Spec) -> Gaussian:
    """For anything but tokens."""
    if spec.tokens:
        raise invalid("method.observation", "gaussian", "a source of images")
    return Gaussian(spec)


def _images(spec: Spec, name: str) -> Spec:
    if spec.levels is None or spec.tokens:
        raise invalid("method.observation", name, "images with discrete values", _have(spec))
    return spec


def _have(spec: Spec) -> str:
    return f"The source has levels={spec.levels}, tokens={spec.tokens}."


def _total(values: jax.Array, spec: Spec) -> jax.Array:
    """The sum over an image's own axes."""
    return values.sum(tuple(range(values.ndim - len(spec.shape), values.ndim)))


Observation = Any
"""One of the classes above, or anything with their fields and methods."""
