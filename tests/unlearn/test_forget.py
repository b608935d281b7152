"""Forgetting a class: it becomes its substitute, the others stay, by either target."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.errors import UsageError
from jaxgen.unlearn import forget as unlearn
from tests.nn_kit import quick_jit
from tests.toy_diffusion import BATCH, MEANS, SPEC, build, data, trained
from tests.toy_diffusion import teacher as taught


@pytest.fixture(scope="module")
def teacher():
    return taught()


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
    batch = {**data(jax.random.key(3)), "index": jnp.arange(BATCH), "microbatch": jnp.int32(0)}

    def value(fn, batch):
        return lambda p: fn(p, batch, jax.random.key(4), {"times": ()})[0]

    found, grads = jax.jit(jax.value_and_grad(value(method.loss, batch)))(params)
    assert all((a == 0).all() for a in jax.tree.leaves(grads["frozen"]))
    kept = {**batch, "weight": (batch["label"] == 2).astype(jnp.float32)}
    np.testing.assert_allclose(found, quick_jit(value(build(1e-3).loss, kept))(params), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(classes=(3,)), "0 to 2"),
        (dict(classes=()), "0 to 2"),
        (dict(classes=(0,), substitute=4), "0 to 2"),
        (dict(classes=(0,), teacher="guide"), "'guide'"),
        (dict(classes=(0,), target="away"), "guidance.*negative"),
        (dict(classes=(0,), preserve=-1.0), "preserve, retain >= 0"),
    ],
)
def test_bad_input_is_named(teacher, options, words):
    with pytest.raises(UsageError, match=words):
        unlearn.forget(build(1e-3), spec=SPEC, networks={"teacher": teacher}, **options)


def test_classes_go_by_name_too(teacher):
    named = dataclasses.replace(SPEC, classes=("ash", "birch", "2"))
    assert [named.label(w, "x") for w in ("birch", "2", 2, "0")] == [1, 2, 2, 0]
    options = dict(spec=named, networks={"teacher": teacher}, substitute="birch")
    assert unlearn.forget(build(1e-3), classes=("ash",), **options).training is not None
    with pytest.raises(
        UsageError, match="unlearn.forget.classes: got 'birhc'.*Did you mean 'birch'"
    ):
        unlearn.forget(build(1e-3), classes=("birhc",), **options)
    with pytest.raises(UsageError, match="labels from 0 to"):
        unlearn.forget(build(1e-3), classes=(99,), **options)


def loss_of(method, params, batch, key=4):
    return method.loss(params, batch, jax.random.key(key), {"times": ()})


def placed_batch(labels=None):
    batch = {**data(jax.random.key(3)), "index": jnp.arange(BATCH), "microbatch": jnp.int32(0)}
    return batch if labels is None else {**batch, "label": jnp.full(BATCH, labels)}


@pytest.mark.parametrize("substitute", [None, 2])
def test_at_the_copy_guidance_is_off_by_the_difference_of_the_two_classes(teacher, substitute):
    """With no other class it is the guidance itself that goes; nothing has drifted yet."""
    method = unlearn.forget(
        build(1e-3), spec=SPEC, networks={"teacher": teacher}, classes=(0,), target="guidance",
        substitute=substitute, preserve=1.0, retain=0.0,
    )  # fmt: skip
    params = {**teacher.params, "frozen": {"teacher": teacher.params}}
    value, (metrics, _) = loss_of(method, params, placed_batch(0))
    relabel = unlearn.forget(
        build(1e-3), spec=SPEC, networks={"teacher": teacher}, classes=(0,), substitute=substitute
    )
    _, (same, _) = loss_of(relabel, params, placed_batch(0))
    np.testing.assert_allclose(metrics["forgetting"], same["forgetting"], rtol=1e-5)
    assert metrics["drift"] == 0
    np.testing.assert_allclose(value, metrics["forgetting"], rtol=1e-6)


def test_what_is_preserved_is_the_answer_without_a_label(teacher):
    """A change of the row of no label is all that drifts; of another row, nothing does."""
    method = unlearn.forget(
        build(1e-3), spec=SPEC, networks={"teacher": teacher}, classes=(0,), target="guidance",
        preserve=1.0,
    )  # fmt: skip

    def drift(row):
        moved = jax.tree.map(jnp.copy, teacher.params)
        table = moved["net"]["labels"]["embedding"]
        moved["net"]["labels"]["embedding"] = table.at[row].add(1.0)
        params = {**moved, "frozen": {"teacher": teacher.params}}
        return loss_of(method, params, placed_batch())[1][0]["drift"]

    assert drift(1) == 0 < drift(3)


def test_the_copys_samples_stand_for_the_classes_data(teacher):
    """Whatever the batch holds: its images and labels change nothing, the step's key does."""
    method = unlearn.forget(
        build(1e-3), spec=SPEC, networks={"teacher": teacher}, classes=(0,), substitute=2,
        retain=0.0, sample=dict(solver="euler", steps=4, guidance=1.0),
    )  # fmt: skip
    params = {**teacher.params, "frozen": {"teacher": teacher.params}}
    batch = placed_batch(1)
    first = loss_of(method, params, batch)[0]
    other = {**batch, "image": batch["image"] + 3.0, "label": jnp.full(BATCH, 2)}
    assert loss_of(method, params, other)[0] == first > 0
    assert loss_of(method, params, batch, key=5)[0] != first
    # They are the class's: as far off as its data are, within what 128 examples tell.
    plain = unlearn.forget(
        build(1e-3),
        spec=SPEC,
        networks={"teacher": teacher},
        classes=(0,),
        substitute=2,
        retain=0.0,
    )
    own = {**batch, "image": MEANS[0] + 0.3 * jax.random.normal(jax.random.key(6), (BATCH, 2))}
    of_data = loss_of(plain, params, {**own, "label": jnp.zeros(BATCH, jnp.int32)})[0]
    np.testing.assert_allclose(first, of_data, rtol=0.25)
