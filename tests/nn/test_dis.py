"""DiS: a direction by hand, the long skips, what a token can know."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.errors import UsageError
from jaxgen.mesh import Layout, using
from jaxgen.nn.dis import Direction, DiS, first_step
from jaxgen.training.sharding import make_mesh
from tests.nn_kit import check_on_mesh, inputs, live_variables, quick_jit, random_like

IMAGE = (4, 6, 2)
NET = DiS(5, 2, depth=3, width=8, patch=2, states=3, kernel=2, remat="none")


def by_hand(p, x):
    """A direction along tokens [n, 4], one after the other."""
    softplus = lambda a: np.log1p(np.exp(a))
    padded = np.concatenate([np.zeros((2, 4)), x])
    h = sum(padded[k : k + len(x)] * p["filter"][k] for k in range(3)) + p["bias"]
    h = h / (1 + np.exp(-h))
    states, out = np.zeros((2, 4)), []
    for row in h:
        low = row @ p["narrow"]["kernel"]
        step = softplus(low[:1] @ p["widen"]["kernel"] + p["step"])
        states = np.exp(-step * np.exp(p["log_decay"])) * states + np.outer(low[1:3], step * row)
        out.append(low[3:] @ states + p["direct"] * row)
    return np.stack(out)


@pytest.mark.parametrize("backward", [False, True])
def test_a_direction_is_mambas(backward):
    x = jax.random.normal(jax.random.key(0), (2, 7, 4))
    layer = Direction(states=2, rank=1, kernel=3, dtype=jnp.float32, backward=backward)
    params = random_like(jax.eval_shape(layer.init, jax.random.key(1), x), 0.5)
    p = jax.tree.map(np.asarray, params["params"])
    way = slice(None, None, -1 if backward else 1)
    want = [by_hand(p, np.asarray(row)[way])[way] for row in x]
    np.testing.assert_allclose(quick_jit(layer.apply)(params, x), want, rtol=1e-4, atol=1e-5)


def test_first_steps_are_from_a_thousandth_to_a_tenth():
    step = jax.nn.softplus(first_step(jax.random.key(0), (4096,)))
    assert step.min() >= 0.00099 and step.max() <= 0.1001
    np.testing.assert_allclose(jnp.log(step).mean(), np.log(0.01), atol=0.1)


@functools.cache
def variables():
    return live_variables(NET, IMAGE)


def test_every_patch_knows_all_others_and_one_direction_half_of_them():
    x, noise, labels = inputs(IMAGE, 1)

    def seen(params):
        def of(x):
            out = NET.apply({"params": params}, x, noise, labels, taps=(1,))[1][1]
            return out[0].sum(-1)

        slopes = jnp.abs(quick_jit(jax.jacobian(of))(x)).sum((1, 4))
        return slopes.reshape(6, 2, 2, 3, 2).sum((2, 4)).reshape(6, 6) > 0

    params = variables()["params"]
    assert seen(params).all()
    shallow = params["shallow_blocks"]
    silent = jax.tree.map(jnp.zeros_like, shallow["backward"])
    forward = {**params, "shallow_blocks": {**shallow, "backward": silent}}
    np.testing.assert_array_equal(seen(forward), np.tri(6, dtype=bool))


def test_it_is_the_same_on_a_mesh():
    check_on_mesh(NET, IMAGE, (2, 2, 2, 1))


def test_what_does_not_fit_is_a_usage_error():
    for field, value in (("depth", 4), ("states", 0), ("kernel", 0)):
        with pytest.raises(UsageError, match=f"model.{field}: got {value}"):
            jax.eval_shape(NET.clone(**{field: value}).init, jax.random.key(0), *inputs(IMAGE))
    with using(Layout(make_mesh(1, 1, 1, 8))), pytest.raises(UsageError, match="mesh.sequence"):
        jax.eval_shape(NET.apply, variables(), *inputs(IMAGE, 4))
