"""Sampling one element after another: one compiled loop that keeps what the network computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid, unknown
from jaxgen.families.autoregressive.guidance import Guide, NextLogits, Source, build_guide
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
    guidance: float | Sequence[Any] | jax.Array = 1.0,
    models: Mapping[str, Any] | None = None,
    cached: bool = True,
) -> Sampler:
    """A sampler from a causal network and a head (see `method.autoregressive` and `heads`).

    Element n of sample i is drawn with fold_in(keys[i], n). guidance: a number or sections
    (`autoregressive.guidance`), or a number for each sample [B]; what it asks of one network is one
    batch. models: further networks that it may name, with parameters of the same names.
    cached=False runs the whole network at each step even where it can keep what it computed: the
    same samples, slower. calls: rows of the output, times the sources of logits.
    """
    cut = truncation(
        spec.require_levels(), temperature=temperature, top_k=top_k, top_p=top_p, typical=typical
    )
    group, size = net.group, spec.size
    guide, nets = build_guide(guidance), {"net": net, **(models or {})}
    _check(guide, nets, spec, group)
    names = list(dict.fromkeys(source.model for source in guide.sources))
    asked = {n: [source for source in guide.sources if source.model == n] for n in names}

    def sample(params: PyTree, keys: jax.Array, labels: jax.Array) -> jax.Array:
        count = labels.shape[0]
        memories, steps = {}, {}
        for name, sources in asked.items():
            rows = jnp.concatenate([_labels(source, labels, spec) for source in sources])
            made = (_decoder if cached else _whole)(nets[name], params[name], rows)
            memories[name], steps[name] = made

        def next_logits(out: PyTree, chosen: list[jax.Array]) -> NextLogits:
            """The logits of every source after the group's first elements."""
            logits: NextLogits = {}
            for name, sources in asked.items():
                before = [jnp.tile(token, len(sources)) for token in chosen]
                each = jnp.split(head.logits(out[name], before), len(sources))
                logits.update(zip(sources, each, strict=True))
            return logits

        def element(carry: Any, i: jax.Array) -> tuple[Any, None]:
            tokens, memories, guide_memory = carry
            out, after = {}, {}
            for name, sources in asked.items():
                rows = jnp.tile(tokens, (len(sources), 1))
                out[name], after[name] = steps[name](memories[name], rows, i)
            chosen: list[jax.Array] = []
            for c in range(group):
                place, logits = i * group + c, next_logits(out, chosen)
                kept = cut(guide.rule(logits, guide_memory, place))
                draw = jax.vmap(jax.random.categorical)(fold(keys, place), kept)
                chosen.append(draw.astype(jnp.int32))
                guide_memory = guide.after(logits, guide_memory, chosen[-1])
            drawn = jnp.stack(chosen, axis=1)
            tokens = jax.lax.dynamic_update_slice(tokens, drawn, (0, i * group))
            return (tokens, after, guide_memory), None

        start = (jnp.zeros((count, size), jnp.int32), memories, guide.start(count))
        (tokens, _, _), _ = jax.lax.scan(element, start, jnp.arange(size // group))
        return spec.from_tokens(tokens.reshape(count, *spec.shape))

    def by_weight(
        params: PyTree, keys: jax.Array, labels: jax.Array, weights: jax.Array
    ) -> jax.Array:
        options: dict[str, Any] = dict(temperature=temperature, top_k=top_k, top_p=top_p)
        options |= dict(typical=typical, guidance=weights, cached=cached)
        drawn: jax.Array = build_sampler(net, head, spec, **options).fn(params, keys, labels)
        return drawn

    return Sampler(sample, calls=size // group * len(guide.sources), by_weight=by_weight)


def _labels(source: Source, labels: jax.Array, spec: Spec) -> jax.Array:
    """The labels [B] that a source of logits is asked for."""
    if source.label == "own":
        return labels
    return jnp.full_like(labels, spec.null_label if source.label == "null" else source.label)


def _check(guide: Guide, nets: Mapping[str, Any], spec: Spec, group: int) -> None:
    """Raises UsageError for a network or a class that does not exist, or that does not fit."""
    for model, label in guide.sources:
        if model not in nets:
            raise unknown("sample.guidance: network", model, nets)
        if nets[model].group != group:
            raise invalid(f"models.{model}", f"a group of {nets[model].group}", f"one of {group}")
        if isinstance(label, int) and not 0 <= label < spec.num_classes:
            raise invalid("guidance.anti", label, f"a class, 0 to {spec.num_classes - 1}")


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
