"""DomainStudio's terms: a few images of a new domain, and the variety of the source kept.

Zhu et al., "DomainStudio: Fine-Tuning Diffusion Models for Domain-Driven Image Generation using
Limited Data" (2023). `relations`: how alike the examples of a batch are to each other, by what the
model makes of them, is drawn to what a frozen copy says (their eq. 8 and 9; of details eq. 11 and
12). `detail`: the high frequencies of what it makes are those of the data (eq. 13).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.families.diffusion.core.prediction import to_prediction
from jaxgen.families.diffusion.terms.base import Noised, PyTree, Term, example_mean
from jaxgen.method import Spec, teacher_of

EPS = 1e-12


def relations(
    *,
    spec: Spec,
    networks: Mapping[str, Any],
    image: float = 0.5,
    high: float = 0.5,
    teacher: str = "teacher",
) -> Term:
    """image KL(p_i || q_i) and high times the same of the high Haar bands, for each example i.

    p_i: the softmax of the cosine similarities of x0_i with the others' x0, as the model makes them
    of the noised batch; q_i the same of networks[teacher], the source, at the same noise and
    conditions. Each microbatch sees itself. Raises UsageError: no such network, weights below 0,
    fewer than three examples, images that are none where details count.
    """
    if image < 0 or high < 0:
        raise invalid("method.terms.relations", (image, high), "image >= 0, high >= 0")
    other = teacher_of(networks, teacher, "method.terms.relations")

    def of(noised: Noised, params: PyTree, frozen: PyTree) -> jax.Array:
        if noised.x0.shape[0] < 3:
            raise invalid("config.data.batch_size", noised.x0.shape[0],
                          ">= 3 per microbatch with relations")  # fmt: skip
        asked = other.method.sampler(guidance=1.0).denoiser(frozen, noised.condition)
        said = asked(noised.keys, noised.x, noised.t, asked.init(noised.x))[0]
        both = made(noised), jax.lax.stop_gradient(said.x0)
        value = image * divergence(*both)
        return value + high * divergence(*map(details, both)) if high else value

    held = functools.partial(other.fitting, spec)
    return Term(name="relations", of=of, frozen=held, whole_batch=True)


def detail(weight: float = 0.05) -> Term:
    """weight times the mean squared distance of the high Haar bands of x0 as made and as given."""

    def of(noised: Noised, params: PyTree, frozen: PyTree) -> jax.Array:
        return weight * example_mean((details(made(noised)) - details(noised.x0)) ** 2)

    return Term(name="detail", of=of)


def made(noised: Noised) -> jax.Array:
    """The x0 [B, ...] that the network makes of the noised batch."""
    net = noised.network
    said = to_prediction(
        net.kind, noised.output, noised.x, noised.t, net.path, sigma_data=net.sigma_data
    )
    return said.x0


def divergence(made: jax.Array, source: jax.Array) -> jax.Array:
    """KL [B] of the two laws over the B - 1 others, softmaxes of similarities, of x [B, ...]."""
    ours, theirs = (jax.nn.log_softmax(similarities(x)) for x in (made, source))
    return (jnp.exp(ours) * (ours - theirs)).sum(1)


def similarities(x: jax.Array) -> jax.Array:
    """Cosines [B, B - 1] of each of x [B, ...] with the others, in order."""
    x = x.reshape(x.shape[0], -1)
    x = x / jnp.sqrt((x**2).sum(1, keepdims=True) + EPS)
    others = jnp.arange(len(x) - 1)[None]
    others = others + (others >= jnp.arange(len(x))[:, None])
    return jnp.take_along_axis(x @ x.T, others, axis=1)


def haar(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The bands LL, LH, HL, HH [B, H/2, W/2, C] of images [B, H, W, C]: orthonormal.

    The first letter is of the height. Raises UsageError for odd sizes, and for what is no image.
    """
    if x.ndim != 4 or x.shape[1] % 2 or x.shape[2] % 2:
        raise invalid("method.terms", x.shape[1:], "images of even height and width, for Haar")

    def halves(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
        even, odd = (jax.lax.slice_in_dim(x, n, None, 2, axis) for n in (0, 1))
        return (even + odd) / 2**0.5, (odd - even) / 2**0.5

    low, up = halves(x, 1)
    return *halves(low, 2), *halves(up, 2)


def details(x: jax.Array) -> jax.Array:
    """LH + HL + HH of images."""
    _, lh, hl, hh = haar(x)
    return lh + hl + hh
