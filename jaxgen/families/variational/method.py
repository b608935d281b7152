"""`vae`: variational autoencoders as a Method, from two networks, an observation model and a bound.

CVAE (Sohn et al. 2015; Yan et al. 2016), IWAE (Burda et al. 2016) and deep latent Gaussian models
(Rezende et al. 2014) are settings of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from jaxgen.config import build
from jaxgen.errors import invalid
from jaxgen.families.variational import posterior
from jaxgen.families.variational.bounds import (
    doubly_reparameterised,
    free_bits,
    importance_bound,
    normalised_weights,
)
from jaxgen.method import (
    Averages,
    Batch,
    Likelihood,
    Method,
    Metrics,
    Sampler,
    Spec,
    dropout_key,
    exact_label_error,
    example_keys,
    fold,
    method_of,
    normal,
    single,
)

PyTree = Any
ROOM = "jaxgen.families.variational.observation"


class Terms:
    """ln p(x | z), and each layer's ln p(z), ln q(z) and KL, of one draw of the latents.

    All [B] in nats. `kl` is exact where the prior is N(0, I), else ln q - ln p of the draw.
    """

    def __init__(
        self, rec: jax.Array, log_p: list[jax.Array], log_q: list[jax.Array], kl: list[jax.Array]
    ) -> None:
        """As the class says."""
        self.rec, self.log_p, self.log_q, self.kl = rec, log_p, log_q, kl

    @property
    def log_joint(self) -> jax.Array:
        """ln p(x, z)."""
        return self.rec + sum(self.log_p)

    @property
    def log_w(self) -> jax.Array:
        """ln p(x, z) - ln q(z | x)."""
        return self.log_joint - sum(self.log_q)


def vae(
    spec: Spec,
    model: Any,
    optimizer: optax.GradientTransformation,
    averages: Averages,
    *,
    observation: Any = "logistic",
    samples: int = 1,
    gradient: Literal["reparameterised", "doubly"] = "reparameterised",
    beta: float = 1.0,
    beta_warmup_images: int = 0,
    free_nats: float = 0.0,
    accumulate: int = 1,
) -> Method:
    """Train by a bound on ln p(x | label); sample, score and classify with it.

    model: `jaxgen.nn.vae.VAE`, or a module with its `infer` and `generate`. observation: a name in
    `families.variational.observation`. samples: k draws of the latents; above 1 the importance
    weighted bound. gradient: "doubly" is Tucker et al. 2019's for k > 1. beta: weight of the KL
    (Higgins et al. 2017), annealed from 0 over `beta_warmup_images`. free_nats: a layer's KL below
    this costs nothing (Kingma et al. 2016).

    Metrics: rec (nats), kl (nats, all layers), loss (what is minimised, nats). Raises UsageError
    for values out of range, and for beta or free nats with k > 1, where the bound has no KL.
    """
    view = build(observation, ROOM, "method.observation", spec=spec)
    if samples < 1:
        raise invalid("method.samples", samples, "draws >= 1")
    if gradient not in ("reparameterised", "doubly"):
        raise invalid("method.gradient", gradient, "'reparameterised', 'doubly'")
    if beta < 0 or free_nats < 0 or beta_warmup_images < 0:
        raise invalid("method.beta", (beta, free_nats, beta_warmup_images), "numbers >= 0")
    weighted = samples > 1 or gradient == "doubly"
    if weighted and (beta != 1 or free_nats or beta_warmup_images):
        raise invalid(
            "method.beta", beta, "1, without warm-up and free_nats, where samples > 1",
            "The importance weighted bound has no KL to weigh.",
        )  # fmt: skip
    net = model.clone(outputs=view.outputs)
    layers = len(net.latents)

    def noise(keys: jax.Array) -> list[jax.Array]:
        return [normal(fold(keys, n), (size,)) for n, size in enumerate(net.latents)]

    def apply(params: PyTree, name: str, *args: Any, rng: jax.Array | None) -> Any:
        rngs = None if rng is None else {"dropout": rng}
        return net.apply({"params": params}, *args, method=name, train=rng is not None, rngs=rngs)

    def terms(
        params: PyTree, x: jax.Array, labels: jax.Array, zs: list[jax.Array] | None,
        eps: list[jax.Array] | None, rng: jax.Array | None,
    ) -> tuple[Terms, list[jax.Array]]:  # fmt: skip
        """All terms at given latents, or at latents drawn from q by given noise."""

        def choose(layer: int, head: posterior.Head) -> jax.Array:
            if zs is not None:
                return zs[layer]
            assert eps is not None
            return posterior.sample(head, eps[layer])

        heads, latents = apply(params, "infer", x, labels, choose, rng=rng)
        out, priors = apply(params, "generate", labels, lambda n, _: latents[n], rng=rng)
        log_q = [posterior.log_density(h, z) for h, z in zip(heads, latents, strict=True)]
        log_p = [posterior.log_density(p, z) for p, z in zip(priors, latents, strict=True)]
        exact = [
            net.noise or (n == layers - 1 and not net.conditional_prior) for n in range(layers)
        ]
        kl = [
            posterior.kl_to_standard(heads[n]) if exact[n] else log_q[n] - log_p[n]
            for n in range(layers)
        ]
        return Terms(view.log_prob(out, x), log_p, log_q, kl), latents

    def log_weights(
        params: PyTree, x: jax.Array, labels: jax.Array, keys: jax.Array, k: int
    ) -> Any:
        """ln w [k, B] of k independent draws."""

        def one(number: jax.Array) -> jax.Array:
            return terms(params, x, labels, None, noise(fold(keys, number)), None)[0].log_w

        return jax.vmap(one)(jnp.arange(k))

    def loss(
        params: PyTree, batch: Batch, key: jax.Array, extra: PyTree
    ) -> tuple[jax.Array, tuple[Metrics, PyTree]]:
        x, labels, keys = batch["image"], batch["label"], example_keys(key, batch)
        rng = dropout_key(key, batch)
        if not view.mass and spec.levels is not None:
            x = spec.dequantise(x, fold(keys, 2**31))
        whole = params["net"]
        if not weighted:
            found, _ = terms(whole, x, labels, None, noise(fold(keys, 0)), rng)
            scale = jnp.asarray(beta)
            if beta_warmup_images:
                scale = beta * jnp.minimum(1.0, batch["seen"][0] / beta_warmup_images)
            costs = jnp.stack([free_bits(layer, free_nats) for layer in found.kl])
            value = scale * costs.sum() - found.rec.mean()
            metrics = {"rec": found.rec.mean(), "kl": jnp.stack(found.kl).sum(0).mean()}
        else:

            def draw(number: jax.Array) -> tuple[Any, ...]:
                eps = noise(fold(keys, number))
                found, zs = terms(whole, x, labels, None, eps, rng)
                if gradient != "doubly":
                    return found.log_w, found.rec, sum(found.kl)
                held = jax.tree.map(jax.lax.stop_gradient, whole)
                joint, _ = terms(whole, x, labels, jax.lax.stop_gradient(zs), None, rng)
                of_z, _ = terms(held, x, labels, zs, None, rng)
                return found.log_w, found.rec, sum(found.kl), joint.log_joint, of_z.log_w

            log_w, rec, kl, *rest = jax.vmap(draw)(jnp.arange(samples))
            bound = doubly_reparameterised(log_w, *rest) if rest else importance_bound(log_w)
            value = -bound.mean()
            share = normalised_weights(log_w)
            effective = 1 / (share**2).sum(0)
            metrics = {"rec": rec.mean(), "kl": kl.mean(), "effective_samples": effective.mean()}
        return value, (metrics, extra)

    def fresh(key: jax.Array) -> tuple[dict[str, PyTree], PyTree]:
        example = jnp.zeros((1, *spec.shape))
        params = {"net": net.init(key, example, jnp.zeros(1, jnp.int32))["params"]}
        return params, ()

    def sampler(*, temperature: float = 1.0, pixels: Literal["mean", "sample"] = "mean") -> Sampler:
        """Ancestral samples. temperature: scales the latents' noise. pixels: an image is the mean
        of p(x | z), or a draw from it."""  # fmt: skip
        if temperature < 0:
            raise invalid("sample.temperature", temperature, "temperature >= 0")
        if pixels not in ("mean", "sample"):
            raise invalid("sample.pixels", pixels, "'mean', 'sample'")

        @jax.jit
        def draw(params: PyTree, keys: jax.Array, labels: jax.Array) -> jax.Array:
            eps = [temperature * e for e in noise(keys)]

            def choose(layer: int, prior: posterior.Head) -> jax.Array:
                return posterior.sample(prior, eps[layer])

            out, _ = apply(params["net"], "generate", labels, choose, rng=None)
            if pixels == "mean":
                return view.mean(out)
            return jax.vmap(view.sample)(out, fold(keys, layers))

        return Sampler(draw, calls=1.0)

    def log_prob(*, samples: int = 64) -> Callable[..., jax.Array]:
        """The importance weighted bound with this many draws."""
        if samples < 1:
            raise invalid("log_prob.samples", samples, "draws >= 1")

        def bound(params: PyTree, x: jax.Array, labels: jax.Array, keys: jax.Array) -> jax.Array:
            return importance_bound(log_weights(params["net"], x, labels, keys, samples))

        return bound

    return method_of(
        spec,
        single(loss, fresh, optimizer, averages, accumulate=accumulate),
        separable=True,
        sampler=sampler,
        log_prob=log_prob,
        likelihood=Likelihood(exact=False, mass=view.mass),
        label_error=exact_label_error(log_prob(samples=1)),
    )
