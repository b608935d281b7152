"""Laws and exact answers for one's own paths, solvers, guidance and samplers.

Exact denoisers for data whose law is known (a Gaussian, a Gaussian mixture, a finite set), and laws
that raise AssertionError with what was expected and what came out. jaxgen's tests run every piece
of jaxgen through the same functions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.families.diffusion.core.denoiser import Denoiser
from jaxgen.families.diffusion.core.path import TINY, Path, expand
from jaxgen.families.diffusion.core.prediction import (
    KINDS,
    Prediction,
    target,
    to_prediction,
)
from jaxgen.families.diffusion.core.sampler import integrate
from jaxgen.families.diffusion.solvers.base import Solver


def gaussian_denoiser(path: Path, mean: jax.Array | float = 0.0, std: float = 1.0) -> Denoiser:
    """The exact denoiser of data N(mean, std^2 I).

    E[x0 | x] = mean + alpha std^2 (x - alpha mean) / (alpha^2 std^2 + sigma^2), and eps likewise,
    without a division by sigma.
    """

    def call(keys: jax.Array, x: jax.Array, t: jax.Array, memory: Any) -> tuple[Prediction, Any]:
        alpha, sigma = expand(path.alpha(t), x), expand(path.sigma(t), x)
        rest = (x - alpha * mean) / ((alpha * std) ** 2 + sigma**2)
        return Prediction(mean + alpha * std**2 * rest, sigma * rest), memory

    return Denoiser(call, path=path)


def gaussian_flow(
    path: Path, x: jax.Array, t: jax.Array, s: jax.Array, mean: jax.Array | float, std: float
) -> jax.Array:
    """Where the probability flow takes x at time t to at time s, for data N(mean, std^2 I).

    (x - alpha mean) / sqrt(alpha^2 std^2 + sigma^2) is constant along it.
    """

    def scale(t: jax.Array) -> jax.Array:
        return jnp.sqrt((path.alpha(t) * std) ** 2 + path.sigma(t) ** 2)

    return path.alpha(s) * mean + scale(s) / scale(t) * (x - path.alpha(t) * mean)


def mixture_denoiser(path: Path, means: jax.Array, stds: jax.Array, weights: jax.Array) -> Denoiser:
    """The exact denoiser of the mixture sum_k weights[k] N(means[k], stds[k]^2 I).

    means [K, D], stds [K], weights [K]; x is [B, D]. Also of a finite data set (stds = 0), where
    it is the softmax-weighted mean of the points.
    """

    def call(keys: jax.Array, x: jax.Array, t: jax.Array, memory: Any) -> tuple[Prediction, Any]:
        alpha = jnp.broadcast_to(path.alpha(t), x.shape[:1])[:, None]
        sigma = jnp.broadcast_to(path.sigma(t), x.shape[:1])[:, None]
        variance = jnp.maximum((alpha * stds) ** 2 + sigma**2, TINY)
        share = responsibilities(path, x, t, means, stds, weights)
        rest = (x[:, None, :] - alpha[..., None] * means) / variance[..., None]
        x0 = means + (alpha * stds**2)[..., None] * rest
        eps = sigma[..., None] * rest
        return Prediction((share[..., None] * x0).sum(1), (share[..., None] * eps).sum(1)), memory

    return Denoiser(call, path=path)


def responsibilities(
    path: Path,
    x: jax.Array,
    t: jax.Array,
    means: jax.Array,
    stds: jax.Array,
    weights: jax.Array,
) -> jax.Array:
    """p(component | x_t = x): [B, K], for x [B, D] and t [] or [B]."""
    return jax.nn.softmax(_log_joint(path, x, t, means, stds, weights), axis=-1)


def mixture_log_prob(
    path: Path,
    x: jax.Array,
    t: jax.Array,
    means: jax.Array,
    stds: jax.Array,
    weights: jax.Array,
) -> jax.Array:
    """ln p_t(x) of the noised mixture in nats, [B]; at t=0 the data's own density."""
    return jax.nn.logsumexp(_log_joint(path, x, t, means, stds, weights), axis=-1)


def _log_joint(
    path: Path,
    x: jax.Array,
    t: jax.Array,
    means: jax.Array,
    stds: jax.Array,
    weights: jax.Array,
) -> jax.Array:
    alpha = jnp.broadcast_to(path.alpha(t), x.shape[:1])[:, None]
    sigma = jnp.broadcast_to(path.sigma(t), x.shape[:1])[:, None]
    variance = jnp.maximum((alpha * stds) ** 2 + sigma**2, TINY)
    square = ((x[:, None, :] - alpha[..., None] * means) ** 2).sum(-1)
    normal = -0.5 * square / variance - 0.5 * x.shape[1] * jnp.log(2 * jnp.pi * variance)
    return jnp.log(weights) + normal


ASYMMETRIC = (
    np.array([[-1.5, 0.3], [1.0, 1.2], [0.4, -1.1]]),
    np.array([0.35, 0.6, 0.25]),
    np.array([0.5, 0.2, 0.3]),
)
"""means, stds, weights of a mixture in the plane: a symmetric one would hide a wrong sign."""


def check_path(path: Path) -> None:
    """A path's laws: end points, monotone log-SNR, inverses, derivatives, finite kernels."""
    ends, t = jnp.array([0.0, 1.0]), jnp.linspace(0.001, 0.999, 1001)
    inner, h = jnp.linspace(0.05, 0.95, 31), 1e-3

    def values() -> dict[str, Any]:
        slopes = {
            name: ((f(inner + h) - f(inner - h)) / (2 * h), slope(inner), slope(ends))
            for name, f, slope in (
                ("d_alpha", path.alpha, path.d_alpha),
                ("d_sigma", path.sigma, path.d_sigma),
            )
        }
        return {
            "ends": (path.alpha(ends), path.sigma(ends), path.t_of_sigma(path.ratio(ends))),
            "log_snr": path.log_snr(t),
            "inverses": {
                "t_of_sigma": path.t_of_sigma(path.ratio(t)),
                "t_of_log_snr": path.t_of_log_snr(path.log_snr(t)),
                "t_of_fraction": path.t_of_fraction(path.fraction(t)),
            },
            "slopes": slopes,
            "marginal": (path.alpha(t), path.sigma(t)),
            "transition": path.transition(t[1:], t[:-1]),
            "whole": path.transition(ends[1], ends[0]),
        }

    # One program, compiled in haste: a path of tables is slow one operation at a time.
    found = jax.jit(values, compiler_options={"xla_backend_optimization_level": 1})()
    alpha, sigma, back = found["ends"]
    np.testing.assert_allclose(alpha[0], 1.0, atol=1e-6)
    np.testing.assert_allclose(sigma[0], 0.0, atol=1e-6)
    assert alpha[1] >= 0 and sigma[1] > 0
    np.testing.assert_allclose(back, ends, atol=2e-3)
    falls = np.diff(np.asarray(found["log_snr"]))
    assert (falls < 0).all(), f"log-SNR is not strictly falling: largest step {falls.max()}"
    for name, times in found["inverses"].items():
        np.testing.assert_allclose(times, t, atol=2e-3, err_msg=name)
    for name, (central, slope, at_ends) in found["slopes"].items():
        scale = jnp.maximum(jnp.abs(central), 1.0)
        np.testing.assert_allclose(slope / scale, central / scale, atol=5e-3, err_msg=name)
        assert jnp.isfinite(at_ends).all(), f"{name} is not finite at the ends"
    # q(x_t | x_s) composed with q(x_s | x_0) is q(x_t | x_0).
    (alpha, sigma), (ratio, variance) = found["marginal"], found["transition"]
    np.testing.assert_allclose(ratio * alpha[:-1], alpha[1:], atol=1e-5)
    whole = ratio**2 * sigma[:-1] ** 2 + variance
    np.testing.assert_allclose(whole / sigma[1:] ** 2, 1.0, atol=1e-4)
    assert all(jnp.isfinite(a).all() for a in found["whole"])


def check_prediction(kind: str, path: Path, key: jax.Array, *, size: int = 64) -> None:
    """Round trips (x0, eps) -> target -> Prediction at random times; finite at both ends."""
    assert kind in KINDS, f"{kind} is not one of {KINDS}"
    for_x0, for_eps, for_t = jax.random.split(key, 3)
    x0 = jax.random.normal(for_x0, (size, 5)) * 0.5
    eps = jax.random.normal(for_eps, (size, 5))
    # Inside, where neither x0 nor eps is drowned by float32 rounding of the other.
    low, high = path.t_of_sigma(jnp.array([0.05, 20.0]))
    t = jax.random.uniform(for_t, (size,), minval=low, maxval=high)
    x = path.mix(x0, eps, t)
    p = to_prediction(kind, target(kind, x0, eps, t, path), x, t, path)
    np.testing.assert_allclose(p.x0, x0, atol=3e-3, err_msg=f"x0 from {kind}")
    np.testing.assert_allclose(p.eps, eps, atol=3e-3, err_msg=f"eps from {kind}")
    for end in (0.0, 1.0):
        t = jnp.full((size,), end)
        out = target(kind, x0, eps, t, path)
        p = to_prediction(kind, out, path.mix(x0, eps, t), t, path)
        values = (out, *p[:2], p.velocity(path, t), p.v(path, t), p.score(path, t))
        assert all(jnp.isfinite(a).all() for a in values), f"{kind} is not finite at t={end}"


def convergence_order(
    solve: Callable[[int], jax.Array], exact: jax.Array, steps: Sequence[int]
) -> float:
    """The measured order: minus the slope of ln(error) over ln(steps), by least squares.

    solve(steps) -> an estimate of `exact`. Run it in float64 where the order is above 2.
    """
    errors = [float(jnp.sqrt(jnp.mean((solve(n) - exact) ** 2))) for n in steps]
    return float(-np.polyfit(np.log(np.asarray(steps, float)), np.log(errors), 1)[0])


def run_solver(
    solver: Solver,
    denoiser: Denoiser,
    x: jax.Array,
    times: jax.Array,
    key: jax.Array | None = None,
) -> jax.Array:
    """A solver alone: x [B, ...] from times[0] to times[-1], one key per example."""
    keys = jax.random.split(jax.random.key(0) if key is None else key, x.shape[0])
    return jax.jit(lambda x, k: integrate(solver, denoiser, x, times, k))(x, keys)


@contextlib.contextmanager
def count_compilations() -> Iterator[Callable[[], int]]:
    """Counts the programs that JAX compiles inside the block; yields a function that says so."""
    seen: list[str] = []

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield lambda: len(seen)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def check_compiles_once(fn: Callable[..., Any], *args: Any) -> None:
    """A jitted function's second call does not compile again."""
    jax.block_until_ready(fn(*args))
    with count_compilations() as compiled:
        jax.block_until_ready(fn(*args))
    assert compiled() == 0, f"the second call compiled {compiled()} programs"


def check_sampler(
    fn: Callable[[Any, jax.Array, jax.Array], jax.Array],
    params: Any,
    labels: jax.Array,
    *,
    seed: int = 0,
    atol: float = 0.0,
) -> None:
    """A sampler's laws: each image depends on its key and label alone, whatever the batch.

    fn(params, keys[B], labels[B]) -> [B, ...]; labels [B], B >= 4 and even. atol: 0 asks for the
    same bits; float reductions of networks differ between batch shapes, so allow them rounding.
    """
    size = labels.shape[0]
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(size))
    whole = np.asarray(fn(params, keys, labels))
    assert np.isfinite(whole).all(), "samples are not finite"
    half = size // 2
    parts = [fn(params, keys[:half], labels[:half]), fn(params, keys[half:], labels[half:])]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=0, atol=atol)
    back = np.asarray(fn(params, keys[::-1], labels[::-1]))[::-1]
    np.testing.assert_allclose(back, whole, rtol=0, atol=atol)
    other = np.asarray(fn(params, keys[jnp.arange(size) - 1], labels))
    assert not np.allclose(whole, other), "different keys gave the same images"


def check_ends(solver: Solver, denoiser: Denoiser, x: jax.Array) -> None:
    """One step over everything, a few steps, and steps of zero length stay finite; x at t=1."""
    keys = jax.random.split(jax.random.key(0), x.shape[0])
    run = jax.jit(lambda grid: integrate(solver, denoiser, x, grid, keys))
    for grid in ((1, 0, 0, 0), (1, 0.5, 0.2, 0), (1, 1, 0.5, 0), (1, 0.5, 0.5, 0)):
        out = run(jnp.asarray(grid, x.dtype))
        assert jnp.isfinite(out).all(), f"not finite on the grid {list(grid)}"


__all__ = [
    "ASYMMETRIC",
    "check_compiles_once",
    "check_ends",
    "check_path",
    "check_prediction",
    "check_sampler",
    "convergence_order",
    "count_compilations",
    "gaussian_denoiser",
    "gaussian_flow",
    "mixture_denoiser",
    "mixture_log_prob",
    "responsibilities",
    "run_solver",
]
