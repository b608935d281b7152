"""A config's `sample.steer`: any family's sampler, steered image by image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import config as configs
from jaxgen.errors import invalid
from jaxgen.method import Sampler
from jaxgen.method.chain import Chain, Steered

PyTree = Any

OPTION = "sample.steer"


def steered(sampler: Sampler, section: Any) -> Sampler:
    """`sampler` under a search or a soft law of this room, by a reward.

    section: a function of (chain, reward), its keywords, and `reward`, a section that builds
    fn(x [B, ...], labels [B]) -> [B] (see `jaxgen.frozen.rewards`), which sees what the sampler
    makes: images, tokens or latents. E.g. dict(name="search.best_of", count=16,
    reward=dict(name="classifier", file="runs/digits/classifier.safetensors")). Each image has a
    search of its own, so image i still depends on its key and label alone; `calls` counts it all.

    Raises UsageError for a section that is none, or that this sampler cannot follow.
    """
    keywords = dict(section) if hasattr(section, "keys") else {}
    if "name" not in keywords or "reward" not in keywords:
        raise invalid(OPTION, section, "a section with a name, its options and a reward")
    score = configs.build(keywords.pop("reward"), configs.ROOMS["reward"], f"{OPTION}.reward")
    taken_apart = sampler.chain or (lambda params, label: _whole(sampler, params, label))

    def make(chain: Chain, reward: Callable[[jax.Array], jax.Array]) -> Steered:
        given = {"chain": chain, "reward": reward}
        return configs.build(keywords, configs.ROOMS["steer"], OPTION, **given)

    def fn(params: PyTree, keys: jax.Array, labels: jax.Array) -> jax.Array:
        def image(key: jax.Array, label: jax.Array) -> jax.Array:
            def reward(x: jax.Array) -> jax.Array:
                return score(x, jnp.broadcast_to(label, x.shape[:1]))

            return make(taken_apart(params, label), reward)(key[None])[0]

        return jax.vmap(image)(keys, labels)

    calls = make(taken_apart(None, jnp.int32(0)), lambda x: jnp.zeros(x.shape[0])).calls
    return Sampler(fn, calls, sampler.steps)


def _whole(sampler: Sampler, params: PyTree, label: jax.Array) -> Chain:
    """A sampler that cannot be taken apart, as a chain of one step."""

    def draw(keys: jax.Array) -> jax.Array:
        return sampler.fn(params, keys, jnp.broadcast_to(label, keys.shape))

    def start(keys: jax.Array) -> jax.Array:
        x = jax.eval_shape(draw, keys)
        return jnp.zeros(x.shape, x.dtype)

    return Chain(
        start=start,
        step=lambda keys, state, number: draw(keys),
        sample=lambda state: state,
        steps=1,
        step_calls=np.array([sampler.calls]),
        estimate=lambda keys, state, number: state,
        estimate_calls=np.zeros(1),
    )
