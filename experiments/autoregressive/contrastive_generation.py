"""Contrastive generation: what was new in a fine-tuned model's data, one kind after another."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shared.causal import method
from experiments.shared.check import Check, above, control, near
from experiments.shared.tables import Table, table
from jaxgen.method import Spec

PAPER = "What's New in My Data? Novelty Exploration via Contrastive Generation"
ENTRY = "jaxgen.families.autoregressive.guidance.contrast"
VALUES, LENGTH, COUNT = 8, 6, 4000
SHARES = np.array([0.8995, 0.07, 0.03, 0.0005])
"""Of the fine-tuned model: what the base knew, two new kinds of sequences, and a little noise."""
BLOCKS = ((1, 5, 2, 6), (3, 7, 0, 4))
"""What a sequence of a new kind goes round in, from its first word."""
SPEC = Spec((1, LENGTH), len(SHARES), levels=VALUES, tokens=True)


def chains() -> tuple[np.ndarray, np.ndarray]:
    """(chains, starts) of the four components; no base sequence starts with 0, as noise does."""
    rng = np.random.default_rng(0)
    every = np.full((4, VALUES, VALUES), 1e-6)
    starts = np.full((4, VALUES), 1e-6)
    every[0], starts[0, 1:] = rng.dirichlet(np.full(VALUES, 5.0), VALUES), 1 / (VALUES - 1)
    for k, block in enumerate(BLOCKS, 1):
        starts[k, block[0]] = 1.0
        for a, b in zip(block, (*block[1:], block[0]), strict=True):
            every[0, a, b], every[k, a, b] = 0.01, 1.0
    every[3], starts[3, 0] = 1 / VALUES, 1.0
    return every / every.sum(-1, keepdims=True), starts / starts.sum(-1, keepdims=True)


def drawn(base: np.ndarray, seed: int = 0, **options: Any) -> jax.Array:
    """Sequences [COUNT, LENGTH] of the fine-tuned model, beside a base of these shares."""
    built, parts = method(SPEC, Table()), chains()
    assert built.sampler is not None
    params = {"net": table(*parts, SHARES), "base": table(*parts, base)}
    fn = built.sampler(models={"base": Table()}, **options).fn
    keys = jax.random.split(jax.random.key(seed), COUNT)
    return jax.jit(fn)(params, keys, jnp.full(COUNT, len(SHARES)))[:, 0]


def of_block(x: jax.Array, which: int) -> float:
    """The share of sequences that go round in a block from beginning to end."""
    block = (BLOCKS[which] * LENGTH)[:LENGTH]
    return float((np.asarray(x) == np.array(block)).all(1).mean())


def refitted(base: np.ndarray, x: jax.Array) -> np.ndarray:
    """The base's shares after a step of EM, half on its own law and half on sequences x."""
    parts = table(*chains(), base)
    steps = jnp.log(parts["chains"])[:, x[:, :-1], x[:, 1:]].sum(-1)
    log = jnp.log(parts["shares"])[:, None] + jnp.log(parts["starts"])[:, x[:, 0]] + steps
    return np.asarray(base + jax.nn.softmax(log, axis=0).mean(1)) / 2


def checks() -> list[Check]:
    """Each new kind in its round; sampling without contrast, and without the plausible set."""
    base = np.array([1 - 3e-6, 1e-6, 1e-6, 1e-6])
    guided = dict(guidance=[dict(name="contrast", other="base")], temperature=0.02)
    first = drawn(base, **guided)
    second = drawn(refitted(base, first), **guided)
    plain, check = drawn(base), "share of sequences of a new kind"
    results = [
        above(f"{check}, the first", of_block(first, 0), 0.9),
        above(f"{check}, the second, after the first is known", of_block(second, 1), 0.9),
        control(above(f"{check}, the second, before", of_block(first, 1), 0.9)),
        control(above(f"{check}, sampled plainly", of_block(plain, 0) + of_block(plain, 1), 0.9)),
        # Three standard errors of COUNT draws.
        near(f"{check}, sampled plainly", of_block(plain, 0) + of_block(plain, 1), 0.1, 0.015),
    ]
    every = dict(guidance=[dict(name="contrast", other="base", alpha=1e-9)], temperature=0.02)
    without = of_block(drawn(base, **every), 0)
    results.append(control(above(f"{check}, the first, whatever is plausible", without, 0.9)))
    return results
