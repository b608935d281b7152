"""Guidance moves samples away from the decision boundary; a flow afterwards takes them back."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.shared.check import Check, control, mean_above, mean_below, mean_near
from experiments.shared.toys import PATH, SEEDS, samples
from jaxgen.families.diffusion.guidance.cfg import cfg
from jaxgen.families.diffusion.guidance.postflow import pairs_loss, transport
from jaxgen.families.diffusion.methods.interpolant import couple
from jaxgen.method import minimise
from jaxgen.testing import mixture_denoiser

PAPER = "Studying Classifier(-Free) Guidance From a Classifier-Centric Perspective"
ENTRY = "jaxgen.families.diffusion.guidance.postflow.pairs_loss"

MEANS, STD, SHARES = np.array([[-0.9, 0.4], [0.7, -0.2]]), 0.7, np.array([0.35, 0.65])
SCALES, COUNT, BATCH, STEPS = (0.0, 1.0, 2.0, 3.0), 1000, 200, 300
NORMAL = (MEANS[1] - MEANS[0]) / STD**2
OFFSET = np.log(SHARES[1] / SHARES[0]) - (MEANS[1] @ MEANS[1] - MEANS[0] @ MEANS[0]) / (2 * STD**2)


class Net(nn.Module):
    """The flow's velocity: a small network of x [B, 2] and s [B]."""

    @nn.compact
    def __call__(self, x: jax.Array, s: jax.Array) -> jax.Array:
        """x [B, 2], s [B] -> [B, 2]."""
        h = jnp.concatenate([x, s[:, None]], 1)
        for _ in range(2):
            h = nn.silu(nn.Dense(48)(h))
        return nn.Dense(2)(h)


def margin(x: Any) -> Any:
    """ln p(1 | x) - ln p(0 | x), linear because both classes are as wide: x [..., 2] -> [...]."""
    return x @ NORMAL + OFFSET


def checks() -> list[Check]:
    """Margins against closed forms and rising with w; tails near the boundary, after a flow."""
    results = []
    cond = mixture_denoiser(PATH, MEANS[1:], np.full(1, STD), np.ones(1))
    uncond = mixture_denoiser(PATH, MEANS, np.full(2, STD), SHARES)
    drawn = {w: samples(cfg(cond, uncond, w), count=COUNT) for w in SCALES}
    margins = {w: margin(x).mean(1) for w, x in drawn.items()}
    centre = {0.0: SHARES @ MEANS, 1.0: MEANS[1]}
    for w in (0.0, 1.0):
        results.append(mean_near(f"mean margin at w={w:g}", margins[w], margin(centre[w]), 0.15))
    for low, high in zip(SCALES[1:], SCALES[2:], strict=False):
        check = f"rise of the mean margin from w={low:g} to the next"
        results.append(mean_above(check, margins[high] - margins[low], 0.1))
        results.append(control(mean_above(check, margins[low] - margins[low], 0.1)))

    before, after = [], []
    guided = samples(cfg(cond, uncond, 4.0), count=2 * COUNT)
    for seed in range(SEEDS):
        # The real data of the fit and those of the verdict are different ones.
        data, fresh = (_real(10 * seed + k) for k in (1, 2))
        flow = _fit(guided[seed, :COUNT], data, seed)
        held = guided[seed, COUNT:]
        before.append(tail_distance(held, fresh))
        after.append(tail_distance(flow(held), fresh))
    check = "W2 of the fifth that is nearest to the boundary, over that without the flow"
    results.append(mean_below(check, np.array(after) / np.array(before), 0.5))
    results.append(control(mean_below(check, np.array(before) / np.array(before), 0.5)))
    return results


def tail_distance(x: Any, y: Any) -> float:
    """W2 between the lowest fifths of two sets of margins, by sorting."""
    a, b = (np.sort(np.asarray(margin(v)))[: COUNT // 5] for v in (x, y))
    return float(np.sqrt(((a - b) ** 2).mean()))


def _real(seed: int) -> np.ndarray:
    return MEANS[1] + STD * np.random.default_rng(seed).normal(size=(COUNT, 2))


def _fit(source: jax.Array, data: np.ndarray, seed: int) -> Any:
    """The flow from samples to data, trained on optimally coupled batches."""
    rng = np.random.default_rng(seed)
    first, second = [], []
    for _ in range(20):
        pick = [rng.choice(COUNT, BATCH, replace=False) for _ in range(2)]
        pairs = couple(np.asarray(source)[pick[0]], data[pick[1]], "optimal")
        first.append(pairs[0])
        second.append(pairs[1])
    batches = [jnp.asarray(np.stack(half), jnp.float32) for half in (first, second)]
    params = _train(*batches, jax.random.key(seed))
    return lambda x: _flow(params, x)


@jax.jit
def _train(x0: jax.Array, x1: jax.Array, key: jax.Array) -> Any:
    """The velocity's parameters after STEPS of Adam on pairs x0, x1 [batches, BATCH, 2]."""
    net, optimizer = Net(), optax.adam(optax.cosine_decay_schedule(1e-2, STEPS))
    params = net.init(key, x0[0], jnp.zeros(BATCH))

    def loss(params: Any, number: jax.Array) -> jax.Array:
        batch = x0[number % len(x0)], x1[number % len(x1)]
        step_key = jax.random.fold_in(key, number)
        return pairs_loss(lambda x, s: net.apply(params, x, s), *batch, step_key)

    return minimise(loss, optimizer, params, jnp.arange(STEPS))[0]


@jax.jit
def _flow(params: Any, x: jax.Array) -> jax.Array:
    return transport(lambda y, s: Net().apply(params, y, s), x)
