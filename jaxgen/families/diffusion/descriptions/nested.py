"""Latents of several levels as a description, drawn from the most abstract one down.

Zhang et al., "Nested Diffusion Models Using Hierarchical Latent Priors" (2024), section 3: each
level's diffusion is told all levels above, the image's all of them. Frozen encoders make them, in
training with noise on them, so that a level says less and what is told it forgives its errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.config import ROOMS, part
from jaxgen.errors import invalid
from jaxgen.families.diffusion.descriptions.base import Description
from jaxgen.families.diffusion.descriptions.representation import encoded, vectors_of
from jaxgen.method import Spec, fold

PyTree = Any
ABOVE = "above"


def nested(
    spec: Spec,
    *,
    encoders: Sequence[Any],
    scales: Sequence[float] = (),
    noise: Sequence[float] = (),
    width: int = 256,
    depth: int = 3,
    steps: int = 16,
    labelled: bool = False,
) -> Description:
    """Encoders' vectors, most abstract first, and a flow of each level's given those above.

    encoders: sections of `jaxgen.frozen.encoders` or functions, examples -> vectors [B, D], e.g.
    [dict(name="pooled", side=1), dict(name="pooled", side=4)]; the paper's are features in finer
    and finer cells, reduced by PCA. scales: what each level's vectors are divided by (1).
    noise: the standard deviation of what is then added to each level in training (0). width, depth,
    steps, labelled: of each level's flow, as `representation`'s, which is the case of one level.
    """
    scales, noise = (tuple(v) or (d,) * len(encoders) for v, d in ((scales, 1.0), (noise, 0.0)))
    if not len(encoders) == len(scales) == len(noise) >= 1:
        given = (len(encoders), len(scales), len(noise))
        raise invalid("describe.encoders", given, "one or more, and as many scales and noises")
    if min(scales) <= 0 or min(noise) < 0:
        raise invalid("describe.scales", (scales, noise), "scales > 0, noise >= 0")
    made = [part(e, ROOMS["encoder"], f"describe.encoders[{n}]") for n, e in enumerate(encoders)]
    known, sizes = zip(*(encoded(e, spec) for e in made), strict=True)
    starts = np.cumsum([0, *sizes])
    flows = [
        vectors_of(
            spec, size, width=width, depth=depth, steps=steps,
            conditions=((ABOVE, "vector", int(start)),) if start else (),
        )
        for size, start in zip(sizes, starts, strict=False)
    ]  # fmt: skip
    names = [f"level_{n}" for n in range(len(flows))]

    def told(labels: jax.Array, above: jax.Array) -> Any:
        labels = labels if labelled else jnp.full_like(labels, spec.null_label)
        return {"label": labels, ABOVE: above} if above.shape[1] else labels

    def init(key: jax.Array) -> PyTree:
        keys = jax.random.split(key, len(flows))
        return {name: flow.init(k) for name, flow, k in zip(names, flows, keys, strict=True)}

    def of(frozen: PyTree, x: jax.Array) -> jax.Array:
        each = zip(known, frozen or [None] * len(known), scales, strict=True)
        return jnp.concatenate([e.apply(params, x) / scale for e, params, scale in each], axis=1)

    def loss(params: PyTree, vectors: jax.Array, labels: jax.Array, keys: jax.Array) -> jax.Array:
        total = jnp.zeros(len(vectors))
        for n, (name, flow) in enumerate(zip(names, flows, strict=True)):
            above, own = vectors[:, : starts[n]], vectors[:, starts[n] : starts[n + 1]]
            total = total + flow.loss(params[name], own, told(labels, above), fold(keys, n))
        return total

    def draw(params: PyTree, frozen: PyTree, keys: jax.Array, labels: jax.Array) -> jax.Array:
        vectors = jnp.zeros((len(keys), 0))
        for n, (name, flow) in enumerate(zip(names, flows, strict=True)):
            own = flow.draw(params[name], told(labels, vectors), fold(keys, n))
            vectors = jnp.concatenate([vectors, own], axis=1)
        return vectors

    calls, arrays = sum(flow.calls for flow in flows), tuple(e.params for e in known)
    frozen = arrays if jax.tree.leaves(arrays) else None
    deviations = np.repeat(np.asarray(noise, np.float32), sizes)
    return Description(of, draw, calls, init, loss, frozen, deviations)
