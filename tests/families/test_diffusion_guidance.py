"""Laws of guidance: w=1 is the conditional model bit for bit, w=0 the unconditional."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import testing
from jaxgen.errors import UsageError
from jaxgen.families.diffusion import solvers
from jaxgen.families.diffusion.core import grids
from jaxgen.families.diffusion.core import path as paths
from jaxgen.families.diffusion.core.denoiser import Denoiser
from jaxgen.families.diffusion.core.sampler import build_sampler
from jaxgen.families.diffusion.guidance.autoguidance import autoguidance
from jaxgen.families.diffusion.guidance.cfg import cfg
from jaxgen.families.diffusion.guidance.classifier import classifier
from jaxgen.families.diffusion.guidance.interval import limit
from jaxgen.families.diffusion.guidance.threshold import dynamic, static

PATH = paths.cosine()
COND = testing.gaussian_denoiser(PATH, 1.0, 0.5)
UNCOND = testing.gaussian_denoiser(PATH, 0.2, 1.0)
PAIRS = [cfg, autoguidance]
"""Guidance of a good denoiser by a bad one: all of these obey one law."""


def estimate(denoiser: Denoiser, t: float = 0.6):
    x = jax.random.normal(jax.random.key(0), (8, 3))
    keys = jax.random.split(jax.random.key(1), 8)
    return denoiser(keys, x, jnp.float32(t), denoiser.init(x))[0]


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("guide", PAIRS)
def test_weight_one_is_the_good_and_zero_the_bad(guide):
    same(estimate(guide(COND, UNCOND, weight=1.0)), estimate(COND))
    same(estimate(guide(COND, UNCOND, weight=0.0)), estimate(UNCOND))


@pytest.mark.parametrize("guide", PAIRS)
def test_an_unused_branch_is_not_paid_for(guide):
    def explode(*_):
        raise AssertionError("called")

    closed = Denoiser(explode, calls=explode)
    assert guide(COND, closed, weight=1.0).calls(0.5) == 1
    assert guide(closed, UNCOND, weight=0.0).calls(0.5) == 1
    assert guide(COND, UNCOND, weight=2.0).calls(0.5) == 2
    estimate(guide(COND, closed, weight=1.0))


@pytest.mark.parametrize("guide", PAIRS)
def test_linear_in_the_weight(guide):
    a, b, c = (estimate(guide(COND, UNCOND, weight=w)) for w in (0.5, 2.0, 3.5))
    np.testing.assert_allclose(b.x0, (a.x0 + c.x0) / 2, atol=1e-5)
    np.testing.assert_allclose(b.eps, (a.eps + c.eps) / 2, atol=1e-5)
    p, q = estimate(COND), estimate(UNCOND)
    np.testing.assert_allclose(b.x0, q.x0 + 2 * (p.x0 - q.x0), atol=1e-5)


def test_guidance_keeps_x_where_it_is():
    """alpha x0 + sigma eps = x is linear, so no weight breaks it."""
    x, t = jax.random.normal(jax.random.key(0), (8, 3)), jnp.float32(0.6)
    p = estimate(cfg(COND, UNCOND, weight=3.0))
    np.testing.assert_allclose(p.mix(PATH, t), x, atol=1e-5)


def test_guided_gaussians_are_known():
    """Two classes N(m, s^2): guidance pushes the mean away from the other class.

    With equal deviations cond - uncond is constant in x, so the guided score is that of a Gaussian
    with its mean at uncond + w (cond - uncond).
    """
    path = paths.linear()
    cond, uncond = (testing.gaussian_denoiser(path, m, 0.5) for m in (1.0, 0.2))
    guided = cfg(cond, uncond, weight=2.5)
    keys = jax.random.split(jax.random.key(0), 4000)
    x = path.sigma(jnp.float32(1)) * jax.random.normal(jax.random.key(2), (4000, 1))
    out = testing.run_solver(solvers.heun(path), guided, x, grids.uniform(32, path))
    expected = 0.2 + 2.5 * 0.8
    assert abs(float(out.mean()) - expected) < 0.03 and abs(float(out.std()) - 0.5) < 0.03
    assert keys.shape == (4000,)


@pytest.mark.parametrize(("t", "inside"), [(0.1, False), (0.2, True), (0.5, True), (0.9, False)])
def test_limit_is_untouched_outside_its_interval(t, inside):
    guided = cfg(COND, UNCOND, weight=3.0)
    limited = limit(guided, 0.2, 0.8)
    p, q = estimate(limited, t), estimate(guided if inside else COND, t)
    # A compiled branch and eager operations differ in the last bit.
    np.testing.assert_allclose(p.x0, q.x0, atol=1e-6)
    np.testing.assert_allclose(p.eps, q.eps, atol=1e-6)
    assert limited.calls(t) == (2 if inside else 1)


def test_limit_takes_a_time_for_each_image():
    guided = cfg(COND, UNCOND, weight=3.0)
    limited = limit(guided, 0.2, 0.8)
    x, t = jax.random.normal(jax.random.key(0), (4, 3)), jnp.array([0.1, 0.3, 0.7, 0.9])
    keys = jax.random.split(jax.random.key(1), 4)
    p, _ = limited(keys, x, t, limited.init(x))
    for i, source in enumerate([COND, guided, guided, COND]):
        q, _ = source(keys, x, t, source.init(x))
        np.testing.assert_array_equal(p.x0[i], q.x0[i])


def test_limit_of_nothing_costs_nothing():
    assert limit(COND, 0.2, 0.8, cond=COND) is COND


def test_memory_flows_through_guidance():
    """A denoiser that counts its calls: only the branch that ran has counted."""

    def call(keys, x, t, memory):
        p, _ = COND(keys, x, t, ())
        return p, memory + 1

    counter = Denoiser(call, init=lambda x: jnp.zeros((), jnp.int32))
    guided = limit(cfg(counter, UNCOND, weight=2.0), low=0.4, high=1.0)
    x, keys = jnp.ones((2, 3)), jax.random.split(jax.random.key(0), 2)
    memory = guided.init(x)
    for t in (0.9, 0.5, 0.1):
        _, memory = jax.jit(guided.call)(keys, x, jnp.float32(t), memory)
    assert int(memory[0][0]) == 2 and int(memory[1]) == 1


def test_classifier_guidance_with_the_exact_classifier_is_the_conditional_model():
    """score(x | c) = score(x) + grad ln p(c | x), Song et al. 2021, eq. 14."""
    path = paths.vp_linear()
    means, stds, weights = testing.ASYMMETRIC

    def log_prob(x, t):
        return jnp.log(testing.responsibilities(path, x, t, means, stds, weights)[:, 1])

    whole = testing.mixture_denoiser(path, means, stds, weights)
    x, keys = jax.random.normal(jax.random.key(0), (8, 2)), jax.random.split(jax.random.key(1), 8)
    for t in (0.15, 0.5):
        p, _ = classifier(whole, path, log_prob, weight=1.0)(keys, x, jnp.float32(t))
        q, _ = testing.mixture_denoiser(path, means[1:2], stds[1:2], jnp.ones(1))(
            keys, x, jnp.float32(t)
        )
        np.testing.assert_allclose(p.x0, q.x0, atol=2e-3)
        np.testing.assert_allclose(p.eps, q.eps, atol=2e-3)
    assert classifier(whole, path, log_prob, weight=0.0) is whole


def test_thresholds_keep_x0_in_range_and_x_in_place():
    far = testing.gaussian_denoiser(PATH, 3.0, 0.5)
    x, t = jax.random.normal(jax.random.key(0), (8, 3)), jnp.float32(0.6)
    for denoiser in (static(far, PATH), dynamic(far, PATH, quantile=0.9)):
        p = estimate(denoiser)
        assert (jnp.abs(p.x0) <= 1).all()
        np.testing.assert_allclose(p.mix(PATH, t), x, atol=1e-5)
    inside = testing.gaussian_denoiser(PATH, 0.0, 0.01)
    np.testing.assert_allclose(estimate(dynamic(inside, PATH)).x0, estimate(inside).x0)


BRANCHES = {"cond": lambda params, labels: COND, "uncond": lambda params, labels: UNCOND}


def sampler(**options):
    options = dict(solver="euler", grid="uniform", steps=18, guidance=1.0, clip="none") | options
    return build_sampler(PATH, (3,), BRANCHES, **options)


def test_sections_are_applied_in_order_and_counted():
    both = [dict(name="cfg.cfg", weight=3.0), dict(name="interval.limit", low=0.25, high=0.75)]
    # t = 1, .9, ..., .1: the guided calls are those at .7, .6, .5, .4, .3.
    assert sampler(steps=10, guidance=both).calls == 15
    assert sampler(steps=10, guidance=2.0).calls == 20
    assert sampler(steps=10).calls == 10
    assert sampler(steps=10, guidance=0.0).calls == 10


def test_sampler_at_weight_one_is_the_plain_sampler():
    keys, labels = jax.random.split(jax.random.key(0), 4), jnp.zeros(4, jnp.int32)
    plain = sampler(guidance=[])
    np.testing.assert_array_equal(sampler(guidance=1.0)({}, keys, labels),
                                  plain({}, keys, labels))  # fmt: skip


@pytest.mark.parametrize(
    ("guidance", "message"),
    [
        ([dict(name="cfg.cgf", weight=2.0)], "cfg.cfg"),
        ([dict(name="cfg.cfg", wieght=2.0)], "weight"),
        ([dict(name="cfg.cfg", weight="much")], "float"),
        ([dict(name="classifier.classifier", weight=2.0)], "log_prob"),
        ([dict(name="interval.limit", low=0.9, high=0.1)], "low"),
    ],
)
def test_bad_guidance_is_named(guidance, message):
    with pytest.raises(UsageError, match=message):
        sampler(guidance=guidance)
