"""DiffMoE: a pool of all tokens in training, on any mesh; in sampling each image for itself."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import testing
from jaxgen.errors import UsageError
from jaxgen.families.diffusion.terms.capacity import capacity
from jaxgen.mesh import Layout, using
from jaxgen.nn import placement
from jaxgen.nn.diffmoe import CAPACITY, DiffMoE, chosen, pinball
from jaxgen.nn.flops import parameters
from jaxgen.training.sharding import make_mesh
from tests.nn_kit import inputs, live_variables, quick_jit

IMAGE = (8, 8, 2)
NET = DiffMoE(5, 2, depth=2, width=16, heads=4, patch=2, experts=4, remat="none")


@functools.cache
def variables():
    return live_variables(NET, IMAGE)


def trained(variables, *args):
    options = dict(train=True, rngs={"dropout": jax.random.key(0)}, taps=(CAPACITY,))
    return NET.apply(variables, *args, **options)


def test_what_is_active_is_a_dit():
    """The paper's tables: 458 million parameters are active of L with experts, as in DiT-L.

    With what routes: routers, predictors and thresholds.
    """
    net = DiffMoE(1000, 8, "L/2")
    w, expert = net.width, 8 * net.width**2 + 5 * net.width
    routes = net.depth * (w * 8 + w * w // 4 + w // 4 + 8 * w // 4 + 8 + 8)
    active = parameters(net, (32, 32, 4)) - net.depth * 7 * expert - routes
    assert round(active / 1e6) == 458


def test_each_expert_takes_its_share_of_the_batch_whichever_images_it_is_of():
    rng = np.random.default_rng(0)
    p = jnp.asarray(rng.random((3, 8, 4)), jnp.float32).at[0].add(0.5)
    taken, most = jax.jit(chosen, static_argnums=1)(p, 1.0)
    assert taken.shape == (24, 4) and (taken.sum(0) == 6).all()
    by_image = np.asarray(taken).reshape(3, -1).sum(1)
    assert by_image[0] > by_image[1:].max()
    for e in range(4):
        least = np.sort(np.asarray(p)[..., e].reshape(-1))[-6]
        np.testing.assert_array_equal(taken[:, e], (p[..., e] >= least).reshape(-1))
    assert chosen(p, 0.25)[0].sum() == 8 and chosen(p, 4.0)[0].all()
    # Of equal ones the first.
    assert chosen(jnp.ones((2, 4, 4)), 1.0)[0][:2].all()


def test_thresholds_go_to_the_quantile():
    logits = jax.random.normal(jax.random.key(0), (4001,))

    def loss(threshold):
        return pinball(logits, threshold, 0.75).mean()

    found = jax.grad(loss)(jnp.quantile(logits, 0.75))
    assert abs(found) < 1e-3 < abs(jax.grad(loss)(jnp.quantile(logits, 0.7)))


def test_a_sample_depends_on_itself_alone_and_a_training_example_does_not():
    args = inputs(IMAGE, 4)
    testing.check_alone(quick_jit(NET.apply), variables(), *args, rtol=2e-6)
    apply = quick_jit(trained)
    out, taps = apply(variables(), *args)
    assert taps[CAPACITY].shape == (4, 2) and (taps[CAPACITY] > 0).all()
    # Another image in the batch, on which experts are keener.
    other = args[0].at[3].multiply(5.0)
    assert jnp.abs(apply(variables(), other, *args[1:])[0][:3] - out[:3]).max() > 1e-3


def test_in_sampling_an_expert_takes_what_is_above_its_threshold():
    """All tokens below every logit, none above, and then the blocks are attention alone."""
    said, args = variables(), inputs(IMAGE, 3)

    def at(level, change=lambda name, a: a):
        def one(path, a):
            name = jax.tree_util.keystr(path)
            return jnp.full_like(a, level) if "threshold" in name else change(name, a)

        return quick_jit(NET.apply)(jax.tree_util.tree_map_with_path(one, said), *args)

    without = at(0.0, lambda name, a: jnp.zeros_like(a) if "experts" in name else a)
    np.testing.assert_allclose(at(1e6), without, atol=1e-5)
    assert np.abs(at(-1e6) - without).max() > 1e-2


def gradient(layout):
    args = inputs(IMAGE, 4)

    def loss(variables):
        out, taps = trained(variables, *args)
        return jnp.square(out - 1).mean() + taps[CAPACITY].sum(1).mean()

    with using(layout):
        return quick_jit(jax.value_and_grad(loss))(variables())


def test_the_pool_is_the_whole_batchs_on_a_mesh(monkeypatch):
    monkeypatch.setattr(placement, "SMALLEST", 2**6)
    want, found = gradient(None), gradient(Layout(make_mesh(2, 1, 2, 2)))
    for path, grad in jax.tree_util.tree_leaves_with_path(want[1]):
        assert jnp.isfinite(grad).all() and jnp.abs(grad).max() > 0, jax.tree_util.keystr(path)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), found, want)


def test_predictors_send_no_gradient_into_the_network():
    args = inputs(IMAGE, 4)
    loss = lambda variables: trained(variables, *args)[1][CAPACITY].sum()
    grads = quick_jit(jax.grad(loss))(variables())["params"]
    own = {"predictor", "threshold"}
    for name, tree in {**grads, **grads["blocks"]}.items():
        if name not in own | {"blocks"}:
            assert not any(np.any(a) for a in jax.tree.leaves(tree)), name
    assert all(np.any(a) for n in own for a in jax.tree.leaves(grads["blocks"][n]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(capacity=0.0), "model.capacity: got 0.0; allowed: 0 < capacity <= 4"),
        (dict(capacity=5.0), "model.capacity: got 5.0"),
        (dict(experts=0), "model.experts: got 0"),
    ],
    ids=str,
)
def test_fields_that_do_not_fit_are_usage_errors(fields, message):
    with pytest.raises(UsageError, match=message):
        jax.eval_shape(NET.clone(**fields).init, jax.random.key(0), *inputs(IMAGE))


def test_training_without_its_term_is_a_usage_error():
    with pytest.raises(UsageError, match="method.terms: .*capacity among them"):
        options = dict(train=True, rngs={"dropout": jax.random.key(0)})
        jax.eval_shape(functools.partial(NET.apply, **options), variables(), *inputs(IMAGE))
    with pytest.raises(UsageError, match="method.terms.capacity.weight: got 0"):
        capacity(weight=0)
