"""Laws of every solver: order of convergence, law of the samples, finite at the ends."""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import testing
from jaxgen.errors import UsageError
from jaxgen.families.diffusion import grids, solvers
from jaxgen.families.diffusion import path as paths
from jaxgen.families.diffusion.sampler import integrate, prior

VARIANTS = {
    "adams_bashforth": [dict(order=1), dict(order=2), dict(order=3), dict(order=4)],
    "adaptive": [dict(order=3), dict(order=5)],
    "ddim": [dict(), dict(eta=0.5), dict(eta=1.0)],
    "ddpm": [dict(variance="small"), dict(variance="large")],
    "edm": [dict(), dict(s_churn=4.0)],
    "euler_maruyama": [dict(), dict(power=0.0), dict(noise=0.3)],
    "flowturbo": [dict(), dict(heun=3), dict(refine=2)],
    "predictor_corrector": [dict(), dict(corrections=2)],
    "unipc": [
        dict(order=1), dict(order=2), dict(order=3),
        dict(order=2, corrector=False), dict(order=3, corrector=False),
    ],
}  # fmt: skip
"""Options beside the defaults; a solver that is not here is tested with its defaults."""

SOLVERS = [
    pytest.param(name, options, id="-".join([name, *(f"{k}={v}" for k, v in options.items())]))
    for name in solvers.__all__
    if name != "Solver"
    for options in VARIANTS.get(name, [dict()])
]
PATHS = ["linear", "vp_linear", "edm"]


def make(name, options, path, steps=16):
    f = getattr(solvers, name)
    given = {"steps": steps} if "steps" in inspect.signature(f).parameters else {}
    return f(path, **given, **options)


def graded(n: int, high: float, low: float, size: int) -> jax.Array:
    """n even steps after a start whose steps double: multistep methods need exact history.

    Padded with steps of length zero to one size, so that one program serves every n.
    """
    h = (high - low) / (n + 1)
    start = [high] + [high - h / 2**k for k in range(12, -1, -1)]
    even = list(np.linspace(start[-1], low, n + 1)[1:])
    times = start + even
    return jnp.asarray(times + [low] * (size - len(times)))


def fixed_ode(name, options) -> bool:
    solver = make(name, options, paths.linear())
    return not solver.stochastic and solver.times is not None


@pytest.mark.parametrize(("name", "options"), [p for p in SOLVERS if fixed_ode(*p.values)])
def test_solver_order_matches_theory(name, options):
    """On an asymmetric mixture with its exact score, in float64 (order 4 needs it)."""
    with jax.enable_x64(True):
        path = paths.linear()
        solver = make(name, options, path, 115)
        denoiser = testing.mixture_denoiser(path, *testing.ASYMMETRIC)
        x = jax.random.normal(jax.random.key(1), (16, 2), jnp.float64)
        keys = jax.random.split(jax.random.key(0), 16)
        fine = solvers.adaptive(path, order=5, rtol=1e-11, atol=1e-11)
        exact = testing.run_solver(fine, denoiser, x, jnp.array([0.85, 0.15]))
        solve = jax.jit(lambda grid: integrate(solver, denoiser, x, grid, keys))
        measured = testing.convergence_order(
            lambda n: solve(graded(n, 0.85, 0.15, 116)), exact, [24, 48, 96]
        )
    assert solver.order - 0.3 < measured < solver.order + 0.7


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
def test_stochastic_solver_law_and_weak_order(name, options):
    """Samples of N(.7, .5^2) from the exact denoiser: the mean and the error in the deviation."""
    path = paths.vp_linear()
    denoiser = testing.gaussian_denoiser(path, 0.7, 0.5)
    keys = jax.random.split(jax.random.key(0), 60_000)
    floor = 3 * 0.5 / np.sqrt(2 * 60_000)
    error, order = {}, make(name, options, path).order
    for steps in (16, 64):
        solver, grid = make(name, options, path, steps), grids.log_snr(steps, path)
        x = jax.jit(lambda k, s=solver, g=grid: integrate(s, denoiser, prior(path, k, (1,)), g, k))(
            keys
        )
        # The prior ignores what is left of the mean at t=1: alpha(1) = .0066.
        assert abs(x.mean() - 0.7) < 0.02
        error[steps] = abs(float(x.std()) - 0.5)
    assert error[64] < 0.05
    assert error[64] < error[16] / 4 ** (0.7 * order) + floor


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("name", "options"), SOLVERS)
def test_one_step_and_both_ends_are_finite(name, options, path):
    path = getattr(paths, path)()
    denoiser = testing.mixture_denoiser(path, *testing.ASYMMETRIC)
    keys = jax.random.split(jax.random.key(0), 4)
    testing.check_ends(make(name, options, path), denoiser, prior(path, keys, (2,)))


@pytest.mark.parametrize(
    ("name", "options", "path"),
    [(*p.values, "linear") for p in SOLVERS]
    + [(*p.values, path) for p in SOLVERS if not p.values[1] for path in ("vp_linear", "edm")],
)
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
    path, steps, count = paths.linear(), 5, []
    exact = testing.gaussian_denoiser(path, 0.3, 0.5)

    def call(keys, x, t, memory):
        jax.debug.callback(lambda: count.append(1))
        return exact(keys, x, t, memory)

    solver = make(name, options, path, steps)
    grid = grids.uniform(steps, path)
    said = solver.calls(exact, np.asarray(grid))
    x = prior(path, jax.random.split(jax.random.key(0), 2), (2,))
    jax.block_until_ready(testing.run_solver(solver, type(exact)(call), x, grid))
    jax.effects_barrier()
    assert np.isnan(said) if solver.times is None else said == len(count)


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
        ("flowturbo", dict(heun=0)),
        ("predictor_corrector", dict(snr=0.0)),
        ("unipc", dict(order=4)),
    ],
)
def test_bad_options_are_named(name, options):
    with pytest.raises(UsageError, match=f"solver.{next(iter(options))}|solver.rtol"):
        make(name, options, paths.linear())
