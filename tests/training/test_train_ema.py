"""Averages: half-lives mean what they say, post-hoc lengths are those that training would give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from jaxgen.errors import UsageError
from jaxgen.training.ema import Averages, posthoc_weights, power_gamma, profile_product


def run(averages: Averages, values: np.ndarray, batch: int) -> dict[str, np.ndarray]:
    """All averages after each update of a scalar parameter that takes `values` in turn."""

    def body(ema, inputs):
        step, value = inputs
        ema = averages.update(ema, {"p": value}, step, batch)
        return ema, {k: v["p"] for k, v in ema.items()}

    start = averages.init({"p": jnp.float32(0)})
    steps = jnp.arange(1, len(values) + 1)
    return jax.device_get(jax.lax.scan(body, start, (steps, jnp.asarray(values, jnp.float32)))[1])


@pytest.mark.parametrize("batch", [1, 10])
def test_half_life_is_in_images_whatever_the_batch(batch):
    steps = 1000 // batch
    values = np.concatenate([np.zeros(1), np.ones(steps)])
    out = run(Averages(half_life=(1000,), ramp=None), values, batch)["half_life_1000"]
    np.testing.assert_allclose(out[-1], 0.5, atol=1e-4)


def test_ramp_up_shortens_the_early_half_life():
    out = run(Averages(half_life=(10_000,), ramp=0.05), np.r_[np.zeros(20), np.ones(180)], 1)
    # With half-life 0.05 n at image n, the share of the past at n = 200 is below 2^-20 (200/20...).
    assert out["half_life_10000"][-1] > 1 - 1e-6


@pytest.mark.parametrize("std", [0.05, 0.1, 0.2])
def test_power_profile_has_the_stated_relative_standard_deviation(std):
    gamma = power_gamma(std)
    density = lambda t: (gamma + 1) * t**gamma
    mean = integrate.quad(lambda t: t * density(t), 0, 1)[0]
    second = integrate.quad(lambda t: t * t * density(t), 0, 1)[0]
    np.testing.assert_allclose(np.sqrt(second - mean**2), std, rtol=1e-6)


def test_profile_product_is_the_integral():
    for t_a, g_a, t_b, g_b in [
        (1.0, 6.94, 2.0, 16.97),
        (3.0, 16.97, 3.0, 6.94),
        (5.0, 2.0, 1.5, 9.0),
    ]:
        exact = integrate.quad(
            lambda t, a=t_a, ga=g_a, b=t_b, gb=g_b: (
                (ga + 1) * t**ga / a ** (ga + 1) * (gb + 1) * t**gb / b ** (gb + 1)
            ),
            0,
            min(t_a, t_b),
        )[0]
        np.testing.assert_allclose(profile_product(t_a, g_a, t_b, g_b), exact, rtol=1e-6)


def test_power_average_weights_follow_the_profile():
    # Weight of the value at step k is that of t^gamma: feed unit impulses through linearity.
    steps, averages = 200, Averages(power_std=(0.1,))
    ramp = run(averages, np.arange(1, steps + 1), 1)["std_0.100"][-1]
    gamma = power_gamma(0.1)
    # Mean of t under (gamma + 1) t^gamma on [0, T] is T (gamma + 1) / (gamma + 2), up to O(1).
    np.testing.assert_allclose(ramp, steps * (gamma + 1) / (gamma + 2), atol=1.0)


@pytest.mark.parametrize("std", [0.05, 0.075, 0.1, 0.15])
def test_posthoc_average_equals_the_one_kept_in_training(std):
    steps, every = 2000, 100
    rng = np.random.default_rng(0)
    values = np.cumsum(rng.normal(size=steps)) / 30
    kept = run(Averages(power_std=(0.05, 0.1, std + 1e-9)), values, 1)
    times, stds, snapshots = [], [], []
    for name, length in (("std_0.050", 0.05), ("std_0.100", 0.1)):
        for t in range(every, steps + 1, every):
            times.append(t)
            stds.append(length)
            snapshots.append(kept[name][t - 1])
    weights = posthoc_weights(times, stds, time=steps, std=std)
    truth = run(Averages(power_std=(std,)), values, 1)[f"std_{std:.3f}"][-1]
    # EDM2 reports relative errors near 1e-3 in the profile; the path here has spread ~1.
    assert abs(weights @ np.array(snapshots) - truth) < 5e-3 * np.ptp(values)
    naive = snapshots[len(snapshots) // 2 - 1]
    if std not in (0.05,):
        assert abs(naive - truth) > 5e-3 * np.ptp(values)


@pytest.mark.parametrize("keywords", [{}, {"half_life": (0,)}, {"power_std": (0.3,)}])
def test_impossible_averages_are_refused(keywords):
    with pytest.raises(UsageError, match="config.ema"):
        Averages(**keywords)


@pytest.mark.parametrize("batch", [1, 32])
def test_the_ramp_counts_images(batch):
    """At n images the half-life is ramp n: the past has a share of all 2^(-b / ramp n)."""
    steps, ramp = 40, 1.0
    out = run(Averages(half_life=(10**9,), ramp=ramp), np.r_[0.0, np.ones(steps)], batch)
    # The first value is 0 and is averaged with the fresh 0; ones follow.
    past = np.prod([0.5 ** (1 / (ramp * n)) for n in range(2, steps + 2)])
    np.testing.assert_allclose(1 - out["half_life_1000000000"][-1], past, rtol=1e-4)
    # A half-life of few images ends the ramp after few images, whatever the batch.
    short = run(Averages(half_life=(64,), ramp=1.0), np.r_[0.0, np.ones(steps)], batch)
    seen = batch * np.arange(2, steps + 2)
    past = np.prod(0.5 ** (batch / np.minimum(64, seen)))
    np.testing.assert_allclose(1 - short["half_life_64"][-1], past, rtol=1e-4)


@pytest.mark.parametrize("every,std", [(500, 0.07), (500, 0.05), (1000, 0.15), (2000, 0.08)])
def test_posthoc_weights_sum_to_one_and_fit_the_sampled_profile(every, std):
    """Few snapshots fit badly, and still average equal parameters to these parameters."""
    total = 2000
    times = [t for t in range(every, total + 1, every) for _ in range(2)]
    stds = [0.05, 0.1] * (total // every)
    weights = posthoc_weights(times, stds, time=total, std=std)
    np.testing.assert_allclose(weights.sum(), 1, atol=1e-12)
    # The same least squares on profiles sampled at the middles of many short stretches.
    at = (np.arange(20_000) + 0.5) / 20_000 * total

    def profile(end, length):
        gamma = power_gamma(length)
        return np.where(at <= end, (gamma + 1) * (at / end) ** gamma / end, 0)

    columns = np.stack([profile(t, s) for t, s in zip(times, stds, strict=True)], 1)
    sampled = np.linalg.lstsq(columns, profile(total, std), rcond=None)[0]
    np.testing.assert_allclose(weights, sampled / sampled.sum(), atol=2e-3)


def test_a_length_that_no_snapshot_resembles_is_refused():
    with pytest.raises(UsageError, match="std.*0.02"):
        posthoc_weights([1000], [0.02], time=1000, std=0.28)
