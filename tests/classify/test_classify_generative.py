"""Laws of the generative classifier, on classes whose posterior is known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen import testing
from jaxgen.classify import classify, halving
from jaxgen.errors import UsageError
from jaxgen.families.diffusion import denoising
from jaxgen.families.diffusion.core.path import linear
from jaxgen.method import Method, Spec
from jaxgen.nn.mlp import MLP
from jaxgen.training.ema import Averages

MEANS = jnp.array([[-1.2, 0.4], [1.1, 0.9], [0.3, -1.3], [-0.8, -1.1]])
STD = 0.4


class Exact(MLP):
    """The exact conditional denoisers (velocity, linear path) of N(MEANS[c], STD^2)."""

    def __call__(self, x, noise, labels, *, train=False):
        mean, path = MEANS[labels], linear()
        alpha, sigma = path.alpha(noise)[:, None], path.sigma(noise)[:, None]
        rest = (x - alpha * mean) / ((alpha * STD) ** 2 + sigma**2)
        return sigma * rest - (mean + alpha * STD**2 * rest)


def method() -> Method:
    model = Exact(num_classes=4, out_channels=2)
    return denoising(Spec((2,), 4), model, optax.sgd(0.1), Averages((10,)))


def data(count):
    labels = np.arange(count) % 4
    noise = jax.random.normal(jax.random.key(0), (count, 2))
    x = np.asarray(MEANS[labels] + STD * noise)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(1), i))(jnp.arange(count))
    return x, labels, keys


def bayes(x):
    return np.asarray(((x[:, None] - MEANS) ** 2).sum(-1).argmin(1))


PARAMS = {"net": {}}


def test_agrees_with_bayes():
    """More than 99 % agreement on equal-covariance classes (diffusion_classifier)."""
    x, _, keys = data(1000)
    found = classify(method(), PARAMS, x, keys, draws=64, rounds=((64, 1),))
    assert (found.labels == bayes(x)).mean() > 0.99
    assert found.calls == 64 * 4


def test_scores_are_log_likelihood_ratios():
    """Differences of bounds equal ln p(x | a) - ln p(x | b) for exact denoisers."""
    x, _, keys = data(60)
    found = classify(method(), PARAMS, x, keys, draws=512, rounds=((512, 1),))
    log_p = -np.asarray(((x[:, None] - MEANS) ** 2).sum(-1)) / (2 * STD**2)
    exact = log_p - np.take_along_axis(log_p, found.labels[:, None].astype(int), 1)
    # Levels outside the range are left out, and 512 draws leave some noise.
    error = np.abs(found.scores - exact)
    assert np.median(error / (1 + np.abs(exact))) < 0.1


def test_elimination_keeps_the_winner_and_saves_calls():
    x, _, keys = data(1000)
    whole = classify(method(), PARAMS, x, keys, draws=64, rounds=((64, 1),))
    fewer = classify(method(), PARAMS, x, keys, draws=64)
    assert (whole.labels == fewer.labels).mean() > 0.97
    assert fewer.calls <= 0.75 * whole.calls
    sure = classify(method(), PARAMS, x, keys, draws=64, confidence=4.0)
    assert (whole.labels == sure.labels).mean() > 0.97
    assert sure.calls < 0.9 * fewer.calls


def margins(rival_seed: int, number: int) -> np.ndarray:
    """Class 1's estimate less class 0's over 1024 noises, between the two classes' means."""
    error, x = method().label_error, jnp.broadcast_to((MEANS[0] + MEANS[1]) / 2, (1024, 2))

    def errors(label, seed):
        keys = jax.random.split(jax.random.key(seed), 1024)
        return error(PARAMS, x, jnp.full(1024, label), keys, jnp.full(1024, number), 2)

    return np.asarray(errors(1, rival_seed) - errors(0, 1))


def test_shared_noise_lowers_the_variance_of_margins():
    same, separate = (margins(seed, 0) + margins(seed, 1) for seed in (1, 2))
    assert same.var() < 0.1 * separate.var()


def test_opposite_noises_cancel_what_is_odd_in_them():
    """Between two classes the margin is odd in the noise: a pair of draws is exactly right."""
    first, second = margins(1, 0), margins(1, 1)
    assert first.std() > 0.5
    np.testing.assert_allclose((first + second) / 2, 0.0, atol=1e-3)


def test_the_same_noise_for_every_label():
    """An image's estimates for one label do not depend on which others are asked about."""
    x, _, keys = data(12)
    m = method()
    a = classify(m, PARAMS, x, keys, draws=4, rounds=((4, 1),))
    b = classify(m, PARAMS, x, keys, draws=4, rounds=((4, 1),), batch=5)
    np.testing.assert_array_equal(a.labels, b.labels)
    np.testing.assert_allclose(a.scores, b.scores, atol=1e-4)


def test_winner_scores_zero_and_leads_where_all_draws_are_shared():
    x, _, keys = data(40)
    found = classify(method(), PARAMS, x, keys, draws=8, rounds=((8, 1),))
    np.testing.assert_array_equal(found.scores.argmax(1), found.labels)
    np.testing.assert_array_equal(found.scores.max(1), 0)


def test_the_second_call_compiles_nothing():
    x, _, keys = data(20)
    m = method()
    classify(m, PARAMS, x, keys, draws=8)
    with testing.count_compilations() as compiled:
        classify(m, PARAMS, x, keys, draws=8)
    assert compiled() == 0


@pytest.mark.parametrize(("classes", "draws"), [(2, 1), (3, 4), (10, 16), (10, 2), (1000, 64)])
def test_halving_is_a_schedule(classes, draws):
    rounds = halving(classes, draws)
    assert rounds[-1] == (draws, 1)
    assert all(a[0] < b[0] and a[1] > b[1] for a, b in zip(rounds, rounds[1:], strict=False))


def test_halving_as_documented():
    assert halving(10, 16) == ((2, 5), (4, 3), (8, 2), (16, 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(draws=0), "classify.draws"),
        (dict(batch=0), "classify.batch"),
        (dict(draws=8, rounds=((4, 1),)), "classify.rounds"),
        (dict(draws=8, rounds=((4, 2), (4, 2), (8, 1))), "classify.rounds"),
    ],
)
def test_bad_options_are_named(options, message):
    x, _, keys = data(4)
    with pytest.raises(UsageError, match=message):
        classify(method(), PARAMS, x, keys, **options)


def tabled(classes: int, draws: int, seed: int = 0) -> tuple[Method, np.ndarray]:
    """A method whose estimate for x = [n] is table[n, label, draw], and the table."""
    table = np.random.default_rng(seed).normal(size=(50, classes, draws)).astype(np.float32)

    def error(params, x, labels, keys, draw, draws):
        return jnp.asarray(table)[x[:, 0].astype(jnp.int32), labels, draw]

    whole = Method(spec=Spec((1,), classes), init=None, update=None, label_error=error)
    return whole, table


@pytest.mark.parametrize("confidence", [None, 1.0])
def test_scores_are_paired_with_the_winner_on_the_draws_a_class_lived_to_see(confidence):
    """Against a loop in float64 over the same schedule, image by image."""
    rounds = ((2, 5), (4, 3), (8, 2), (16, 1))
    it, table = tabled(10, 16)
    x, keys = np.arange(50.0)[:, None], jax.random.split(jax.random.key(0), 50)
    found = classify(it, {}, x, keys, draws=16, rounds=rounds, confidence=confidence)
    calls = 0
    for n, errors in enumerate(table.astype(np.float64)):
        alive, lived, done = np.arange(10), np.zeros(10, int), 0
        for upto, keep in rounds:
            calls += len(alive) * (upto - done)
            lived[alive], done = upto, upto
            alive = alive[np.argsort(errors[alive, :upto].mean(1))]
            behind = errors[alive[1:], :upto] - errors[alive[0], :upto]
            sure = confidence is not None and (
                behind.mean(1) >= confidence * behind.std(1, ddof=1) / np.sqrt(upto)
            )
            if np.all(sure):
                break
            alive = alive[:keep]
        winner = alive[0]
        exact = [(errors[winner, :k] - errors[c, :k]).mean() for c, k in enumerate(lived)]
        assert found.labels[n] == winner and found.scores[n].max() == 0
        np.testing.assert_allclose(found.scores[n], exact, atol=1e-5)
    assert found.calls == pytest.approx(calls / 50)
