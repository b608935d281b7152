"""MT-Diffusion: image and label from one reverse process, jointly, as the data has them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.shared.check import Check, control, mean_above, mean_below, mean_near
from experiments.shared.quick import quick_jit
from experiments.shared.toys import MEANS, PATH, SEEDS, STDS, WEIGHTS, posterior, samples
from jaxgen.families.diffusion import solvers
from jaxgen.families.diffusion.core import grids
from jaxgen.families.diffusion.core.sampler import integrate
from jaxgen.families.diffusion.methods.joint import Joint
from jaxgen.method import minimise
from jaxgen.nn.mlp import MLP
from jaxgen.testing import mixture_denoiser, responsibilities

PAPER = "Diffusion Models for Multi-Task Generative Modeling"
ENTRY = "jaxgen.families.diffusion.methods.joint.Joint"
STEPS, BATCH, COUNT = 400, 128, 1000
CODES = jnp.asarray([[-0.8, 0.4], [0.9, 0.3], [0.1, -0.7]])
JOINT = Joint(MLP(num_classes=1, out_channels=2 + 3, width=48, depth=2), PATH, CODES)
TIMES = (0.1, 0.5, 0.8)
# Compiling takes longer than running here: half of it at this level.
FAST = {"xla_backend_optimization_level": 1}
Z_MEANS = MEANS + np.asarray(CODES)


def data(seed: int, *shape: int) -> tuple[np.ndarray, ...]:
    """(x0, labels, eps, t), each [SEEDS, *shape, ...]."""
    rng, shape = np.random.default_rng(seed), (SEEDS, *shape)
    label = rng.choice(3, shape, p=WEIGHTS).astype(np.int32)
    x0 = MEANS[label] + STDS[label][..., None] * rng.normal(size=(*shape, 2))
    eps = rng.normal(size=(*shape, 2)).astype(np.float32)
    return x0.astype(np.float32), label, eps, rng.random(shape, np.float32)


def trained(key: jax.Array, batches: tuple[jax.Array, ...]) -> Any:
    """Parameters after STEPS of Adam on both heads' loss; batches [STEPS, BATCH, ...]."""
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, STEPS))
    nothing = jnp.zeros(1, jnp.int32)
    start = JOINT.model.init(key, jnp.zeros((1, 2)), jnp.zeros(1), nothing)["params"]
    return minimise(lambda p, batch: JOINT.loss(p, *batch), optimizer, start, batches)[0]


def divergence(params: Any, x0: Any, labels: Any, eps: Any) -> tuple[jax.Array, jax.Array]:
    """E KL(p(y | z_t) || q) at TIMES in nats, q the head's and q = p(y), [3] each."""

    def at(t: float) -> list[jax.Array]:
        z = PATH.mix(JOINT.encode(x0, labels), eps, jnp.float32(t))
        exact = responsibilities(PATH, z, jnp.float32(t), Z_MEANS, STDS, WEIGHTS)
        head = jax.nn.log_softmax(JOINT.heads(params, z, jnp.float32(t))[1])
        gaps = (jnp.log(jnp.maximum(exact, 1e-30)) - q for q in (head, jnp.log(WEIGHTS)))
        return [(exact * gap).sum(-1).mean() for gap in gaps]

    head, blind = jnp.asarray([at(t) for t in TIMES]).T
    return head, blind


def drawn(params: Any, noise: jax.Array, keys: jax.Array) -> tuple[Any, Any]:
    """Samples (x0 [COUNT, 2], y [COUNT]): jointly; and with y by itself, from its marginal."""
    z0 = integrate(solvers.heun(PATH), JOINT.denoiser(params), noise, grids.uniform(16, PATH), keys)
    logits = JOINT.heads(params, z0, jnp.float32(0))[1]
    apart = jnp.broadcast_to(jnp.log(WEIGHTS), logits.shape)
    return JOINT.read(logits, z0, keys), JOINT.read(apart, z0, keys)


def statistics(x: Any, y: Any) -> dict[str, np.ndarray]:
    """[SEEDS] each: agreement with Bayes' classifier, and each class's share, mean and deviation.

    Means as their distance to the exact ones; deviations over the exact ones.
    """
    results = {"agreement": np.asarray((posterior(x).argmax(-1) == y).mean(1))}
    x, y = np.asarray(x), np.asarray(y)
    for k in range(3):
        of_class = [a[b == k] for a, b in zip(x, y, strict=True)]
        results[f"share {k}"] = np.array([len(a) for a in of_class]) / COUNT
        results[f"mean {k}"] = np.array([np.linalg.norm(a.mean(0) - MEANS[k]) for a in of_class])
        results[f"deviation {k}"] = np.array([a.std(0).mean() for a in of_class]) / STDS[k]
    return results


def checks() -> list[Check]:
    """The label's head against the exact posterior, then the joint law of samples."""
    keys = jax.vmap(jax.random.key)(jnp.arange(SEEDS))
    params = jax.jit(jax.vmap(trained), compiler_options=FAST)(keys, data(0, STEPS, BATCH))
    results = []
    head, blind = quick_jit(jax.vmap(divergence))(params, *data(1, COUNT)[:3])
    for n, t in enumerate(TIMES):
        check = f"KL(p(y | z_t) || head) at t={t:g}, nats"
        results.append(mean_below(check, head[:, n], 0.03))
        results.append(control(mean_below(f"{check}: p(y) in the head's place", blind[:, n], 0.03)))

    noise = jax.random.normal(jax.random.key(3), (SEEDS, COUNT, 2))
    keys_ = jax.random.split(jax.random.key(4), (SEEDS, COUNT))
    joint, apart = jax.jit(jax.vmap(drawn), compiler_options=FAST)(params, noise, keys_)
    seen, without = statistics(*joint), statistics(*apart)
    check = "agreement of samples' labels with Bayes' classifier of their images"
    results.append(mean_above(check, seen["agreement"], 0.97))
    results.append(control(mean_above(f"{check}: labels apart", without["agreement"], 0.97)))
    for k in range(3):
        results.append(mean_near(f"share of class {k}", seen[f"share {k}"], WEIGHTS[k], 0.04))
        check = f"distance of class {k}'s mean"
        results.append(mean_below(check, seen[f"mean {k}"], 0.15))
        results.append(control(mean_below(f"{check}: labels apart", without[f"mean {k}"], 0.15)))

    # The exact denoiser and the exact posterior in the place of the network's two heads.
    z0 = samples(mixture_denoiser(PATH, Z_MEANS, STDS, WEIGHTS), solver=solvers.heun(PATH))
    flat = responsibilities(PATH, z0.reshape(-1, 2), jnp.float32(0), Z_MEANS, STDS, WEIGHTS)
    logits = jnp.log(flat).reshape(SEEDS, COUNT, 3)
    seen = statistics(*jax.vmap(JOINT.read)(logits, z0, keys_))
    without = statistics(
        *jax.vmap(JOINT.read)(jnp.broadcast_to(jnp.log(WEIGHTS), logits.shape), z0, keys_)
    )
    for k in range(3):
        check = f"exact heads: deviation of class {k} over the data's"
        results.append(mean_near(check, seen[f"deviation {k}"], 1.0, 0.06))
        results.append(control(mean_near(f"{check}, labels apart", without[f"deviation {k}"],
                                       1.0, 0.06)))  # fmt: skip
    return results
