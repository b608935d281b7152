"""PFGM++: the law of its kernel, EDM as its limit, and its flow for known data."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from experiments.shared.check import Check, below, control, mean_below, mean_near
from jaxgen.families.diffusion.core.pfgmpp import kernel_noise, log_kernel, posterior_mean, radius

PAPER = "PFGM++: Unlocking the Potential of Physics-Inspired Generative Models"
ENTRY = "jaxgen.families.diffusion.core.pfgmpp.kernel_noise"
SIZE, EXTRA, COUNT, SEEDS = 3, 5.0, 10_000, 5


def checks() -> list[Check]:
    """Radii against SciPy's law, the limit of many dimensions, the density, and the flow."""
    results = []
    keys = [jax.random.split(jax.random.key(s), COUNT) for s in range(SEEDS)]
    draw = jax.jit(lambda k: radius(k, SIZE, EXTRA))
    gauss = [jnp.linalg.norm(jax.random.normal(jax.random.key(s), (COUNT, SIZE)), axis=1)
             for s in range(SEEDS)]  # fmt: skip
    check = "Kolmogorov distance of the radii to beta prime"
    distribution = stats.betaprime(SIZE / 2, EXTRA / 2, scale=EXTRA).cdf
    results.append(mean_below(check, [_distance(draw(k), distribution) for k in keys], 0.02))
    results.append(control(mean_below(check, [_distance(g, distribution) for g in gauss], 0.02)))
    normal = stats.chi2(SIZE).cdf
    check = "Kolmogorov distance to a Gaussian's radii"
    wide = jax.jit(lambda k: radius(k, SIZE, 1e6))
    results.append(
        mean_below(check + ", D = 1e6", [_distance(wide(k), normal) for k in keys], 0.02)
    )
    results.append(control(mean_below(check + ", D = 5",
                                    [_distance(draw(k), normal) for k in keys], 0.02)))  # fmt: skip

    # Directions: the second moment of every coordinate is D / (D - 2), and coordinates do not mix.
    noise = jax.jit(lambda k: kernel_noise(k, (SIZE,), 20.0))
    many = np.array([noise(k) for k in keys])
    results.append(mean_near("variance of the first coordinate, D = 20", many[..., 0].var(1),
                           20 / 18, 0.06))  # fmt: skip
    product = (many[..., 0] * many[..., 1]).mean(1)
    results.append(mean_near("mean product of two coordinates", product, 0.0, 0.06))
    # The density: a multivariate t of D degrees of freedom, up to a constant.
    gap = jax.random.normal(jax.random.key(1), (50, SIZE)) * 2
    student = stats.multivariate_t(np.zeros(SIZE), 0.49 * np.eye(SIZE), df=EXTRA)
    apart = np.asarray(log_kernel(gap, jnp.float32(0.7), EXTRA)) - student.logpdf(np.asarray(gap))
    results.append(below("spread of ln kernel - ln Student's t", np.ptp(apart), 1e-4))

    # One point: the flow is a straight line into it. Two points: Bayes' rule as in the kernel.
    single = jnp.array([[0.4, -0.3, 1.0]])
    ends = _flow(single, 80.0 * noise(keys[0][:200]))
    results.append(below("distance to a single data point", jnp.abs(ends - single).max(), 1e-4))
    two = jnp.array([[-1.0, 0.2, 0.0], [1.5, 0.5, 0.3]])
    check = "mean error of the share at the second of two points"
    picked = jax.random.bernoulli(jax.random.key(3), 0.5, (COUNT,)).astype(int)
    near, far = [], []
    for k in keys:
        x = two[picked] + 1.2 * draw_noise(k)
        share = (posterior_mean(x, jnp.float32(1.2), two, EXTRA) - two[0])[:, 0] / 2.5
        wrong = (posterior_mean(x, jnp.float32(1.2), two, 1e6) - two[0])[:, 0] / 2.5
        near.append(_miscalibration(share, picked))
        far.append(_miscalibration(wrong, picked))
    results.append(mean_below(check, near, 0.03))
    results.append(control(mean_below(check, far, 0.03)))
    return results


draw_noise = jax.jit(lambda k: kernel_noise(k, (SIZE,), EXTRA))


def _distance(radii: jax.Array, distribution: object) -> float:
    """Kolmogorov's distance of squared radii to a law."""
    return float(stats.kstest(np.asarray(radii, np.float64) ** 2, distribution).statistic)


def _miscalibration(share: jax.Array, picked: jax.Array) -> float:
    """|mean of what happened - mean of what was said|, averaged over ten bins of what was said."""
    bins = np.minimum((np.asarray(share) * 10).astype(int), 9)
    gaps = np.asarray(picked, float) - np.asarray(share)
    weights = [(bins == b).mean() for b in range(10)]
    return float(sum(w * abs(gaps[bins == b].mean()) for b, w in enumerate(weights) if w))


def _flow(points: jax.Array, x: jax.Array) -> jax.Array:
    """Heun's method on dx/dsigma = (x - E[x0 | x]) / sigma from 80 to 0.002, then to 0."""
    sigmas = jnp.geomspace(80.0, 0.002, 40)

    def slope(x: jax.Array, sigma: jax.Array) -> jax.Array:
        return (x - posterior_mean(x, sigma, points, EXTRA)) / sigma

    def step(x: jax.Array, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        a, b = pair
        d = slope(x, a)
        return x + (b - a) / 2 * (d + slope(x + (b - a) * d, b)), None

    x = jax.jit(lambda x: jax.lax.scan(step, x, (sigmas[:-1], sigmas[1:]))[0])(x)
    return x - sigmas[-1] * slope(x, sigmas[-1])
