"""The denoising loss: weighted squared error of what the network predicts, at random noise.

One function of (params, batch, key, extra) in the form that `gradient_update` wants. All noise of
an example comes from its own key, so the loss does not depend on devices, hosts or microbatches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.families.diffusion.core.coupling import optimal
from jaxgen.families.diffusion.core.denoiser import Network
from jaxgen.families.diffusion.core.pfgmpp import kernel_noise
from jaxgen.families.diffusion.core.prediction import target, to_prediction, x0_gain
from jaxgen.families.diffusion.core.times import Times
from jaxgen.families.diffusion.core.weighting import Weighting
from jaxgen.families.diffusion.descriptions.base import Description
from jaxgen.families.diffusion.solvers.ancestral import log_variance, posterior
from jaxgen.method import (
    Batch,
    LossFn,
    Metrics,
    drop_labels,
    dropout_key,
    example_keys,
    fold,
    normal,
)

PyTree = Any

TIMES = 2**32 - 2
"""What the step's key is folded with for what is not an example's own; indices stay below."""

VLB_STEPS = 1000
"""The step t -> t - 1 / VLB_STEPS whose variance is learned: DDPM's number of steps."""


def example_mean(a: jax.Array) -> jax.Array:
    """Mean over all axes but the first."""
    return a.reshape(a.shape[0], -1).mean(1)


def denoising_loss(
    network: Network,
    times: Times,
    weighting: Weighting,
    *,
    num_classes: int,
    label_dropout: float = 0.0,
    uncertainty: Callable[[PyTree, jax.Array], jax.Array] | None = None,
    coupling: str = "independent",
    contrast: float = 0.0,
    extra_dims: float | None = None,
    describe: Description | None = None,
) -> LossFn:
    """loss(params, batch, key, extra), a mean over the batch and over dimensions.

    params["net"] are the network's. label_dropout: the share of labels replaced by num_classes,
    "no label" (Ho & Salimans 2022). uncertainty(params["uncertainty"], t) -> ln variance u of the
    loss at each noise level; the loss is then l / e^u + u (Karras et al. 2024, eq. 21). With a
    learned variance the variational bound of `variance_bound` is added. extra: {"times": state}.

    coupling: "optimal" gives the batch's noises to its examples at the least squared distance
    (minibatch optimal transport, `coupling.optimal`). The pairing does not see the labels.
    contrast = c in [0, 1): minus c times the squared distance to the next example's target at this
    example's t (Contrastive Flow Matching, Stoica et al. 2025). With targets u of mean m the
    best output is (E[u | x_t] - c m) / (1 - c). Both see the whole batch, each microbatch its own.
    describe: what the network is told in the place of a label; its `loss` is added.
    extra_dims: PFGM++'s D; the noise is then `pfgmpp.kernel_noise` in the place of a Gaussian.
    Metrics: `mse`, the unweighted error of the network's own output.
    """
    path, kind, sigma_data = network.path, network.kind, network.sigma_data

    def loss(
        params: PyTree, batch: Batch, key: jax.Array, extra: PyTree
    ) -> tuple[jax.Array, tuple[Metrics, PyTree]]:
        x0, keys = batch["image"].astype(jnp.float32), example_keys(key, batch)
        for_noise, for_time, for_label = (fold(keys, n) for n in range(3))
        dropout = dropout_key(key, batch)
        t, importance = times.draw(
            for_time, jax.random.fold_in(key, TIMES), batch["index"], path, extra["times"]
        )
        if extra_dims is None:
            eps = normal(for_noise, x0.shape[1:])
        else:
            eps = kernel_noise(for_noise, x0.shape[1:], extra_dims)
        if coupling == "optimal":
            eps = optimal(x0, eps)
        x = path.mix(x0, eps, t)
        labels, fitting = batch["label"], jnp.zeros(x0.shape[0])
        if describe is not None:
            told = jax.lax.stop_gradient(describe.of(x0))
            if describe.loss is not None:
                fitting = describe.loss(params["describe"], told, labels, fold(keys, 3))
            labels = told
        labels = drop_labels(for_label, labels, label_dropout, num_classes)
        out, variance = network.output(params["net"], x, t, labels, dropout)

        wanted = target(kind, x0, eps, t, path, sigma_data=sigma_data)
        error = example_mean((out - wanted) ** 2)
        objective = error
        if contrast:
            if x0.shape[0] < 2:
                raise invalid("train.batch", x0.shape[0], ">= 2 per microbatch with contrast")
            x0_other, eps_other = (jnp.roll(a, 1, axis=0) for a in (x0, eps))
            other = target(kind, x0_other, eps_other, t, path, sigma_data=sigma_data)
            objective = error - contrast * example_mean((out - other) ** 2)
        weighted = objective * weighting(path, t, x0_gain(kind, t, path, sigma_data=sigma_data))
        state = times.update(extra["times"], t, jax.lax.stop_gradient(weighted))
        metrics = {"mse": error.mean()}
        if uncertainty is not None:
            u = uncertainty(params["uncertainty"], t)
            metrics["mse_weighted"] = weighted.mean()
            weighted = weighted * jnp.exp(-u) + u
        if variance is not None:
            bound = variance_bound(network, jax.lax.stop_gradient(out), variance, x0, x, t)
            metrics["variance_bound"] = bound.mean()
            weighted = weighted + bound
        if describe is not None and describe.loss is not None:
            metrics["describe"] = fitting.mean()
        return (importance * weighted + fitting).mean(), (metrics, {**extra, "times": state})

    return loss


def variance_bound(
    network: Network, out: jax.Array, variance: jax.Array, x0: jax.Array, x: jax.Array, t: jax.Array
) -> jax.Array:
    """KL(q(x_s | x_t, x0) || p(x_s | x_t)) in bits per dimension, [B], s = t - 1 / VLB_STEPS.

    The L_vlb of Nichol & Dhariwal (2021, eq. 15-17) that trains the variance alone (`out` has no
    gradient). With 1000 steps its weight 1 is their lambda = 0.001 on the sum over steps, as in ADM
    and DiT. At s = 0 the KL against the step's own smallest variance stands for their decoder term.
    """
    path = network.path
    s = jnp.maximum(t - 1 / VLB_STEPS, 0.0)
    p = to_prediction(network.kind, out, x, t, path, sigma_data=network.sigma_data)
    _, on_x0, _, _ = posterior(path, t, s)
    true = log_variance(jnp.full_like(x, -1.0), path, t, s)
    model = log_variance(variance, path, t, s)
    gap = on_x0.reshape(-1, *(1,) * (x.ndim - 1)) * (x0 - p.x0)
    kl = 0.5 * (model - true + jnp.exp(true - model) + gap**2 * jnp.exp(-model) - 1)
    return example_mean(kl) / jnp.log(2.0)
