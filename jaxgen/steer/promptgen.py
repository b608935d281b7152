"""PromptGen: an invertible network in front of a frozen generator samples what energies ask for.

Wu et al. 2022, "Generative Visual Prompt: Unifying Distributional Control of Pre-Trained
Generative Models". Energies and latents' prior define the law N(z; 0, I) exp(-sum_i lambda_i
E_i(G(z))); the network is fitted to it once, and then each sample costs one call of each network.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.method import normal

PyTree = Any
Map = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True, eq=False)
class PromptGen:
    """The latent flow f, the frozen generator G and the energies, each with its weight.

    flow: any network of `families.flows`, by its forward direction (which is the parallel one, and
    is named for data): module(eps [B, *shape], labels [B]) -> (z [B, size], ln |det dz/deps| [B]);
    its labels are all 0. generate(z [B, size]) -> x. energies: pairs (lambda_i, E_i), E_i(x) ->
    [B]; they need gradients. To steer further what is steered already, give `generate` another
    PromptGen's `sample` of its latents (`follow`): the prior is standard normal again.
    """

    flow: Any
    shape: tuple[int, ...]
    generate: Map
    energies: Sequence[tuple[float, Map]]

    def init(self, key: jax.Array) -> PyTree:
        """Parameters of the flow."""
        eps = jnp.zeros((1, *self.shape))
        return self.flow.init(key, eps, jnp.zeros(1, jnp.int32))["params"]

    def latents(self, params: PyTree, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(z = f(eps) [B, size], ln |det df/deps| [B]) for keys [B]."""
        return self.latents_of(params, normal(keys, self.shape))

    def latents_of(self, params: PyTree, eps: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The same of noise eps [B, *shape]."""
        labels = jnp.zeros(eps.shape[0], jnp.int32)
        z, log_det = self.flow.apply({"params": params}, eps, labels)
        return z, log_det

    def loss(self, params: PyTree, keys: jax.Array) -> jax.Array:
        """The mean of |f|^2 / 2 + sum_i lambda_i E_i(G(f)) - ln |det J_f| over keys (their eq. 5).

        The KL divergence from the flow's law to the target's, up to a constant.
        """
        z, log_det = self.latents(params, keys)
        x = self.generate(z)
        energy = sum((weight * e(x) for weight, e in self.energies), jnp.zeros(keys.shape[0]))
        return ((z**2).sum(-1) / 2 + energy - log_det).mean()

    def sample(self, params: PyTree, keys: jax.Array) -> jax.Array:
        """G(f(eps)) for keys [B]: one call of each network."""
        return self.generate(self.latents(params, keys)[0])

    def follow(self, params: PyTree) -> Map:
        """eps [B, size] -> G(f(eps)): the steered generator, as one that can be steered again."""

        def generate(eps: jax.Array) -> jax.Array:
            return self.generate(self.latents_of(params, eps.reshape(-1, *self.shape))[0])

        return generate


def moment_energy(
    gamma: Map, x: jax.Array, target: Any, *, iterations: int = 20
) -> tuple[jax.Array, Map]:
    """(beta [K], the energy x -> -beta . gamma(x)) under which gamma's mean is `target` [K].

    gamma(x) -> [B, K], such as a classifier's probabilities; x [n, ...]: samples of the law to
    correct. Among the laws of that mean p(x) exp(beta . gamma(x)) is the closest to p. beta is the
    minimum of ln E exp(beta . gamma) - beta . target over the samples (their eq. 4 by importance
    weights), by damped Newton steps. Raises UsageError where the target is not inside of what the
    samples' gamma spans, so that there is no beta.
    """
    values = jnp.asarray(gamma(x))
    wanted = jnp.asarray(target, values.dtype)
    if values.ndim != 2 or wanted.shape != values.shape[1:]:
        raise invalid("steer.target", wanted.shape, f"one number for each of {values.shape[1:]}")

    beta, missed = _dual(values, wanted, iterations)
    if not float(missed) < 1e-3:
        low, high = values.min(0).tolist(), values.max(0).tolist()
        raise invalid("steer.target", wanted.tolist(), f"means between {low} and {high}")
    return beta, lambda x: -gamma(x) @ beta


@functools.partial(jax.jit, static_argnums=2)
def _dual(values: jax.Array, wanted: jax.Array, iterations: int) -> tuple[jax.Array, jax.Array]:
    """(beta [K], how far its mean is from wanted) for values [n, K]."""

    def height(beta: jax.Array) -> jax.Array:
        return jax.nn.logsumexp(values @ beta) - beta @ wanted

    def slope(beta: jax.Array) -> tuple[jax.Array, jax.Array]:
        share = jax.nn.softmax(values @ beta)
        return share @ values - wanted, share

    def newton(_: jax.Array, beta: jax.Array) -> jax.Array:
        down, share = slope(beta)
        apart = values - share @ values
        bend = (apart * share[:, None]).T @ apart + 1e-6 * jnp.eye(len(beta))
        # The best of these lengths; the dual is convex, so a short one lowers it.
        tried = beta - 0.5 ** jnp.arange(12.0)[:, None] * jnp.linalg.solve(bend, down)
        return tried[jnp.argmin(jax.vmap(height)(tried))]

    beta = jax.lax.fori_loop(0, iterations, newton, jnp.zeros(values.shape[1], values.dtype))
    return beta, jnp.abs(slope(beta)[0]).max()
