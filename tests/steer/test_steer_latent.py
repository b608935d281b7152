"""Steering in the latents of a frozen generator: what it trains, and what it refuses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from jaxgen.errors import UsageError
from jaxgen.method import fold, normal
from jaxgen.nn.realnvp import RealNVP
from jaxgen.steer import langevin, promptgen, translator
from jaxgen.steer.expected import minimise_expected

KEYS = jax.random.split(jax.random.key(3), 64)


def flow() -> RealNVP:
    return RealNVP(num_classes=1, shape=(3,), width=8, couplings=2)


def prompt(energies=()) -> promptgen.PromptGen:
    return promptgen.PromptGen(flow(), (3,), lambda z: 2 * z, energies)


def shaken(params):
    return jax.tree.map(lambda a: a + 0.1, params)


def test_an_untrained_prompt_is_the_generator():
    own = prompt()
    found = own.sample(jax.jit(own.init)(jax.random.key(0)), KEYS)
    np.testing.assert_array_equal(found, 2 * jax.vmap(lambda k: jax.random.normal(k, (3,)))(KEYS))


def test_the_loss_is_the_divergence_where_both_laws_are_known():
    # No energy: KL(law of f || N(0, I)) = mean of ln q - ln p, by the flow's own change of volume.
    own = prompt()
    params = shaken(jax.jit(own.init)(jax.random.key(0)))
    eps = jax.vmap(lambda k: jax.random.normal(k, (3,)))(KEYS)

    def one(e):
        return own.latents_of(params, e[None])[0][0]

    volume = np.linalg.slogdet(np.asarray(jax.vmap(jax.jacfwd(one))(eps)))[1]
    z, _ = own.latents(params, KEYS)
    np.testing.assert_allclose(
        own.loss(params, KEYS), ((z**2).sum(1) / 2 - volume).mean(), rtol=1e-5
    )
    weighed = prompt([(0.5, lambda x: x[:, 0]), (2.0, lambda x: x[:, 1] ** 2)])
    more = (0.5 * 2 * z[:, 0] + 2.0 * 4 * z[:, 1] ** 2).mean()
    np.testing.assert_allclose(weighed.loss(params, KEYS) - own.loss(params, KEYS), more, rtol=1e-4)


def test_a_steered_generator_can_be_steered_again():
    own = prompt()
    params = shaken(jax.jit(own.init)(jax.random.key(0)))
    again = promptgen.PromptGen(flow(), (3,), own.follow(params), ())
    start = jax.jit(again.init)(jax.random.key(1))
    np.testing.assert_array_equal(again.sample(start, KEYS), own.sample(params, KEYS))


def test_a_moment_is_met_by_the_weights_that_beta_gives():
    x = jax.random.normal(jax.random.key(0), (500, 2)) ** 3
    beta, energy = promptgen.moment_energy(lambda x: x, x, [1.0, -0.5])
    share = jax.nn.softmax(-energy(x))
    np.testing.assert_allclose(share @ x, [1.0, -0.5], atol=2e-3)
    np.testing.assert_allclose(-energy(x), x @ beta, rtol=1e-5)


def test_a_fit_finds_the_minimum_of_a_parabola():
    def loss(p, keys):
        return ((p - 3.0) ** 2).sum() + 0 * keys.shape[0]

    params, losses = minimise_expected(
        loss, optax.sgd(0.1), jnp.zeros(2), KEYS[0], steps=60, batch=4
    )
    np.testing.assert_allclose(params, 3.0, atol=1e-4)
    np.testing.assert_allclose(losses[:2], [18.0, 18.0 * 0.64], rtol=1e-5)


def tr0n() -> translator.TR0N:
    small = translator.Translator(2, components=3, width=8, depth=1)
    return translator.TR0N(small, lambda z: 2 * z, lambda x: x[:, :1] ** 2)


def distance(c, found):
    return ((c - found) ** 2).sum(-1)


def test_a_translators_density_is_that_of_the_mixture():
    own = tr0n()
    params = shaken(jax.jit(own.init)(jax.random.key(0)))
    c = jnp.linspace(0, 3, 5)[:, None]
    mixture = own.mixture(params, c)
    z = jax.random.normal(jax.random.key(1), (5, 2))
    for row in range(5):
        weights = np.asarray(jax.nn.softmax(mixture.logits[row]), np.float64)
        laws = [
            stats.multivariate_normal(mean, np.diag(np.exp(2 * log_std)))
            for mean, log_std in zip(mixture.means[row], mixture.log_stds[row], strict=True)
        ]
        exact = np.log(sum(w * law.pdf(z[row]) for w, law in zip(weights, laws, strict=True)))
        np.testing.assert_allclose(mixture.log_prob(z)[row], exact, rtol=1e-4)


def test_no_steps_return_the_translators_draws():
    own = tr0n()
    params = shaken(jax.jit(own.init)(jax.random.key(0)))
    c = jnp.ones((len(KEYS), 1))
    run = own.latents(params, c, distance, strength=1.0, steps=0, speed=0.1)
    draws = own.mixture(params, c).draw(fold(KEYS, 0))
    np.testing.assert_array_equal(run(KEYS), draws)


def test_a_step_goes_down_the_energy():
    own = tr0n()
    params = shaken(jax.jit(own.init)(jax.random.key(0)))
    c, how = jnp.ones((len(KEYS), 1)), dict(strength=0.7, speed=0.01)
    z = own.latents(params, c, distance, steps=0, **how)(KEYS)
    after = own.latents(params, c, distance, steps=1, **how)(KEYS)
    fresh = normal(fold(fold(KEYS, 1), 0), (2,))
    found = (4 * z[:, :1] ** 2 - 1) * 8 * z[:, :1]
    slope = z + 0.7 * 2 * jnp.concatenate([found, 0 * found], 1)
    np.testing.assert_allclose(after, z - 0.01 * slope + 0.02**0.5 * fresh, rtol=1e-4, atol=1e-5)


def test_bad_options_are_told():
    x = jnp.array([[0.0], [1.0]])
    for make in (
        lambda: promptgen.moment_energy(lambda x: x, x, [1.5]),
        lambda: promptgen.moment_energy(lambda x: x, x, [0.5, 0.5]),
        lambda: tr0n().latents({}, x, distance, strength=1.0, steps=1, speed=0.0),
        lambda: langevin.plug_and_play(
            abs, abs, abs, (2,), steps=-1, prior=1.0, condition=1.0, noise=1.0
        ),
        lambda: minimise_expected(
            lambda p, k: p.sum(), optax.sgd(0.1), x, KEYS[0], steps=0, batch=4
        ),
    ):
        with pytest.raises(UsageError, match="allowed"):
            make()
