"""Early exits: a denoiser that runs only as many layers as its own uncertainty asks for (DeeDiff).

Tang et al. (2023). The network is one with exits, as `nn.exits.ExitMLP`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.errors import UsageError, invalid
from jaxgen.families.diffusion.core.denoiser import Denoiser, Memory, Network
from jaxgen.families.diffusion.core.prediction import Prediction, target, to_prediction

PyTree = Any


def exit_loss(
    network: Network,
    params: PyTree,
    x0: jax.Array,
    labels: jax.Array,
    eps: jax.Array,
    t: jax.Array,
    *,
    regression: float = 1.0,
) -> jax.Array:
    """The loss of all exits g_i and uncertainties u_i at x_t, a mean over batch and elements.

    |g_L - y|^2 + sum_{i<L} (1 - u_i) |g_i - y|^2 + regression sum_{i<L} (u_i - tanh |g_i - y|)^2, y
    the network's target (eps in the paper; its eq. 6-9). Both u_i as a weight and tanh |g_i - y|
    as what u_i is taught are constants to the gradient: else the weight drives u_i to 1.
    x0 and noise eps [B, ...], labels and t [B].
    """
    _check(network)
    if regression <= 0:
        raise invalid("early_exit.regression", regression, "regression > 0")
    x, wanted = network.path.mix(x0, eps, t), target(network.kind, x0, eps, t, network.path)
    out, u = network.model.apply({"params": params}, x, t, labels, method="every")
    gap = out - wanted
    weight = jax.lax.stop_gradient(1 - u[:-1])
    taught = jax.lax.stop_gradient(jnp.tanh(jnp.abs(gap[:-1])))
    layers = weight * gap[:-1] ** 2 + regression * (u[:-1] - taught) ** 2
    return (gap[-1] ** 2).mean() + layers.sum(0).mean()


def early_exit(network: Network, params: PyTree, labels: jax.Array, threshold: float) -> Denoiser:
    """The denoiser that leaves at the first layer whose mean u is below a threshold, per image.

    threshold: 0, all layers, to 1, the first. labels [B]. Its memory is how many layers each image
    has used, int32 [B]; how many there will be is known only by running, so `calls` is 1, a call
    of all layers, from above. A batch costs its slowest image (`ExitMLP.leave`).
    Raises UsageError: a network without exits, threshold out of range.
    """
    _check(network)
    if not 0 <= threshold <= 1:
        raise invalid("early_exit.threshold", threshold, "0 to 1")

    def call(
        keys: jax.Array, x: jax.Array, t: jax.Array, memory: Memory
    ) -> tuple[Prediction, Memory]:
        times = jnp.broadcast_to(t, x.shape[:1])
        inputs = (x, times, labels, threshold)
        out, used = network.model.apply({"params": params}, *inputs, method="leave")
        return to_prediction(network.kind, out, x, t, network.path), memory + used

    return Denoiser(call, init=lambda x: jnp.zeros(x.shape[0], jnp.int32), path=network.path)


def _check(network: Network) -> None:
    if not hasattr(network.model, "leave"):
        raise UsageError("early_exit: this network has no exits; nn.exits.ExitMLP has.")
    if network.kind == "edm" or network.learned_variance:
        raise invalid("early_exit.prediction", network.kind, "others, without a learned variance")
