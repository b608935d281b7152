"""Exact denoisers that every test of guidance shares, and what is estimated with them."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxgen import testing
from jaxgen.families.diffusion.core import grids
from jaxgen.families.diffusion.core import path as paths
from jaxgen.families.diffusion.core.denoiser import Denoiser

PATH = paths.linear()
SHAPE, SIZE = (3,), 8
STEPS = 5
SEEN = jnp.array([0.4, 1.9, 0.7])
GRID = grids.uniform(STEPS, PATH)
MEANS = jnp.array([[1.0, -0.5, 0.3], [-0.7, 0.2, 0.9]])
AMOUNTS = jnp.array([0.8, 0.6])
LABELS = jnp.zeros(SIZE, jnp.int32)


def of_mean(mean, std):
    """The exact denoiser of N(mean, std^2), mean its condition vector."""

    def changed(change):
        def call(keys, x, t, memory):
            y = change(jnp.broadcast_to(mean, x.shape))
            return testing.gaussian_denoiser(PATH, y, std)(keys, x, t, memory)

        def attend(layer):
            del layer
            return lambda *args: (*call(*args), jnp.tile(SEEN, (args[1].shape[0], 1)))

        alone = Denoiser(testing.gaussian_denoiser(PATH, 0.4 * mean, std).call, path=PATH)
        return Denoiser(
            call, path=PATH, recondition=changed, perturb=lambda layers: alone, attend=attend
        )

    return changed(lambda y: y)


def by_label(labels):
    return testing.gaussian_denoiser(PATH, MEANS[labels], 0.5)


def logits(x0, t):
    return -((x0[:, None] - MEANS) ** 2).sum(-1)


def goal(x0, t):
    return -((x0 - 0.4) ** 2).sum(-1)


def total(x0):
    return x0.sum(-1)


COND, UNCOND = of_mean(MEANS[0], 0.5), of_mean(jnp.zeros(3), 1.0)
OTHER = of_mean(MEANS[1], 0.5)


def at(t, size=SIZE):
    x = jax.random.normal(jax.random.key(0), (size, *SHAPE))
    return jax.random.split(jax.random.key(1), size), x, jnp.float32(t)


def estimate(denoiser, t=0.6):
    keys, x, t = at(t)
    return denoiser(keys, x, t, denoiser.init(x))[0]
