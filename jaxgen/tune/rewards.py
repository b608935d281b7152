"""Rewards that training asks: those of `sample.steer`, checked before a run begins."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen import config as configs
from jaxgen.errors import invalid
from jaxgen.method import Spec

Reward = Callable[[jax.Array, jax.Array], jax.Array]


def scored(reward: Any, spec: Spec, option: str) -> Callable[[], Reward]:
    """judged() -> fn(x [B, *shape], labels [B]) -> [B], of `jaxgen.frozen.rewards` or as it is.

    Opened at the first call, for `needed` of a training: what was tuned is sampled without it.
    That raises UsageError for one that gives another shape.
    """

    @functools.cache
    def judged() -> Reward:
        with jax.ensure_compile_time_eval():
            known: Reward = configs.part(reward, configs.ROOMS["reward"], option)
        x = jax.ShapeDtypeStruct((2, *spec.shape), jnp.int32 if spec.tokens else jnp.float32)
        found = jax.eval_shape(known, x, jax.ShapeDtypeStruct((2,), jnp.int32))
        if getattr(found, "shape", None) != (2,):
            given = f"{getattr(found, 'shape', type(found).__name__)} for two samples"
            raise invalid(option, given, "a number for each sample, (2,)")
        return known

    return judged
