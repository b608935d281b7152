"""Representations as descriptions: RCG, "Self-conditioned Image Generation via Generating
Representations" (Li, Katabi and He 2023).

A frozen encoder gives each image a vector. A small diffusion of vectors (RDM) learns their
distribution; an image is drawn by drawing a vector first and then an image that fits it. Labels are
not needed.
"""

from __future__ import annotations

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
from jaxgen.nn.mlp import MLP

PyTree = Any


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
    if steps < 1:
        raise invalid("describe.steps", steps, "steps >= 1")
    example = jax.ShapeDtypeStruct((1, *spec.shape), jnp.float32)
    known = encoder_of(encoder)
    output = jax.eval_shape(known, example)
    if output.ndim != 2:
        raise invalid("describe.encoder", output.shape, "a function to vectors [B, D]")
    size, path = output.shape[1], linear()
    model = MLP(spec.num_classes, size, width, depth)
    network = Network(model, path, "velocity")
    grid, solver = grids.uniform(steps, path), solvers.heun(path)

    def told(labels: jax.Array) -> jax.Array:
        return labels if labelled else jnp.full_like(labels, spec.null_label)

    def init(key: jax.Array) -> PyTree:
        zero = jnp.zeros(1)
        return model.init(key, jnp.zeros((1, size)), zero, zero.astype(jnp.int32))["params"]

    def loss(params: PyTree, vectors: jax.Array, labels: jax.Array, keys: jax.Array) -> jax.Array:
        """Flow matching's, [B]."""
        t = jax.vmap(jax.random.uniform)(fold(keys, PAIR_TIME))
        eps = normal(fold(keys, PAIR_NOISE), (size,))
        out, _ = network.output(params, path.mix(vectors, eps, t), t, told(labels))
        return ((out - (eps - vectors)) ** 2).mean(1)

    def of(frozen: PyTree, x: jax.Array) -> jax.Array:
        return known.apply(frozen, x) / scale

    def draw(params: PyTree, frozen: PyTree, keys: jax.Array, labels: jax.Array) -> jax.Array:
        denoiser = network.denoiser(params, told(labels))
        vectors = integrate(solver, denoiser, prior(path, keys, (size,)), grid, keys)
        assert isinstance(vectors, jax.Array)
        return vectors

    nothing = network.denoiser(None, jnp.zeros(1, jnp.int32))
    calls = solver.calls(nothing, np.asarray(grid))
    return Description(of, draw, calls, init, loss, frozen=known.params)
