"""Distribution matching: divergences in closed form, draws, students of three modes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen.distill import divergence
from jaxgen.distill.matching import generated, implicit, matched, matching
from jaxgen.errors import UsageError
from jaxgen.families.diffusion import denoising
from jaxgen.families.diffusion.core.path import linear
from jaxgen.families.diffusion.core.sampler import integrate, prior
from jaxgen.families.diffusion.solvers.renoise import renoise
from jaxgen.method import with_frozen
from jaxgen.method.learning import copied
from jaxgen.run.start import initial, options_of
from jaxgen.testing import gaussian_denoiser
from tests.base_run import base
from tests.every_family import built
from tests.nn_kit import quick_jit
from tests.toy_diffusion import BATCH, MEANS, SPEC, STD, build, teacher, trained

# p = N(1, .7^2), q = N(theta, 1) at theta = 0: dD_f(p || q) / dtheta, by quadrature in float64.
EXACT = dict(
    reverse_kl=-2.040816,
    forward_kl=-1.0,
    jensen_shannon=-0.468822,
    softened_reverse_kl=-1.571994,
    squared_hellinger=-0.550068,
    jeffreys=-3.040816,
)
# The same over the mean of h.
NORMALISED = dict(
    reverse_kl=-2.040816,
    forward_kl=-1.0,
    jensen_shannon=-1.300811,
    softened_reverse_kl=-2.457806,
    squared_hellinger=-1.342282,
    jeffreys=-1.520408,
)


def gradient(x, shares, name, normalised):
    """Through `matched`, of samples theta + x of q at theta = 0 with their shares of the mean."""
    log_ratio = jax.scipy.stats.norm.logpdf(x, 1.0, 0.7) - jax.scipy.stats.norm.logpdf(x)
    scores = -(x - 1) / 0.49 + x
    h = divergence.weight(name, log_ratio, normalised=normalised)

    def loss(theta):
        each = matched((theta + x)[:, None], scores[:, None], jnp.ones_like(x), h)
        return (shares * each).sum()

    return jax.grad(loss)(0.0)


@pytest.mark.parametrize("name", divergence.WEIGHTS)
def test_the_gradient_is_the_divergences(name):
    """By Gauss-Hermite quadrature; normalised by the mean of many samples (quantiles of q)."""
    x, shares = (jnp.asarray(a) for a in np.polynomial.hermite_e.hermegauss(60))
    found = gradient(x, shares / shares.sum(), name, normalised=False)
    np.testing.assert_allclose(found, EXACT[name], rtol=1e-4)
    count = 400_000
    x = jax.scipy.stats.norm.ppf((jnp.arange(count) + 0.5) / count)
    found = gradient(x, jnp.full(count, 1 / count), name, normalised=True)
    np.testing.assert_allclose(found, NORMALISED[name], rtol=1e-3)


def test_a_constant_weight_is_right_for_one_divergence_alone():
    """What a forgotten h would give is the reverse KL's gradient."""
    others = [v for name, v in EXACT.items() if name != "reverse_kl"]
    assert all(abs(EXACT["reverse_kl"] / v - 1) > 0.25 for v in others)


@pytest.mark.parametrize("name", divergence.WEIGHTS)
def test_weights_stay_finite_where_the_critic_is_sure(name):
    h = divergence.weight(name, jnp.array([-1e4, -50.0, 0.0, 50.0, 1e4]))
    assert np.isfinite(h).all() and np.isclose(h.mean(), 1, rtol=1e-5)


def test_implicit_matching_is_the_gradient_of_its_distance():
    """Of a student N(b, s^2), whose fake score is exact, from a Gaussian teacher.

    Against finite differences of E d(y) under a fixed law of x_t: with `huber` large d(y) is
    |y|^2 / 2c. They agree up to one factor, of the units. At the optimum it is zero.
    """
    path, t, m, c = linear(), jnp.float32(0.4), 0.6, 0.5
    z, eps = (jax.scipy.stats.norm.ppf((jnp.arange(n) + 0.5) / n) for n in (401, 403))
    z, eps = (a.reshape(-1, 1) for a in jnp.meshgrid(z, eps))
    huber = 1e3

    def said(mean, std, x):
        return gaussian_denoiser(path, mean, std)(None, x, t, ())[0].x0

    def gradient(b, s):
        def loss(b):
            x0 = b + s * z
            x = path.mix(x0, eps, t)
            held = jax.lax.stop_gradient(b)
            ones = jnp.ones(x.shape[0])
            return implicit(x0, said(held, s, x), said(m, c, x), ones, huber).mean()

        return jax.grad(loss)(b)

    def distance(b, at, s):
        """E |y|^2 / 2 under the law at `at`."""
        x = path.mix(at + s * z, eps, t)
        return ((said(b, s, x) - said(m, c, x)) ** 2).mean() / 2 / huber

    found = gradient(0.1, 0.8)
    step = 1e-2
    # x0 = (x + sigma^2 score) / alpha: the distance's gradient in units of x0.
    exact = (distance(0.1 + step, 0.1, 0.8) - distance(0.1 - step, 0.1, 0.8)) / (2 * step)
    share = found / exact
    again = gradient(-0.7, 0.8) / (
        (distance(-0.7 + step, -0.7, 0.8) - distance(-0.7 - step, -0.7, 0.8)) / (2 * step)
    )
    np.testing.assert_allclose(share, again, rtol=1e-2)
    assert share > 0
    np.testing.assert_allclose(gradient(m, c), 0, atol=1e-7)


def test_what_is_trained_is_what_the_sampler_does():
    """Bit for bit: the last of two draws is the sampler's image."""
    path, keys = linear(), jax.random.split(jax.random.key(3), 64)
    d = gaussian_denoiser(path, jnp.array([0.3, -0.2]), 0.5)

    def student(x, t):
        return d(keys, x, t, ())[0].x0

    for calls in (1, 3):
        grid = 1 - jnp.arange(calls + 1) / calls
        drawn = integrate(renoise(path), d, prior(path, keys, (2,)), grid, keys)
        ours = generated(student, path, keys, (2,), calls)
        same = np.isclose(ours, drawn, atol=1e-6).all(1)
        # With three calls a third of the images stand at the last.
        assert same.all() if calls == 1 else 5 <= same.sum() <= 40


def student(rate=1e-3, **options):
    """A method and its state, begun at the teacher."""
    other = teacher()
    made = matching(build(rate), spec=SPEC, networks={"teacher": other}, **options)
    state = quick_jit(made.init)(jax.random.key(1))
    params = copied({**state.params, **other.params}, made.training.copies)
    return made, state.replace(params=params)


def drawn(made, state, count=900, *, average=True):
    keys, labels = jax.random.split(jax.random.key(5), count), jnp.arange(count) % 3
    params = with_frozen(made, {**state.params, **(state.ema["half_life_2000"] if average else {})})
    return np.asarray(jax.jit(made.sampler().fn)(params, keys, labels)), labels


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(by="implicit"),
        dict(by="ratio", divergence="jensen_shannon"),
    ],
    ids=["score", "implicit", "ratio"],
)
def test_a_student_of_one_call_has_its_teachers_law(options):
    """A class is N(mean, .3^2), which the teacher itself has to .05 and a tenth of the deviation.

    The student as it begins is the teacher in one call: near the mean, whatever the noise.
    """
    steps = 1500
    made, state = student(optax.cosine_decay_schedule(1e-3, steps), **options)
    before, labels = drawn(made, state, average=False)
    state, _ = trained(made, state, steps)
    after, _ = drawn(made, state)
    assert made.sampler().calls == 1
    for label in range(3):
        own = after[labels == label]
        assert np.abs(own.mean(0) - MEANS[label]).max() < 0.15, own.mean(0)
        assert (np.abs(own.std(0) / STD - 1) < 0.3).all(), own.std(0)
        assert before[labels == label].std(0).max() < 0.6 * STD


def test_guidance_of_the_teacher_is_in_the_student():
    """Without a step: at the teacher itself the two scores differ by the guidance alone."""
    for guidance, moved in ((1.0, False), (3.0, True)):
        made, state = student(guidance=guidance, label_dropout=0.0)
        batch = {"image": jnp.zeros((BATCH, 2)), "label": jnp.arange(BATCH) % 3}
        batch |= {"index": jnp.arange(BATCH)}
        params = {**state.params, "frozen": {"teacher": teacher().params}}
        loss = made.training.learners["net"].loss
        value = loss(params, batch, jax.random.key(0), state.extra)[0]
        assert (value > 1e-4) == moved, (guidance, value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(networks={}), "a network called 'teacher'"),
        (dict(by="scores"), "implicit, ratio, score"),
        (dict(divergence="kl"), "reverse_kl"),
        (dict(by="implicit", divergence="jeffreys"), "a distance of its own"),
        (dict(calls=0), "calls >= 1"),
        (dict(instead={"0": 1}, adversarial=0.1), "sees the data of the classes"),
        (dict(instead={"0": 7}), "labels from 0 to 2"),
        (dict(low=0.5, high=0.5), "low < high"),
    ],
)
def test_bad_input_is_named(options, words):
    with pytest.raises(UsageError, match=words):
        matching(build(1e-3), **{"spec": SPEC, "networks": {"teacher": teacher()}} | options)


def test_a_student_samples_as_it_was_taught_or_not_at_all():
    made, _ = student(calls=2)
    for option, value in dict(steps=3, solver="heun", guidance=2.0, grid="karras").items():
        with pytest.raises(UsageError, match=f"sample.{option}"):
            made.sampler(**{option: value})
    assert made.sampler(steps=2, guidance=1).calls == 2


def test_the_fake_score_begins_where_the_student_does_wherever_that_was(capsys):
    """From another run, which has no such group: not anew, and said so."""
    method = built("matching").method
    begun, _ = initial(method, options_of(base()))
    state = begun(quick_jit(method.init)(jax.random.key(0)))
    jax.tree.map(np.testing.assert_array_equal, state.params["fake"], state.params["net"])
    assert any(np.abs(a).max() > 0.1 for a in jax.tree.leaves(state.params["fake"]))
    said = capsys.readouterr().err
    assert "fake begins as a copy of net." in said and "anew: fake" not in said


def test_a_network_of_the_noise_cannot_begin_at_it():
    method = build(1e-3)
    eps = denoising(SPEC, _model(method), None, None, prediction="eps")
    with pytest.raises(UsageError, match="noise alone says nothing"):
        matching(eps, spec=SPEC, networks={"teacher": teacher()})


def _model(method):
    return method.sampler(guidance=()).denoiser(None, None).network.model
