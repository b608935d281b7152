"""Laws of every solver: order of convergence, law of the samples, finite at the ends."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import orders
from experiments.benchmarks.orders import make
from jaxgen import testing
from jaxgen.errors import UsageError
from jaxgen.families.diffusion import solvers
from jaxgen.families.diffusion.core import grids
from jaxgen.families.diffusion.core import path as paths
from jaxgen.families.diffusion.core.denoiser import Denoiser
from jaxgen.families.diffusion.core.prediction import to_prediction
from jaxgen.families.diffusion.core.sampler import integrate, prior
from jaxgen.method import fold, normal
from jaxgen.testing.convergence import graded

SOLVERS = [
    pytest.param(name, options, id="-".join([name, *(f"{k}={v}" for k, v in options.items())]))
    for name, options in orders.variants()
]
ON_PATHS = [
    pytest.param(*p.values, path, id=f"{p.id}-{path}")
    for p in SOLVERS
    for path in ("linear", "vp_linear", "edm")
    if path == "linear" or p.values[1] == {}
]
"""(name, options, path): all on the linear path, the defaults on two more."""


def fixed_ode(name, options) -> bool:
    solver = make(name, options, paths.linear())
    return not solver.stochastic and solver.times is not None


@pytest.mark.parametrize(("name", "options"), [p for p in SOLVERS if fixed_ode(*p.values)])
def test_solver_order_matches_theory(name, options):
    """On an asymmetric mixture with its exact score, in float64 (order 4 needs it)."""
    build = lambda path, steps: make(name, options, path, steps)
    testing.check_order(build, each=orders.each(options))


@pytest.mark.parametrize("path", ["vp_linear", "edm", "cosine"])
@pytest.mark.parametrize("name", ["heun", "dpmpp_2m", "adams_bashforth", "unipc"])
def test_solver_order_holds_on_curved_paths(name, path):
    """On Gaussian data, whose flow is known in closed form."""
    with jax.enable_x64(True):
        path = getattr(paths, path)()
        high, low = (float(path.t_of_sigma(jnp.float64(r))) for r in (4.0, 0.2))
        solver = make(name, {}, path)
        denoiser = testing.gaussian_denoiser(path, 0.7, 0.5)
        x = jax.random.normal(jax.random.key(1), (16, 2), jnp.float64) * path.sigma(high)
        exact = testing.gaussian_flow(path, x, jnp.float64(high), jnp.float64(low), 0.7, 0.5)
        keys = jax.random.split(jax.random.key(0), 16)
        solve = jax.jit(lambda grid: integrate(solver, denoiser, x, grid, keys))
        measured = testing.convergence_order(
            lambda n: solve(graded(n, high, low, 212)), exact, [24, 192]
        )
    assert measured > solver.order - 0.6


@pytest.mark.parametrize("order", [3, 5])
def test_adaptive_solver_is_as_accurate_as_asked(order):
    with jax.enable_x64(True):
        path = paths.vp_linear()
        denoiser = testing.gaussian_denoiser(path, 0.7, 0.5)
        x = jax.random.normal(jax.random.key(1), (16, 2), jnp.float64)
        ends = jnp.array([1.0, 0.0])
        exact = testing.gaussian_flow(path, x, ends[0], ends[1], 0.7, 0.5)
        errors = []
        for tolerance in (1e-3, 1e-6):
            solver = solvers.adaptive(path, order=order, rtol=tolerance, atol=tolerance)
            out = testing.run_solver(solver, denoiser, x, ends)
            errors.append(float(jnp.abs(out - exact).max()))
    assert errors[0] < 2e-2 and errors[1] < 2e-5, errors


@pytest.mark.parametrize(
    ("name", "options"), [p for p in SOLVERS if make(*p.values, paths.linear()).stochastic]
)
def test_stochastic_solver_law(name, options):
    """Samples of N(.7, .5^2) from the exact denoiser: the mean and the deviation."""
    path = paths.vp_linear()
    denoiser = testing.gaussian_denoiser(path, 0.7, 0.5)
    keys = jax.random.split(jax.random.key(0), 20_000)
    solver, grid = make(name, options, path, 64), grids.log_snr(64, path)
    x = jax.jit(lambda k: integrate(solver, denoiser, prior(path, k, (1,)), grid, k))(keys)
    # The prior ignores what is left of the mean at t=1: alpha(1) = .0066.
    assert abs(x.mean() - 0.7) < 0.02
    assert abs(float(x.std()) - 0.5) < 0.05


@pytest.mark.parametrize(
    ("name", "options"), [p for p in SOLVERS if make(*p.values, paths.linear()).stochastic]
)
def test_stochastic_solver_weak_order(name, options):
    """In closed form. The corrector's bias does not vanish with the steps: it claims no order."""
    if make(name, options, paths.linear()).order:
        testing.check_order(lambda path, steps: make(name, options, path, steps))


@pytest.mark.parametrize(("name", "options", "path"), ON_PATHS)
def test_one_step_and_both_ends_are_finite(name, options, path):
    path = getattr(paths, path)()
    denoiser = testing.mixture_denoiser(path, *testing.ASYMMETRIC)
    keys = jax.random.split(jax.random.key(0), 4)
    testing.check_ends(make(name, options, path), denoiser, prior(path, keys, (2,)))


@pytest.mark.parametrize(("name", "options", "path"), ON_PATHS)
def test_samples_of_a_mixture_fall_on_its_modes(name, options, path):
    """Shares, means and deviations of an asymmetric mixture, from noise to data."""
    path = getattr(paths, path)()
    means, stds, weights = testing.ASYMMETRIC
    denoiser = testing.mixture_denoiser(path, means, stds / 4, weights)
    keys = jax.random.split(jax.random.key(3), 4000)
    solver = make(name, options, path, 48)
    grid = jnp.array([1.0, 0.0]) if solver.times is None else grids.log_snr(48, path)
    run = jax.jit(lambda k: integrate(solver, denoiser, prior(path, k, (2,)), grid, k))
    x = np.asarray(run(keys))
    distance = ((x[:, None] - means) ** 2).sum(-1)
    mode = distance.argmin(1)
    share = np.bincount(mode, minlength=3) / len(x)
    np.testing.assert_allclose(share, weights, atol=0.04)
    for k in range(3):
        np.testing.assert_allclose(x[mode == k].mean(0), means[k], atol=0.04)
        assert 0.5 < x[mode == k].std(0).mean() / (stds[k] / 4) < 1.5


@pytest.mark.parametrize(("name", "options"), SOLVERS)
def test_calls_are_counted_truthfully(name, options):
    """The number of calls that a solver announces is the number that run."""
    path = paths.linear()
    exact = testing.gaussian_denoiser(path, 0.3, 0.5)
    testing.check_calls(make(name, options, path, 5), exact, path, 5)


def test_heun_takes_35_calls_in_18_steps():
    path = paths.edm()
    denoiser = testing.gaussian_denoiser(path)
    grid = np.asarray(grids.karras(18, path))
    assert solvers.heun(path).calls(denoiser, grid) == 35


def test_heun_error_falls_fourfold_per_halving_on_edm():
    path = paths.edm()
    denoiser = testing.gaussian_denoiser(path, 0.0, 0.5)
    x = prior(path, jax.random.split(jax.random.key(0), 64), (2,))
    exact = testing.gaussian_flow(path, x, jnp.float32(1), jnp.float32(0), 0.0, 0.5)
    errors = [
        float(jnp.abs(testing.run_solver(solvers.heun(path), denoiser, x, grids.karras(n, path))
                      - exact).max())
        for n in (16, 32, 64)
    ]  # fmt: skip
    assert 3.3 < errors[0] / errors[1] < 5 and 3.3 < errors[1] / errors[2] < 5, errors


def test_euler_is_ddim_and_churn_zero_is_heun():
    path = paths.vp_linear()
    denoiser = testing.mixture_denoiser(path, *testing.ASYMMETRIC)
    x = prior(path, jax.random.split(jax.random.key(0), 8), (2,))
    grid = grids.uniform(6, path)

    def run(solver):
        return testing.run_solver(solver, denoiser, x, grid)

    np.testing.assert_array_equal(run(solvers.euler(path)), run(solvers.ddim(path)))
    np.testing.assert_array_equal(run(solvers.edm(path, 6)), run(solvers.heun(path)))
    np.testing.assert_allclose(
        run(solvers.ddim(path, eta=1.0)), run(solvers.ddpm(path, variance="small")), atol=1e-4
    )


def test_ddpm_uses_the_learned_variance():
    """Logits of -1 and 1 are the small and the large variance (Nichol & Dhariwal, eq. 15)."""
    path = paths.cosine()
    exact = testing.gaussian_denoiser(path, 0.0, 0.5)

    def learned(value):
        def call(keys, x, t, memory):
            p, memory = exact(keys, x, t, memory)
            return p._replace(variance=jnp.full_like(x, value)), memory

        return type(exact)(call)

    x = prior(path, jax.random.split(jax.random.key(0), 8), (2,))
    grid = jnp.linspace(0.9, 0.1, 6)
    for value, name in ((-1.0, "small"), (1.0, "large")):
        a = testing.run_solver(solvers.ddpm(path), learned(value), x, grid)
        b = testing.run_solver(solvers.ddpm(path, variance=name), exact, x, grid)
        np.testing.assert_allclose(a, b, atol=1e-4)


SIT = {
    "constant": lambda t, norm: norm,
    "SBDM": lambda t, norm: norm * (1 - t) / t,
    "sigma": lambda t, norm: norm * (1 - t),
    "linear": lambda t, norm: norm * (1 - t),
    "decreasing": lambda t, norm: 0.25 * (norm * np.cos(np.pi * t) + 1) ** 2,
    "increasing-decreasing": lambda t, norm: norm * np.sin(np.pi * t) ** 2,
}
"""The released code's diffusion at its time t, 0 noise and 1 data, on its linear path."""


@pytest.mark.parametrize("norm", [1.0, 0.7])
@pytest.mark.parametrize("form", SIT)
def test_euler_maruyama_is_sits_sampler(form, norm):
    """Their loop, in their time, from the same noise: steps to .96 and a last mean step of .04."""
    steps, shape, path = 20, (3, 5), paths.linear()
    ours = dict(noise=norm, last="mean")
    ours |= dict(power=0.0) if form == "SBDM" else dict(form=form.replace("-", "_"))

    def velocity(xp, x, t):
        return xp.tanh(1.3 * x + t) - 0.4 * x

    def call(keys, x, t, memory):
        return to_prediction("velocity", -velocity(jnp, x, 1 - t), x, t, path), memory

    # SBDM's is infinite at t=0 in theirs, which then starts at a small time; so does ours.
    first = 0.02 if form == "SBDM" else 0.0
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), shape[0])
        x = jax.random.normal(jax.random.key(1), shape, jnp.float64)
        grid = grids.uniform(steps, path, last=0.04)
        if first:
            grid = jnp.append(jnp.linspace(1 - first, 0.04, steps), 0.0)
        solver = solvers.euler_maruyama(path, **ours)
        got = integrate(solver, Denoiser(call), x, grid, keys)
        noises = [normal(fold(fold(fold(keys, 1), n), 0), shape[1:], x.dtype) for n in range(steps)]

    want, times = np.asarray(x), np.linspace(first, 0.96, steps)
    dt = times[1] - times[0]

    def drift(x, t):
        v = velocity(np, x, t)
        score = (t * v - x) / (1 - t)
        return v + SIT[form](t, norm) * score

    for n, t in enumerate(times[:-1]):
        noise = np.sqrt(2 * SIT[form](t, norm) * dt) * np.asarray(noises[n])
        want = want + drift(want, t) * dt + noise
    want = want + drift(want, times[-1]) * 0.04
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("adams_bashforth", dict(order=5)),
        ("adaptive", dict(order=4)),
        ("adaptive", dict(rtol=0.0)),
        ("ddim", dict(eta=1.5)),
        ("ddpm", dict(variance="big")),
        ("dpmpp_2s", dict(ratio=1.0)),
        ("edm", dict(s_churn=-1.0)),
        ("euler_maruyama", dict(noise=-1.0)),
        ("euler_maruyama", dict(form="sgima")),
        ("euler_maruyama", dict(power=0.0, form="sigma")),
        ("euler_maruyama", dict(last="middle")),
        ("flowturbo", dict(heun=0)),
        ("predictor_corrector", dict(snr=0.0)),
        ("unipc", dict(order=4)),
    ],
)
def test_bad_options_are_named(name, options):
    with pytest.raises(UsageError, match=f"solver.{next(iter(options))}|solver.rtol"):
        make(name, options, paths.linear())
