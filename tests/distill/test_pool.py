"""A student of black boxes: who is asked, for what, and what is remembered."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.shared.tabular import SPEC, Trained, table
from jaxgen.distill.pool import pool, remembered, standing
from jaxgen.errors import UsageError
from jaxgen.method.learning import placed, single


def judge(x, labels):
    return x[:, 0].astype(jnp.float32)


def test_means_are_of_what_was_judged_of_each():
    held = {name: jnp.zeros((3, 2)) for name in ("sums", "counts")}
    labels, whose = jnp.array([0, 0, 1, 1]), jnp.array([0, 1, 1, 1])
    theirs, ours = jnp.array([3.0, 5.0, 7.0, jnp.nan]), jnp.array([1.0, 2.0, 4.0, 6.0])
    for _ in range(2):
        held = remembered(held, (theirs, ours), labels, whose, 0.5)
    np.testing.assert_allclose(held["counts"], 1.5 * np.array([[1, 0], [1, 1], [2, 2]]))
    best, gap = standing(**held)
    assert best.tolist() == [1, 1]
    np.testing.assert_allclose(gap, [5 - 1.5, 7 - 5.0])


def test_of_what_nobody_judged_there_is_no_gap():
    best, gap = standing(jnp.array([[-2.0, 0.0], [-9.0, 4.0]]), jnp.array([[1.0, 0.0], [3.0, 2.0]]))
    np.testing.assert_allclose(gap, [-2 + 3.0, 0.0])


def method_of(**options):
    base = table(1e-2)
    held = {"teacher": Trained(base), "other": Trained(base)}
    held["other"].params = {"net": {"logits": jnp.full((3, 10), -30.0).at[:, 9].set(0.0)}}
    names = dict(teachers=("teacher", "other")) | options
    return pool(base, spec=SPEC, networks=held, reward=judge, **names)


def test_the_student_learns_from_the_best_alone():
    """The other teacher says 9 throughout, which the judge likes best."""
    method = method_of(explore=0.5)
    state = method.init(jax.random.key(0))
    held = {"sums": jnp.array([[0.0] * 3, [9.0] * 3, [0.0] * 3]), "counts": jnp.ones((3, 3))}
    state = state.replace(extra={**state.extra, "pool": held})
    batch = {"image": jnp.zeros((64, 1), int), "label": jnp.zeros(64, int)}
    batch = placed(batch, jnp.zeros((), jnp.int32))
    frozen = method.training.arrays()
    _, made, metrics = method.training.prepare(state, batch, jax.random.key(1), frozen)
    assert (made["image"] == 9).all() and set(np.asarray(made["label"])) == {0, 1, 2}
    assert metrics["behind"] == 9 and metrics["mastered"] == 0
    after, _ = method.update(state, batch, jax.random.key(1))
    assert (after.extra["pool"]["counts"].sum() > 9) and after.extra["method"] == ()


def test_a_method_with_a_state_of_its_own_keeps_it():
    """Its first step reads a batch; what it asks for is in its own part of the state."""
    base = table(1e-2)
    seen = lambda state, batch, key, frozen: (state.replace(extra=state.extra + 1), batch, {"n": 1})
    training = base.training

    def loss(params, batch, key, extra):
        return base.training.learners["net"].loss(params, batch, key, extra)[0], ({}, 2 * extra)

    own = single(loss, lambda key: (training.fresh(key)[0], jnp.ones(())), optax.sgd(0.1),
                 training.averages, prepare=seen)  # fmt: skip
    import dataclasses

    from jaxgen.method import method_of as built

    fields = {f.name: getattr(base, f.name) for f in dataclasses.fields(base)}
    fields = {k: v for k, v in fields.items() if k not in ("spec", "training", "init", "update")}
    method = pool(built(SPEC, own, **fields), spec=SPEC, networks={"teacher": Trained(base)},
                  reward=judge)  # fmt: skip
    state = method.init(jax.random.key(0))
    batch = {"image": jnp.zeros((8, 1), int), "label": jnp.zeros(8, int)}
    state, metrics = method.update(state, batch, jax.random.key(1))
    assert state.extra["method"] == 4 and "n" in metrics and "behind" in metrics


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(teachers=()), "one name of config.networks"),
        (dict(teachers=("nobody",)), "'nobody'"),
        (dict(explore=0.0), "explore <= 1"),
        (dict(memory=1.0), "memory < 1"),
        (dict(margin=-1.0), "margin >= 0"),
    ],
)
def test_bad_input_is_named(options, words):
    with pytest.raises(UsageError, match=words):
        method_of(**options).training.check()


def test_a_judge_of_another_shape_is_refused():
    base = table(1e-2)
    with pytest.raises(UsageError, match="a number for each sample"):
        bad = lambda x, y: x
        pool(base, spec=SPEC, networks={"teacher": Trained(base)}, reward=bad).training.check()
