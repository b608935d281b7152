"""Discriminative class tokens: one embedding, through the last denoising step, by a classifier."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.shared.check import Check, above, below, control
from experiments.shared.quick import quick_jit
from jaxgen.families.diffusion import denoising
from jaxgen.method import Method, Spec
from jaxgen.training.ema import Averages
from jaxgen.tune.tokens import tokens

PAPER = "Discriminative Class Tokens for Text-to-Image Diffusion Models"
ENTRY = "jaxgen.tune.tokens.tokens"
MEANS = jnp.array([[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7], [2.0, 0.0]])
"""Of three classes, and what the fourth's embedding begins as: the first's."""
SPEC, STD, TOKEN, TARGET, COUNT = Spec((2,), 4, levels=None), 0.3, 3, 1, 500


class Exact(nn.Module):
    """x0 = E[x0 | x_t] exactly, of N(e, STD^2), e [2] the embedding of the label."""

    @nn.compact
    def __call__(
        self, x: jax.Array, noise: jax.Array, condition: jax.Array, *, train: bool = False
    ) -> jax.Array:
        """x [B, 2] at times noise [B] of the linear path -> [B, 2]."""
        e = nn.Embed(5, 2, name="labels")(condition)
        alpha, sigma = 1 - noise[:, None], noise[:, None]
        gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        return e + gain * (x - alpha * e)


def judge(x: jax.Array, labels: jax.Array) -> jax.Array:
    """ln p(label | x) of the three classes, exact."""
    logits = -((x[:, None] - MEANS[:3]) ** 2).sum(-1) / (2 * STD**2)
    return jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)[:, 0]


def tuned(seed: int, steps: int = 400) -> tuple[Method, Any, Any]:
    """(the wrapped method, its parameters before, and after)."""
    base = denoising(SPEC, Exact(), optax.adam(3e-2), Averages((500,)), prediction="x0")
    method = tokens(
        base, spec=SPEC, classes=(TOKEN,), targets=(TARGET,), reward=judge, last=1,
        sample=dict(solver="euler", steps=8, guidance=1.0),
    )  # fmt: skip
    state = quick_jit(method.init)(jax.random.key(0))
    table = jnp.concatenate([MEANS, jnp.zeros((1, 2))])
    state = state.replace(params={**state.params, "net": {"labels": {"embedding": table}}})
    batch = {"image": jnp.zeros((32, 2)), "label": jnp.zeros(32, jnp.int32)}

    def body(state: Any, number: jax.Array) -> tuple[Any, None]:
        key = jax.random.fold_in(jax.random.key(seed), number)
        return method.update(state, batch, key)[0], None

    fit = jax.jit(lambda s: jax.lax.scan(body, s, jnp.arange(steps))[0])
    return method, state.params, fit(state).params


def checks(seed: int = 0) -> list[Check]:
    """The token's samples lie where the classifier wants them; the other classes' are the same."""
    keys = jax.random.split(jax.random.key(2), 4 * COUNT)
    labels = jnp.repeat(jnp.arange(4), COUNT)
    method, before, after = tuned(seed)
    sample = quick_jit(method.sampler(solver="heun", steps=12, guidance=1.0).fn)
    old, new = (np.asarray(sample(p, keys, labels)) for p in (before, after))
    name = "samples in the region of the target"

    def share(x: np.ndarray) -> float:
        own = x[TOKEN * COUNT :]
        return float((judge(own, jnp.full(COUNT, TARGET)) > np.log(0.5)).mean())

    results = [control(above(f"{name}, before", share(old), 0.95))]
    results.append(above(f"{name}, after", share(new), 0.95))
    rest = slice(0, TOKEN * COUNT)
    moved = float(np.abs(new[rest] - old[rest]).max())
    results.append(below("other classes' samples moved", moved, 0.0))
    same = after["net"]["labels"]["embedding"] == before["net"]["labels"]["embedding"]
    results.append(below("frozen parameters that moved", (~same).sum(), 0))
    return results
