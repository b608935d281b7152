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
from jaxgen.families.variational.networks import Networks
from jaxgen.method import (
    Averages,
    Batch,
    Likelihood,
    LossFn,
    Method,
    Metrics,
    Sampler,
    Spec,
    dropout_key,
    exact_label_error,
    example_keys,
    fold,
    method_of,
    single,
)
from jaxgen.method.streams import NOISE

PyTree = Any
ROOM = "jaxgen.families.variational.observation"
DEQUANTISE = 2**31
"""The stream of dequantisation; numbers from 0 on are the draws of the latents."""

Objective = Callable[..., tuple[jax.Array, Metrics]]
"""(net's params, batch, keys [B], key of dropout) -> (loss in nats, metrics)."""


def evidence(networks: Networks, beta: float, warmup: int, free_nats: float) -> Objective:
    """Minus the evidence bound: -E ln p(x | z) + beta KL, of one draw."""

    def objective(
        params: PyTree, batch: Batch, keys: jax.Array, rng: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        eps = networks.noise(fold(keys, NOISE))
        terms, _ = networks.terms(params, batch["image"], batch["label"], eps=eps, rng=rng)
        scale = jnp.asarray(beta)
        if warmup:
            scale = beta * jnp.minimum(1.0, batch["seen"][0] / warmup)
        costs = jnp.stack([free_bits(layer, free_nats) for layer in terms.kl])
        value = scale * costs.sum() - terms.rec.mean()
        return value, {"rec": terms.rec.mean(), "kl": jnp.stack(terms.kl).sum(0).mean()}

    return objective


def importance_weighted(networks: Networks, samples: int, *, doubly: bool) -> Objective:
    """Minus the importance weighted bound; doubly: with Tucker et al. 2019's gradient."""

    def objective(
        params: PyTree, batch: Batch, keys: jax.Array, rng: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        x, labels = batch["image"], batch["label"]

        def draw(number: jax.Array) -> tuple[Any, ...]:
            eps = networks.noise(fold(keys, number))
            terms, zs = networks.terms(params, x, labels, eps=eps, rng=rng)
            if not doubly:
                return terms.log_w, terms.rec, sum(terms.kl)
            held = jax.tree.map(jax.lax.stop_gradient, params)
            fixed = jax.lax.stop_gradient(zs)
            joint, _ = networks.terms(params, x, labels, zs=fixed, rng=rng)
            of_z, _ = networks.terms(held, x, labels, zs=zs, rng=rng)
            return terms.log_w, terms.rec, sum(terms.kl), joint.log_joint, of_z.log_w

        log_w, rec, kl, *rest = jax.vmap(draw)(jnp.arange(samples))
        bound = doubly_reparameterised(log_w, *rest) if rest else importance_bound(log_w)
        effective = 1 / (normalised_weights(log_w) ** 2).sum(0)
        metrics = {"rec": rec.mean(), "kl": kl.mean(), "effective_samples": effective.mean()}
        return -bound.mean(), metrics

    return objective


def bound_loss(networks: Networks, objective: Objective) -> LossFn:
    """The objective of a batch, which is dequantised where the observation model is a density."""
    spec = networks.spec

    def loss(
        params: PyTree, batch: Batch, key: jax.Array, extra: PyTree
    ) -> tuple[jax.Array, tuple[Metrics, PyTree]]:
        keys = example_keys(key, batch)
        if not networks.view.mass and spec.levels is not None:
            batch = {**batch, "image": spec.dequantise(batch["image"], fold(keys, DEQUANTISE))}
        value, metrics = objective(params["net"], batch, keys, dropout_key(key, batch))
        return value, (metrics, extra)

    return loss


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
    networks = Networks(spec, model.clone(outputs=view.outputs), view)
    objective = (
        importance_weighted(networks, samples, doubly=gradient == "doubly")
        if weighted
        else evidence(networks, beta, beta_warmup_images, free_nats)
    )

    def sampler(*, temperature: float = 1.0, pixels: Literal["mean", "sample"] = "mean") -> Sampler:
        """Ancestral samples. temperature: scales the latents' noise. pixels: an image is the mean
        of p(x | z), or a draw from it."""  # fmt: skip
        if temperature < 0:
            raise invalid("sample.temperature", temperature, "temperature >= 0")
        if pixels not in ("mean", "sample"):
            raise invalid("sample.pixels", pixels, "'mean', 'sample'")

        @jax.jit
        def draw(params: PyTree, keys: jax.Array, labels: jax.Array) -> jax.Array:
            eps = [temperature * e for e in networks.noise(keys)]

            def choose(layer: int, prior: posterior.Head) -> jax.Array:
                return posterior.sample(prior, eps[layer])

            out, _ = networks.apply(params["net"], "generate", labels, choose, rng=None)
            if pixels == "mean":
                return view.mean(out)
            return jax.vmap(view.sample)(out, fold(keys, networks.layers))

        return Sampler(draw, calls=1.0)

    def log_prob(*, samples: int = 64) -> Callable[..., jax.Array]:
        """The importance weighted bound with this many draws."""
        if samples < 1:
            raise invalid("log_prob.samples", samples, "draws >= 1")

        def bound(params: PyTree, x: jax.Array, labels: jax.Array, keys: jax.Array) -> jax.Array:
            return importance_bound(networks.log_weights(params["net"], x, labels, keys, samples))

        return bound

    return method_of(
        spec,
        single(
            bound_loss(networks, objective),
            networks.fresh,
            optimizer,
            averages,
            accumulate=accumulate,
        ),
        separable=True,
        sampler=sampler,
        log_prob=log_prob,
        likelihood=Likelihood(exact=False, mass=view.mass),
        label_error=exact_label_error(log_prob(samples=1)),
    )
