"""DeeDiff: layers leave where they are sure; sureness is learned, and worth more than chance."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.shared.check import Check, below, control, mean_above, mean_below, near
from experiments.shared.quick import quick_jit
from experiments.shared.toys import MEANS, PATH, SEEDS, STDS, WEIGHTS, of_all
from jaxgen.families.diffusion import solvers
from jaxgen.families.diffusion.core.denoiser import Network
from jaxgen.families.diffusion.core.sampler import integrate
from jaxgen.families.diffusion.methods.early_exit import early_exit, exit_loss
from jaxgen.method import minimise
from jaxgen.nn.exits import ExitMLP

PAPER = (
    "DeeDiff: Dynamic Uncertainty-Aware Early Exiting for Accelerating Diffusion Model Generation"
)
ENTRY = "jaxgen.families.diffusion.methods.early_exit.early_exit"
DEPTH, STEPS, BATCH, COUNT = 4, 400, 128, 400
NET = Network(ExitMLP(num_classes=1, out_channels=2, width=32, depth=DEPTH), PATH, "eps")
TIMES = jnp.linspace(0.05, 0.95, 10)
GRID = jnp.linspace(0.95, 0.0, 13)
THRESHOLDS = (0.0, 0.2, 0.3, 1.0)
BOUND = 0.75
# Compiling takes longer than running here: half of it at this level.
FAST = {"xla_backend_optimization_level": 1}


def points(seed: int, *shape: int) -> np.ndarray:
    """Data of the asymmetric mixture, [SEEDS, *shape, 2]."""
    rng = np.random.default_rng(seed)
    label = rng.choice(3, (SEEDS, *shape), p=WEIGHTS)
    x0 = MEANS[label] + STDS[label][..., None] * rng.normal(size=(*label.shape, 2))
    return x0.astype(np.float32)


def trained(key: jax.Array, data: tuple[jax.Array, ...]) -> Any:
    """Parameters after STEPS of Adam on the loss of all exits.

    data: x0, eps, t [STEPS, BATCH, ...].
    """
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, STEPS))
    labels = jnp.zeros(BATCH, jnp.int32)
    start = NET.model.init(key, jnp.zeros((1, 2)), jnp.zeros(1), labels[:1])["params"]

    def loss(params: Any, batch: Any) -> jax.Array:
        x0, eps, t = batch
        return exit_loss(NET, params, x0, labels, eps, t)

    return minimise(loss, optimizer, start, data)[0]


def measured(params: Any, key: jax.Array, x0: jax.Array) -> dict[str, jax.Array]:
    """One seed: errors and u of every exit at TIMES, and what thresholds cost and save.

    x0 [COUNT, 2].
    """
    eps = jax.random.normal(key, (10, COUNT, 2))
    x = jax.vmap(lambda e, t: PATH.mix(x0, e, t))(eps, TIMES)
    flat, t = x.reshape(-1, 2), jnp.repeat(TIMES, COUNT)
    best = of_all()(None, flat, t)[0].eps
    labels = jnp.zeros(flat.shape[0], jnp.int32)
    out, u = NET.model.apply({"params": params}, flat, t, labels, method="every")
    wrong = jnp.tanh(jnp.abs(out - eps.reshape(-1, 2))).mean(-1)[:-1]
    doubt = u.mean(-1)[:-1]
    cells = [a.reshape(DEPTH - 1, 10, COUNT).mean(-1).ravel() for a in (doubt, wrong)]
    excess = ((out - best) ** 2).mean(-1)

    used, error = [], []
    for threshold in THRESHOLDS:
        leaving = early_exit(NET, params, labels, threshold)
        p, layers = leaving(None, flat, t, leaving.init(flat))
        used.append(layers)
        error.append(((p.eps - best) ** 2).mean())
    # The same depths, given to images by chance.
    shuffle = jax.random.permutation(jax.random.fold_in(key, 4), flat.shape[0])
    both = jnp.stack([shuffle, jnp.roll(shuffle, flat.shape[0] // 3)])
    depths = jnp.stack(used)[:, both] - 1
    chance = jnp.take_along_axis(excess.T[None, None], depths[..., None], -1).mean((2, 3))
    gain = jnp.stack(error) - error[0]
    return {
        "correlation": jnp.corrcoef(*cells)[0, 1],
        "shuffled": jnp.corrcoef(cells[0], jax.random.permutation(key, cells[1]))[0, 1],
        "used": jnp.stack(used).mean(1),
        "error": jnp.stack(error) / error[0],
        "against_chance": gain / (chance[:, 0] - error[0]),
        "chance": (chance[:, 1] - error[0]) / (chance[:, 0] - error[0]),
    }


def drawn(params: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Samples by all layers, by threshold 0 and by threshold 0.3, [100, 2] each."""
    keys, labels = jax.random.split(jax.random.key(5), 100), jnp.zeros(100, jnp.int32)
    x, grid, euler = jax.random.normal(jax.random.key(6), (100, 2)), GRID, solvers.euler(PATH)
    denoisers = (
        NET.denoiser(params, labels),
        *(early_exit(NET, params, labels, h) for h in (0.0, 0.3)),
    )
    full, never, some = (integrate(euler, denoiser, x, grid, keys) for denoiser in denoisers)
    return full, never, some


def checks() -> list[Check]:
    """Five networks with four exits each, on a mixture whose best eps is known."""
    keys = jax.vmap(jax.random.key)(jnp.arange(SEEDS))
    rng, shape = np.random.default_rng(2), (SEEDS, STEPS, BATCH)
    eps, t = rng.normal(size=(*shape, 2)).astype(np.float32), rng.random(shape, np.float32)
    fit = jax.jit(jax.vmap(trained), compiler_options=FAST)(keys, (points(0, STEPS, BATCH), eps, t))
    seen = quick_jit(jax.vmap(measured))(fit, keys, points(1, COUNT))
    seen = {k: np.asarray(v) for k, v in seen.items()}
    results = []

    full, never, some = quick_jit(drawn)(jax.tree.map(lambda a: a[0], fit))
    check = "samples against all layers', threshold 0"
    results.append(below(check, jnp.abs(never - full).max(), 0.0))
    results.append(control(below(f"{check}.3", jnp.abs(some - full).max(), 0.0)))

    # Over ten times and three exits; by chance where the errors are another exit's or time's.
    check = "correlation of uncertainty and error of exits"
    results.append(mean_above(check, seen["correlation"], 0.95))
    results.append(control(mean_above(f"{check}, shuffled", seen["shuffled"], 0.95)))

    check = "mean layers used"
    results += [near(f"{check} at threshold {h:g}", seen["used"][:, n].mean(), layers, 0.0)
              for n, h, layers in ((0, 0, DEPTH), (-1, 1, 1))]  # fmt: skip
    for n in range(1, len(THRESHOLDS)):
        fewer = seen["used"][:, n] - seen["used"][:, n - 1]
        results.append(mean_below(f"change of them up to threshold {THRESHOLDS[n]:g}", fewer, -0.2))
    for n in (1, 2):
        check = f"what leaving loses over the same depths by chance, threshold {THRESHOLDS[n]:g}"
        results.append(mean_below(check, seen["against_chance"][:, n], BOUND))
        results.append(control(mean_below(f"{check}: chance", seen["chance"][:, n], BOUND)))
        check = f"error over all layers', threshold {THRESHOLDS[n]:g}"
        results.append(mean_below(check, seen["error"][:, n], 1.15))
    check = "error over all layers', the first layer alone"
    results.append(control(mean_below(check, seen["error"][:, -1], 1.15)))
    return results
