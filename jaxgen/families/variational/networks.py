"""The two networks of a variational autoencoder, and what they say of one draw of the latents."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.families.variational import posterior
from jaxgen.method import Spec, fold, normal

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Terms:
    """ln p(x | z), and each layer's ln p(z), ln q(z) and KL, of one draw of the latents.

    All [B] in nats. `kl` is exact where the prior is N(0, I), else ln q - ln p of the draw.
    """

    rec: jax.Array
    log_p: list[jax.Array]
    log_q: list[jax.Array]
    kl: list[jax.Array]

    @property
    def log_joint(self) -> jax.Array:
        """ln p(x, z)."""
        return self.rec + sum(self.log_p)

    @property
    def log_w(self) -> jax.Array:
        """ln p(x, z) - ln q(z | x)."""
        return self.log_joint - sum(self.log_q)


@dataclasses.dataclass(frozen=True, eq=False)
class Networks:
    """q(z | x) and p(x, z) as one module `net`, and `view`, the observation model p(x | z)."""

    spec: Spec
    net: Any
    view: Any

    @property
    def layers(self) -> int:
        """Layers of latents."""
        return len(self.net.latents)

    def fresh(self, key: jax.Array) -> tuple[dict[str, PyTree], PyTree]:
        """First parameters, and no extra."""
        example = jnp.zeros((1, *self.spec.shape))
        return {"net": self.net.init(key, example, jnp.zeros(1, jnp.int32))["params"]}, ()

    def noise(self, keys: jax.Array) -> list[jax.Array]:
        """Standard normal noise [B, size] of each layer."""
        return [normal(fold(keys, n), (size,)) for n, size in enumerate(self.net.latents)]

    def apply(self, params: PyTree, name: str, *args: Any, rng: jax.Array | None) -> Any:
        """The net's method of that name; rng: the key of dropout in training, else None."""
        rngs = None if rng is None else {"dropout": rng}
        return self.net.apply(
            {"params": params}, *args, method=name, train=rng is not None, rngs=rngs
        )

    def terms(
        self, params: PyTree, x: jax.Array, labels: jax.Array, *, rng: jax.Array | None = None,
        zs: list[jax.Array] | None = None, eps: list[jax.Array] | None = None,
    ) -> tuple[Terms, list[jax.Array]]:  # fmt: skip
        """All terms at latents zs, or at latents drawn from q by noise eps; and the latents."""

        def choose(layer: int, head: posterior.Head) -> jax.Array:
            if zs is not None:
                return zs[layer]
            assert eps is not None
            return posterior.sample(head, eps[layer])

        net, layers = self.net, self.layers
        heads, latents = self.apply(params, "infer", x, labels, choose, rng=rng)
        out, priors = self.apply(params, "generate", labels, lambda n, _: latents[n], rng=rng)
        log_q = [posterior.log_density(h, z) for h, z in zip(heads, latents, strict=True)]
        log_p = [posterior.log_density(p, z) for p, z in zip(priors, latents, strict=True)]
        exact = [
            net.noise or (n == layers - 1 and not net.conditional_prior) for n in range(layers)
        ]
        kl = [
            posterior.kl_to_standard(heads[n]) if exact[n] else log_q[n] - log_p[n]
            for n in range(layers)
        ]
        return Terms(self.view.log_prob(out, x), log_p, log_q, kl), latents

    def log_weights(
        self, params: PyTree, x: jax.Array, labels: jax.Array, keys: jax.Array, draws: int
    ) -> jax.Array:
        """ln w [draws, B] of independent draws."""

        def log_weight(number: jax.Array) -> jax.Array:
            return self.terms(params, x, labels, eps=self.noise(fold(keys, number)))[0].log_w

        return jax.vmap(log_weight)(jnp.arange(draws))
