"""RCG: eight modes without labels, a code for each, a model of the codes, and one that is told."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shared.check import Check, below, control, mean_above, mean_below, mean_near
from experiments.shared.told import (
    CENTRES,
    COUNT,
    IN_HASTE,
    SHARES,
    SPEC,
    STRETCH,
    drawn,
    mode_of,
    samples,
    trained,
)
from experiments.shared.toys import SEEDS
from jaxgen.families.diffusion.descriptions.base import Description
from jaxgen.families.diffusion.descriptions.representation import representation

PAPER = "Self-conditioned Image Generation via Generating Representations"
ENTRY = "jaxgen.families.diffusion.descriptions.representation.representation"

_TWO = np.array([[1.0, 1.0], [1.0, -1.0]])
CODES = np.kron(_TWO, np.kron(_TWO, _TWO)).astype(np.float32)
"""A code [8] for each mode, of elements 1 and -1, any two at right angles (Hadamard's matrix)."""
MODES = np.repeat(np.arange(8), COUNT // 8)
NOTHING, DRAWN = 8, 9
"""Labels below, after those of the modes: told nothing, and told what the model of codes draws."""
PLAIN_WIDTH = 49
"""Of the network that is told nothing: as many parameters as both of RCG's together."""
DRAWS, SCALE = 4000, 0.3
_WAYS = np.stack([CENTRES / 1.6, np.stack([-CENTRES[:, 1], CENTRES[:, 0]], 1) / 1.6], axis=1)
"""[8, 2, 2]: a mode's direction from the origin, and across."""
COVARIANCES = np.einsum("kia,i,kib->kab", _WAYS, STRETCH**2, _WAYS)


def encoder(x: jax.Array) -> jax.Array:
    """The code of the nearest mode."""
    return jnp.asarray(CODES)[mode_of(x)]


def distances(x: np.ndarray) -> np.ndarray:
    """Squared MMD of samples [SEEDS, N, 2] to the law itself, without bias, [SEEDS].

    The kernel exp(-|x - y|^2 / (2 SCALE^2)) has a closed form for a Gaussian, so the law needs no
    samples: its mean over N(m, C) is SCALE^2 / sqrt(|C'|) exp(-d' C'^-1 d / 2), C' = C + SCALE^2 I.
    """

    def smoothed(apart: np.ndarray, covariance: np.ndarray) -> np.ndarray:
        wide = covariance + SCALE**2 * np.eye(2)
        square = np.einsum("...a,...ab,...b->...", apart, np.linalg.inv(wide), apart)
        return SCALE**2 / np.sqrt(np.linalg.det(wide)) * np.exp(-0.5 * square)

    pairs = smoothed(CENTRES[:, None] - CENTRES, COVARIANCES[:, None] + COVARIANCES)
    results = []
    for codes_of_seed in x.astype(np.float64):
        count = len(codes_of_seed)
        square = ((codes_of_seed[:, None] - codes_of_seed) ** 2).sum(-1)
        within = (np.exp(-square / (2 * SCALE**2)).sum() - count) / (count * (count - 1))
        across = (smoothed(codes_of_seed[:, None] - CENTRES, COVARIANCES) @ SHARES).mean()
        results.append(within - 2 * across + SHARES @ pairs @ SHARES)
    return np.array(results)


def codes(describe: Description, params: Any) -> list[Check]:
    """How often each code is drawn, by the model of codes and by itself before training."""
    assert describe.init is not None
    keys, labels = jax.random.split(jax.random.key(2), DRAWS), jnp.zeros(DRAWS, jnp.int32)
    drawn = jax.vmap(lambda p: describe.draw(p, describe.frozen, keys, labels))
    draw = jax.jit(drawn, compiler_options=IN_HASTE)
    untrained = jax.vmap(describe.init)(jax.vmap(jax.random.key)(jnp.arange(SEEDS)))
    results = []
    for name, weights, wrap in (("", params, lambda c: c), (", untrained", untrained, control)):
        # The nearest code has the largest product, since all are of one length.
        which = (np.asarray(draw(weights)) @ CODES.T).argmax(-1)
        often = np.stack([(which == k).mean(1) for k in range(8)], axis=1)
        apart = np.abs(often - SHARES).sum(1) / 2
        name = f"total variation of the codes' frequencies{name}"
        results.append(wrap(mean_below(name, apart, 0.06)))
    return results


def asked(describe: Description) -> Description:
    """Told of a label: a mode's code, none for NOTHING, and for DRAWN what the model draws."""
    assert describe.init is not None
    table = jnp.concatenate([jnp.asarray(CODES), jnp.full((2, 8), jnp.nan)])

    def draw(params: Any, frozen: Any, keys: jax.Array, labels: jax.Array) -> jax.Array:
        drawn = describe.draw(params, describe.frozen, keys, labels)
        return jnp.where((labels == DRAWN)[:, None], drawn, table[labels])

    return Description(describe.of, draw, init=describe.init)


def modes(given: np.ndarray, nothing: np.ndarray) -> list[Check]:
    """Samples given a mode's code lie in it and are spread as it is; told nothing, they are not."""
    results = []
    for name, x, wrap in (
        ("given its code", given, lambda c: c),
        ("told nothing", nothing, control),
    ):
        nearest = np.asarray(mode_of(x))
        inside = (nearest == MODES).mean(1)
        results.append(wrap(mean_above(f"share of samples in the mode, {name}", inside, 0.95)))
        turned = np.einsum("snia,sna->sni", _WAYS[nearest], x - CENTRES[nearest])
        for axis, direction in enumerate(("along", "across")):
            spread = [
                np.mean([t[m == k, axis].std() for k in range(8)])
                for t, m in zip(turned, nearest, strict=True)
            ]
            check = mean_near(f"deviation {direction} a mode, {name}", spread, STRETCH[axis], 0.03)
            results.append(wrap(check))
    return results


def checks() -> list[Check]:
    """Frequencies of codes, modes by their codes, and the whole law beside a plain model's."""
    describe = representation(SPEC, encoder=encoder, width=32, depth=2, steps=8)
    method, params = trained(describe)
    plain, of_plain = trained(None, PLAIN_WIDTH)
    labels = np.concatenate([MODES, np.full(COUNT, NOTHING), np.full(COUNT, DRAWN)])
    x = samples(method, params, labels, describe=asked(describe))
    given, nothing, whole = np.split(x, 3, axis=1)
    results = codes(describe, params["describe"]) + modes(given, nothing)
    sizes = [sum(a.size for a in jax.tree.leaves(p)) / SEEDS for p in (params, of_plain)]
    results.append(
        below("parameters of both networks over the plain one's", sizes[0] / sizes[1], 1)
    )
    check = "squared MMD to the law"
    exact = drawn(np.random.default_rng(2), (SEEDS, COUNT))
    results.append(mean_below(f"{check}, its own samples", distances(exact), 0.001))
    results.append(mean_below(check, distances(whole), 0.003))
    alone = distances(samples(plain, of_plain))
    results.append(control(mean_below(f"{check}, the plain model", alone, 0.003)))
    return results
