"""Laws of training: known floors, independence of noise, time samplers, learned variances."""

from __future__ import annotations

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from jaxgen.errors import UsageError
from jaxgen.families.diffusion import denoising
from jaxgen.families.diffusion.core import path as paths
from jaxgen.families.diffusion.core import times, weighting
from jaxgen.families.diffusion.core.denoiser import Network
from jaxgen.families.diffusion.core.prediction import KINDS, Prediction, noise_condition, target
from jaxgen.families.diffusion.core.weighting import simple
from jaxgen.families.diffusion.terms.loss import Draws, denoising_loss, noised_batch
from jaxgen.families.diffusion.terms.variance import variance as variance_term
from jaxgen.method import Spec, example_keys, fold, normal
from jaxgen.nn.mlp import MLP
from jaxgen.training.ema import Averages
from tests.nn_kit import first_state

WEIGHTINGS = [
    name
    for name, f in vars(weighting).items()
    if getattr(f, "__annotations__", {}).get("return") == "Weighting" and name[0] != "_"
]
TIMES = [n for n in ("uniform", "levels", "stratified", "log_normal", "logit_normal", "by_loss")]


class Exact(nn.Module):
    """The optimal network of a kind for data N(mean, std^2), by the conditional expectation."""

    route: paths.Path
    kind: str
    mean: float
    std: float

    @nn.compact
    def __call__(self, x, noise, labels, *, train=False):
        self.param("unused", nn.initializers.zeros, ())
        alpha, sigma = (f(noise)[:, None] for f in (self.route.alpha, self.route.sigma))
        rest = (x - alpha * self.mean) / ((alpha * self.std) ** 2 + sigma**2)
        p = Prediction(self.mean + alpha * self.std**2 * rest, sigma * rest)
        return target(self.kind, p.x0, p.eps, noise, self.route)


class Lines(nn.Module):
    """A line in x for each of two noise levels, told apart at `middle`."""

    middle: float

    @nn.compact
    def __call__(self, x, noise, labels, *, train=False):
        slope, bias = (self.param(n, nn.initializers.zeros, (2,)) for n in ("slope", "bias"))
        level = (noise > self.middle).astype(int)
        return slope[level, None] * x + bias[level, None]


def batch(size, shape=(1,), mean=0.0, std=1.0, classes=3):
    return {
        "image": mean + std * jax.random.normal(jax.random.key(5), (size, *shape)),
        "label": jnp.arange(size) % classes,
        "index": jnp.arange(size),
        "microbatch": jnp.zeros((), jnp.int32),
    }


def loss_of(model, kind, path, sampler=None, **options):
    sampler = times.uniform() if sampler is None else sampler
    fn = denoising_loss(Network(model, path, kind), sampler, simple(), num_classes=3, **options)
    return lambda params, data, key: fn(params, data, key, {"times": sampler.init()})


@pytest.mark.parametrize("std", [0.5, 2.0])
def test_flow_matching_floor_is_s_pi_over_two(std):
    """The loss of the exact field of N(m, s^2), uniform t, linear path (ORACLES 2)."""
    path = paths.linear()
    fn = loss_of(Exact(path, "velocity", 0.7, std), "velocity", path)
    value, _ = jax.jit(fn)({"net": {"unused": jnp.zeros(())}}, batch(400_000, (1,), 0.7, std),
                           jax.random.key(0))  # fmt: skip
    assert abs(value / (std * math.pi / 2) - 1) < 0.01


def test_no_field_beats_the_floor():
    path = paths.linear()
    data = batch(400_000, (1,), 0.7, 0.5)
    for wrong in ((0.8, 0.5), (0.7, 0.6), (0.7, 0.4)):
        fn = loss_of(Exact(path, "velocity", *wrong), "velocity", path)
        value, _ = jax.jit(fn)({"net": {"unused": jnp.zeros(())}}, data, jax.random.key(0))
        assert value > 0.5 * math.pi / 2


@pytest.mark.parametrize("kind", KINDS)
def test_every_weighting_and_kind_has_one_minimiser(kind):
    """Where a network may choose a line at each noise level, the best x0 is least squares' of x0.

    In the same sample, so up to rounding: kinds are linear in x0 at known x, and weights positive.
    """
    path, levels, data = paths.vp_linear(), jnp.array([0.3, 0.7]), batch(512, mean=0.4, std=0.7)
    model = Lines(float(noise_condition(kind, jnp.float32(0.5), path)))
    network, key = Network(model, path, kind), jax.random.key(3)
    clock = times.Times(
        lambda keys, key, index, path, state: (levels[index % 2], jnp.ones(index.shape))
    )

    def best(x0, weight):
        """x0 at x = -1 and 1 of both levels, [4], by one step of Newton's method."""
        loss = denoising_loss(network, clock, weight, num_classes=3)
        flat, back = ravel_pytree({"slope": jnp.zeros(2), "bias": jnp.zeros(2)})
        given = {**data, "image": x0}

        def value(theta):
            return loss({"net": back(theta)}, given, key, {"times": ()})[0]

        step = jnp.linalg.solve(jax.hessian(value)(flat), jax.grad(value)(flat))
        x, t = jnp.array([-1.0, 1, -1, 1])[:, None], jnp.repeat(levels, 2)
        return network.predict(back(flat - step), x, t, jnp.zeros(4, int)).x0[:, 0]

    with jax.enable_x64(True):
        x0 = data["image"].astype(jnp.float64)
        weights = [getattr(weighting, name)() for name in WEIGHTINGS]
        found = jax.jit(lambda x0: jnp.stack([best(x0, w) for w in weights]))(x0)
        t = levels[jnp.arange(512) % 2]
        eps = normal(fold(example_keys(key, data), 0), (1,))
        x = np.asarray(path.mix(data["image"], eps, t))[:, 0]
    for level in (0, 1):
        line = np.polyfit(x[level::2], np.asarray(x0)[level::2, 0], 1)
        np.testing.assert_allclose(
            found[:, 2 * level : 2 * level + 2],
            np.broadcast_to(np.polyval(line, [-1.0, 1.0]), (len(weights), 2)),
            atol=2e-4,
        )
        # And that is the exact conditional mean, up to the sample.
        alpha, sigma = (float(f(levels[level])) for f in (path.alpha, path.sigma))
        rest = (np.array([-1.0, 1.0]) - alpha * 0.4) / ((alpha * 0.7) ** 2 + sigma**2)
        np.testing.assert_allclose(
            np.polyval(line, [-1.0, 1.0]), 0.4 + alpha * 0.49 * rest, atol=0.25
        )


def test_denoiser_floor_at_one_noise_level():
    """s^2 sigma^2 / (s^2 + sigma^2) per dimension (ORACLES 2), on EDM's path."""
    path, std = paths.edm(), 0.5
    for sigma in (0.1, 1.0, 10.0):
        fixed = times.Times(
            lambda keys, key, index, path, state, s=sigma: (
                jnp.full(keys.shape, s / 80.0), jnp.ones(keys.shape)
            )
        )  # fmt: skip
        fn = loss_of(Exact(path, "x0", 0.0, std), "x0", path, fixed)
        value, _ = jax.jit(fn)({"net": {"unused": jnp.zeros(())}}, batch(200_000, (1,), 0, std),
                               jax.random.key(0))  # fmt: skip
        assert abs(value / (std**2 * sigma**2 / (std**2 + sigma**2)) - 1) < 0.02


def test_training_approaches_the_floor_and_stays_above():
    """A learned field of N(.5, .5^2): within 10 % of s pi / 2 and not below it."""
    spec, std = Spec((1,), 1), 0.5
    m = denoising(
        spec, MLP(num_classes=1, out_channels=1, width=32, depth=1, scan=False),
        optax.adam(3e-3), Averages((2000,)), times="stratified",
    )  # fmt: skip

    @jax.jit
    def run(state):
        def body(state, n):
            key = jax.random.fold_in(jax.random.key(1), n)
            x = 0.5 + std * jax.random.normal(jax.random.fold_in(key, 1), (256, 1))
            state, metrics = m.update(state, {"image": x, "label": jnp.zeros(256, jnp.int32)}, key)
            return state, metrics["loss"]

        return jax.lax.scan(body, state, jnp.arange(800))

    state, losses = run(first_state(m))
    fn = denoising_loss(
        Network(MLP(num_classes=1, out_channels=1, width=32, depth=1, scan=False),
                paths.linear(), "velocity"), times.stratified(), simple(), num_classes=1,
    )  # fmt: skip
    data = batch(100_000, (1,), 0.5, std, 1)
    name = next(iter(state.ema))
    value, _ = jax.jit(fn)(state.ema[name], data, jax.random.key(9), {"times": ()})
    floor = std * math.pi / 2
    assert losses[0] > 1.1 * floor
    assert 0.99 * floor < value < 1.1 * floor


def test_noise_belongs_to_the_example():
    """The gradient of a batch is the mean of its microbatches': noise does not know the cut."""
    model = MLP(num_classes=3, out_channels=2, width=16, depth=1, scan=False)
    spec = Spec((2,), 3)
    whole, cut = (
        denoising(spec, model, optax.sgd(0.1), Averages((10,)), times="stratified", accumulate=n)
        for n in (1, 4)
    )
    state = first_state(whole)
    data = {k: v for k, v in batch(16, (2,)).items() if k != "index"}
    a, one = jax.jit(whole.update)(state, data, jax.random.key(3))
    b, four = jax.jit(cut.update)(state, data, jax.random.key(3))
    jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, atol=1e-6), a.params, b.params)
    np.testing.assert_allclose(one["loss"], four["loss"], rtol=1e-5)


def test_label_dropout_drops_its_share():
    class Spy(nn.Module):
        @nn.compact
        def __call__(self, x, noise, labels, *, train=False):
            return jnp.broadcast_to((labels == 3)[:, None], x.shape).astype(jnp.float32)

    path = paths.linear()
    for share in (0.0, 0.1, 0.5):
        fn = loss_of(Spy(), "x0", path, label_dropout=share)
        data = batch(20_000)
        data["image"] = jnp.zeros_like(data["image"])
        value, _ = fn({"net": {}}, data, jax.random.key(0))
        assert abs(float(value) - share) < 0.015


def draw(name, size, path, key=0, **options):
    sampler = getattr(times, name)(**options)
    data = {"index": jnp.arange(size)}
    k = jax.random.key(key)
    return sampler, *sampler.draw(
        example_keys(k, data), jax.random.fold_in(k, 2**31), data["index"], path, sampler.init()
    )


@pytest.mark.parametrize("name", TIMES)
def test_times_are_inside_and_unweighted_at_first(name):
    _, t, weight = draw(name, 4096, paths.edm())
    assert ((t > 0) & (t < 1)).all() and t.shape == weight.shape == (4096,)
    np.testing.assert_allclose(weight, 1.0, rtol=1e-5)


def test_the_list_of_times_is_whole():
    made = [n for n, f in vars(times).items()
            if callable(f) and getattr(f, "__annotations__", {}).get("return") == "Times"
            and not n.startswith("_")]  # fmt: skip
    assert sorted(made) == sorted(TIMES)


def test_log_normal_times_are_log_normal_in_sigma():
    path = paths.edm()
    _, t, _ = draw("log_normal", 20_000, path)
    z = jnp.log(path.ratio(t))
    assert abs(z.mean() + 1.2) < 0.03 and abs(z.std() - 1.2) < 0.03


def test_logit_normal_times_are_logit_normal():
    _, t, _ = draw("logit_normal", 20_000, paths.linear(), mean=0.5, std=0.7)
    z = jnp.log(t) - jnp.log1p(-t)
    assert abs(z.mean() - 0.5) < 0.03 and abs(z.std() - 0.7) < 0.03


@pytest.mark.parametrize("size", [7, 64, 100, 1000])
def test_stratified_times_fill_every_batch(size):
    """No gap above 3 / B (independent ones: ln B / B), another offset each step, mean 1/2."""
    offsets = []
    for key in range(3):
        _, t, _ = draw("stratified", size, paths.linear(), key)
        gaps = np.diff(np.sort(np.concatenate([t, t[:1] * 0 + t.min() + 1])))
        assert gaps.max() < 3 / size
        offsets.append(float(t[0]))
    assert len(set(offsets)) == 3


def test_importance_by_loss_is_unbiased_and_follows_the_loss():
    """After seeing a loss that grows with t, draws favour high t; weights undo that exactly."""
    sampler = times.by_loss(bins=16)
    state, path = sampler.init(), paths.linear()
    for key in range(4):
        _, t, _ = draw("uniform", 1024, path, key)
        state = sampler.update(state, t, t**2)
    assert state["seen"].all()
    keys = jax.random.split(jax.random.key(9), 40_000)
    t, weight = sampler.draw(keys, jax.random.key(0), jnp.arange(40_000), path, state)
    assert t.mean() > 0.65
    assert abs(float((weight * t**2).mean()) - 1 / 3) < 0.01
    # Smaller variance than uniform draws of the same loss: what it is for.
    u = jax.random.uniform(jax.random.key(1), (40_000,))
    assert (weight * t**2).std() < 0.6 * (u**2).std()


def test_loss_history_lives_in_the_state():
    model = MLP(num_classes=3, out_channels=2, width=16, depth=1, scan=False)
    m = denoising(Spec((2,), 3), model, optax.sgd(0.1), Averages((10,)),
                  times=dict(name="by_loss", bins=4))  # fmt: skip
    state = first_state(m)
    data = {k: v for k, v in batch(64, (2,)).items() if k != "index"}
    state, _ = jax.jit(m.update)(state, data, jax.random.key(1))
    assert state.extra["times"]["seen"].all() and (state.extra["times"]["square"] > 0).all()


class Two(nn.Module):
    """Exact eps of N(0, s^2) and a free variance logit: what the bound should train alone."""

    route: paths.Path
    std: float

    @nn.compact
    def __call__(self, x, noise, labels, *, train=False):
        logit = self.param("logit", nn.initializers.zeros, ())
        alpha, sigma = (f(noise)[:, None] for f in (self.route.alpha, self.route.sigma))
        eps = sigma * x / ((alpha * self.std) ** 2 + sigma**2)
        return jnp.concatenate([eps, jnp.broadcast_to(logit, x.shape)], -1)


def test_learned_variance_bound_prefers_the_true_variance():
    """The bound's best logit gives the reverse variance of Gaussian data, known in closed form."""
    from jaxgen.families.diffusion.solvers.ancestral import posterior

    path, std, t = paths.cosine(), 0.5, 0.01
    fixed = times.Times(
        lambda keys, key, index, path, state: (jnp.full(keys.shape, t), jnp.ones(keys.shape))
    )
    fn = denoising_loss(
        Network(Two(path, std), path, "eps", learned_variance=True), fixed, simple(), num_classes=3
    )
    data = batch(200_000, (1,), 0.0, std)
    logits = jnp.linspace(-1, 1, 41)
    values = jax.jit(jax.vmap(
        lambda v: fn({"net": {"logit": v}}, data, jax.random.key(0), {"times": ()})[0]
    ))(logits)  # fmt: skip
    on_x, on_x0, small, large = posterior(path, jnp.float32(t), jnp.float32(t - 1e-3))
    alpha, sigma = path.alpha(jnp.float32(t)), path.sigma(jnp.float32(t))
    # Var[x_s | x_t] = posterior variance + what x0 is still uncertain by.
    rest = std**2 * sigma**2 / (std**2 * alpha**2 + sigma**2)
    true = jnp.log(small + on_x0**2 * rest)
    wanted = 2 * (true - jnp.log(small)) / (jnp.log(large) - jnp.log(small)) - 1
    assert abs(float(logits[values.argmin()]) - float(wanted)) < 0.11
    assert float(values.min()) >= 0


def test_the_variance_bound_does_not_move_the_mean():
    model = MLP(num_classes=3, out_channels=1, width=16, depth=1, scan=False)
    m = denoising(Spec((1,), 3), model, optax.sgd(0.1), Averages((10,)), path="cosine",
                  prediction="eps", learned_variance=True)  # fmt: skip
    state = first_state(m)
    kernel = state.params["net"]["out"]["kernel"]
    assert kernel.shape[-1] == 2
    data = {k: v for k, v in batch(64, (1,)).items() if k != "index"}
    _, metrics = jax.jit(m.update)(state, data, jax.random.key(1))
    assert metrics["variance_bound"] > 0 and jnp.isfinite(metrics["loss"])


def test_learned_uncertainty_finds_the_loss_of_each_noise_level():
    """At its optimum u = ln of the weighted loss (EDM2, eq. 21)."""
    path, std = paths.linear(), 1.0
    model = Exact(path, "velocity", 0.0, std)
    m = denoising(Spec((1,), 1), model, optax.adam(2e-3), Averages((10,)),
                  terms=["uncertainty"], label_dropout=0.0)  # fmt: skip

    @jax.jit
    def run(state):
        def body(state, n):
            key = jax.random.fold_in(jax.random.key(1), n)
            x = std * jax.random.normal(jax.random.fold_in(key, 1), (1024, 1))
            return m.update(state, {"image": x, "label": jnp.zeros(1024, jnp.int32)}, key)

        return jax.lax.scan(body, state, jnp.arange(800))

    from jaxgen.families.diffusion.terms.uncertainty import Uncertainty

    state, _ = run(first_state(m))
    t = jnp.array([0.2, 0.5, 0.8])
    u = Uncertainty().apply({"params": state.params["uncertainty"]}, t)
    # The conditional variance of eps - x0 given x_t: 1 / (t^2 + (1 - t)^2).
    np.testing.assert_allclose(jnp.exp(u), 1 / (t**2 + (1 - t) ** 2), rtol=0.2)


def test_projection_follows_every_update():
    class Unit(nn.Module):
        out_channels: int = 1

        @nn.compact
        def __call__(self, x, noise, labels, *, train=False):
            w = self.param("w", nn.initializers.normal(3.0), (4,))
            return x * (w @ jnp.arange(4.0))

        @staticmethod
        def project(params):
            return jax.tree.map(lambda p: p / jnp.linalg.norm(p), params)

    m = denoising(Spec((1,), 3), Unit(), optax.sgd(1.0), Averages((10,)))
    state = first_state(m)
    np.testing.assert_allclose(jnp.linalg.norm(state.params["net"]["w"]), 1.0, rtol=1e-5)
    data = {k: v for k, v in batch(8).items() if k != "index"}
    state, _ = jax.jit(m.update)(state, data, jax.random.key(1))
    np.testing.assert_allclose(jnp.linalg.norm(state.params["net"]["w"]), 1.0, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(prediction="velocty"), "velocity"),
        (dict(path="liner"), "linear"),
        (dict(weighting="minsnr"), "min_snr"),
        (dict(times="log_norml"), "log_normal"),
        (dict(times=dict(name="log_normal", std=-1.0)), "times.std"),
        (dict(label_dropout=1.0), "label_dropout"),
        (dict(sigma_data=0.0), "sigma_data"),
    ],
)
def test_bad_options_are_named(options, message):
    model = MLP(num_classes=3, out_channels=1, width=16, depth=1)
    with pytest.raises(UsageError, match=message):
        denoising(Spec((1,), 3), model, optax.sgd(0.1), Averages((10,)), **options)


def test_which_labels_are_dropped_does_not_depend_on_the_time_or_the_noise():
    path, size = paths.linear(), 20_000
    network = Network(Exact(path, "velocity", 0.7, 0.5), path, "velocity")
    draws = Draws(times=times.uniform(), num_classes=3, label_dropout=0.3)
    noised, told = noised_batch(
        network, simple(), (), draws, {"net": {"unused": jnp.zeros(())}}, batch(size),
        jax.random.key(0), {"times": draws.times.init()},
    )  # fmt: skip
    dropped = np.asarray(noised.condition == 3)
    assert (np.asarray(told) < 3).all()
    np.testing.assert_array_equal(
        np.asarray(noised.condition)[~dropped], np.asarray(told)[~dropped]
    )
    for drawn in (noised.t, noised.eps[:, 0]):
        assert abs(np.corrcoef(dropped, np.asarray(drawn))[0, 1]) < 4 / size**0.5


def test_the_bound_that_trains_the_variance_leaves_the_mean_alone():
    path = paths.vp_linear()
    network = Network(Exact(path, "eps", 0.7, 0.5), path, "eps")
    x = jax.random.normal(jax.random.key(1), (4, 2))
    draws = Draws(times=times.uniform(), num_classes=3)
    noised, _ = noised_batch(
        network, simple(), (), draws, {"net": {"unused": jnp.zeros(())}}, batch(4, (2,)),
        jax.random.key(0), {"times": draws.times.init()},
    )  # fmt: skip

    def bound(output, variance):
        it = dataclasses.replace(noised, output=output, variance=variance)
        return variance_term().of(it, None, None).sum()

    on_mean, on_variance = jax.grad(bound, (0, 1))(noised.output, 0.1 * x)
    assert not np.any(on_mean) and np.all(on_variance != 0)
    # The mean matters for the bound's value, so that the gradient is held back and not zero.
    assert bound(noised.output + 1.0, 0.1 * x) != bound(noised.output, 0.1 * x)


def test_weights_of_times_levels_and_examples_multiply_the_error():
    """By hand: importance x weighting x the example's weight x the error; times learn of it."""
    path, size = paths.linear(), 8
    sampler = times.Times(
        lambda keys, key, index, path, state: (jnp.full(index.shape, 0.4), 1.0 + index),
        init=lambda: jnp.zeros(()),
        update=lambda state, t, error: state + error.sum(),
    )
    network = Network(Exact(path, "velocity", 0.7, 0.5), path, "velocity")
    draws = Draws(times=sampler, num_classes=3)
    data, key = {**batch(size), "weight": jnp.linspace(0.5, 2.0, size)}, jax.random.key(0)
    extra, params = {"times": sampler.init()}, {"net": {"unused": jnp.zeros(())}}
    level = lambda path, t, gain: 3.0 * t
    noised, _ = noised_batch(network, level, (), draws, params, data, key, extra)
    fn = denoising_loss(network, sampler, level, num_classes=3)
    value, (metrics, after) = fn(params, data, key, extra)
    error, share = np.asarray(noised.error), 3.0 * 0.4
    by_hand = (np.arange(1, size + 1) * share * error * np.asarray(data["weight"])).mean()
    np.testing.assert_allclose(value, by_hand, rtol=1e-5)
    np.testing.assert_allclose(metrics["mse"], error.mean(), rtol=1e-6)
    np.testing.assert_allclose(after["times"], (share * error).sum(), rtol=1e-5)
