"""Guidance of one element after another: rules on the logits of several networks and labels.

A guidance maps a `Guide` to a `Guide`; a config names them in order, as in
`sample.guidance=[dict(name="cfg", weight=2.0), dict(name="gedi", anti=3)]`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxgen.config import build
from jaxgen.errors import invalid
from jaxgen.families.autoregressive.truncation import fewest

ROOM = "jaxgen.families.autoregressive.guidance"
Memory = Any


class Source(NamedTuple):
    """Whose logits: a network, by its parameters' name; the "own" label, "null", or a class."""

    model: str = "net"
    label: Literal["own", "null"] | int = "own"


NextLogits = dict[Source, jax.Array]
"""Logits [B, V] of the next element, by where they are from."""


def _nothing(count: int) -> Memory:
    return ()


def _forget(logits: NextLogits, memory: Memory, token: jax.Array) -> Memory:
    return memory


@dataclasses.dataclass(frozen=True)
class Guide:
    """Which logits are wanted, and what becomes of them.

    rule(logits, memory, place) -> logits [B, V] of element `place` (from 0). start(B) -> memory;
    after(logits, memory, token[B]) -> memory, with the token that was drawn.
    """

    sources: tuple[Source, ...]
    rule: Callable[[NextLogits, Memory, jax.Array], jax.Array]
    start: Callable[[int], Memory] = _nothing
    after: Callable[[NextLogits, Memory, jax.Array], Memory] = _forget


def alone(source: Source) -> Guide:
    """The logits of one source as they are."""
    return Guide((source,), lambda logits, memory, place: logits[source])


def build_guide(guidance: float | Sequence[Any] | jax.Array) -> Guide:
    """Sections in order, from the model's own logits for the label; a number w is `cfg` of it.

    An array [B] is a number for each sample.
    """
    if isinstance(guidance, jax.Array):
        return _extrapolated(alone(Source()), Source("net", "null"), guidance[:, None])
    if isinstance(guidance, (int, float)):
        guidance = [{"name": "cfg", "weight": guidance}]
    guided = alone(Source())
    for number, section in enumerate(guidance):
        guided = build(section, ROOM, f"sample.guidance[{number}]", guided=guided)
    return guided


def cfg(guided: Guide, *, weight: float = 1.0, uncond: str = "net") -> Guide:
    """uncond + weight (guided - uncond), on logits (Kornblith et al. 2023).

    An element then has p(x | before) (p(x | before, label) / p(x | before))^weight, normalised.
    uncond: the network that is asked without a label: the model itself, or another one, such as a
    language model trained on other text, as in their second part. weight = 1 is `guided`, and 0 the
    unconditional network alone.
    """
    null = Source(uncond, "null")
    if weight == 1:
        return guided
    if weight == 0:
        return alone(null)
    return _extrapolated(guided, null, weight)


def _extrapolated(guided: Guide, null: Source, weight: float | jax.Array) -> Guide:
    """null + weight (guided - null); weight: a number, or [B, 1]."""

    def rule(logits: NextLogits, memory: Memory, place: jax.Array) -> jax.Array:
        return logits[null] + weight * (guided.rule(logits, memory, place) - logits[null])

    return dataclasses.replace(guided, sources=_with(guided, null), rule=rule)


def gedi(
    guided: Guide,
    *,
    anti: int,
    model: str = "net",
    weight: float = 1.0,
    alpha: float = 1.0,
    by_length: bool = True,
    prior: float = 0.5,
    mass: float = 1.0,
    sure: float = 1.0,
) -> Guide:
    """guided + weight ln p(label | x up to here), against the class `anti` (Krause et al. 2020).

    p(c | x_1..t) is proportional to p(c) p(x_1..t | c)^(alpha / t) over the two, p(. | c) from the
    class-conditional network `model`, p(label) = prior; by_length=False leaves out the / t. Then
    the elements with the highest posterior are kept until they hold `mass` of the result, and so
    are those whose posterior is above `sure` (mass = 1: all are kept). weight = 0 is `guided`.
    """
    for name, value, ok in (
        ("weight", weight, weight >= 0),
        ("alpha", alpha, alpha > 0),
        ("prior", prior, 0 < prior < 1),
        ("mass", mass, 0 < mass <= 1),
        ("sure", sure, 0 <= sure <= 1),
    ):
        if not ok:
            allowed = {"weight": "weight >= 0", "alpha": "alpha > 0", "prior": "0 < prior < 1"}
            raise invalid(f"guidance.{name}", value, allowed.get(name, f"0 to 1, {name} > 0"))
    if weight == 0:
        return guided
    code, other = Source(model), Source(model, anti)
    shares = jnp.log(jnp.array([prior, 1 - prior]))

    def rule(logits: NextLogits, memory: Memory, place: jax.Array) -> jax.Array:
        before, inner = memory
        total = before[..., None] + _pair(logits)
        scale = alpha / (place + 1) if by_length else alpha
        log = jax.nn.log_softmax(shares[:, None] + scale * total, axis=1)[:, 0]
        mixed = jax.nn.log_softmax(guided.rule(logits, inner, place)) + weight * log
        kept = jnp.isfinite(fewest(mixed, -log, mass)) | (jnp.exp(log) > sure)
        return jnp.where(kept, mixed, -jnp.inf)

    def after(logits: NextLogits, memory: Memory, token: jax.Array) -> Memory:
        before, inner = memory
        log_probs = jnp.take_along_axis(_pair(logits), token[:, None, None], axis=-1)[..., 0]
        return before + log_probs, guided.after(logits, inner, token)

    def _pair(logits: NextLogits) -> jax.Array:
        """ln p of the next element by either network: [B, 2, V]."""
        return jax.nn.log_softmax(jnp.stack([logits[code], logits[other]], 1), axis=-1)

    return Guide(
        _with(guided, code, other),
        rule,
        lambda count: (jnp.zeros((count, 2)), guided.start(count)),
        after,
    )


def near_access(guided: Guide, *, other: str, divergence: Literal["max", "kl"] = "max") -> Guide:
    """The least that two networks agree on: CP-Delta (Vyas, Kakade & Barak 2023, algorithm 2).

    Two networks trained on disjoint halves of the data, the model and `other`. "max": p in
    proportion to min(p, q); nothing is likelier than 1 / (1 - TV) times what either says. "kl": to
    sqrt(p q). So what one alone has memorised stays as unlikely as the other has it.
    """
    if divergence not in ("max", "kl"):
        raise invalid("guidance.divergence", divergence, "'max', 'kl'")
    second = Source(other)

    def rule(logits: NextLogits, memory: Memory, place: jax.Array) -> jax.Array:
        first = jax.nn.log_softmax(guided.rule(logits, memory, place))
        safe = jax.nn.log_softmax(logits[second])
        return jnp.minimum(first, safe) if divergence == "max" else (first + safe) / 2

    return dataclasses.replace(guided, sources=_with(guided, second), rule=rule)


def contrast(guided: Guide, *, other: str, alpha: float = 0.1) -> Guide:
    """What this network has that another has not: ln p - ln q, where p >= alpha max p.

    Contrastive decoding (Li et al. 2023), by which a model after fine-tuning, p, against what it
    was before, q, shows what was new in its data ("What's New in My Data? Novelty Exploration via
    Contrastive Generation", 2024). other: the network of q. alpha: elements less likely than that
    share of the likeliest are left out, since there a ratio says little; 1 leaves the likeliest
    alone. A low `temperature` asks for the highest contrast.
    """
    if not 0 < alpha <= 1:
        raise invalid("guidance.alpha", alpha, "0 < alpha <= 1")
    second = Source(other)

    def rule(logits: NextLogits, memory: Memory, place: jax.Array) -> jax.Array:
        p = jax.nn.log_softmax(guided.rule(logits, memory, place))
        plausible = p >= p.max(-1, keepdims=True) + math.log(alpha)
        return jnp.where(plausible, p - jax.nn.log_softmax(logits[second]), -jnp.inf)

    return dataclasses.replace(guided, sources=_with(guided, second), rule=rule)


def _with(guided: Guide, *more: Source) -> tuple[Source, ...]:
    """The sources of a guide and more, each once."""
    return tuple(dict.fromkeys((*guided.sources, *more)))
