"""Diffusion on diffusion: each stage is told what is worth keeping of the sample of the one before.

Yue et al., "Diffusion Models Need Visual Priors for Image Generation" (2024), section 3: a small
transformer compresses an image, the true one in training, to a code that cannot hold its details;
the denoiser and it are trained together. One network does for all stages: some examples are told no
code, as the first stage is.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.method import (
    Batch,
    Method,
    Sampler,
    Spec,
    denoiser_factory,
    only_learner,
    retrained,
    training_of,
)
from jaxgen.method.streams import OTHER, example_keys, fold
from jaxgen.nn.bert import Block
from jaxgen.nn.dit import patchify
from jaxgen.nn.positions import sin_cos_2d
from jaxgen.nn.stack import stacked

PyTree = Any
PRIOR = "prior"
FIRST, STREAM, STAGE = 4, 2**32 - 41, 3
"""Streams: the group's first parameters, of a step's key which examples are told no code, and of a
sample's what later stages draw."""


class Compressor(nn.Module):
    """Images [B, H, W, C] -> codes [B, size]: a transformer on patches, the mean of its tokens."""

    size: int
    width: int
    depth: int
    heads: int
    patch: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, C] -> [B, size]."""
        rows, columns = x.shape[1] // self.patch, x.shape[2] // self.patch
        h = nn.Dense(self.width, name="patch")(patchify(x.astype(jnp.float32), self.patch))
        h = h.reshape(len(x), -1, self.width) + sin_cos_2d(rows, columns, self.width)
        fields = self.width, self.heads, 4.0, rows * columns, 0.0, False, jnp.float32, "auto"
        blocks = stacked(Block, self.depth, scan=True, remat="dots")(*fields, name="blocks")
        h = blocks(h.reshape(-1, self.width), places=rows * columns)
        h = nn.LayerNorm(name="norm")(h.reshape(len(x), -1, self.width).mean(1))
        return nn.Dense(self.size, name="code")(h)


def priors(
    method: Method,
    *,
    spec: Spec,
    stages: int = 2,
    first: float = 0.5,
    patch: int = 2,
    width: int = 128,
    depth: int = 4,
    heads: int = 4,
) -> Method:
    """A denoiser that is told a code of the image, and a sampler that takes it from its own sample.

    stages: of the sampler; each later one costs as much again. first: the share of examples that
    are told no code. patch, width, depth, heads: of the compressor, the group "prior". The network
    declares model.conditions=(("prior", "vector", D),), D the code's size: the fewer, the less of a
    sample is kept. Label and code are dropped together for guidance.

    Raises UsageError for a network that is not told a prior, and for values out of range.
    """
    option = "tune.priors"
    base, training = only_learner(method, option), training_of(method, option)
    draw, of = method.sampler, denoiser_factory(method)
    if stages < 1 or not 0 < first < 1:
        raise invalid(option, (stages, first), "stages >= 1, 0 < first < 1")
    asked = None if of is None else of(guidance=())(None, None)
    network = getattr(asked, "network", None)
    declared = {n: size for n, kind, *size in getattr(network and network.model, "conditions", ())}
    if draw is None or PRIOR not in declared:
        raise invalid("config.model.conditions", tuple(declared), '(("prior", "vector", D),)')
    if spec.shape[0] % patch or spec.shape[1] % patch or width % (4 * heads):
        allowed = "a patch that divides the image, multiples of 4 x heads"
        raise invalid(option, (patch, width, heads), allowed)
    (size,), known = declared[PRIOR], draw
    compressor = Compressor(size, width, depth, heads, patch)

    def code(params: PyTree, x: jax.Array) -> jax.Array:
        found: Any = compressor.apply({"params": params["prior"]}, x)
        return found

    def fresh(key: jax.Array) -> tuple[dict[str, PyTree], PyTree]:
        params, extra = training.fresh(key)
        own = compressor.init(jax.random.fold_in(key, FIRST), jnp.zeros((1, *spec.shape)))
        return {**params, "prior": own["params"]}, extra

    def loss(params: PyTree, batch: Batch, key: jax.Array, extra: PyTree) -> Any:
        keys = fold(example_keys(jax.random.fold_in(key, STREAM), batch), OTHER)
        hidden = jax.vmap(jax.random.uniform)(keys) < first
        told = jnp.where(hidden[:, None], jnp.nan, code(params, batch["image"]))
        return base.loss(params, {**batch, PRIOR: told}, key, extra)

    @functools.wraps(known)
    def sampler(**options: Any) -> Sampler:
        if options.get("preview"):
            raise invalid("sample.preview", options["preview"], f"0 with {option}")
        made = known(**options)

        def fn(params: PyTree, keys: jax.Array, labels: jax.Array) -> jax.Array:
            told: Any = {"label": labels, PRIOR: jnp.full((len(keys), size), jnp.nan)}
            x = made.fn(params, keys, told)
            for stage in range(1, stages):
                told = {"label": labels, PRIOR: code(params, x)}
                x = made.fn(params, fold(fold(keys, STAGE), stage), told)
            return x

        return Sampler(fn, stages * made.calls, stages * made.steps)

    made = retrained(method, fresh=fresh, learners={"net": dataclasses.replace(base, loss=loss)})
    return dataclasses.replace(made, sampler=sampler, train_flops=None)
