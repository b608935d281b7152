"""Consistency: the derivative vanishes at the exact flow map, and students come to it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.shared.student_fit import CLASSES, MEANS, drawn
from experiments.shared.student_fit import STD as STD_OF_CLASS
from jaxgen.distill import consistency as room
from jaxgen.distill.consistency import consistency
from jaxgen.distill.student import Asked
from jaxgen.errors import UsageError
from jaxgen.families.diffusion import denoising
from jaxgen.families.diffusion.core.denoiser import Denoiser
from jaxgen.families.diffusion.core.path import expand, linear, trig
from jaxgen.families.diffusion.core.prediction import from_x0
from jaxgen.nn.mlp import MLP
from jaxgen.testing import gaussian_denoiser
from jaxgen.training.ema import Averages
from tests.toy_diffusion import BATCH, SPEC, build, teacher

LABELS = jnp.zeros(BATCH, int)
MEAN, STD = jnp.array([1.0, -0.5]), 0.4  # of the Gaussian in closed form


def flow_map(x, t, path):
    """Where the probability flow of N(mean, std^2) takes x_t: its quantile stays."""
    alpha, sigma = (expand(f(t), x) for f in (path.alpha, path.sigma))
    return MEAN + STD * (x - alpha * MEAN) / jnp.sqrt(alpha**2 * STD**2 + sigma**2)


@pytest.fixture
def target(monkeypatch):
    """What `consistency` hands to `student`, for a model that says `ends`, taught a Gaussian."""

    def made(path, ends, **options):
        def call(keys, x, t, memory):
            return from_x0(ends(x, t), x, t, path), memory

        class Model:
            kind, model = "velocity", None

        class Other:
            method = None

            def sampler(self, guidance):
                one = gaussian_denoiser(path, MEAN, STD)
                return type("S", (), {"denoiser": staticmethod(lambda params, labels: one)})

        other, seen = Other(), {}
        other.method = other
        ours = type("D", (Denoiser,), {"network": Model})(call, path=path)
        monkeypatch.setattr(room, "denoisers", lambda m: lambda guidance: lambda p, y: ours)
        monkeypatch.setattr(room, "declares", lambda m: False)
        monkeypatch.setattr(room, "frozen_with", lambda *a: {})
        monkeypatch.setattr(room, "renoising", lambda *a: None)
        keep = lambda method, spec, target, *a, **k: seen.update(target=target) or build(1e-3)
        monkeypatch.setattr(room, "student", keep)
        consistency(build(1e-3), spec=SPEC, networks={"teacher": other}, **options)
        return seen["target"]

    return made


@pytest.mark.parametrize("path", [linear(), trig()], ids=["linear", "trig"])
def test_the_exact_flow_map_is_where_a_student_stays(path, target):
    """And whatever else it says is moved back along its derivative, by at most t."""
    t = jnp.linspace(0.02, 0.98, BATCH)
    x = 1.5 * jax.random.normal(jax.random.key(0), (BATCH, 2))
    asked = Asked(x, t, LABELS, jnp.ones(BATCH), jnp.zeros_like(x), None, LABELS)
    params = {"frozen": {"teacher": None}}
    exact = lambda x, t: flow_map(x, t, path)
    v = target(path, exact)(params, asked, path)
    np.testing.assert_allclose(v, from_x0(exact(x, t), x, t, path).v(path, t), atol=2e-3)
    mean = lambda x, t: gaussian_denoiser(path, MEAN, STD)(None, x, t, ())[0].x0
    v = target(path, mean)(params, asked, path)
    off = jnp.abs(v - from_x0(mean(x, t), x, t, path).v(path, t)).max(1)
    assert off[BATCH // 4 : -BATCH // 4].min() > 0.02


def test_without_a_teacher_the_line_of_each_pair_is_followed(target):
    path = linear()
    told = target(path, lambda x, t: 0.3 * x + expand(t, x) ** 2, teacher=None, norm=2.0)
    x, t = jnp.ones((1, 2)), jnp.array([0.5])
    velocity = jnp.array([[0.7, -0.2]])
    asked = Asked(x, t, LABELS[:1], jnp.ones(1), velocity, None, LABELS[:1])
    slope = 0.3 * velocity + 2 * t[0]
    size = jnp.sqrt((slope**2).mean())
    moved = 0.3 * x + 0.25 - 0.5 / (size + 2.0) * slope
    np.testing.assert_allclose(
        told({}, asked, path), from_x0(moved, x, t, path).v(path, t), atol=1e-6
    )


def test_a_difference_comes_to_the_derivative(target):
    path, t = linear(), jnp.linspace(0.1, 0.9, BATCH)
    x = jax.random.normal(jax.random.key(0), (BATCH, 2))
    asked = Asked(x, t, LABELS, jnp.ones(BATCH), jnp.zeros_like(x), None, LABELS)
    ends = lambda x, t: jnp.sin(x) * expand(1 + t, x)
    told = [target(path, ends, steps=n, norm=1.0) for n in (None, 50, 100)]
    exact, *others = (f({"frozen": {"teacher": None}}, asked, path) for f in told)
    far, near = (float(jnp.abs(other - exact).max()) for other in others)
    assert far < 0.1 and near < 0.6 * far


@pytest.mark.parametrize(
    "options", [dict(), dict(steps=50), dict(teacher=None)], ids=["exact", "difference", "untaught"]
)
def test_a_student_draws_the_teachers_law_in_one_call(options):
    """Of four classes, 500 samples each; means came within .03 to .06, deviations 6 to 9 %."""
    scale = 1000.0 if "steps" in options else 1.0
    net = MLP(CLASSES, 2, 64, 2, time_scale=scale)
    x = drawn(consistency, network=net, **options)
    assert np.abs(x.mean(1) - MEANS).max() < 0.1
    assert np.abs(x.std(1) / STD_OF_CLASS - 1).max() < 0.15


def test_it_draws_in_as_many_calls_as_one_asks_for():
    method = consistency(build(1e-3), spec=SPEC, networks={"teacher": teacher()}, steps=8)
    assert [method.sampler(steps=n).calls for n in (1, 3)] == [1, 3]
    assert method.label_error is None and method.log_prob is None
    with pytest.raises(UsageError, match=r"sample\.solver.*as the student was taught"):
        method.sampler(solver="heun")


@pytest.mark.parametrize(
    ("build_options", "options", "words"),
    [
        ({}, dict(networks={}), "networks.*'teacher'"),
        ({}, dict(norm=0.0), "norm > 0"),
        ({}, dict(steps=1), "steps >= 2"),
        ({}, dict(steps=None), "config.model.time_scale=1, or a difference"),
        ({}, dict(teacher=None, guidance=2.0), "guidance 1 without a teacher"),
        (dict(conditions=(("w", "number"),)), {}, "none: `guidance`"),
    ],
)
def test_bad_input_is_named(build_options, options, words):
    told = dict(networks={"teacher": teacher()}, steps=8) | options
    with pytest.raises(UsageError, match=words):
        consistency(build(1e-3, **build_options), spec=SPEC, **told)


def test_a_network_whose_answer_at_the_end_is_free_is_refused():
    method = denoising(SPEC, MLP(3, 2), optax.sgd(1e-3), Averages((500,)), prediction="eps")
    with pytest.raises(UsageError, match="'velocity', 'v' or 'edm'"):
        consistency(method, spec=SPEC, networks={"teacher": teacher()})
