"""Stochastic interpolants: one velocity and one score, an ODE and SDEs of any noise."""

from __future__ import annotations

import jax
import numpy as np

from experiments.shared.check import Check, above, below, control, near
from jaxgen.families.diffusion.methods import interpolant as si

PAPER = "Stochastic Interpolants: A Unifying Framework for Flows and Diffusions"
ENTRY = "jaxgen.families.diffusion.methods.interpolant.Interpolant"
DATA, BASE = (1.0, 0.5), (-0.5, 1.5)


def checks() -> list[Check]:
    """Gaussian to Gaussian, where velocity and score are known."""
    bridge = si.linear()
    velocity, score = si.gaussian_bridge(bridge, DATA, BASE)
    keys = jax.random.split(jax.random.key(0), 40_000)
    x1 = BASE[0] + BASE[1] * jax.random.normal(jax.random.key(1), (40_000, 1))
    # gamma's slope is infinite at both ends: stay just inside.
    ends, steps = (0.999, 0.001), 400
    results = []
    for noise in (0.0, 0.5, 2.0):
        x = si.integrate(velocity, score, x1, keys, steps=steps, noise=noise, ends=ends)
        results.append(near(f"mean at noise {noise:g}", x.mean(), DATA[0], 0.03))
        results.append(near(f"deviation at noise {noise:g}", x.std(), DATA[1], 0.03))

    # Noise without the score's drift: the velocity is linear, so the ratio of variances grows by
    # 2 noise dt / var(t), and the deviation at t=0 is the data's times sqrt(1 + 2 noise int 1/var).
    x = si.integrate(velocity, lambda x, t: 0 * x, x1, keys, steps=steps, noise=0.5, ends=ends)
    t = np.linspace(*ends, 4001)
    var = ((1 - t) * DATA[1]) ** 2 + (t * BASE[1]) ** 2 + np.asarray(bridge.gamma(t)) ** 2
    wide = DATA[1] * np.sqrt(1 + 2 * 0.5 * np.abs(np.trapezoid(1 / var, t)))
    results.append(near("deviation of noise without its drift", x.std(), wide, 0.03))
    results.append(control(near("deviation at noise 0.5, no drift", x.std(), DATA[1], 0.03)))

    # The losses have their minima at the closed forms: any change of either costs.
    x0 = DATA[0] + DATA[1] * jax.random.normal(jax.random.key(2), (40_000, 1))

    def eta(x: jax.Array, t: jax.Array) -> jax.Array:
        return -bridge.gamma(t)[:, None] * score(x, t)

    best = si.quadratic_losses(bridge, velocity, eta, x0, x1, keys)
    rise = []
    for size in (-0.1, 0.1):
        moved = si.quadratic_losses(
            bridge,
            lambda x, t, a=size: velocity(x, t) + a * (1 + x),
            lambda x, t, a=size: eta(x, t) + a * (1 + x),
            x0,
            x1,
            keys,
        )
        rise += [float((m - b).mean()) for m, b in zip(moved, best, strict=True)]
    results.append(above("least rise of a loss when its field is moved", min(rise), 1e-3))

    # Optimal coupling of a minibatch: shorter pairs, the same two laws.
    a, b = np.asarray(x0[:512]), np.asarray(x1[:512])
    c, d = si.couple(a, b, "optimal")
    ratio = ((c - d) ** 2).mean() / ((a - b) ** 2).mean()
    # In the limit (m0 - m1)^2 + (s0 - s1)^2 over (m0 - m1)^2 + s0^2 + s1^2 = 3.25 / 4.75.
    results.append(near("squared length, optimal over independent", ratio, 3.25 / 4.75, 0.08))
    same = np.abs(np.sort(c, 0) - np.sort(a, 0)).max() + np.abs(np.sort(d, 0) - np.sort(b, 0)).max()
    results.append(below("change of the two laws by coupling", same, 0.0))
    return results
