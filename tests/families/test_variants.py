"""Samplers are the same function with and without jit (under shards: test_families.py)."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import parameterized

from jaxgen.families.diffusion import denoising
from jaxgen.families.flows import flow
from jaxgen.families.variational import vae
from jaxgen.method import Spec
from jaxgen.nn.mlp import MLP
from jaxgen.nn.tarflow import TarFlow
from jaxgen.nn.vae import VAE
from jaxgen.training.ema import Averages

SPEC = Spec((4, 4, 1), 3, levels=17)


@functools.cache
def built(name: str):
    """(method, state) of a tiny model of a family."""
    given = (optax.adam(1e-3), Averages((200,)))
    if name == "diffusion":
        net = MLP(num_classes=3, out_channels=1, width=16, depth=1)
        method = denoising(SPEC, net, *given)
    elif name == "variational":
        net = VAE(num_classes=3, shape=SPEC.shape, latents=(3,), hidden=(8,))
        method = vae(SPEC, net, *given)
    else:
        net = TarFlow(num_classes=3, shape=SPEC.shape, width=8, flows=2, layers=1, heads=2)
        method = flow(SPEC, net, *given, noise="gaussian")
    return method, jax.jit(method.init)(jax.random.key(0))


def inputs(count: int):
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(1), i))(jnp.arange(count))
    return keys, jnp.arange(count) % 3


FAMILIES = ("diffusion", "variational", "flow")


class Variants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_pmap=True)
    @parameterized.parameters(*FAMILIES)
    def test_sampler(self, name):
        method, state = built(name)
        options = dict(steps=2) if name == "diffusion" else {}
        fn = method.sampler(**options).fn
        keys, labels = inputs(4)
        expected = jax.jit(fn)(state.params, keys, labels)
        found = self.variant(fn)(state.params, keys, labels)
        # Rows of chex's pmap are copies of the call on each device.
        found = np.asarray(found).reshape(-1, *expected.shape)[0]
        np.testing.assert_allclose(found, expected, atol=1e-5)
