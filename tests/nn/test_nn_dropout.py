"""Dropout: unbiased, and of its own at every example, place, microbatch and step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.method.learning import cut, placed
from jaxgen.method.streams import dropout_key
from jaxgen.nn.parallel import Dropout

EXAMPLES, PLACES, WIDTH = 16, 8, 64


def drawn(rate, key):
    """Dropout of ones [EXAMPLES, PLACES, WIDTH]."""
    return np.asarray(Dropout(rate).apply({}, ones(), rngs={"dropout": key}))


def ones():
    return jnp.ones((EXAMPLES, PLACES, WIDTH))


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_what_stays_is_scaled_so_that_the_mean_is_that_of_the_input(rate):
    out = drawn(rate, jax.random.key(0))
    np.testing.assert_allclose(np.unique(out), [0, 1 / (1 - rate)], rtol=1e-6)
    error = (rate / (1 - rate) / out.size) ** 0.5
    assert abs(out.mean() - 1) < 4 * error


def test_every_example_and_place_has_a_mask_of_its_own():
    masks = (drawn(0.5, jax.random.key(0)) > 0).reshape(-1, WIDTH)
    assert len(np.unique(masks, axis=0)) == len(masks)
    # And independent: two of them agree at half of the features.
    agree = (masks[:, None] == masks[None]).mean(-1)[np.triu_indices(len(masks), 1)]
    assert abs(agree.mean() - 0.5) < 0.01


def test_every_microbatch_and_step_has_masks_of_its_own():
    batch = {"image": jnp.zeros((4, 2)), "label": jnp.zeros(4, jnp.int32)}
    halves = cut(placed(batch, jnp.int32(0)), 2)
    keys = [
        dropout_key(jax.random.key(step), jax.tree.map(lambda a, n=n: a[n], halves))
        for step in range(2)
        for n in range(2)
    ]
    masks = [drawn(0.5, key).tobytes() for key in keys]
    assert len(set(masks)) == len(masks)


def test_no_rate_or_no_training_is_the_input():
    for module in (Dropout(0.0), Dropout(0.5, deterministic=True)):
        np.testing.assert_array_equal(module.apply({}, ones()), ones())
