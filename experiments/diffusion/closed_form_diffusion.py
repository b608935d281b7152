"""Closed-form diffusion: three points on a line, whose smoothed flow ends at known fixed points."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

from experiments.shared.check import Check, below, control, mean_above, mean_below
from jaxgen.families.diffusion import solvers
from jaxgen.families.diffusion.core import path
from jaxgen.families.diffusion.core.closed_form import closed_form
from jaxgen.families.diffusion.core.denoiser import Denoiser
from jaxgen.families.diffusion.core.sampler import integrate, prior
from jaxgen.testing import mixture_denoiser

PAPER = "Closed-Form Diffusion Models"
ENTRY = "jaxgen.families.diffusion.core.closed_form.closed_form"
POINTS, PATH, SEEDS = np.array([-1.0, 0.2, 2.0]), path.linear(), 5
SMOOTHING = 2.0


def checks() -> list[Check]:
    """The oracle, memorisation, the fixed points of smoothing, barycentres, the neighbours."""
    results = []
    data = jnp.asarray(POINTS)[:, None]
    keys = jax.random.split(jax.random.key(0), 512)
    x = jax.random.normal(jax.random.key(1), (512, 1))
    other = mixture_denoiser(PATH, data, jnp.zeros(3), jnp.full(3, 1 / 3))
    for t in (0.1, 0.5, 0.9):
        gap = closed_form(PATH, data)(keys, x, jnp.float32(t))[0].x0 - other(keys, x, t)[0].x0
        results.append(below(f"distance to a mixture of points at t={t}", jnp.abs(gap).max(), 1e-4))

    # In the limit t -> 0 the smoothed x0 is the mean of the points under N(x, smoothing^2).
    (stable,) = _fixed_points(SMOOTHING)
    check = f"mean distance to the fixed point {stable:.4f}, smoothing {SMOOTHING:g}"
    smooth, plain, few = _ends(SMOOTHING, 512), _ends(0.0, 2), _ends(SMOOTHING, 4)
    results.append(mean_below(check, np.abs(smooth - stable).mean(1), 0.1))
    results.append(control(mean_below(check, np.abs(plain - stable).mean(1), 0.1)))
    check = "mean distance to the data, no smoothing"
    results.append(mean_below(check, [_gaps(e, POINTS).mean() for e in plain], 1e-3))
    results.append(control(mean_below(check, [_gaps(e, POINTS).mean() for e in smooth], 1e-3)))

    # With 4 noises every sample is the mean of 4 points: asymmetric data, so 15 means.
    means = np.unique(np.round(POINTS[np.indices((3,) * 4).reshape(4, -1)].mean(0), 6))
    check = "share of samples at a mean of 4 points that is no point"
    results.append(mean_above(check, [_new(e, means) for e in few], 0.25))
    results.append(control(mean_above(check, [_new(e, means) for e in plain], 0.25)))
    results.append(mean_above("share of samples at a mean of 4 points",
                            [np.mean(_gaps(e, means) < 2e-3) for e in few], 0.9))  # fmt: skip

    # Neighbours alone miss the tail of the softmax at high noise; random others stand for it.
    cloud = jax.random.normal(jax.random.key(2), (300, 2)) * jnp.array([1.0, 0.4]) + 0.7
    whole = closed_form(PATH, cloud, neighbours=300)
    results.append(below("error with all points as neighbours", _error(whole, cloud, 0), 1e-5))
    check = "error of x0 at t=0.8, 10 neighbours and 30 others of 300"
    both = closed_form(PATH, cloud, neighbours=10, others=30)
    alone = closed_form(PATH, cloud, neighbours=40)
    results.append(mean_below(check, [_error(both, cloud, s) for s in range(SEEDS)], 0.25))
    results.append(
        control(mean_below(check, [_error(alone, cloud, s) for s in range(SEEDS)], 0.25))
    )
    return results


def _fixed_points(smoothing: float) -> np.ndarray:
    """Stable solutions of x = E[nearest point to x + smoothing e]."""
    edges = np.concatenate([[-np.inf], (POINTS[1:] + POINTS[:-1]) / 2, [np.inf]])

    def pull(x: float) -> float:
        return float(np.diff(norm.cdf((edges - x) / smoothing)) @ POINTS) - x

    line = np.linspace(-2, 3, 2001)
    values = np.array([pull(x) for x in line])
    falls = np.flatnonzero((values[:-1] > 0) & (values[1:] <= 0))
    return np.array([brentq(pull, line[i], line[i + 1]) for i in falls])


def _ends(smoothing: float, draws: int) -> np.ndarray:
    """Where samples end [SEEDS, 64]; noises and starting points from each seed."""
    grid = jnp.append(jnp.geomspace(1.0, 1e-4, 60), 0.0)

    def end(key: jax.Array) -> jax.Array:
        data = jnp.asarray(POINTS)[:, None]
        denoiser = closed_form(PATH, data, smoothing=smoothing, draws=draws, key=key)
        keys = jax.random.split(jax.random.fold_in(key, 1), 64)
        return integrate(solvers.euler(PATH), denoiser, prior(PATH, keys, (1,)), grid, keys)

    seeds = jax.vmap(jax.random.key)(jnp.arange(SEEDS))
    return np.asarray(jax.jit(jax.vmap(end))(seeds))[..., 0]


def _gaps(x: np.ndarray, to: np.ndarray) -> np.ndarray:
    return np.abs(x[:, None] - to).min(1)


def _new(x: np.ndarray, means: np.ndarray) -> float:
    """Share of x at one of the means, and not at a point."""
    return float(np.mean((_gaps(x, means) < 2e-3) & (_gaps(x, POINTS) > 0.05)))


def _error(denoiser: Denoiser, cloud: jax.Array, seed: int) -> float:
    """Root mean square of x0 - exact x0 at noised points of the cloud."""
    key = jax.random.key(seed)
    keys, eps = jax.random.split(key, 300), jax.random.normal(key, cloud.shape)
    t = jnp.float32(0.8)
    x = PATH.mix(cloud, eps, t)
    gap = denoiser(keys, x, t)[0].x0 - closed_form(PATH, cloud)(keys, x, t)[0].x0
    return float(jnp.sqrt((gap**2).sum(1).mean()))
