"""The loop of retraining: what each generation is fitted to, and how samples are chosen."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.errors import UsageError
from jaxgen.training.retraining import by_reward, retrain

KEY = jax.random.key(0)


def test_each_generation_is_fitted_to_real_data_and_its_parents_samples():
    seen, asked = [], []

    def fit(data, key):
        seen.append(np.asarray(data))
        return data.mean(0)

    def draw(params, key, n):
        asked.append((np.asarray(params), key, n))
        return params + jnp.arange(n, dtype=jnp.float32)[:, None]

    first, real = jnp.array([[1.0, 2.0], [3.0, 6.0]]), jnp.array([[9.0, -9.0]])
    found = list(retrain(fit, draw, first, KEY, generations=3, synthetic=4, real=real))
    assert len(found) == 4 and [len(data) for data in seen] == [2, 5, 5, 5]
    np.testing.assert_array_equal(found[0], [2, 4])
    np.testing.assert_array_equal(seen[1], [[9, -9], [2, 4], [3, 5], [4, 6], [5, 7]])
    for (params, _, n), before in zip(asked, found, strict=False):
        np.testing.assert_array_equal(params, before)
        assert n == 4
    keys = {tuple(jax.random.key_data(key).tolist()) for _, key, _ in asked}
    assert len(keys) == 3


def test_nothing_real_means_samples_alone_and_curation_asks_for_candidates():
    sizes = []

    def draw(params, key, n):
        sizes.append(n)
        return jax.random.normal(key, (n, 2))

    def highest(key, candidates):
        assert candidates.shape == (6, 5, 2)
        return candidates[jnp.arange(6), candidates[..., 0].argmax(1)]

    found = list(
        retrain(lambda data, key: data, draw, jnp.zeros((3, 2)), KEY, generations=1, synthetic=6,
                curate=highest, candidates=5)
    )  # fmt: skip
    assert sizes == [30] and found[1].shape == (6, 2)
    assert float(found[1][:, 0].min()) > -0.5


def test_the_same_key_repeats_the_chain_and_another_does_not():
    def last(key):
        run = retrain(
            lambda data, key: (data.mean(), data.std()),
            lambda params, key, n: params[0] + params[1] * jax.random.normal(key, (n,)),
            jnp.arange(8.0),
            key,
            generations=3,
            synthetic=8,
        )
        return float(list(run)[-1][1])

    assert last(KEY) == last(KEY) != last(jax.random.key(1))


@pytest.mark.parametrize("k", [2, 4])
def test_curation_chooses_by_the_softmax_of_rewards(k):
    rewards = jnp.array([0.3, -1.0, 1.2, 0.0])[:k]
    curate = by_reward(lambda x: rewards[x])
    n = 20_000
    chosen = curate(KEY, jnp.tile(jnp.arange(k), (n, 1)))
    share = np.bincount(chosen, minlength=k) / n
    weight = np.exp(np.asarray(rewards))
    expected = weight / weight.sum()
    # Four standard errors of a share.
    assert np.abs(share - expected).max() < 4 * np.sqrt(0.25 / n)


def test_candidates_of_equal_reward_are_equally_likely_and_images_keep_their_shape():
    candidates = jax.random.normal(KEY, (500, 3, 4, 4, 1))
    chosen = by_reward(lambda x: jnp.zeros(len(x)))(KEY, candidates)
    assert chosen.shape == (500, 4, 4, 1)
    same = (chosen[:, None] == candidates).all((2, 3, 4))
    assert (same.sum(1) == 1).all()
    assert np.abs(np.asarray(same).mean(0) - 1 / 3).max() < 4 * np.sqrt(2 / 9 / 500)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"generations": -1}, "generations: got -1"),
        ({"synthetic": 0}, "synthetic: got 0"),
        ({"candidates": 3}, "candidates: got 3; allowed: 1 without"),
        ({"curate": by_reward(len)}, "candidates: got 1; allowed: 1 without"),
        ({"real": jnp.zeros((4, 3))}, "first, real: got"),
        ({"first": jnp.zeros((0, 2))}, "first, real: got \\(0, 2\\)"),
    ],
)
def test_bad_input_is_one_message_before_anything_is_fitted(changes, words):
    def fit(data, key):
        raise AssertionError("fitted")

    options = {"first": jnp.zeros((5, 2)), "generations": 1, "synthetic": 4, **changes}
    with pytest.raises(UsageError, match=words):
        retrain(fit, fit, options.pop("first"), KEY, **options)


def test_a_reward_of_another_shape_is_refused():
    with pytest.raises(UsageError, match="reward: got \\(12, 2\\); allowed: one number a sample"):
        by_reward(lambda x: x)(KEY, jnp.zeros((4, 3, 2)))
