"""Told how good examples are: by a part of the label, or by columns; asked for the best."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.data import batches
from jaxgen.data.binned import binned
from jaxgen.errors import UsageError
from jaxgen.method import Method, Sampler, Spec
from jaxgen.tune.told import told

SPEC = Spec((1,), 6)


def method(draws=True):
    """A method whose samples are what it is told."""

    def sampler(*, scale: float = 1.0) -> Sampler:
        known = lambda params, labels: jax.tree.map(lambda a: scale * a, labels)
        return Sampler(
            lambda params, keys, labels: known(params, labels), 1.0, chain=known, denoiser=known,
            by_weight=lambda params, keys, labels, w: known(params, labels),
            log_probs=lambda params, x, labels: known(params, labels),
        )  # fmt: skip

    return Method(spec=SPEC, init=None, update=None, sampler=sampler if draws else None)


def test_whatever_level_is_asked_for_the_best_is_drawn_and_no_label_stays():
    made = told(method(), spec=SPEC, levels=3).sampler(scale=2.0)
    labels, wanted = jnp.arange(7), 2.0 * np.array([2, 2, 2, 5, 5, 5, 6])
    for found in (
        made(None, None, labels), made.chain(None, labels), made.denoiser(None, labels),
        made.by_weight(None, None, labels, 1.0), made.log_probs(None, None, labels),
    ):  # fmt: skip
        np.testing.assert_array_equal(found, wanted)
    assert made.chain(None, jnp.int32(3)) == 10 and made.denoiser(None, None) is None


def test_values_are_told_beside_the_label():
    found = told(method(), spec=SPEC, values={"a": 5.0}).sampler()(None, None, jnp.arange(3))
    np.testing.assert_array_equal(found["label"], [0, 1, 2])
    np.testing.assert_array_equal(found["a"], [5.0, 5.0, 5.0])
    one = told(method(), spec=SPEC, levels=2, values={"a": 5.0}).sampler().chain(None, jnp.int32(2))
    assert one["label"] == 3 and one["a"].shape == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(), "levels > 1 or values"),
        (dict(levels=4), r"levels: got 4; allowed: a divisor of the 6"),
        (dict(levels=0), "levels: got 0"),
    ],
)
def test_bad_input_is_named(change, words):
    with pytest.raises(UsageError, match=words):
        told(method(), spec=SPEC, **change)


def test_a_method_without_a_sampler_is_named():
    with pytest.raises(UsageError, match="without a sampler"):
        told(method(draws=False), spec=SPEC, levels=2)


@pytest.fixture
def file(tmp_path):
    labels = np.arange(24) % 3
    np.savez(
        tmp_path / "data.npz", images=np.full((24, 2, 2, 1), 9, np.uint8), labels=labels,
        score=np.arange(24) / 4.0, pair=np.zeros((24, 2)),
    )  # fmt: skip
    section = dict(name="arrays.arrays", path=str(tmp_path / "data.npz"))
    return section | dict(columns=("score", "pair"), class_names=("a", "b", "c"))


def test_a_column_becomes_a_part_of_the_label(file):
    source = binned(file, "score", (2.0, 4.0))
    assert source.class_names == tuple(f"{c} {n}" for c in "abc" for n in range(3))
    number = np.arange(24)
    wanted = number % 3 * 3 + (number >= 8) + (number >= 16)
    np.testing.assert_array_equal(source.labels, wanted)
    batch = next(batches(source, batch_size=8, seed=0))
    np.testing.assert_array_equal(
        batch["label"] % 3, (batch["score"] >= 2) + 1 * (batch["score"] >= 4)
    )


@pytest.mark.parametrize(
    ("column", "edges", "words"),
    [
        ("other", (2.0,), "column 'other'"),
        ("pair", (2.0,), "a number of each example"),
        ("score", (), "one number or more"),
        ("score", (3.0, 2.0), "each above the last"),
        ("score", (2.0, 99.0), "no example of a 2, b 2, c 2"),
    ],
)
def test_a_column_that_cannot_be_a_part_is_named(file, column, edges, words):
    with pytest.raises(UsageError, match=words):
        binned(file, column, edges)
