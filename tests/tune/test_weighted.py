"""Examples in proportion to their worth: which of a batch are seen, and how often."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.shared.tabular import SPEC, table
from jaxgen.errors import UsageError
from jaxgen.method import Column, retrained
from jaxgen.method.learning import placed
from jaxgen.tune.weighted import weighted

COLUMNS = dataclasses.replace(
    SPEC, columns={"worth": Column((), "float32"), "pair": Column((2,), "float32")}
)
WORTH = jnp.array([0.0, 1.0, 2.0, jnp.nan] * 150)
ROWS = {"image": jnp.arange(600)[:, None] % 10, "label": jnp.arange(600) % 3, "worth": WORTH}
BATCH, KEY = placed(ROWS, jnp.zeros((), jnp.int32)), jax.random.key(2)


def seen(method, batch=BATCH):
    state = method.init(jax.random.key(0))
    _, batch, metrics = method.training.prepare(state, batch, KEY, method.frozen)
    return batch, metrics


def made(base=None, **options):
    return weighted(base or table(1e-2), **{"spec": COLUMNS, "column": "worth", **options})


def test_examples_are_seen_as_often_as_they_are_worth_it():
    batch, metrics = seen(made(beta=2.0))
    counts = [(batch["worth"] == w).sum() for w in (0, 1, 2)]
    p = np.exp(np.arange(3) / 2)
    np.testing.assert_allclose(counts, 600 * p / p.sum(), atol=20)
    assert metrics["effective"] == pytest.approx(0.75 * p.mean() ** 2 / (p**2).mean(), rel=1e-4)
    # Rows stay whole, and places are the batch's, so that noise is each one's own.
    np.testing.assert_array_equal(batch["index"], BATCH["index"])
    pairs = {(int(x), int(y)) for x, y in zip(batch["image"][:, 0], batch["label"], strict=True)}
    assert pairs <= {(n % 10, n % 3) for n in range(600)}


def test_below_the_least_none_is_seen_and_where_none_is_left_all_are():
    batch, metrics = seen(made(beta=None, least=1.0))
    assert set(np.asarray(batch["worth"])) == {1.0, 2.0}
    assert metrics["effective"] == pytest.approx(0.5)
    batch, _ = seen(made(beta=None, least=5.0))
    np.testing.assert_array_equal(np.sort(batch["image"], 0), np.sort(BATCH["image"], 0))


def test_a_reward_of_image_and_label_is_as_good_as_a_column():
    worth = lambda x, labels: 1.0 * x[:, 0] + labels
    one, _ = seen(made(column=None, reward=worth))
    same = {**BATCH, "worth": worth(BATCH["image"], BATCH["label"])}
    two, _ = seen(made(), same)
    np.testing.assert_array_equal(one["image"], two["image"])


def test_what_the_method_prepares_comes_after():
    def before(state, batch, key, frozen):
        return state, {**batch, "mean": batch["worth"].mean()}, {"prepared": jnp.ones(())}

    base = retrained(table(1e-2), prepare=before)
    batch, metrics = seen(made(base, least=2.0))
    assert batch["mean"] == 2 and set(metrics) == {"effective", "prepared"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(column=None), "one of the two"),
        (dict(reward=lambda x, labels: labels), "one of the two"),
        (dict(column="other"), "column 'other'"),
        (dict(column="pair"), "a number of each example"),
        (dict(beta=0.0), "beta > 0"),
        (dict(column=None, reward=lambda x, labels: x), "a number for each sample"),
    ],
)
def test_bad_input_is_named(change, words):
    with pytest.raises(UsageError, match=words):
        made(**change).training.check()
