"""Early exits: which layer an image leaves at, what the loss teaches, what is refused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.errors import UsageError
from jaxgen.families.diffusion.core import path as paths
from jaxgen.families.diffusion.core.denoiser import Network
from jaxgen.families.diffusion.methods.early_exit import early_exit, exit_loss
from jaxgen.nn.exits import ExitMLP
from jaxgen.nn.mlp import MLP

PATH = paths.linear()
NET = Network(ExitMLP(num_classes=3, out_channels=1, width=16, depth=4), PATH, "eps")
LABELS = jnp.arange(8) % 4


@pytest.fixture(scope="module")
def drawn():
    """(random parameters, x [8, 2, 1], t [8])."""
    key = jax.random.key(0)
    x, t = jax.random.normal(key, (8, 2, 1)), jnp.linspace(0.1, 0.9, 8)
    shapes = jax.eval_shape(NET.model.init, key, x, t, LABELS)["params"]
    rng = np.random.default_rng(1)
    return (
        jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape) / 3, a.dtype), shapes),
        x,
        t,
    )


def exits(drawn):
    params, x, t = drawn
    apply = jax.jit(lambda p: NET.model.apply({"params": p}, x, t, LABELS, method="every"))
    return apply(params)


def test_images_leave_at_their_first_sure_layer_and_memory_counts(drawn):
    params, x, t = drawn
    out, u = exits(drawn)
    doubt = np.asarray(u.mean((2, 3)))
    # Halfway between two uncertainties, so that rounding decides nothing.
    ranked = np.sort(doubt.ravel())
    threshold = float(ranked[10:12].mean())
    sure = doubt[:3] < threshold
    first = np.where(sure.any(0), sure.argmax(0), 3)
    assert len(set(first.tolist())) > 1
    model = early_exit(NET, params, LABELS, threshold)
    call = jax.jit(lambda memory: model(None, x, t, memory))
    p, memory = call(model.init(x))
    np.testing.assert_array_equal(memory, first + 1)
    # Sums of 16 products, in another order: their rounding is relative to the largest of them.
    bound = 16 * np.finfo(np.float32).eps * float(jnp.abs(out).max())
    np.testing.assert_allclose(p.eps, out[first, np.arange(8)], rtol=1e-5, atol=bound)
    np.testing.assert_array_equal(call(memory)[1], 2 * (first + 1))


def test_thresholds_0_and_1_are_the_last_and_the_first_exit(drawn):
    params, x, t = drawn
    out, _ = exits(drawn)
    full = jax.jit(lambda p: NET.denoiser(p, LABELS)(None, x, t)[0].eps)(params)
    for threshold, layers, wanted in ((0.0, 4, full), (1.0, 1, out[0])):

        @jax.jit
        def leave(params, threshold=threshold):
            model = early_exit(NET, params, LABELS, threshold)
            return model(None, x, t, model.init(x))

        p, memory = leave(params)
        np.testing.assert_array_equal(memory, layers)
        # All layers: the same bits. One: of another program, so up to its rounding.
        np.testing.assert_allclose(p.eps, wanted, rtol=0 if layers == 4 else 1e-5)


def test_the_loss_by_hand_and_what_has_no_gradient(drawn):
    params, x0, t = drawn
    eps = jax.random.normal(jax.random.key(3), x0.shape)
    mixed = (params, PATH.mix(x0, eps, t), t)
    out, u = (np.asarray(a, np.float64) for a in exits(mixed))
    gap = out - np.asarray(eps)
    wanted = (gap[-1] ** 2).mean()
    for g, v in zip(gap[:3], u[:3], strict=True):
        wanted += ((1 - v) * g**2).mean() + 2 * ((v - np.tanh(np.abs(g))) ** 2).mean()

    def loss(p):
        return exit_loss(NET, p, x0, LABELS, eps, t, regression=2.0)

    value, slope = jax.jit(jax.value_and_grad(loss))(params)
    assert float(value) == pytest.approx(wanted, rel=1e-5)
    # The bias of u at an exit: only the regression moves it.
    bias = slope["exits"]["uncertainty"]["bias"]
    v, g = u[:3], gap[:3]
    by_hand = 2 * 2 * (v - np.tanh(np.abs(g))) * v * (1 - v) / g[0].size
    np.testing.assert_allclose(bias[:3], by_hand.sum(1).reshape(3, 2), atol=1e-6)
    np.testing.assert_array_equal(bias[3], 0)


def test_what_cannot_be_is_refused(drawn):
    params, _, _ = drawn
    for threshold in (-0.1, 1.1, float("nan")):
        with pytest.raises(UsageError, match="early_exit.threshold: got .*0 to 1"):
            early_exit(NET, params, LABELS, threshold)
    with pytest.raises(UsageError, match="early_exit.prediction: got"):
        early_exit(Network(NET.model, PATH, "edm"), params, LABELS, 0.1)
    with pytest.raises(UsageError, match="no exits"):
        early_exit(Network(MLP(3, 1), PATH, "eps"), params, LABELS, 0.1)
