"""Losses of GFlowNets: each squares how far a trajectory is from a balance of flows.

A loss is a function's result with two fields, so that your own can be named by its dotted path.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.families.gflownet.walk import Walk


@dataclasses.dataclass(frozen=True)
class Loss:
    """of(walk) -> [B], one number per trajectory; 0 for all exactly where the balance holds.

    flow: where ln F comes from and with it the estimate of ln Z, that of the root: "head", an
    output of the network; "edges", the sum over the actions' logits; "none", there are no flows
    and ln Z is a parameter of its own.
    """

    of: Callable[[Walk], jax.Array]
    flow: Literal["head", "edges", "none"]


def _mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Weighted means over all but the first axis; 0 where all weights are."""
    axes = tuple(range(1, values.ndim))
    return (weights * values).sum(axes) / jnp.maximum(weights.sum(axes), 1e-9)


def flow_matching() -> Loss:
    """Flow into a state equals flow out of it (Bengio et al. 2021, eq. 12).

    Logits are ln of the flows along edges; that of stopping should be ln R.
    """

    def of(walk: Walk) -> jax.Array:
        later = walk.valid & (jnp.arange(walk.valid.shape[1]) > 0)
        inner = (walk.inflow() - walk.flow) ** 2 * later
        end = (walk.flow + walk.forward - walk.reward) ** 2 * walk.stop
        return _mean(inner + end, walk.valid.astype(jnp.float32))

    return Loss(of, "edges")


def detailed_balance() -> Loss:
    """F(s) P_F(s' | s) = F(s') P_B(s | s') on every edge (Bengio et al. 2023, section 3.2)."""

    def of(walk: Walk) -> jax.Array:
        residual = walk.flow + walk.forward - walk.next_flow - walk.backward
        return _mean(residual**2, walk.valid.astype(jnp.float32))

    return Loss(of, "head")


def trajectory_balance() -> Loss:
    """Z prod P_F = R(x) prod P_B along whole trajectories (Malkin et al. 2022, eq. 14).

    Trajectories that are not seen to their end have no reward, and count 0.
    """

    def of(walk: Walk) -> jax.Array:
        residual = walk.log_z + (walk.forward - walk.backward - walk.reward).sum(1)
        return jnp.where(walk.whole, residual, 0.0) ** 2

    return Loss(of, "none")


def subtrajectory_balance(decay: float = 0.9) -> Loss:
    """F(s_i) prod P_F = F(s_j) prod P_B for all i < j, weighted by decay^(j - i).

    Madan et al. 2023, eq. 8. Raises UsageError unless decay > 0.
    """
    if not decay > 0:
        raise invalid("method.loss.decay", decay, "a number > 0")

    def of(walk: Walk) -> jax.Array:
        # Nodes 0 .. T; ln F of a node less what was gained up to it should be constant.
        gained = jnp.cumsum(walk.forward - walk.backward, axis=1)
        zero = jnp.zeros_like(gained[:, :1])
        before = jnp.concatenate([zero, gained], axis=1)[:, :-1]
        start = walk.flow - before
        end = walk.next_flow - gained
        time = jnp.arange(gained.shape[1])
        # A part goes from the state before transition i to the one after transition j >= i.
        apart = time[None, :] - time[:, None]
        pairs = (apart >= 0) & walk.valid[:, :, None] & walk.valid[:, None, :]
        weights = jnp.where(pairs, decay ** (apart + 1.0), 0.0)
        residual = jnp.where(pairs, start[:, :, None] - end[:, None, :], 0.0)
        return _mean(residual**2, weights)

    return Loss(of, "head")
