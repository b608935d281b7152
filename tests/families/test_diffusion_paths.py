"""Laws of every path, prediction, weighting and grid there is."""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import testing
from jaxgen.errors import UsageError
from jaxgen.families.diffusion.core import grids, weighting
from jaxgen.families.diffusion.core import path as paths
from jaxgen.families.diffusion.core.prediction import (
    KINDS,
    input_scale,
    noise_condition,
    target,
    x0_gain,
)


def made_in(module, result: str) -> list[str]:
    """Public factories of a module, by what they return: a new one is tested by existing."""
    return [
        name
        for name, f in vars(module).items()
        if inspect.isfunction(f)
        and f.__module__ == module.__name__
        and not name.startswith("_")
        and f.__annotations__.get("return") == result
    ]


def make(name: str) -> paths.Path:
    return paths.shift(paths.linear(), 3.0) if name == "shift" else getattr(paths, name)()


PATHS = made_in(paths, "Path")
GRIDS = made_in(grids, "jax.Array")
WEIGHTINGS = made_in(weighting, "Weighting")


def test_the_lists_find_what_exists():
    assert {"linear", "cosine", "vp_linear", "ve", "edm", "trig", "shift"} <= set(PATHS)
    assert {"uniform", "karras", "log_snr", "shifted"} <= set(GRIDS)
    assert {"simple", "snr", "min_snr", "edm", "sigmoid"} <= set(WEIGHTINGS)


@pytest.mark.parametrize("name", PATHS)
def test_path_laws(name):
    testing.check_path(make(name))


@pytest.mark.parametrize("name", ["trig", "cosine", "vp_linear"])
def test_variance_preserving_paths_preserve_variance(name):
    t = jnp.linspace(0, 1, 101)
    path = make(name)
    np.testing.assert_allclose(path.alpha(t) ** 2 + path.sigma(t) ** 2, 1.0, atol=1e-5)


def test_vp_beta_is_linear_in_time():
    """-2 d ln alpha / dt = beta_min + t (beta_max - beta_min), Song et al. 2021, eq. 33."""
    path, t = paths.vp_linear(0.1, 20.0), jnp.linspace(0.1, 0.9, 9)
    beta = -2 * path.d_alpha(t) / path.alpha(t)
    np.testing.assert_allclose(beta, 0.1 + 19.9 * t, rtol=1e-4)


def test_ve_diffusion_coefficient_is_the_papers():
    """d sigma^2 / dt = g^2, g = sigma_min r^t sqrt(2 ln r), Song et al. 2021, eq. 30."""
    path, t = paths.ve(0.01, 50.0), jnp.linspace(0.1, 0.9, 9)
    ratio = 50.0 / 0.01
    expected = (0.01 * ratio**t) ** 2 * 2 * np.log(ratio)
    np.testing.assert_allclose(2 * path.sigma(t) * path.d_sigma(t), expected, rtol=1e-4)


def test_shift_multiplies_sigma_over_alpha_on_the_linear_path():
    t = jnp.linspace(0.1, 0.9, 9)
    shifted = paths.shift(paths.linear(), 3.0)
    np.testing.assert_allclose(shifted.ratio(t), 3 * paths.linear().ratio(t), rtol=1e-5)


def test_edm_grid_ends_at_the_papers_sigmas():
    path = paths.edm()
    sigma = np.asarray(path.sigma(grids.karras(18, path)))
    assert sigma[0] == 80.0 and sigma[-1] == 0.0
    np.testing.assert_allclose(sigma[-2], 0.002, rtol=1e-5)
    # Karras et al. 2022, eq. 5, in the middle.
    i = np.arange(18)
    law = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(sigma[:-1], law, rtol=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", GRIDS)
def test_grids_fall_from_one_to_zero(name, path, steps):
    t = np.asarray(getattr(grids, name)(steps, make(path)))
    assert t.shape == (steps + 1,) and t[0] == 1 and t[-1] == 0
    assert (np.diff(t) < 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", PATHS)
def test_predictions_round_trip_and_stay_finite(path, kind):
    testing.check_prediction(kind, make(path), jax.random.key(7))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", KINDS)
def test_gain_is_how_far_x0_moves(path, kind):
    from jaxgen.families.diffusion.core.prediction import to_prediction

    path = make(path)
    t = path.t_of_sigma(jnp.array([0.1, 0.5, 2.0, 8.0]))
    x, out = jnp.ones((4, 1)), jnp.full((4, 1), 0.3)
    a, b = (to_prediction(kind, o, x, t, path).x0[:, 0] for o in (out, out + 1))
    np.testing.assert_allclose(jnp.abs(a - b), x0_gain(kind, t, path), rtol=2e-3)


@pytest.mark.parametrize("path", PATHS)
def test_edm_input_and_target_have_unit_variance(path):
    """Karras et al. 2022, appendix B.6: what the preconditioning is for, at every noise level."""
    path = make(path)
    x0 = 0.5 * jax.random.normal(jax.random.key(0), (200_000,))
    eps = jax.random.normal(jax.random.key(1), (200_000,))
    for t in path.t_of_sigma(jnp.array([0.002, 0.1, 0.5, 2.0, 40.0])):
        x = path.mix(x0, eps, t)
        assert abs(jnp.std(input_scale("edm", t, path) * x) - 1) < 0.01
        assert abs(jnp.std(target("edm", x0, eps, t, path)) - 1) < 0.01


def test_edm_noise_number_is_a_quarter_log_sigma():
    path = paths.edm()
    t = path.t_of_sigma(jnp.array([0.002, 1.0, 80.0]))
    np.testing.assert_allclose(
        noise_condition("edm", t, path), np.log([0.002, 1, 80]) / 4, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("name", WEIGHTINGS)
@pytest.mark.parametrize("path", PATHS)
def test_weightings_are_positive_and_finite(path, name):
    path = make(path)
    t = jnp.linspace(0, 1, 33)
    for kind in KINDS:
        inside = jnp.clip(t, paths.T_MIN, 1 - paths.T_MIN)
        w = getattr(weighting, name)()(path, t, x0_gain(kind, inside, path))
        assert jnp.isfinite(w).all() and (w >= 0).all(), kind


@pytest.mark.parametrize("name", [n for n in WEIGHTINGS if n != "simple"])
def test_weightings_mean_the_same_for_every_kind(name):
    """weight(kind) x error(kind)^2 is one number, whichever kind the same x0 error is told in."""
    path, t = paths.cosine(), jnp.linspace(0.1, 0.9, 9)
    values = []
    for kind in KINDS:
        gain = x0_gain(kind, t, path)
        values.append(getattr(weighting, name)()(path, t, gain) * (0.1 / gain) ** 2)
    for v in values[1:]:
        np.testing.assert_allclose(v, values[0], rtol=1e-3)


def test_edm_weighting_is_one_on_edm_output():
    path = paths.edm()
    t = path.t_of_sigma(jnp.array([0.01, 0.5, 10.0]))
    w = weighting.edm()(path, t, x0_gain("edm", t, path))
    np.testing.assert_allclose(w, 1.0, rtol=1e-4)


def test_snr_weighting_is_one_on_eps():
    path, t = paths.cosine(), jnp.linspace(0.1, 0.9, 9)
    w = weighting.snr()(path, t, x0_gain("eps", t, path))
    np.testing.assert_allclose(w, 1.0, rtol=1e-4)


@pytest.mark.parametrize(
    "call",
    [
        lambda: paths.cosine(-1.0),
        lambda: paths.vp_linear(2.0, 1.0),
        lambda: paths.ve(1.0, 0.5),
        lambda: paths.edm(0.0, 80.0),
        lambda: paths.shift(paths.linear(), 0.0),
        lambda: grids.karras(4, paths.linear(), sigma_min=3.0, sigma_max=1.0),
        lambda: grids.shifted(4, paths.linear(), factor=-1.0),
        lambda: weighting.min_snr(0.0),
        lambda: weighting.edm(-0.5),
    ],
)
def test_bad_options_are_named(call):
    with pytest.raises(UsageError, match="allowed"):
        call()


@pytest.mark.parametrize("rho", [1.0, 3.0, 7.0])
def test_karras_grid_follows_its_formula_at_any_rho(rho):
    """sigma_i = (max^(1/rho) + i / (N - 1) (min^(1/rho) - max^(1/rho)))^rho (their eq. 5)."""
    path, steps, low, high = paths.edm(), 6, 0.01, 50.0
    grid = grids.karras(steps, path, rho=rho, sigma_min=low, sigma_max=high)
    ramp = np.linspace(high ** (1 / rho), low ** (1 / rho), steps) ** rho
    # The ends of a grid are time 1 and time 0 themselves.
    np.testing.assert_allclose(np.asarray(path.ratio(grid))[1:-1], ramp[1:], rtol=1e-3)
