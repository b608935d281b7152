"""Nested latents: levels side by side, noise of each, drawn from the top; what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen.errors import UsageError
from jaxgen.families.diffusion.descriptions.nested import nested
from jaxgen.families.diffusion.methods.denoising import denoising
from jaxgen.frozen.encoders import pooled
from jaxgen.method import Spec
from jaxgen.nn.mlp import MLP
from jaxgen.testing import check_sampler
from jaxgen.training.ema import Averages
from tests.nn_kit import live_params, quick_jit, random_like

SPEC = Spec((4, 4, 1), 2)
CELLS = (dict(name="pooled", side=1), dict(name="pooled", side=2))
SMALL = dict(encoders=CELLS, width=8, depth=1, steps=2)
X = jax.random.normal(jax.random.key(0), (6, 4, 4, 1))


def test_cells_have_their_means():
    want = [X[0, :2, :2].mean(), X[0, :2, 2:].mean(), X[0, 2:, :2].mean(), X[0, 2:, 2:].mean()]
    np.testing.assert_allclose(pooled(side=2)(X)[0], want, atol=1e-6)
    with pytest.raises(UsageError, match="encoder.side: got 3"):
        pooled(side=3)(X)


def test_levels_lie_side_by_side_and_each_has_its_scale_and_noise():
    plain = nested(SPEC, **SMALL, scales=(1.0, 2.0), noise=(0.0, 0.5))
    vectors = plain.of(plain.frozen, X)
    np.testing.assert_allclose(vectors[:, 0], X.mean((1, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(vectors[:, 1:], pooled(side=2)(X) / 2, atol=1e-6)
    many = jnp.broadcast_to(X[:1], (4000, 4, 4, 1))
    told = plain.told(plain.frozen, many, jax.random.split(jax.random.key(1), 4000))
    np.testing.assert_array_equal(told[:, 0].std(), 0)
    np.testing.assert_allclose(told[:, 1:].std(0), 0.5, atol=0.03)


def test_a_level_is_drawn_by_what_was_drawn_above_it_and_not_the_other_way():
    describe = nested(SPEC, **SMALL)
    params = random_like(jax.eval_shape(describe.init, jax.random.key(0)), 0.5)
    keys, labels = jax.random.split(jax.random.key(1), 5), jnp.zeros(5, jnp.int32)
    draw = quick_jit(lambda params: describe.draw(params, describe.frozen, keys, labels))
    changed = lambda name: {**params, name: jax.tree.map(lambda a: -a, params[name])}
    before, above, below = (draw(p) for p in (params, changed("level_0"), changed("level_1")))
    moved = jnp.abs(above - before) > 1e-5
    assert moved[:, :1].all() and moved[:, 1:].any(1).all()
    np.testing.assert_array_equal(below[:, :1], before[:, :1])


def test_it_trains_and_samples_each_image_from_its_key():
    describe = nested(SPEC, **SMALL, labelled=True)
    model = MLP(2, 1, width=8, depth=1)
    method = denoising(SPEC, model, optax.adam(1e-2), Averages((100,)), describe=describe)
    state = quick_jit(method.init)(jax.random.key(0))
    batch = {"image": X, "label": jnp.arange(6, dtype=jnp.int32) % 2}
    state, metrics = quick_jit(method.update)(state, batch, jax.random.key(1))
    assert np.isfinite(metrics["loss"]) and "describe" in metrics
    sampler = method.sampler(solver="euler", steps=2, guidance=1.0)
    assert sampler.calls == 2 + 2 * (2 * 2 - 1)
    run = quick_jit(sampler.fn)
    check_sampler(run, live_params(method), jnp.arange(4, dtype=jnp.int32) % 2, atol=1e-4)


def test_what_does_not_fit_is_a_usage_error():
    for options, match in (
        (dict(encoders=()), "describe.encoders"),
        (dict(scales=(1.0,)), "describe.encoders"),
        (dict(noise=(0.1, -0.1)), "describe.scales"),
        (dict(steps=0), "describe.steps"),
    ):
        with pytest.raises(UsageError, match=match):
            nested(SPEC, **{**SMALL, **options})
