"""Guidance by a pair: a good and a bad denoiser at the same x, and a rule that makes one of two.

The rule is a value, so further guidance can wrap it (`apg(cfg(...))`) at no further network call.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, TypeGuard

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.families.diffusion.core.denoiser import Denoiser, Memory, together
from jaxgen.families.diffusion.core.prediction import Prediction


class At(NamedTuple):
    """Where a rule is applied: keys [B], x [B, ...], t [] or [B]."""

    keys: jax.Array
    x: jax.Array
    t: jax.Array


Rule = Callable[[Prediction, Prediction, At, Memory], tuple[Prediction, Memory]]
"""(good, bad, at, memory) -> (guided, memory)."""


def _nothing(x: jax.Array) -> Memory:
    return ()


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Guided(Denoiser):
    """A denoiser that knows the pair, the weight and the rule that it is made of.

    start(x): the rule's first memory. Its own memory is (good's, bad's, the rule's). channels: how
    many of the first channels are guided; the rest stay the good one's. None: all.
    """

    good: Denoiser
    bad: Denoiser
    weight: float | jax.Array
    rule: Rule
    start: Callable[[jax.Array], Memory] = _nothing
    channels: int | None = None


def pair(
    good: Denoiser,
    bad: Denoiser,
    weight: float | jax.Array,
    rule: Rule,
    start: Callable[[jax.Array], Memory] = _nothing,
    channels: int | None = None,
) -> Guided:
    """The denoiser that calls both, in one batch where they share a network, and applies a rule.

    channels: as `Guided`'s. Raises UsageError for fewer than one; where it is called, for more than
    an image has.
    """
    if channels is not None:
        rule = _on_channels(rule, channels)

    def call(
        keys: jax.Array, x: jax.Array, t: jax.Array, memory: Memory
    ) -> tuple[Prediction, Memory]:
        (p, q), memories = together([good, bad], keys, x, t, memory[:2])
        out, rule_memory = rule(p, q, At(keys, x, t), memory[2])
        return out, (*memories, rule_memory)

    return Guided(
        call,
        init=lambda x: (good.init(x), bad.init(x), start(x)),
        calls=lambda t: good.calls(t) + bad.calls(t),
        path=good.path,
        good=good,
        bad=bad,
        weight=weight,
        rule=rule,
        start=start,
        channels=channels,
    )


def ruled(
    old: Guided, rule: Rule, start: Callable[[jax.Array], Memory], *, weight: float | None = None
) -> Guided:
    """The same pair, and channels, under another rule (and weight)."""
    chosen = old.weight if weight is None else weight
    return pair(old.good, old.bad, chosen, rule, start, old.channels)


def _on_channels(rule: Rule, channels: int) -> Rule:
    """The rule for the first channels; the others are told, and stay, as the good one has them."""
    if isinstance(channels, bool) or not isinstance(channels, int) or channels < 1:
        raise invalid("guidance.channels", channels, "an integer >= 1, or None: all channels")

    def kept(new: jax.Array, good: jax.Array) -> jax.Array:
        if channels > good.shape[-1]:
            allowed = f"1 to {good.shape[-1]}, the image's channels, or None"
            raise invalid("guidance.channels", channels, allowed)
        return jnp.concatenate([new[..., :channels], good[..., channels:]], axis=-1)

    def first(p: Prediction, q: Prediction, at: At, memory: Memory) -> tuple[Prediction, Memory]:
        q = q._replace(x0=kept(q.x0, p.x0), eps=kept(q.eps, p.eps))
        out, memory = rule(p, q, at, memory)
        return out._replace(x0=kept(out.x0, p.x0), eps=kept(out.eps, p.eps)), memory

    return first


def extrapolate(
    good: Denoiser, bad: Denoiser, weight: float | jax.Array, channels: int | None = None
) -> Guided:
    """bad + weight (good - bad); at weight 1 and 0 only the one that is used is called.

    weight: a number; or an array that goes with the images, whatever is in it, and calls both.
    channels: how many of the first are guided (`Guided`); with such, weight 0 needs both.
    """

    def rule(p: Prediction, q: Prediction, at: At, memory: Memory) -> tuple[Prediction, Memory]:
        x0 = p.x0 + (weight - 1) * (p.x0 - q.x0)
        eps = p.eps + (weight - 1) * (p.eps - q.eps)
        return Prediction(x0, eps, p.variance), memory

    both = pair(good, bad, weight, rule, channels=channels)
    if (
        isinstance(weight, jax.Array)
        or weight not in (0, 1)
        or (weight == 0 and channels is not None)
    ):
        return both
    branch = good if weight == 1 else bad
    return dataclasses.replace(both, call=branch.call, init=branch.init, calls=branch.calls)


def needs_pair(guided: Denoiser, name: str) -> Guided:
    """`guided` itself. Raises UsageError where it is no pair: there is nothing to change."""
    if not isinstance(guided, Guided):
        raise invalid(
            f"guidance.{name}", "a denoiser without a pair", "what cfg or autoguidance returns",
            f"{name}(cfg(cond, uncond, 3.0)), or a section cfg.cfg before it.",
        )  # fmt: skip
    return guided


def pushed(guided: Denoiser, push: Callable[[Prediction, Prediction, At], Prediction]) -> Denoiser:
    """push(guided's estimate, the good one's, at), which calls a network once.

    `guided` is a pair, and stays one, or is itself the good one.
    """

    def calls(t: float) -> float:
        cond = guided.good if isinstance(guided, Guided) else guided
        return guided.calls(t) + cond.calls(t)

    if is_pair(guided):
        old = guided

        def rule(p: Prediction, q: Prediction, at: At, memory: Memory) -> tuple[Prediction, Memory]:
            out, memory = old.rule(p, q, at, memory)
            return push(out, p, at), memory

        made = ruled(old, rule, old.start)
        return dataclasses.replace(made, calls=calls)

    def call(
        keys: jax.Array, x: jax.Array, t: jax.Array, memory: Memory
    ) -> tuple[Prediction, Memory]:
        p, memory = guided(keys, x, t, memory)
        return push(p, p, At(keys, x, t)), memory

    return Denoiser(call, init=guided.init, calls=calls, path=guided.path)


def is_pair(guided: Denoiser) -> TypeGuard[Guided]:
    """Whether `guided` calls the good and the bad one: at weights 0 and 1 only one is."""
    return isinstance(guided, Guided) and guided.call not in (guided.good.call, guided.bad.call)


def one_of(guided: Denoiser) -> Denoiser:
    """The denoiser that holds the label: a pair's good one, or the only one that is called."""
    if not isinstance(guided, Guided):
        return guided
    return guided.bad if guided.call is guided.bad.call else guided.good
