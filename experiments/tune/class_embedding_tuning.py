"""A generator's class embedding by activation maximisation, all else frozen."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.shared.check import Check, above, below, control
from experiments.shared.quick import quick_jit
from jaxgen.families.adversarial import adversarial
from jaxgen.method import Spec
from jaxgen.nn.gan import MLPDiscriminator
from jaxgen.nn.gan_layers import Embed
from jaxgen.training.ema import Averages
from jaxgen.tune.tokens import tokens

PAPER = (
    "A cost-effective method for improving and re-purposing large, pre-trained GANs by "
    "fine-tuning their class-embeddings"
)
ENTRY = "jaxgen.tune.tokens.tokens"
MEANS = jnp.array([[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]])
SPEC, COLLAPSED, COUNT = Spec((2,), 3, levels=None), 2, 1000


class Generator(nn.Module):
    """x = B (g z) + C m, bilinear in latents z [B, 2] and the embedding (m, g) of the label."""

    @nn.compact
    def __call__(self, z: jax.Array, labels: jax.Array, *, train: bool = False) -> jax.Array:
        """z [B, 2], labels [B] -> [B, 2]."""
        m, g = jnp.split(Embed(3, 4, name="labels")(labels), 2, -1)
        dense = lambda name: nn.Dense(2, use_bias=False, name=name)
        return dense("B")(g * z) + dense("C")(m)


def judge(x: jax.Array, labels: jax.Array) -> jax.Array:
    """ln p(label | x) of equal classes N(mean, 1) in the plane, exact."""
    logits = -((x[:, None] - MEANS) ** 2).sum(-1) / 2
    return jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)[:, 0]


def tuned(diversity: float, seed: int, steps: int = 500) -> tuple[Any, Any, Any]:
    """(the wrapped method, its parameters before, and after)."""
    model = {"generator": Generator(), "discriminator": MLPDiscriminator(8, 1)}
    base = adversarial(SPEC, model, optax.adam(3e-2), Averages((500,)), latent=dict(
        name="normal", size=2))  # fmt: skip
    method = tokens(base, spec=SPEC, classes=(COLLAPSED,), reward=judge, diversity=diversity)
    # The collapsed class is where the first one is, with hardly any noise.
    table = jnp.concatenate([MEANS, jnp.full((3, 2), 0.4)], 1).at[COLLAPSED].set([2, 0, 0.01, 0.01])
    state = quick_jit(method.init)(jax.random.key(0))
    net = {"labels": {"embedding": table}} | {n: {"kernel": jnp.eye(2)} for n in "BC"}
    state = state.replace(params={**state.params, "generator": net})
    batch = {"image": jnp.zeros((64, 2)), "label": jnp.zeros(64, jnp.int32)}

    def body(state: Any, number: jax.Array) -> tuple[Any, None]:
        key = jax.random.fold_in(jax.random.key(seed), number)
        return method.update(state, batch, key)[0], None

    fit = jax.jit(lambda s: jax.lax.scan(body, s, jnp.arange(steps))[0])
    return method, state.params, fit(state).params


def checks(seed: int = 0) -> list[Check]:
    """The class is recognised, it varies where diversity counts, and nothing else has moved."""
    keys = jax.random.split(jax.random.key(2), 3 * COUNT)
    labels = jnp.repeat(jnp.arange(3), COUNT)
    results, spread = [], {}
    for diversity in (0.2, 0.0):
        method, before, after = tuned(diversity, seed)
        sample = quick_jit(method.sampler().fn)
        old, new = (np.asarray(sample(p, keys, labels)) for p in (before, after))
        chance = lambda x: np.exp(judge(x[2 * COUNT :], labels[2 * COUNT :])).mean()
        name = "probability of its class"
        if diversity:
            results.append(control(above(f"{name}, collapsed", chance(old), 0.95)))
        results.append(above(f"{name}, tuned, diversity {diversity:g}", chance(new), 0.95))
        spread[diversity] = float(new[2 * COUNT :].std(0).min())
        moved = float(np.abs(new[: 2 * COUNT] - old[: 2 * COUNT]).max())
        results.append(below("other classes' samples moved", moved, 0.0))
        frozen = {k: v for k, v in after.items() if k != "tokens"}
        parts = jax.tree.map(lambda a, b: (a != b).sum(), frozen, {k: before[k] for k in frozen})
        results.append(below("other parameters that moved", sum(jax.tree.leaves(parts)), 0))
    name = "standard deviation of its samples"
    results.append(above(f"{name}, with diversity", spread[0.2], 0.2))
    results.append(control(above(f"{name}, without", spread[0.0], 0.2)))
    return results
