"""A small diffusion of three Gaussians in the plane, trained once, for what is done to a model."""

import functools

import jax
import jax.numpy as jnp
import optax

from jaxgen.families.diffusion import denoising
from jaxgen.method import Spec
from jaxgen.nn.mlp import MLP
from jaxgen.training.ema import Averages
from tests.nn_kit import quick_jit

SPEC = Spec((2,), 3, None)
MEANS = jnp.array([[1.5, 0.0], [-1.0, 1.0], [0.0, -1.5]])
STD, BATCH = 0.3, 128


class Teacher:
    """The other run: a method and parameters, as `jaxgen.run.networks.Other` has them."""

    def __init__(self, method, params):
        self.method, self.params = method, params

    def fitting(self, spec):
        return self.params


def build(rate, **model):
    net = MLP(num_classes=3, out_channels=2, width=64, depth=2, **model)
    return denoising(SPEC, net, optax.adam(rate), Averages((2000,)), label_dropout=0.2)


def data(key):
    labels = jax.random.randint(key, (BATCH,), 0, 3)
    noise = jax.random.normal(jax.random.fold_in(key, 1), (BATCH, 2))
    return {"image": MEANS[labels] + STD * noise, "label": labels}


def trained(method, state, steps):
    def body(state, n):
        key = jax.random.fold_in(jax.random.key(7), n)
        return method.update(state, data(jax.random.fold_in(key, 5)), key, method.frozen)

    return jax.jit(lambda s: jax.lax.scan(body, s, jnp.arange(steps)))(state)


@functools.cache
def teacher():
    """What `config.networks` would give: trained for 1,500 steps."""
    method = build(3e-3)
    state, _ = trained(method, quick_jit(method.init)(jax.random.key(0)), 1500)
    return Teacher(method, state.ema["half_life_2000"])
