"""Nested diffusion: a finer level is drawn to fit the coarser one; noise makes levels say less."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.shared.check import Check, below, control, mean_above, mean_below
from experiments.shared.told import IN_HASTE, SHARES, SPEC, drawn, mode_of
from experiments.shared.toys import SEEDS
from jaxgen.families.diffusion.descriptions.nested import nested
from jaxgen.method import minimise

PAPER = "Nested Diffusion Models Using Hierarchical Latent Priors"
ENTRY = "jaxgen.families.diffusion.descriptions.nested.nested"
STEPS, BATCH, DRAWS = 300, 64, 1000
_TWO = np.array([[1.0, 1.0], [1.0, -1.0]])
CODES = np.kron(_TWO, np.kron(_TWO, _TWO)).astype(np.float32)


def group(x: jax.Array) -> jax.Array:
    """The coarse level, [B, 1]: 1 for the first four modes, -1 for the others."""
    return jnp.where(mode_of(x) < 4, 1.0, -1.0)[:, None]


def code(x: jax.Array) -> jax.Array:
    """The fine level, [B, 8]: a code for each mode."""
    return jnp.asarray(CODES)[mode_of(x)]


def draws() -> np.ndarray:
    """Both levels of draws by trained flows, [SEEDS, DRAWS, 9]."""
    describe = nested(SPEC, encoders=(group, code), noise=(0.1, 0.1), width=24, depth=1, steps=6)
    assert describe.init is not None and describe.loss is not None
    first, loss_of = describe.init, describe.loss
    labels = jnp.zeros(BATCH, jnp.int32)

    def loss(params: Any, batch: Any) -> jax.Array:
        x, key = batch
        keys = jax.random.split(key, BATCH)
        return loss_of(params, describe.told(describe.frozen, x, keys), labels, keys).mean()

    def run(key: jax.Array, data: jax.Array) -> jax.Array:
        rate = optax.cosine_decay_schedule(1e-2, STEPS)
        batches = data, jax.random.split(key, STEPS)
        params, _ = minimise(loss, optax.adam(rate), first(key), batches)
        keys = jax.random.split(jax.random.fold_in(key, STEPS), DRAWS)
        return describe.draw(params, describe.frozen, keys, jnp.zeros(DRAWS, jnp.int32))

    data = drawn(np.random.default_rng(0), (SEEDS, STEPS, BATCH))
    fit = jax.jit(jax.vmap(run), compiler_options=IN_HASTE)
    return np.asarray(fit(jax.vmap(jax.random.key)(jnp.arange(SEEDS)), data))


def read(noise: float) -> float:
    """How often the mode is read from both levels, as they are told with noise."""
    describe = nested(SPEC, encoders=(group, code), noise=(noise, noise), width=8, depth=1)
    x = jnp.asarray(drawn(np.random.default_rng(1), (DRAWS,)))
    told = describe.told(describe.frozen, x, jax.random.split(jax.random.key(2), DRAWS))
    ideal = np.concatenate([np.where(np.arange(8) < 4, 1, -1)[:, None], CODES], axis=1)
    return float((np.asarray(told @ ideal.T).argmax(1) == np.asarray(mode_of(x))).mean())


def checks() -> list[Check]:
    """The law of both levels together, and what noise takes from them."""
    both = draws()
    above, mode = both[..., 0], (both[..., 1:] @ CODES.T).argmax(-1)
    check = "share of codes that are of their group"
    fits = ((above > 0) == (mode < 4)).mean(1)
    results = [mean_above(check, fits, 0.95)]
    strangers = ((np.roll(above, 1, axis=1) > 0) == (mode < 4)).mean(1)
    results.append(control(mean_above(f"{check}, another draw's group", strangers, 0.95)))
    often = np.stack([(mode == k).mean(1) for k in range(8)], axis=1)
    apart = np.abs(often - SHARES).sum(1) / 2
    results.append(mean_below("total variation of the codes' frequencies", apart, 0.1))

    shares = [read(noise) for noise in (0.0, 2.0, 8.0)]
    check = "share of modes read from the levels"
    results.append(below(f"{check}, that noise 2 leaves of all", shares[1] - shares[0], -0.02))
    results.append(below(f"{check}, that noise 8 leaves of these", shares[2] - shares[1], -0.02))
    results.append(control(below(f"{check}, without noise", read(0.0) - shares[0], -0.02)))
    return results
