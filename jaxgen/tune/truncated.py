"""A worse model of oneself, to be guided away from: trained on what the model itself samples.

Wang et al., "Self-NPO: Data-Free Diffusion Model Enhancement via Truncated Diffusion Fine-Tuning"
(2025). A copy learns the law of the model's own samples, by few steps and without guidance, and so
shows the model's errors enlarged; guidance by it goes the other way (`sample.models`):
(1 + w) e(x | c) - w e_neg(x | c) is `autoguidance` of weight 1 + w.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.method import (
    Batch,
    Chain,
    Method,
    Spec,
    frozen_with,
    only_learner,
    retrained,
    teacher_of,
)
from jaxgen.method.streams import example_keys

PyTree = Any
DRAWS, PLACES = 2**32 - 13, 2**32 - 14
"""Of a step's key: what the samples are drawn from, and where they are cut short and noised to."""


def truncated(
    method: Method,
    *,
    spec: Spec,
    networks: Mapping[str, Any],
    sample: Mapping[str, Any] | None = None,
    teacher: str = "teacher",
) -> Method:
    """Learn what networks[teacher] expects of samples cut short, from more noise than they have.

    Its sampler, with the options `sample`, goes n of its steps, n even from 1 to all; that state is
    noised again to where it was after m < n, and what the model says there is drawn to the sample
    that the teacher's state makes one expect. In the mean over the states that is the denoiser of
    the sampler's own law, without sampling to the end. Data are not used but for their labels.
    networks[teacher]: the model; start from it too (`config.start`). Raises UsageError: no such
    network, a sampler whose states cannot be noised again (diffusion's can).
    """
    option = "tune.truncated.truncated"
    base, other = only_learner(method, option), teacher_of(networks, teacher, option)
    own = _chain(method, sample or {}, option)
    theirs = functools.cache(lambda: _chain(other.method, sample or {}, option))

    def loss(params: PyTree, batch: Batch, key: jax.Array, extra: PyTree) -> Any:
        keys = example_keys(jax.random.fold_in(key, DRAWS), batch)
        place_key, back_key = jax.random.split(jax.random.fold_in(key, PLACES))
        labels = batch["label"]
        known, ours = theirs()(params["frozen"][teacher], labels), own(params, labels)
        n = jax.random.randint(place_key, (), 1, known.steps + 1)
        m = jax.random.randint(back_key, (), 0, n)

        def until(state: Any, number: jax.Array) -> tuple[Any, None]:
            step = lambda state: known.step(keys, state, number)
            return jax.lax.cond(number < n, step, lambda state: state, state), None

        state, _ = jax.lax.scan(until, known.start(keys), jnp.arange(known.steps))
        wanted = known.estimate(keys, state, n)
        assert known.back is not None
        noised = jax.lax.stop_gradient(known.back(keys, state, n, m))
        said = ours.estimate(keys, noised, m)
        return ((said - jax.lax.stop_gradient(wanted)) ** 2).mean(), ({}, extra)

    learners = {"net": dataclasses.replace(base, loss=loss)}
    frozen = frozen_with(method, spec, networks, teacher)
    made = retrained(method, (theirs,), learners=learners, frozen=frozen)
    return dataclasses.replace(made, train_flops=None)


def _chain(model: Method, sample: Mapping[str, Any], option: str) -> Callable[..., Chain]:
    """chain(params, labels) of the model's sampler, which can go back."""
    sampler = None if model.sampler is None else model.sampler(**sample)
    chain = None if sampler is None else sampler.chain
    if chain is None or chain(None, jnp.int32(0)).back is None:
        allowed = "diffusion with Gaussian noise, whose states can be noised again"
        raise invalid(option, "a sampler without such steps", allowed)
    return chain
