"""Interpolants with data-dependent couplings: the base is a spoilt copy of the data."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shared.check import Check, control, mean_near
from jaxgen.families.diffusion.methods import interpolant as si

PAPER = "Stochastic interpolants with data-dependent couplings"
ENTRY = "jaxgen.families.diffusion.methods.interpolant.coupled_gaussian_bridge"
DATA, BASE, TOGETHER, SCALE, SEEDS = (1.0, 0.5), (-0.2, 0.8), 0.85, 0.3, 5


def checks() -> list[Check]:
    """Jointly Gaussian pairs of known correlation, where the velocity is known."""
    bridge = si.linear(SCALE)
    dependent, score = si.coupled_gaussian_bridge(bridge, DATA, BASE, TOGETHER)
    apart, _ = si.gaussian_bridge(bridge, DATA, BASE)
    pairs = [_pairs(seed, TOGETHER) for seed in range(SEEDS)]
    mixed = [_pairs(seed, 0.0) for seed in range(SEEDS)]
    results = []

    # The regression's best line at one time is the closed form; without the coupling it is not.
    t = jnp.float32(0.6)
    expected = float((dependent(jnp.ones((1, 1)), t) - dependent(jnp.zeros((1, 1)), t))[0, 0])
    check = "slope of the best velocity at t=0.6"
    results.append(mean_near(check, [_slope(bridge, p, s, t) for s, p in enumerate(pairs)],
                           expected, 0.03))  # fmt: skip
    results.append(control(mean_near(check, [_slope(bridge, p, s, t) for s, p in enumerate(mixed)],
                                   expected, 0.03)))  # fmt: skip

    # The ODE and the SDE from the base end in the data's law.
    ends, steps = (0.999, 0.001), 200
    for noise in (0.0, 0.5):
        run = jax.jit(lambda x, k, n=noise: si.integrate(dependent, score, x, k, steps=steps,
                                                         noise=n, ends=ends))  # fmt: skip
        out = np.array([run(p[1], jax.random.split(jax.random.key(s), len(p[1])))[:, 0]
                        for s, p in enumerate(pairs)])  # fmt: skip
        results.append(mean_near(f"mean at noise {noise:g}", out.mean(1), DATA[0], 0.03))
        results.append(mean_near(f"deviation at noise {noise:g}", out.std(1), DATA[1], 0.03))

    # Transport cost of the flow, int E |b|^2 dt: the coupling's is lower.
    check = "transport cost of the flow over that of independent pairs"
    costs = [[_cost(bridge, b, p, s) for s, p in enumerate(many)]
             for b, many in ((dependent, pairs), (apart, mixed))]  # fmt: skip
    expected = _exact_cost(TOGETHER) / _exact_cost(0.0)
    results.append(mean_near(check, np.array(costs[0]) / costs[1], expected, 0.01))
    results.append(
        control(mean_near(check, np.array(costs[1]) / np.mean(costs[1]), expected, 0.01))
    )
    return results


def _pairs(seed: int, together: float) -> tuple[jax.Array, jax.Array]:
    """20,000 pairs (x0, x1) [B, 1] of N(DATA), N(BASE) with a correlation."""
    a, b = jax.random.normal(jax.random.key(seed), (2, 20_000, 1))
    x0 = DATA[0] + DATA[1] * a
    return x0, BASE[0] + BASE[1] * (together * a + (1 - together**2) ** 0.5 * b)


def _slope(bridge: si.Interpolant, pairs: tuple, seed: int, t: jax.Array) -> float:
    """Least squares of dx_t/dt on x_t."""
    z = jax.random.normal(jax.random.key(seed + 100), pairs[0].shape)
    x, speed = bridge.mix(*pairs, z, t), bridge.speed(*pairs, z, t)
    return float(np.cov(x[:, 0], speed[:, 0])[0, 1] / x.var(ddof=1))


def _cost(bridge: si.Interpolant, velocity: si.Field, pairs: tuple, seed: int) -> float:
    """Mean of |b(x_t, t)|^2 over t uniform in (0.01, 0.99)."""
    z = jax.random.normal(jax.random.key(seed + 200), pairs[0].shape)
    t = jnp.linspace(0.01, 0.99, len(z))
    return float((jax.vmap(lambda x, s: velocity(x[None], s)[0])(bridge.mix(*pairs, z, t), t) ** 2)
                 .mean())  # fmt: skip


def _exact_cost(together: float) -> float:
    """The same mean of m'^2 + v'^2 / (4 v), m and v the mean and variance of x_t."""
    t = np.linspace(0.01, 0.99, 20_001)
    a, b = (1 - t) * DATA[1], t * BASE[1]
    v = a**2 + b**2 + 2 * together * a * b + SCALE * t * (1 - t)
    return float(((BASE[0] - DATA[0]) ** 2 + np.gradient(v, t) ** 2 / (4 * v)).mean())
