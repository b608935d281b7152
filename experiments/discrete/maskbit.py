"""MaskBit: tokens as their bits, groups of bits masked apart, decoding that reveals each once."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shared.check import Check, below, control, near
from jaxgen.families.discrete.bounds import masked_bound, remaining
from jaxgen.families.discrete.core import Bits, Core, Tokens
from jaxgen.families.discrete.sampler import build_sampler
from jaxgen.families.discrete.schedules import arccos
from jaxgen.method import Spec

PAPER = "MaskBit: Embedding-free Image Generation via Bit Tokens"
ENTRY = "jaxgen.families.discrete.maskbit"
BITS, SHAPE = 6, (2, 3)


class Recorder:
    """Predicts for every element how many are masked, so that a sample tells when each came."""

    def __init__(self, per_token: int, values: int, given: str) -> None:
        """given: "bits" or "numbers", as the codec gives them."""
        self.per_token, self.values, self.given = per_token, values, given

    def apply(self, variables: Any, x: jax.Array, labels: jax.Array, **options: Any) -> jax.Array:
        """Logits [B, N, V], flattened over parts as a network's are."""
        if self.given == "bits":
            groups = x.reshape(len(x), -1, x.shape[-1] // self.per_token)
            left = (groups == 0).all(-1).sum(-1)
        else:
            left = (x == self.values).sum(-1)
        size = SHAPE[0] * SHAPE[1] * self.per_token
        return 40.0 * jax.nn.one_hot(left % self.values, self.values)[:, None].repeat(size, 1)


def checks() -> list[Check]:
    """Bits and indices, one group as an ordinary masked model, and how decoding goes."""
    results = []
    tokens = jnp.arange(2**BITS)[None]
    for groups in (1, 2, 3):
        codec = Bits(BITS, groups)
        back = codec.join(codec.split(tokens))
        results.append(
            below(f"bits to index and back, {groups} groups", jnp.abs(back - tokens).max(), 0)
        )
    # A lookup-free quantiser's code is the sign of each bit.
    signs = np.asarray(Bits(BITS, 2).inputs(Bits(BITS, 2).split(tokens)))[0]
    index = ((signs > 0) @ (1 << np.arange(BITS)[::-1])).astype(int)
    results.append(
        below("index of the signs that the network is given", np.abs(index - tokens).max(), 0)
    )

    schedule = arccos()
    spec = Spec(shape=SHAPE, num_classes=1, levels=2**BITS, tokens=True)

    # One group: the masks, the input and the loss are those of a masked model on tokens.
    rng = np.random.default_rng(0)
    table = jnp.asarray(rng.normal(size=(2**BITS + 1, 2**BITS)), jnp.float32)

    class Table:
        """Logits that depend on the sum of the inputs' rows; bits are read as numbers first."""

        def apply(self, variables: Any, x: jax.Array, labels: jax.Array, **options: Any) -> Any:
            if x.ndim == 3:
                number = ((x > 0) * (1 << jnp.arange(BITS)[::-1])).sum(-1)
                x = jnp.where((x == 0).all(-1), 2**BITS, number)
            rows = table[x]
            return rows + rows.sum(1, keepdims=True)

    x = jnp.asarray(rng.integers(0, 2**BITS, (64, 6)), jnp.int32)
    keys = jax.random.split(jax.random.key(0), 64)
    place = jnp.linspace(0, 0.999, 64)
    losses = [
        masked_bound(
            Core(spec, Table(), codec, schedule, "mask", False),
            {},
            codec.split(x),
            jnp.zeros(64, jnp.int32),
            keys,
            place,
            np.arange(6, -1, -1),
        )
        for codec in (Bits(BITS, 1), Tokens(2**BITS))
    ]
    results.append(
        below("one group against masked tokens, loss", jnp.abs(losses[0] - losses[1]).max(), 0)
    )

    # Two groups are masked apart: half of the tokens with a mask have only one.
    codec = Bits(BITS, 2)
    core = Core(spec, Recorder(2, codec.values, "bits"), codec, schedule, "mask", False)
    elements = jnp.zeros((4000, core.size), jnp.int32)
    keys = jax.random.split(jax.random.key(1), 4000)
    coins = jax.vmap(lambda k: jax.random.uniform(k, (core.size,)))(keys) < 0.5
    both = core.noised(keys, elements, coins).reshape(4000, -1, 2) == codec.values
    share = (both.sum(-1) == 1).mean()
    results.append(near("tokens with one of two groups masked, at half", share, 0.5, 0.02))

    # Decoding: an element's value says how many were masked when it came.
    counts = remaining(schedule, core.size, 4)
    expected = np.sort(np.repeat(counts[:-1], counts[:-1] - counts[1:]) % codec.values)
    sampler = build_sampler(
        core,
        solver="confidence",
        steps=4,
        schedule=schedule,
        temperature=1.0,
        final_temperature=0.5,
        choice_temperature=4.5,
        guidance=1.0,
        guidance_schedule="constant",
        guided=False,
    )
    made = jax.jit(sampler.fn)({"net": {}}, keys[:50], jnp.zeros(50, jnp.int32))
    came = np.sort(np.asarray(codec.split(made.reshape(50, -1))), 1)
    results.append(
        below("elements that came off schedule", (came % codec.values != expected).sum(), 0)
    )
    # The control: every element by its own coin keeps the schedule on average only.
    loose = build_sampler(
        core,
        solver="ancestral",
        steps=4,
        schedule=schedule,
        temperature=1.0,
        final_temperature=None,
        choice_temperature=0.0,
        guidance=1.0,
        guidance_schedule="constant",
        guided=False,
    )
    made = jax.jit(loose.fn)({"net": {}}, keys[:50], jnp.zeros(50, jnp.int32))
    came = np.sort(np.asarray(codec.split(made.reshape(50, -1))), 1)
    results.append(control(below("the same by coins", (came % codec.values != expected).sum(), 0)))
    return results
