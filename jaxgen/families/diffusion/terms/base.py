"""A noised batch, and terms of a loss on it.

A `Noised` batch is all that one evaluation of the network was about. A `Term` gives each example a
number, [B]; the loss is the mean of their sum. A new objective is a new term: a file here whose
function returns a `Term`, named in a config by `method.terms`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxgen.families.diffusion.core.denoiser import Network
from jaxgen.method import Batch

PyTree = Any
Tap = int | str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Noised:
    """Examples x0 [B, ...] noised by eps to x = alpha(t) x0 + sigma(t) eps, and what came of them.

    t [B]: times, with importance weights importance [B]. condition: what the network was told
    (labels [B], some dropped, or descriptions). batch: as the source gave it, columns included.
    keys [B]: the examples' own. target, output [B, ...]: what the network was to say, and said;
    variance: its logits of a variance, or None. taps: outputs of the layers that terms asked for.
    error [B]: the mean squared error of the output. weight [B]: the loss' weight at t.
    """

    network: Network
    x0: jax.Array
    eps: jax.Array
    t: jax.Array
    importance: jax.Array
    x: jax.Array
    condition: Any
    batch: Batch
    keys: jax.Array
    target: jax.Array
    output: jax.Array
    variance: jax.Array | None
    taps: Mapping[Tap, jax.Array]
    error: jax.Array
    weight: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Term:
    """A part of a loss: of(noised, params, frozen) -> [B], added to the weighted error.

    name: of its parameters (params[name]), of its frozen arrays and of its metric, the mean of what
    it adds. init(key, taps) -> params, from the shapes of the taps it asked for; None: it has none.
    taps: layers of the network whose outputs it wants. frozen: arrays that it needs and nobody
    trains, or a function that gives them. whole_batch: it looks at other examples of the batch.
    """

    name: str
    of: Callable[[Noised, PyTree, PyTree], jax.Array]
    init: Callable[[jax.Array, Mapping[Tap, jax.ShapeDtypeStruct]], PyTree] | None = None
    taps: tuple[Tap, ...] = ()
    frozen: Any = None
    whole_batch: bool = False


def example_mean(a: jax.Array) -> jax.Array:
    """Mean over all axes but the first."""
    return a.reshape(a.shape[0], -1).mean(1)
