"""An idempotent network: whom each of its three terms moves, by hand; its laws; what it refuses."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen import testing
from jaxgen.errors import UsageError
from jaxgen.families.energy import idempotent
from jaxgen.method import Spec
from jaxgen.method.learning import only_learner, placed
from jaxgen.method.streams import NOISE, example_keys, fold, normal
from jaxgen.nn.mlp import MLP
from jaxgen.training.ema import Averages
from tests.nn_kit import live_params, quick_jit

SPEC, SLOPE = Spec((3,), 2, None), 0.7


class Scaled(nn.Module):
    """f(x) = a x."""

    @nn.compact
    def __call__(self, x, noise, labels, *, train=False):
        return self.param("a", nn.initializers.constant(SLOPE), ()) * x


def build(model=None, **options):
    model = MLP(2, 3, 8, 1) if model is None else model
    return idempotent(SPEC, model, optax.sgd(0.002), Averages((100,)), **options)


def batch(n, spec=SPEC):
    x = np.random.default_rng(n).normal(size=(8, *spec.shape))
    return {"image": jnp.asarray(x, jnp.float32), "label": jnp.arange(8, dtype=jnp.int32) % 2}


def test_each_term_moves_what_the_paper_says():
    a, (r, i, t, clamp), given = SLOPE, (3.0, 5.0, 2.0, 0.9), batch(0)
    options = dict(reconstruction=r, idempotence=i, tightness=t, clamp=clamp)
    loss = only_learner(build(Scaled(), **options), "test").loss
    given = placed(given, jnp.int32(0))
    key = jax.random.key(1)
    value, grad = jax.value_and_grad(lambda p: loss(p, given, key, ())[0])({"net": {"a": a}})
    size = lambda x: np.abs(np.asarray(x)).mean(1)
    x = size(given["image"])
    z = size(normal(fold(example_keys(key, given), NOISE), SPEC.shape))
    rec, tight, bound = (1 - a) * x, -(1 - a) * a * z, clamp * (1 - a) * x
    want = r * rec + i * (1 - a) * a * z + t * bound * np.tanh(tight / bound)
    np.testing.assert_allclose(value, want.mean(), rtol=1e-5)
    # Of idempotence a moves f(z) = a z alone, of tightness what f makes of it alone.
    slope = -r * x + i * (1 - a) * z + t * a * z / np.cosh(tight / bound) ** 2
    np.testing.assert_allclose(grad["net"]["a"], slope.mean(), rtol=1e-5)


def test_more_steps_are_more_times_the_network():
    method = build(Scaled())
    keys, labels = jax.random.split(jax.random.key(0), 4), jnp.zeros(4, jnp.int32)
    once, thrice = (method.sampler(steps=n) for n in (1, 3))
    assert (once.calls, thrice.calls) == (1, 3)
    params = {"net": {"a": jnp.float32(SLOPE)}}
    made = [s.fn(params, keys, labels) for s in (once, thrice)]
    np.testing.assert_allclose(made[1], SLOPE**2 * made[0], rtol=1e-6)


def test_each_image_is_drawn_from_its_own_key():
    method, labels = build(), jnp.arange(4, dtype=jnp.int32) % 2
    testing.check_sampler(quick_jit(method.sampler(steps=2).fn), live_params(method), labels)


def test_it_is_a_method_by_law():
    testing.check_method(build, [batch(n) for n in range(4)], jax.random.key(0))


def test_what_does_not_go_is_a_usage_error():
    tokens = Spec((3,), 2, 5, tokens=True)
    with pytest.raises(UsageError, match=r"config\.data\.source"):
        idempotent(tokens, MLP(2, 3, 8, 1), optax.sgd(0.05), Averages((100,)))
    for options in (dict(reconstruction=0.0), dict(tightness=-1.0), dict(clamp=0.0)):
        with pytest.raises(UsageError, match="weights > 0"):
            build(**options)
    with pytest.raises(UsageError, match=r"sample\.steps"):
        build().sampler(steps=0)
