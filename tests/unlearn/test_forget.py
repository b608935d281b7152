"""Forgetting a class: it becomes its substitute, the others stay, by either target."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen.errors import UsageError
from jaxgen.families.diffusion import denoising
from jaxgen.method import Spec
from jaxgen.nn.mlp import MLP
from jaxgen.training.ema import Averages
from jaxgen.unlearn import forget as unlearn
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


def build(rate):
    net = MLP(num_classes=3, out_channels=2, width=64, depth=2)
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


@pytest.fixture(scope="module")
def teacher():
    method = build(3e-3)
    state, _ = trained(method, quick_jit(method.init)(jax.random.key(0)), 1500)
    return Teacher(method, state.ema["half_life_2000"])


def means(method, params):
    """Mean of 400 samples of each class, and of none, [4, 2]."""
    labels = jnp.repeat(jnp.arange(4), 400)
    fn = method.sampler(solver="heun", steps=12).fn
    drawn = jax.jit(fn)(params, jax.random.split(jax.random.key(1), 1600), labels)
    return np.asarray(drawn).reshape(4, 400, 2).mean(1)


def forgotten(teacher, **options):
    method = unlearn.forget(
        build(1e-3), spec=SPEC, networks={"teacher": teacher}, classes=(0,), **options
    )
    state = quick_jit(method.init)(jax.random.key(2)).replace(params=teacher.params)
    state, metrics = trained(method, state, 800)
    return means(method, state.params), metrics


def test_relabelled_it_is_its_substitute_and_the_others_stay(teacher):
    before = means(teacher.method, teacher.params)
    np.testing.assert_allclose(before[:3], MEANS, atol=0.15)
    found, metrics = forgotten(teacher, substitute=2)
    np.testing.assert_allclose(found[0], before[2], atol=0.15)
    np.testing.assert_allclose(found[1:3], before[1:3], atol=0.15)
    assert metrics["forgetting"][-50:].mean() < 0.2 * metrics["forgetting"][:5].mean()


def test_negative_guidance_leads_away_and_the_others_stay(teacher):
    before = means(teacher.method, teacher.params)
    found, _ = forgotten(teacher, target="negative", eta=1.0)
    # Away from the class, beyond the mean of all.
    assert found[0, 0] < before[3, 0] < before[0, 0] - 0.5
    np.testing.assert_allclose(found[1:3], before[1:3], atol=0.15)


def test_no_gradient_reaches_the_teacher_and_weight_0_is_training_without_the_class(teacher):
    method = unlearn.forget(
        build(1e-3), spec=SPEC, networks={"teacher": teacher}, classes=(0, 1), weight=0.0
    )
    params = {**teacher.params, "frozen": {"teacher": teacher.params}}
    batch = {**data(jax.random.key(3)), "index": jnp.arange(BATCH), "part": jnp.int32(0)}

    def value(fn, params, batch):
        return fn(params, batch, jax.random.key(4), {"times": ()})[0]

    grads = jax.jit(jax.grad(lambda p: value(method.loss, p, batch)))(params)
    assert all((a == 0).all() for a in jax.tree.leaves(grads["frozen"]))
    kept = {**batch, "weight": (batch["label"] == 2).astype(jnp.float32)}
    np.testing.assert_allclose(
        value(method.loss, params, batch), value(build(1e-3).loss, params, kept), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(classes=(3,)), "0 to 2"),
        (dict(classes=()), "0 to 2"),
        (dict(classes=(0,), substitute=4), "0 to 2"),
        (dict(classes=(0,), teacher="guide"), "'guide'"),
    ],
)
def test_bad_input_is_named(teacher, options, words):
    with pytest.raises(UsageError, match=words):
        unlearn.forget(build(1e-3), spec=SPEC, networks={"teacher": teacher}, **options)
