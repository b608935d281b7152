"""Hard prompts: where the gradient is taken, where it is applied, what is kept."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen.errors import UsageError
from jaxgen.steer.pez import nearest, pez

VOCABULARY = jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [2.0, 2.0]])


def test_the_nearest_word():
    prompt = jnp.array([[0.4, 0.1], [0.6, 0.1], [1.4, 1.7]])
    np.testing.assert_array_equal(nearest(prompt, VOCABULARY), [0, 1, 3])


def test_the_gradient_at_the_words_moves_the_prompt_between_them():
    """By hand, one word and plain descent: steps of .2 (word - goal), however far between."""
    goal = jnp.array([1.9, 1.9])
    loss = lambda e: ((e[0] - goal) ** 2).sum() / 2
    prompt, wanted = np.array([0.1, -0.1]), []
    for _ in range(8):
        word = np.asarray(VOCABULARY[nearest(jnp.asarray(prompt)[None], VOCABULARY)[0]])
        wanted.append(((word - goal) ** 2).sum() / 2)
        prompt = prompt - 0.2 * (word - goal)
    words, losses = pez(loss, VOCABULARY, jnp.array([[0.1, -0.1]]), optax.sgd(0.2), steps=8)
    np.testing.assert_allclose(losses, wanted, rtol=1e-5)
    assert losses[0] > 3 and losses.min() == pytest.approx(0.01, rel=1e-4) and words.tolist() == [3]


def test_the_best_words_are_kept_and_not_the_last():
    """A goal between two words, .45 and .55 away, about which the prompt swings for ever."""
    loss = lambda e: ((e[0] - jnp.array([0.45, 0.0])) ** 2).sum()
    words, losses = pez(loss, VOCABULARY, jnp.array([[0.3, 0.0]]), optax.sgd(0.4), steps=3)
    np.testing.assert_allclose(losses, [0.2025, 0.3025, 0.2025], rtol=1e-5)
    assert words.tolist() == [0]  # the third step leads to the other again


@pytest.mark.parametrize(
    ("first", "steps", "words"),
    [
        (jnp.zeros((2, 3)), 4, r"a prompt \[N, D\]"),
        (jnp.zeros(2), 4, r"a prompt \[N, D\]"),
        (jnp.zeros((1, 2)), 0, "steps >= 1"),
    ],
)
def test_bad_input_is_named(first, steps, words):
    with pytest.raises(UsageError, match=words):
        pez(lambda e: e.sum(), VOCABULARY, first, optax.sgd(0.1), steps=steps)
