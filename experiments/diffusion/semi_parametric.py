"""Retrieved neighbours: another database moves the samples, and nothing is trained again."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from experiments.shared.check import Check, below, control, mean_above
from experiments.shared.told import SPEC, drawn, mode_of, samples, trained
from jaxgen.families.diffusion.descriptions.neighbours import nearest, neighbours
from jaxgen.frozen.encoders import flat

PAPER = "Semi-Parametric Neural Image Synthesis"
ENTRY = "jaxgen.families.diffusion.descriptions.neighbours.neighbours"

OTHERS = (1, 2, 6)
"""The modes of the second database."""


def checks() -> list[Check]:
    """Samples by the database trained with, and by another; the same network told nothing."""
    rng = np.random.default_rng(1)
    first, second = drawn(rng, (400,)), drawn(rng, (400,), OTHERS)
    describe = neighbours(SPEC, encoder=flat(), database=(first, None), count=4)
    other = neighbours(SPEC, encoder=flat(), database=(second, None), count=4)
    method, params = trained(describe)
    inside = lambda x: np.isin(np.asarray(mode_of(x)), OTHERS).mean(1)
    moved, stayed = samples(method, params, describe=other), samples(method, params)
    name = "share of samples in the second database's modes"
    results = [
        mean_above(f"{name}, which is used", inside(moved), 0.95),
        control(mean_above(f"{name}, the first is used", inside(stayed), 0.95)),
    ]
    plain = samples(*trained(None))
    results.append(control(mean_above(f"{name}, told nothing", inside(plain), 0.95)))

    queries = drawn(rng, (200,))
    exact = ((queries[:, None] - first[None]).astype(np.float64) ** 2).sum(-1)
    index = np.asarray(nearest(jnp.asarray(queries), jnp.asarray(first), 4, block=60))
    gap = np.take_along_axis(exact, index, 1) - np.sort(exact, axis=1)[:, :4]
    results.append(
        below("neighbours by blocks: largest excess distance over all pairs'", gap.max(), 1e-6)
    )
    return results
