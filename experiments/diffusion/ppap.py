"""PPAP: a frozen classifier of clean points, five experts taught without labels, guidance."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.shared.causal import quick_jit
from experiments.shared.check import Check, below, control, mean_above, mean_below
from experiments.shared.toys import MEANS, PATH, SEEDS, STDS, WEIGHTS, of_all, posterior
from jaxgen.families.diffusion import solvers
from jaxgen.families.diffusion.core import grids
from jaxgen.families.diffusion.core.denoiser import Denoiser
from jaxgen.families.diffusion.core.sampler import integrate, prior
from jaxgen.families.diffusion.guidance.classifier import classifier
from jaxgen.families.diffusion.guidance.ppap import adapted, adapters, by_noise, log_prob, transfer
from jaxgen.method import minimise
from jaxgen.testing import responsibilities

PAPER = "Towards Practical Plug-and-Play Diffusion Models"
ENTRY = "jaxgen.families.diffusion.guidance.ppap.transfer"

EDGES = (0.2, 0.4, 0.6, 0.8)
ENDS = tuple(zip((0.0, *EDGES), (*EDGES, 1.0), strict=True))
WIDTH, RANK, STEPS, BATCH, LABEL = 32, 2, 150, 64, 1


class Classifier(nn.Module):
    """Logits of the three classes from a point of the plane alone: it does not know the noise."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, 2] -> [B, 3]."""
        return nn.Dense(3)(nn.tanh(nn.Dense(WIDTH)(x)))


NET = Classifier()


def points(key: jax.Array, count: int) -> jax.Array:
    """What a perfect diffusion model would sample, [count, 2]."""
    label = jax.random.choice(key, 3, (count,), p=jnp.asarray(WEIGHTS))
    noise = jax.random.normal(jax.random.fold_in(key, 1), (count, 2))
    return jnp.asarray(MEANS)[label] + jnp.asarray(STDS)[label][:, None] * noise


def fit(loss: Any, start: Any, key: jax.Array) -> Any:
    """STEPS of Adam on loss(params, key)."""
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-2, STEPS))

    def at(params: Any, number: jax.Array) -> jax.Array:
        return loss(params, jax.random.fold_in(key, number))

    return minimise(at, optimizer, start, jnp.arange(STEPS))[0]


def taught(key: jax.Array) -> tuple[Any, Any]:
    """(the off-the-shelf classifier's parameters, its experts' changes with a leading axis)."""

    def supervised(params: Any, key: jax.Array) -> jax.Array:
        # Off the shelf: the exact posterior of clean points.
        x = points(key, BATCH)
        share = responsibilities(PATH, x, jnp.float32(0), MEANS, STDS, WEIGHTS)
        return -(share * jax.nn.log_softmax(NET.apply(params, x))).sum(-1).mean()

    frozen = fit(supervised, NET.init(key, jnp.zeros((1, 2))), key)

    def trained_on(low: jax.Array, high: jax.Array, key: jax.Array) -> Any:
        def loss(changes: Any, key: jax.Array) -> jax.Array:
            expert = adapted(frozen, changes)
            return transfer(
                lambda x: NET.apply(frozen, x),
                lambda x, t: NET.apply(expert, x),
                points(key, BATCH),
                jax.random.split(jax.random.fold_in(key, 2), BATCH),
                PATH,
                low,
                high,
            )

        return fit(loss, adapters(frozen, RANK, key), key)

    low, high = jnp.asarray(ENDS, jnp.float32).T
    return frozen, jax.vmap(trained_on)(low, high, jax.random.split(key, len(ENDS)))


def divergence(params: Any, key: jax.Array, t: jax.Array) -> jax.Array:
    """E KL(p(. | x_t) || the network's) in nats."""
    x = PATH.mix(points(key, 2000), jax.random.normal(jax.random.fold_in(key, 3), (2000, 2)), t)
    exact = responsibilities(PATH, x, t, MEANS, STDS, WEIGHTS)
    log = jax.nn.log_softmax(NET.apply(params, x))
    return (exact * (jnp.log(jnp.maximum(exact, 1e-30)) - log)).sum(-1).mean()


@quick_jit
def all_seeds(keys: jax.Array) -> tuple[Any, Any, jax.Array, jax.Array]:
    """(classifier, its experts, their divergences [seeds, 5], the classifier's [seeds, 5])."""
    middles = jnp.asarray([(low + high) / 2 for low, high in ENDS])

    def of_seed(key: jax.Array) -> Any:
        frozen, changes = taught(key)
        experts, fresh = jax.vmap(lambda c: adapted(frozen, c))(changes), jax.random.fold_in(key, 9)
        gaps = jax.vmap(lambda p, t: divergence(p, fresh, t))(experts, middles)
        plain = jax.vmap(lambda t: divergence(frozen, fresh, t))(middles)
        return frozen, experts, gaps, plain

    return jax.vmap(of_seed)(keys)


def checks() -> list[Check]:
    """Experts against the exact posterior in every range, then samples that they guide."""
    results = []
    frozen, experts, gaps, plain = all_seeds(jax.vmap(jax.random.key)(jnp.arange(SEEDS)))
    for n, (low, high) in enumerate(ENDS):
        check = f"KL(exact posterior || expert) in the middle of [{low:g}, {high:g}), nats"
        results.append(mean_below(check, gaps[:, n], BOUND))
        if n:
            results.append(control(mean_below(f"{check}: clean classifier", plain[:, n], BOUND)))

    clean = jax.tree.map(lambda a: a[0], frozen)
    same = adapted(clean, adapters(clean, RANK, jax.random.key(0)))
    gap = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), same, clean)
    results.append(
        below("change of the classifier before training", max(jax.tree.leaves(gap)), 0.0)
    )
    return [*results, *guided(clean, experts)]


def draw(denoiser: Denoiser) -> jax.Array:
    """`toys.samples`, compiled quickly: experts make large programs."""
    keys = jnp.concatenate([jax.random.split(jax.random.key(s), 1000) for s in range(SEEDS)])
    grid = grids.uniform(24, PATH)

    @quick_jit
    def run(keys: jax.Array) -> jax.Array:
        return integrate(solvers.euler(PATH), denoiser, prior(PATH, keys, (2,)), grid, keys)

    return run(keys).reshape(SEEDS, 1000, 2)


def guided(clean: Any, experts: Any) -> list[Check]:
    """The share of samples in the class, by the first seed's experts, and by the clean network."""
    first = [jax.tree.map(lambda a, n=n: a[0, n], experts) for n in range(len(ENDS))]
    cases = {
        "experts": by_noise([lambda x, t, p=p: NET.apply(p, x) for p in first], EDGES),
        "the clean classifier": lambda x, t: NET.apply(clean, x),
    }
    labels = jnp.full(SEEDS * 1000, LABEL)
    share = {}
    for name, logits in cases.items():
        drawn = draw(classifier(of_all(), PATH, log_prob(logits, labels)))
        share[name] = np.asarray((posterior(drawn).argmax(-1) == LABEL).mean(1))
    check = "share of samples in the class"
    return [
        mean_above(f"{check}, by experts", share["experts"], SHARE),
        control(
            mean_above(f"{check}, by the clean classifier", share["the clean classifier"], SHARE)
        ),
    ]


BOUND, SHARE = 0.02, 0.8
