"""GSDM: what a variable can know, exchangeable variables, and a list that is sorted."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.shared.check import Check, below, control, mean_below, near
from experiments.shared.quick import quick_jit
from experiments.shared.told import IN_HASTE
from jaxgen.families.diffusion.core.denoiser import Network
from jaxgen.families.diffusion.core.path import linear
from jaxgen.method import minimise
from jaxgen.nn.flops import parameters
from jaxgen.nn.gsdm import GSDM
from jaxgen.nn.mlp import MLP
from jaxgen.testing.networks import live_variables

PAPER = "Graphically Structured Diffusion Models"
ENTRY = "jaxgen.nn.gsdm.GSDM"
CHAIN = tuple((k, k + 1) for k in range(7))
SIZES: dict[str, Any] = dict(
    num_classes=1, out_channels=1, depth=2, width=16, heads=2, patch=1, remat="none"
)
COUNT, STEPS, BATCH, SEEDS, TESTS, CALLS = 5, 250, 64, 5, 128, 8
PATH = linear()


def hops(net: GSDM) -> jax.Array:
    """Which of a chain's 8 variables each one's output moves with, bool [8, 8]."""
    variables = live_variables(net, (8, 1, 1))

    def of(x: jax.Array) -> jax.Array:
        out: Any = net.apply(variables, x.reshape(1, 8, 1, 1), jnp.full(1, 0.5), jnp.zeros(1, int))
        return out.reshape(8)

    return jnp.abs(quick_jit(jax.jacobian(of))(jnp.linspace(-1, 1, 8))) > 0


def exchanged(kinds: tuple[int, ...]) -> jax.Array:
    """How far exchanging two leaves of a star is from exchanging their outputs."""
    net = GSDM(**SIZES, edges=((0, 1), (0, 2), (0, 3)), kinds=kinds)
    variables = live_variables(net, (4, 1, 1))
    x = jax.random.normal(jax.random.key(0), (1, 4, 1, 1))
    order = jnp.array([0, 2, 1, 3])
    apply = quick_jit(lambda x: net.apply(variables, x, jnp.full(1, 0.5), jnp.zeros(1, jnp.int32)))
    return jnp.abs(apply(x[:, order]) - apply(x)[:, order]).max()


def lists(rng: np.random.Generator, *shape: int) -> tuple[np.ndarray, ...]:
    """(numbers [*shape, 5] of about unit variance, the same sorted, noise for them, times)."""
    x = rng.uniform(-1.7, 1.7, (*shape, COUNT)).astype(np.float32)
    noise = rng.normal(size=x.shape).astype(np.float32)
    return x, np.sort(x, axis=-1), noise, rng.uniform(size=shape).astype(np.float32)


def together(given: jax.Array, rest: jax.Array) -> jax.Array:
    """The variables [B, 10, 1, 1]: the list, which is observed, and the sorted one."""
    return jnp.concatenate([given, rest], axis=1)[:, :, None, None]


def sorting(model: Any) -> jax.Array:
    """The root mean squared error of lists that a trained model has sorted, one for each seed."""
    network = Network(model, PATH, "velocity")

    def velocity(params: Any, given: jax.Array, x: jax.Array, t: jax.Array) -> jax.Array:
        labels = jnp.zeros(len(x), jnp.int32)
        return network.output(params, together(given, x), t, labels)[0][:, COUNT:, 0, 0]

    def loss(params: Any, batch: Any) -> jax.Array:
        given, wanted, eps, t = batch
        out = velocity(params, given, PATH.mix(wanted, eps, t), t)
        return jnp.square(out - (eps - wanted)).mean()

    def run(start: Any, data: Any, test: Any) -> jax.Array:
        rate = optax.cosine_decay_schedule(5e-3, STEPS)
        found, _ = minimise(loss, optax.adam(rate), start, data)
        given, wanted, x, _ = test

        def euler(x: jax.Array, t: jax.Array) -> tuple[jax.Array, None]:
            return x - velocity(found, given, x, jnp.broadcast_to(t, (TESTS,))) / CALLS, None

        x, _ = jax.lax.scan(euler, x, jnp.arange(CALLS, 0, -1) / CALLS)
        return jnp.sqrt(jnp.square(x - wanted).mean())

    blank = jnp.zeros((1, 2 * COUNT, 1, 1)), jnp.zeros(1), jnp.zeros(1, jnp.int32)
    first = quick_jit(jax.vmap(lambda key: model.init(key, *blank)["params"]))
    start, rng = first(jax.vmap(jax.random.key)(jnp.arange(SEEDS))), np.random.default_rng(0)
    fit = jax.jit(jax.vmap(run), compiler_options=IN_HASTE)
    return fit(start, lists(rng, SEEDS, STEPS, BATCH), lists(rng, SEEDS, TESTS))


def checks() -> list[Check]:
    """Hops, exchanges, and sorted lists."""
    apart = np.abs(np.arange(8)[:, None] - np.arange(8))
    seen = np.asarray(hops(GSDM(**SIZES, edges=CHAIN)))
    every = tuple((a, b) for a in range(8) for b in range(a))
    check = "variables more than 2 hops away that 2 layers know of"
    results = [below(check, (seen & (apart > 2)).sum(), 0)]
    missed = (~seen & (apart <= 2)).sum()
    results.append(near("variables at most 2 hops away that they do not", missed, 0, 0))
    whole = np.asarray(hops(GSDM(**SIZES, edges=every)))
    results.append(control(below(f"{check}, all joined", (whole & (apart > 2)).sum(), 0)))

    check = "leaves of a star exchanged, off by"
    results.append(below(f"{check}, of one kind", exchanged((0, 1, 1, 1)), 1e-5))
    results.append(control(below(f"{check}, each of its own", exchanged(()), 1e-5)))

    # The sorted list knows the list, and each of it its neighbours.
    edges = tuple((a, COUNT + b) for a in range(COUNT) for b in range(COUNT))
    edges += tuple((COUNT + b, COUNT + b + 1) for b in range(COUNT - 1))
    kinds = (0,) * COUNT + tuple(range(1, COUNT + 1))
    graph = GSDM(**SIZES, edges=edges, kinds=kinds)
    plain = MLP(1, 1, width=24, depth=2)
    shape = (2 * COUNT, 1, 1)
    ratio = parameters(graph, shape) / parameters(plain, shape)
    results.append(below("parameters over the unstructured network's", ratio, 1.0))
    check = "error of sorted lists of 5"
    results.append(mean_below(check, sorting(graph), 0.2))
    results.append(control(mean_below(f"{check}, no structure", sorting(plain), 0.2)))
    return results
