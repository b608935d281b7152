"""`Description`: what a network is told of an example in the place of its label."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.method import Sampler, fold, normal
from jaxgen.method.chain import Chain, State
from jaxgen.method.streams import OTHER

PyTree = Any
DRAW = 2
"""Descriptions draw below fold_in(key, 2); samplers of images use 0 and 1."""

BLUR = 2**16
"""An example's stream below `OTHER`: the noise on its description."""

NAME = "description"
"""The condition's name."""


@dataclasses.dataclass(frozen=True, eq=False)
class Description:
    """Vectors [B, D], or sets of them [B, K, D], told as a condition; frozen but for `loss`.

    of(frozen, examples [B, *shape]) -> descriptions, in training. draw(params, frozen, keys [B],
    labels [B]) -> descriptions to sample with. calls: evaluations of a network that a draw costs.
    Where a draw has parameters to learn: init(key) -> params, and loss(params, descriptions,
    labels, keys [B]) -> [B], added to the denoiser's own. frozen: the arrays that `of` and `draw`
    need (an encoder's, a database), which become arguments of the programs; None: none. noise: the
    standard deviation of what is added to vectors in training, one or [D], so that they say less;
    `loss` sees them with it, so that draws have it too.
    """

    of: Callable[[PyTree, jax.Array], jax.Array]
    draw: Callable[[PyTree, PyTree, jax.Array, jax.Array], jax.Array]
    calls: float = 0.0
    init: Callable[[jax.Array], PyTree] | None = None
    loss: Callable[[PyTree, jax.Array, jax.Array, jax.Array], jax.Array] | None = None
    frozen: PyTree = None
    noise: float | np.ndarray = 0.0

    def told(self, frozen: PyTree, x: jax.Array, keys: jax.Array) -> jax.Array:
        """The descriptions of examples x [B, ...] with keys [B], in training."""
        found = jax.lax.stop_gradient(self.of(frozen, x))
        if not np.any(self.noise):
            return found
        return found + self.noise * normal(fold(fold(keys, OTHER), BLUR), found.shape[1:])

    def example(self, x: jax.Array) -> jax.Array:
        """Zeros in the shape of the descriptions of x."""
        output = jax.eval_shape(self.of, self.frozen, x)
        return jnp.zeros(output.shape, output.dtype)

    def kind(self, shape: tuple[int, ...]) -> tuple[Any, ...]:
        """What a network declares to be told it, of examples of a shape (`nn.conditions`)."""
        size = self.example(jnp.zeros((1, *shape))).shape
        return (NAME, "vector" if len(size) == 2 else "set", size[-1])


def described(sampler: Sampler, describe: Description, use_parameters: bool = True) -> Sampler:
    """A sampler of descriptions in the place of labels as one of labels, which draws them first.

    Its chain draws them in the first step, so that branches from the same noise differ in what they
    are told, and any search of noises or of keys counts their calls. use_parameters: this is what
    the method was trained with, whose frozen arrays may come with the parameters (`Method.reads`);
    else, and another one's, they are constants of the sampler.
    """

    def draw(params: PyTree, keys: jax.Array, labels: jax.Array) -> Any:
        learned = params["describe"] if describe.init is not None else None
        held = params.get("frozen", {}).get("describe") if use_parameters else None
        held = describe.frozen if held is None else held
        return {NAME: describe.draw(learned, held, fold(keys, DRAW), labels)}

    def fn(params: PyTree, keys: jax.Array, labels: jax.Array) -> Any:
        return sampler.fn(params, keys, draw(params, keys, labels))

    def chain(params: PyTree, label: jax.Array) -> Chain:
        assert sampler.chain is not None
        of = functools.partial(sampler.chain, params)
        return _told(of, lambda keys: draw(params, keys, jnp.broadcast_to(label, keys.shape)),
                     describe.calls)  # fmt: skip

    calls = sampler.calls + describe.calls
    return Sampler(fn, calls, sampler.steps, None if sampler.chain is None else chain)


def _told(of: Callable[[Any], Chain], draw: Callable[[jax.Array], Any], calls: float) -> Chain:
    """The chain whose state is (a chain's of conditions [B, ...], the conditions).

    of(conditions) -> the chain; draw(keys [B]) -> conditions, for `calls` network evaluations.
    """
    # What does not depend on the description: counts, and states without it.
    bare = of(jnp.int32(0))

    def start(keys: jax.Array) -> State:
        blank = jax.eval_shape(draw, keys)
        return bare.start(keys), jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), blank)

    def step(keys: jax.Array, state: State, number: jax.Array) -> State:
        bare_state, told = state
        told = jax.lax.cond(number == 0, draw, lambda keys: told, keys)
        return of(told).step(keys, bare_state, number), told

    def estimate(keys: jax.Array, state: State, number: jax.Array) -> jax.Array:
        return of(state[1]).estimate(keys, state[0], number)

    def back(keys: jax.Array, state: State, number: jax.Array, before: jax.Array) -> State:
        assert bare.back is not None
        return bare.back(keys, state[0], number, before), state[1]

    def mix(first: State, second: State, radius: float) -> State:
        assert bare.mix is not None
        return bare.mix(first[0], second[0], radius), first[1]

    return dataclasses.replace(
        bare,
        start=start,
        step=step,
        sample=lambda state: bare.sample(state[0]),
        step_calls=bare.step_calls + calls * (np.arange(bare.steps) == 0),
        estimate=estimate,
        back=None if bare.back is None else back,
        mix=None if bare.mix is None else mix,
    )
