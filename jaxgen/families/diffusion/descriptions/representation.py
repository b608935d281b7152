"""Representations as descriptions: RCG, "Self-conditioned Image Generation via Generating
Representations" (Li, Katabi and He 2023).

A frozen encoder gives each image a vector. A small diffusion of vectors (RDM) learns their
distribution; an image is drawn by drawing a vector first and then an image that fits it. Labels are
not needed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.errors import invalid
from jaxgen.families.diffusion import solvers
from jaxgen.families.diffusion.core import grids
from jaxgen.families.diffusion.core.denoiser import Network
from jaxgen.families.diffusion.core.path import linear
from jaxgen.families.diffusion.core.sampler import integrate, prior
from jaxgen.families.diffusion.descriptions.base import Description
from jaxgen.method import Encoder, Spec, encoder_of, fold, normal
from jaxgen.method.streams import PAIR_NOISE, PAIR_TIME
from jaxgen.nn.conditions import Conditions
from jaxgen.nn.mlp import MLP

PyTree = Any


@dataclasses.dataclass(frozen=True, eq=False)
class Vectors:
    """A flow of vectors [B, size], told labels and whatever its residual MLP declares."""

    network: Network
    size: int
    steps: int

    def init(self, key: jax.Array) -> PyTree:
        """First parameters."""
        zero = jnp.zeros(1)
        inputs = jnp.zeros((1, self.size)), zero, zero.astype(jnp.int32)
        return self.network.model.init(key, *inputs)["params"]

    def loss(self, params: PyTree, vectors: jax.Array, told: Any, keys: jax.Array) -> jax.Array:
        """Flow matching's, [B]."""
        t = jax.vmap(jax.random.uniform)(fold(keys, PAIR_TIME))
        eps = normal(fold(keys, PAIR_NOISE), (self.size,))
        x = self.network.path.mix(vectors, eps, t)
        out, _ = self.network.output(params, x, t, told)
        return ((out - (eps - vectors)) ** 2).mean(1)

    def draw(self, params: PyTree, told: Any, keys: jax.Array) -> jax.Array:
        """Vectors for keys [B], by `steps` of Heun's method."""
        path, denoiser = self.network.path, self.network.denoiser(params, told)
        solver, grid = solvers.heun(path), grids.uniform(self.steps, path)
        vectors = integrate(solver, denoiser, prior(path, keys, (self.size,)), grid, keys)
        assert isinstance(vectors, jax.Array)
        return vectors

    @property
    def calls(self) -> float:
        """Network evaluations that a draw costs."""
        path, nothing = self.network.path, self.network.denoiser(None, jnp.zeros(1, jnp.int32))
        return solvers.heun(path).calls(nothing, np.asarray(grids.uniform(self.steps, path)))


def vectors_of(
    spec: Spec, size: int, *, width: int, depth: int, steps: int, conditions: Conditions = ()
) -> Vectors:
    """A flow of vectors of a size. Raises UsageError: steps < 1."""
    if steps < 1:
        raise invalid("describe.steps", steps, "steps >= 1")
    model = MLP(spec.num_classes, size, width, depth, conditions=conditions)
    return Vectors(Network(model, linear(), "velocity"), size, steps)


def encoded(encoder: Any, spec: Spec) -> tuple[Encoder, int]:
    """An encoder and the size of its vectors. Raises UsageError for what makes none."""
    known = encoder_of(encoder)
    output = jax.eval_shape(known, jax.ShapeDtypeStruct((1, *spec.shape), jnp.float32))
    if output.ndim != 2:
        raise invalid("describe.encoder", output.shape, "a function to vectors [B, D]")
    return known, output.shape[1]


def representation(
    spec: Spec,
    *,
    encoder: Encoder | Callable[[jax.Array], jax.Array],
    scale: float = 1.0,
    width: int = 256,
    depth: int = 3,
    steps: int = 16,
    labelled: bool = False,
) -> Description:
    """The encoder's vectors, and a residual MLP of their flow, trained beside the denoiser.

    encoder: examples -> vectors [B, D], a section of `jaxgen.frozen.encoders` or a function. scale:
    what the vectors are divided by; deviations of about 1 are best. width, depth: of the MLP.
    steps: of Heun's method, two calls each but for the last. labelled: the vectors are drawn given
    the label, which is then what the labels of `sample` mean; else labels are ignored.
    """
    if not scale > 0:
        raise invalid("describe.scale", scale, "a number > 0")
    known, size = encoded(encoder, spec)
    flow = vectors_of(spec, size, width=width, depth=depth, steps=steps)

    def told(labels: jax.Array) -> jax.Array:
        return labels if labelled else jnp.full_like(labels, spec.null_label)

    def loss(params: PyTree, vectors: jax.Array, labels: jax.Array, keys: jax.Array) -> jax.Array:
        return flow.loss(params, vectors, told(labels), keys)

    def of(frozen: PyTree, x: jax.Array) -> jax.Array:
        return known.apply(frozen, x) / scale

    def draw(params: PyTree, frozen: PyTree, keys: jax.Array, labels: jax.Array) -> jax.Array:
        return flow.draw(params, told(labels), keys)

    return Description(of, draw, flow.calls, flow.init, loss, frozen=known.params)
