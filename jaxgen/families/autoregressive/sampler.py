"""Sampling one element after another: one compiled loop that keeps what the network computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.families.autoregressive.truncation import truncation
from jaxgen.method import Sampler, Spec, fold

PyTree = Any


def build_sampler(
    net: Any,
    head: Any,
    spec: Spec,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    typical: float = 1.0,
    guidance: float = 1.0,
    cached: bool = True,
) -> Sampler:
    """A sampler from a causal network and a head (see `method.autoregressive` and `heads`).

    Element n of sample i is drawn with fold_in(keys[i], n). With guidance w other than 0 and 1 the
    two branches are one batch of the network. cached=False runs the whole network at each step even
    where it can keep what it computed: the same samples, slower. calls: rows of the output, times
    the branches.
    """
    assert spec.levels is not None
    cut = truncation(
        spec.levels, temperature=temperature, top_k=top_k, top_p=top_p, typical=typical
    )
    group, size = net.group, spec.size
    branches = 1 if guidance in (0, 1) else 2

    def sample(params: PyTree, keys: jax.Array, labels: jax.Array) -> jax.Array:
        count = labels.shape[0]
        null = jnp.full_like(labels, spec.null_label)
        both = jnp.concatenate([labels, null])
        asked = labels if guidance == 1 else null if guidance == 0 else both
        memory, step = (_decoder if cached else _whole)(net, params["net"], asked)

        def element(
            carry: tuple[jax.Array, PyTree], i: jax.Array
        ) -> tuple[tuple[jax.Array, PyTree], None]:
            tokens, memory = carry
            out, memory = step(memory, jnp.tile(tokens, (branches, 1)), i)
            chosen: list[jax.Array] = []
            for c in range(group):
                logits = head.logits(out, [jnp.tile(t, branches) for t in chosen])
                if branches == 2:
                    cond, uncond = logits[:count], logits[count:]
                    logits = uncond + guidance * (cond - uncond)
                place = i * group + c
                draw = jax.vmap(jax.random.categorical)(fold(keys, place), cut(logits))
                chosen.append(draw.astype(jnp.int32))
            found = jnp.stack(chosen, axis=1)
            return (jax.lax.dynamic_update_slice(tokens, found, (0, i * group)), memory), None

        start = jnp.zeros((count, size), jnp.int32)
        (tokens, _), _ = jax.lax.scan(element, (start, memory), jnp.arange(size // group))
        return spec.from_tokens(tokens.reshape(count, *spec.shape))

    return Sampler(sample, calls=size // group * branches)


def _decoder(net: Any, params: PyTree, labels: jax.Array) -> tuple[PyTree, Callable[..., Any]]:
    """The network's own decoder, or else the whole network at each step."""
    if hasattr(net, "decoder"):
        return net.decoder(params, labels)
    return _whole(net, params, labels)


def _whole(net: Any, params: PyTree, labels: jax.Array) -> tuple[PyTree, Callable[..., Any]]:
    def step(memory: PyTree, tokens: jax.Array, i: jax.Array) -> tuple[jax.Array, PyTree]:
        out = net.apply({"params": params}, tokens, labels)
        return jax.lax.dynamic_index_in_dim(out, i, 1, keepdims=False), memory

    return (), step
