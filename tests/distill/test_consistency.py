"""Consistency training: its boundary, its target, and one-step samples of a law that is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.shared.tabular import SPEC as TABLE
from experiments.shared.tabular import table
from jaxgen.distill.consistency import consistency
from jaxgen.errors import UsageError
from jaxgen.families.diffusion import denoising
from jaxgen.method.learning import placed
from jaxgen.method.streams import NOISE, example_keys, fold, normal
from tests import toy_diffusion
from tests.nn_kit import live_params

KEY = jax.random.key(1)


def test_with_one_step_it_is_the_example_that_is_learnt():
    """At n = 1 of 1 the target is x0 itself: E (x0 - f(eps, 1))^2."""
    base = toy_diffusion.build(1e-3)
    method = consistency(base, spec=toy_diffusion.SPEC, steps=1, label_dropout=0.0)
    params, batch = live_params(base), placed(toy_diffusion.data(KEY), jnp.zeros((), jnp.int32))
    keys = example_keys(KEY, batch)
    eps = normal(fold(keys, NOISE), (2,))
    said = base.sampler(guidance=1.0).denoiser(params, batch["label"])
    x0 = said(keys, eps, jnp.ones(len(eps)), ())[0].x0
    wanted = ((x0 - batch["image"]) ** 2).mean()
    np.testing.assert_allclose(method.loss(params, batch, KEY, ())[0], wanted, rtol=1e-5)


def test_the_earlier_time_is_held():
    """The gradient is that of a regression: zero where the two agree."""
    base = toy_diffusion.build(1e-3)
    method = consistency(base, spec=toy_diffusion.SPEC, steps=4)
    params = live_params(base)
    batch = placed(toy_diffusion.data(KEY), jnp.zeros((), jnp.int32))
    value = lambda p: method.loss(p, batch, KEY, ())[0]
    grads = jax.jit(jax.grad(value))(params)
    # By a difference quotient of the loss as it stands, which moves both times.
    step = jax.tree.map(lambda g: g / 100, grads)
    moved = jax.tree.map(jnp.add, params, step)
    slope = (jax.jit(value)(moved) - value(params)) * 100
    squares = sum(float((g**2).sum()) for g in jax.tree.leaves(grads))
    assert abs(slope / squares - 1) > 0.05
    assert method.label_error is None and method.likelihood is None


@pytest.mark.parametrize(
    ("change", "words"),
    [(dict(steps=0), "steps >= 1"), (dict(label_dropout=1.0), "label_dropout")],
)
def test_bad_input_is_named(change, words):
    with pytest.raises(UsageError, match=words):
        consistency(toy_diffusion.build(1e-3), spec=toy_diffusion.SPEC, **change)


def test_what_says_no_x0_at_time_1_is_refused():
    with pytest.raises(UsageError, match="without a denoiser"):
        consistency(table(1e-2), spec=TABLE)
    base = toy_diffusion.build(1e-3)
    net = base.sampler(guidance=()).denoiser(None, None).network
    eps = denoising(
        toy_diffusion.SPEC, net.model, base.training.optimizer, base.training.averages,
        prediction="eps",
    )  # fmt: skip
    with pytest.raises(UsageError, match="method.prediction: got 'eps'"):
        consistency(eps, spec=toy_diffusion.SPEC)
