"""TREAD: in training, random tokens take a route past some layers of a DiT; the others are fewer.

Krause et al., "TREAD: Token Routing for Efficient Architecture-agnostic Diffusion Training" (2025),
section 3: tokens on a route are kept as they were where it began and put back where it ends. There
are no parameters of routes, and without training there are no routes: a checkpoint is a DiT's.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.mesh import BATCH, position
from jaxgen.nn.dit import DiT
from jaxgen.nn.stack import Taps, check_taps

Routes = tuple[tuple[int, int, float], ...]
"""(a, b, share): that share of the tokens goes past the layers after a up to b."""


class TREAD(DiT):
    """TREAD: a `DiT` whose training (train=True, rng "dropout") leaves tokens out of layers.

    routes: one after the other, in the order of layers; () stands for the paper's, half of the
    tokens from after layer 2 to before the last four. Shares are rounded to whole tokens. Which
    tokens are on a route is drawn for each example anew. A tap on a route is of all tokens: those
    on it are as they were where it began. rope is not offered: examples keep different places. The
    paper's first version adds a loss for each of several routes; this has none.
    """

    routes: Routes = ()

    def _routes(self) -> Routes:
        return self.routes or ((2, self.depth - 4, 0.5),)

    def _through(
        self,
        h: jax.Array,
        c: jax.Array,
        angles: jax.Array | None,
        shape: tuple[int, int],
        taps: Taps,
        train: bool,
    ) -> tuple[jax.Array, dict[Any, jax.Array]]:
        if not train:
            return super()._through(h, c, angles, shape, taps, train)
        check_taps(taps, self.depth)
        blocks = self._blocks(train, shape)
        tapped: dict[Any, jax.Array] = {}
        places = shape[0] * shape[1]
        images, key = c.shape[0], self.make_rng("dropout")
        each = (self._alone(),)

        def run(h: jax.Array, places: int, span: tuple[int, int]) -> Any:
            inside = tuple(k for k in taps if span[0] < k <= span[1])
            return blocks(h, c, None, places=places, each=each, taps=inside, span=span)

        done = 0
        for number, (first, last, share) in enumerate(self._routes()):
            if first > done:
                h, seen = run(h, places, (done, first))
                tapped |= seen
            chosen = jax.random.fold_in(key, number)
            kept = kept_places(chosen, images, places, places - round(share * places))
            whole = h.reshape(images, places, self.width)
            part = jnp.take_along_axis(whole, kept[..., None], axis=1)
            part, seen = run(part.reshape(-1, self.width), kept.shape[1], (first, last))
            h = put_back(whole, part, kept).reshape(h.shape)
            tapped |= {k: put_back(whole, a, kept) for k, a in seen.items()}
            done = last
        if done < self.depth:
            h, seen = run(h, places, (done, self.depth))
            tapped |= seen
        return h, tapped

    def _check(self, shape: tuple[int, ...]) -> None:
        super()._check(shape)
        if self.rope:
            raise invalid("model.rope", True, "False: examples keep tokens of different places")
        done, tokens = 0, shape[1] * shape[2] // self.patch**2
        for first, last, share in self._routes():
            if not done <= first < last <= self.depth:
                allowed = f"(a, b, share) with {done} <= a < b <= {self.depth}, in their order"
                raise invalid("model.routes", (first, last, share), allowed)
            if not (0 <= share < 1 and round(share * tokens) < tokens):
                allowed = f"shares in [0, 1) that leave one of {tokens} tokens"
                raise invalid("model.routes", (first, last, share), allowed)
            done = last


def kept_places(key: jax.Array, images: int, places: int, count: int) -> jax.Array:
    """`count` of an example's places that stay, uniform, sorted: int32 [images, count].

    An example's depend on the key and its place in the batch, on any number of devices.
    """
    numbers = position(*BATCH) * images + jnp.arange(images)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(numbers)
    draw = lambda key: jnp.sort(jax.random.permutation(key, places)[:count])
    return jax.vmap(draw)(keys)


def put_back(whole: jax.Array, part: jax.Array, kept: jax.Array) -> jax.Array:
    """whole [B, N, D] with part [B * K, D] at the places kept [B, K]: [B, N, D]."""
    rows = part.reshape(*kept.shape, -1)
    return jax.vmap(lambda a, new, at: a.at[at].set(new))(whole, rows, kept)
