"""Plug and play: a Markov chain in a generator's feature space, steered by a frozen classifier.

Nguyen et al. 2017, "Plug & Play Generative Networks: Conditional Iterative Generation of Images in
Latent Space" (PPGN). No network is trained: a denoising autoencoder of features stands for their
prior, and any function of the image for the condition.
"""

from __future__ import annotations

from collections.abc import Callable

import jax

from jaxgen.errors import invalid
from jaxgen.method import fold, normal
from jaxgen.method.streams import START, STEPS

Map = Callable[[jax.Array], jax.Array]


def plug_and_play(
    reconstruct: Map,
    generate: Map,
    log_prob: Map,
    shape: tuple[int, ...],
    *,
    steps: int,
    prior: float,
    condition: float,
    noise: float,
    start: Map | None = None,
) -> Map:
    """keys [B] -> features [B, *shape] after `steps` of the approximate MALA of their section 2:
        h + prior (R(h) - h) + condition grad_h log_prob(generate(h)) + noise N(0, I).

    `prior`, `condition` and `noise` are their three epsilons. reconstruct(h) is the autoencoder R,
    log_prob(x) -> [B] holds its condition. R that is optimal for noise of deviation s moves h by
    s^2 times the score of the features noised by s, so that prior s^2 = condition = noise^2 / 2
    samples p(h) p(condition | h), up to the step's bias; there is no rejection. prior = 0 forgets
    the features' law, condition = 0 samples it. A reconstruction that is 0 stands for features that
    are standard normal (s = 1). start(keys [B]) -> features [B, *shape]; None: standard normal
    noise. Each step is one call of each network and a gradient, none returns the start, and image
    i depends on its own key alone.
    """
    if steps < 0:
        raise invalid("steer.steps", steps, "an integer >= 0")
    if min(prior, condition, noise) < 0:
        raise invalid("steer.prior", (prior, condition, noise), "three numbers >= 0")

    def total(h: jax.Array) -> jax.Array:
        return log_prob(generate(h)).sum()

    def fn(keys: jax.Array) -> jax.Array:
        step_keys = fold(keys, STEPS)

        def step(number: jax.Array, h: jax.Array) -> jax.Array:
            move = prior * (reconstruct(h) - h) + condition * jax.grad(total)(h)
            return h + move + noise * normal(fold(step_keys, number), shape)

        h = normal(fold(keys, START), shape) if start is None else start(fold(keys, START))
        return jax.lax.fori_loop(0, steps, step, h)

    return fn
