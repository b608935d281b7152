"""ITI-GEN: of a class that is 90 to 10, a token for each category, and samples that are even."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.shared.check import Check, below, control, near
from experiments.shared.quick import quick_jit
from jaxgen.families.diffusion import denoising
from jaxgen.method import Spec
from jaxgen.training.ema import Averages
from jaxgen.tune.inclusive import inclusive

PAPER = "ITI-GEN: Inclusive Text-to-Image Generation"
ENTRY = "jaxgen.tune.inclusive.inclusive"
MODES = jnp.array([[2.0, 1.0], [2.0, -1.0]])
"""Of the attribute's two categories; a class is a mixture of them."""
SPEC = Spec((2,), 3, levels=None, classes=("class", "first", "second"))
STD, SKEW, COUNT, BATCH = 0.3, math.log(9.0), 1000, 256


class Exact(nn.Module):
    """E[x0 | x_t] exactly, of two Gaussians with log-odds e [1], the embedding of the label."""

    @nn.compact
    def __call__(
        self, x: jax.Array, noise: jax.Array, condition: jax.Array, *, train: bool = False
    ) -> jax.Array:
        """x [B, 2] at times noise [B] of the linear path -> [B, 2]."""
        e = nn.Embed(4, 1, name="labels")(condition)
        alpha, sigma = 1 - noise[:, None], noise[:, None]
        spread = alpha**2 * STD**2 + sigma**2
        off = ((x[:, None] - alpha[..., None] * MODES) ** 2).sum(-1)
        logits = jnp.concatenate([e, jnp.zeros_like(e)], 1) - off / (2 * spread)
        gain = (alpha * STD**2 / spread)[..., None]
        each = MODES + gain * (x[:, None] - alpha[..., None] * MODES)
        return (jax.nn.softmax(logits)[..., None] * each).sum(1)


def tuned(seed: int, steps: int = 300) -> tuple[Any, Any, Any]:
    """(the wrapped method, its parameters before, and after)."""
    base = denoising(SPEC, Exact(), optax.adam(1e-1), Averages((500,)), prediction="x0")
    sample = dict(solver="euler", steps=8, guidance=1.0)
    method = inclusive(
        base,
        spec=SPEC,
        classes=("first", "second"),
        parent="class",
        margin=0.5,
        last=8,
        sample=sample,
    )
    state = quick_jit(method.init)(jax.random.key(0))
    table = jnp.full((4, 1), SKEW)
    state = state.replace(params={**state.params, "net": {"labels": {"embedding": table}}})

    def body(state: Any, number: jax.Array) -> tuple[Any, None]:
        key = jax.random.fold_in(jax.random.key(seed), number)
        which = jnp.arange(BATCH) % 2
        image = MODES[which] + STD * jax.random.normal(key, (BATCH, 2))
        return method.update(state, {"image": image, "label": 1 + which}, key)[0], None

    fit = jax.jit(lambda s: jax.lax.scan(body, s, jnp.arange(steps))[0])
    return method, state.params, fit(state).params


def checks(seed: int = 0) -> list[Check]:
    """Shares of the first category: of the class, and of the two tokens drawn evenly.

    The cosine of a category's mean with the class's is 0.66 and more, above the margin.
    """
    method, before, after = tuned(seed)
    keys = jax.random.split(jax.random.key(2), 3 * COUNT)
    labels = jnp.repeat(jnp.arange(3), COUNT)
    sample = quick_jit(method.sampler(solver="heun", steps=16, guidance=1.0).fn)
    old, new = (np.asarray(sample(p, keys, labels)).reshape(3, COUNT, 2) for p in (before, after))
    share = lambda x: float((x[..., 1] > 0).mean())
    name = "share of the first category"
    results = [control(near(f"{name}, the class", share(new[0]), 0.5, 0.05))]
    results.append(control(near(f"{name}, tokens before", share(old[1:]), 0.5, 0.05)))
    results.append(near(f"{name}, tokens drawn evenly", share(new[1:]), 0.5, 0.05))
    results.append(near("mean across the attribute", new[1:, :, 0].mean(), 2.0, 0.05))
    results.append(below("the class's samples moved", np.abs(new[0] - old[0]).max(), 0.0))
    return results
