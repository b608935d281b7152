"""Laws of a path from data to noise, and of what a network may predict on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.families.diffusion.core import prediction
from jaxgen.families.diffusion.core.path import Path
from jaxgen.families.diffusion.core.prediction import Prediction
from jaxgen.testing.naming import law

ENDS = "a path runs from data to noise"
FALLS = "the log-SNR falls"
INVERSES = "times come back from the noise level"
SLOPES = "derivatives are the schedules' own"
COMPOSE = "transitions compose to the marginal"
ROUND = "target and prediction are inverse"
SUM = "whatever the network says, x is alpha x0 + sigma eps"
FINITE = "a prediction is finite at both ends"


def check_path(path: Path) -> None:
    """A path's laws: end points, monotone log-SNR, inverses, derivatives, finite kernels.

    Tolerances are float32's: times that went through a ratio and back to 2e-3, central differences
    of step 1e-3 to 5e-3 of the slope.
    """
    values, t = _values(path)
    ends = jnp.array([0.0, 1.0])
    with law(ENDS):
        alpha, sigma, back = values["ends"]
        np.testing.assert_allclose(alpha[0], 1.0, atol=1e-6, err_msg="alpha(0)")
        np.testing.assert_allclose(sigma[0], 0.0, atol=1e-6, err_msg="sigma(0)")
        assert alpha[1] >= 0 and sigma[1] > 0, f"alpha(1) = {alpha[1]}, sigma(1) = {sigma[1]}"
        np.testing.assert_allclose(back, ends, atol=2e-3, err_msg="t_of_sigma of the ends")
    with law(FALLS):
        steps = np.diff(np.asarray(values["log_snr"]))
        assert (steps < 0).all(), f"not strictly: its largest step is {steps.max()}"
    with law(INVERSES):
        for name, times in values["inverses"].items():
            np.testing.assert_allclose(times, t, atol=2e-3, err_msg=name)
    with law(SLOPES):
        for name, (central, slope, at_ends) in values["slopes"].items():
            scale = jnp.maximum(jnp.abs(central), 1.0)
            np.testing.assert_allclose(slope / scale, central / scale, atol=5e-3, err_msg=name)
            assert jnp.isfinite(at_ends).all(), f"{name} is not finite at the ends"
    with law(COMPOSE):
        # q(x_t | x_s) composed with q(x_s | x_0) is q(x_t | x_0).
        (alpha, sigma), (ratio, variance) = values["marginal"], values["transition"]
        np.testing.assert_allclose(ratio * alpha[:-1], alpha[1:], atol=1e-5)
        whole = ratio**2 * sigma[:-1] ** 2 + variance
        np.testing.assert_allclose(whole / sigma[1:] ** 2, 1.0, atol=1e-4)
        chex.assert_tree_all_finite(values["whole"])


def _values(path: Path) -> tuple[dict[str, Any], jax.Array]:
    """All that the laws ask of a path, by one program, and the times [1001] inside."""
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
    return jax.jit(values, compiler_options={"xla_backend_optimization_level": 1})(), t


def check_prediction(
    kind: str,
    path: Path,
    key: jax.Array,
    *,
    size: int = 64,
    target: Callable[..., jax.Array] = prediction.target,
    to_prediction: Callable[..., Prediction] = prediction.to_prediction,
) -> None:
    """Round trips (x0, eps) -> target -> Prediction at random times; finite at both ends.

    kind: one of `prediction.KINDS`, or the name of your own with target(kind, x0, eps, t, path)
    and to_prediction(kind, output, x, t, path). Within 3e-3, what float32 leaves where the noise is
    a twentieth or twenty times the data.
    """
    for_x0, for_eps, for_t, for_output = jax.random.split(key, 4)
    x0 = jax.random.normal(for_x0, (size, 5)) * 0.5
    eps = jax.random.normal(for_eps, (size, 5))
    # Inside, where neither x0 nor eps is drowned by float32 rounding of the other.
    low, high = path.t_of_sigma(jnp.array([0.05, 20.0]))
    t = jax.random.uniform(for_t, (size,), minval=low, maxval=high)
    x = path.mix(x0, eps, t)
    with law(ROUND):
        p = to_prediction(kind, target(kind, x0, eps, t, path), x, t, path)
        np.testing.assert_allclose(p.x0, x0, atol=3e-3, err_msg=f"x0 from {kind}")
        np.testing.assert_allclose(p.eps, eps, atol=3e-3, err_msg=f"eps from {kind}")
    with law(SUM):
        output = target(kind, x0, eps, t, path)
        output = output * (1 + 0.3 * jax.random.normal(for_output, output.shape))
        again = to_prediction(kind, output, x, t, path).mix(path, t)
        scale = jnp.maximum(jnp.abs(x), 1.0)
        np.testing.assert_allclose(again / scale, x / scale, atol=3e-3, err_msg=kind)
    with law(FINITE):
        for end in (0.0, 1.0):
            t = jnp.full((size,), end)
            out = target(kind, x0, eps, t, path)
            p = to_prediction(kind, out, path.mix(x0, eps, t), t, path)
            values = (out, *p[:2], p.velocity(path, t), p.v(path, t), p.score(path, t))
            assert all(jnp.isfinite(a).all() for a in values), f"{kind} is not finite at t={end}"
