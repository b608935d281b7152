"""Penalties on the discriminator or on weights, and projections of the discriminator's weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid

PyTree = Any


class Case(NamedTuple):
    """What a penalty on the discriminator sees.

    judge(x[B, *shape], labels[B]) -> logits [B], a function of x and of the discriminator's
    parameters. real, fake [B, *shape], not augmented; labels [B]; keys [B]; augment(x, keys) -> x,
    or None.
    """

    judge: Callable[[jax.Array, jax.Array], jax.Array]
    real: jax.Array
    fake: jax.Array
    labels: jax.Array
    keys: jax.Array
    augment: Callable[[jax.Array, jax.Array], jax.Array] | None


@dataclasses.dataclass(frozen=True)
class Regulariser:
    """One of three, under the name that its metric gets.

    penalty(case) -> scalar, added to the discriminator's loss. weights(params) -> scalar, added to
    the loss of each of `networks`. project(params) -> params of the discriminator, after each of
    its steps. lipschitz: bounds the discriminator's slope. augmented: needs an augmentation.
    """

    name: str
    penalty: Callable[[Case], jax.Array] | None = None
    weights: Callable[[PyTree], jax.Array] | None = None
    project: Callable[[PyTree], PyTree] | None = None
    networks: tuple[str, ...] = ()
    lipschitz: bool = False
    augmented: bool = False


def _slopes(case: Case, x: jax.Array) -> jax.Array:
    """Squared norm of the gradient of each logit with respect to its own example: [B]."""
    # Examples are judged together, so a batch norm in the discriminator would mix them.
    gradient = jax.grad(lambda x: case.judge(x, case.labels).sum())(x)
    return jnp.square(gradient.astype(jnp.float32)).reshape(x.shape[0], -1).sum(-1)


def r1(weight: float = 10.0) -> Regulariser:
    """weight / 2 E |grad_x D(real)|^2 (Mescheder et al. 2018, eq. 9)."""
    _positive("r1.weight", weight)
    return Regulariser("r1", penalty=lambda case: weight / 2 * _slopes(case, case.real).mean())


def gradient_penalty(weight: float = 10.0, target: float = 1.0) -> Regulariser:
    """weight E (|grad_x D| - target)^2 between real and fake (Gulrajani et al. 2017, eq. 3)."""
    _positive("gradient_penalty.weight", weight)

    def penalty(case: Case) -> jax.Array:
        share = jax.vmap(jax.random.uniform)(case.keys)
        share = share.reshape(-1, *(1,) * (case.real.ndim - 1))
        between = share * case.real + (1 - share) * case.fake
        # The derivative of a square root is infinite at 0.
        norm = jnp.sqrt(_slopes(case, between) + 1e-12)
        return weight * jnp.square(norm - target).mean()

    return Regulariser("gradient_penalty", penalty=penalty, lipschitz=True)


def consistency(weight: float = 10.0) -> Regulariser:
    """weight E (D(augmented real) - D(real))^2 (Zhang et al. 2020, consistency regularisation)."""
    _positive("consistency.weight", weight)

    def penalty(case: Case) -> jax.Array:
        assert case.augment is not None  # `adversarial` has refused
        moved = case.judge(case.augment(case.real, case.keys), case.labels)
        return weight * jnp.square(moved - case.judge(case.real, case.labels)).mean()

    return Regulariser("consistency", penalty=penalty, augmented=True)


def clip(bound: float = 0.01) -> Regulariser:
    """Every weight of the discriminator clipped to [-bound, bound] (Arjovsky et al. 2017)."""
    _positive("clip.bound", bound)

    def project(params: PyTree) -> PyTree:
        return jax.tree.map(lambda w: jnp.clip(w, -bound, bound), params)

    return Regulariser("clip", project=project, lipschitz=True)


def orthogonal(
    weight: float = 1e-4,
    networks: tuple[Literal["generator", "discriminator"], ...] = ("generator",),
) -> Regulariser:
    """weight sum |W'W x (1 - I)|^2 over kernels W [fan_in, features] (Brock et al. 2019, eq. 3).

    x is by element, so the columns' lengths are free. Label embeddings are left out.
    """
    _positive("orthogonal.weight", weight)

    def penalty(params: PyTree) -> jax.Array:
        total = jnp.zeros(())
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            if leaf.ndim < 2 or path[-1].key != "kernel":
                continue
            matrix = leaf.reshape(-1, leaf.shape[-1])
            gram = matrix.T @ matrix
            total += jnp.square(gram * (1 - jnp.eye(len(gram)))).sum()
        return weight * total

    return Regulariser("orthogonal", weights=penalty, networks=networks)


def _positive(option: str, value: float) -> None:
    if value <= 0:
        raise invalid(f"method.regularisers.{option}", value, "a number > 0")
