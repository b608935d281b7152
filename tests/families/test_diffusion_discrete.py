"""DDPM's chain of noise levels: its numbers, what networks are told, and DiT's own sampling."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.errors import UsageError
from jaxgen.families.diffusion.core import grids, times
from jaxgen.families.diffusion.core import path as paths
from jaxgen.families.diffusion.core.denoiser import Denoiser, Network
from jaxgen.families.diffusion.core.prediction import Prediction, noise_condition, to_prediction
from jaxgen.families.diffusion.guidance.apg import apg
from jaxgen.families.diffusion.guidance.cfg import cfg
from jaxgen.families.diffusion.guidance.cfg_zero import cfg_zero
from jaxgen.families.diffusion.guidance.cfgpp import cfgpp
from jaxgen.families.diffusion.guidance.dynamic_cfg import dynamic_cfg
from jaxgen.families.diffusion.guidance.rescale import rescale
from jaxgen.families.diffusion.solvers import ddpm
from jaxgen.nn.dit import DiT
from tests.guidance_kit import PATH as LINEAR

BETAS = {
    "linear": np.linspace(1e-4, 0.02, 1000),
    "scaled_linear": np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2,
    "cosine": np.array(
        [
            min(
                1
                - (
                    np.cos(((i + 1) / 1000 + 0.008) / 1.008 * np.pi / 2)
                    / np.cos((i / 1000 + 0.008) / 1.008 * np.pi / 2)
                )
                ** 2,
                0.999,
            )
            for i in range(1000)
        ]
    ),
}
RANGES = {"scaled_linear": dict(beta_min=0.00085, beta_max=0.012)}


@pytest.mark.parametrize("name", [*BETAS, "given"])
def test_levels_have_the_chains_alphas_and_networks_are_told_their_index(name):
    values = BETAS.get(name, np.geomspace(1e-3, 0.2, 37))
    path = paths.discrete(tuple(values) if name == "given" else name, **RANGES.get(name, {}))
    count = len(values)
    index = np.arange(count)
    t = jnp.asarray((index + 1) / count, jnp.float32)
    bar = np.cumprod(1 - values)
    np.testing.assert_allclose(path.alpha(t), np.sqrt(bar), rtol=2e-5)
    np.testing.assert_allclose(path.sigma(t), np.sqrt(1 - bar), rtol=2e-5)
    np.testing.assert_array_equal(jax.jit(path.told)(t), index)
    np.testing.assert_array_equal(noise_condition("eps", t, path), index)
    np.testing.assert_allclose(path.t_of_sigma(path.ratio(t)), t, rtol=1e-3)
    assert path.alpha(0.0) == 1 and path.sigma(0.0) == 0
    # A shifted chain has the same levels at other times.
    shifted = paths.shift(path, 2.0)
    at = shifted.level_time(jnp.asarray(index, jnp.float32), count)
    np.testing.assert_allclose(shifted.told(at), index, atol=2e-3)
    np.testing.assert_allclose(shifted.alpha(at), np.sqrt(bar), rtol=5e-4)


def test_the_limit_of_the_betas_is_another_path():
    """A network told 4 or 999 times 1/1000 there has another noise level: 11 and 4 % less."""
    index = jnp.array([4.0, 999.0])
    chain = paths.discrete()
    limit = paths.vp_linear(0.1, 20.0).ratio(index / 1000)
    off = limit / chain.ratio(chain.level_time(index, 1000))
    np.testing.assert_allclose(off - 1, [-0.106, -0.043], atol=1e-3)


def spaced(steps, count):
    """Nichol & Dhariwal's indices: whole numbers nearest to equal strides, both ends included."""
    stride, taken, place = (count - 1) / (steps - 1), [], 0.0
    for _ in range(steps):
        taken.append(round(place))
        place += stride
    return taken


@pytest.mark.parametrize("steps,count", [(250, 1000), (1000, 1000), (27, 1000), (7, 50)])
def test_respaced_grids_are_the_papers_indices(steps, count):
    for path in (paths.discrete(levels=count), paths.shift(paths.discrete(levels=count), 3.0)):
        grid = grids.respaced(steps, path)
        np.testing.assert_allclose(path.told(grid[:-1]), spaced(steps, count)[::-1], atol=1e-2)
        assert grid[-1] == 0


def test_ddpm_with_learned_variance_is_adms_sampler():
    """Each step written out with cumulative products, as the papers have it, the noise the same."""
    steps, shape, path = 12, (3, 4, 4, 2), paths.discrete()
    x = np.asarray(jax.random.normal(jax.random.key(0), shape), np.float64)
    told, noises = [], []

    def network(xp, x, index):
        return xp.tanh(1.3 * x + index / 1000) - 0.4 * x, xp.sin(3 * x)

    taken = spaced(steps, 1000)
    bars = np.cumprod(1 - BETAS["linear"])[taken]
    before = np.concatenate([[1.0], bars[:-1]])
    betas = 1 - bars / before
    small = betas * (1 - before) / (1 - bars)
    small[0] = small[1]

    def call(keys, x, t, memory):
        index = noise_condition("eps", t, path)
        out, variance = network(jnp, x, index)
        told.append(index)
        return to_prediction("eps", out, x, t, path, variance=variance), memory

    with jax.enable_x64(True):
        grid = grids.respaced(steps, path)
        solver, keys = ddpm(path), jax.random.split(jax.random.key(1), shape[0])
        ours, denoiser, want = jnp.asarray(x), Denoiser(call), x
        still = jnp.zeros_like(ours)
        # The step's own noise, from the step itself at a network that says nothing.
        nothing = Denoiser(lambda *_: (Prediction(still, still, still * 0), ()))
        for n in reversed(range(steps)):
            i = steps - 1 - n
            eps, logits = network(np, want, taken[n])
            x0 = (want - np.sqrt(1 - bars[n]) * eps) / np.sqrt(bars[n])
            mean = np.sqrt(before[n]) * betas[n] * x0 / (1 - bars[n])
            mean += np.sqrt(1 - betas[n]) * (1 - before[n]) * want / (1 - bars[n])
            log = (logits + 1) / 2 * np.log(betas[n]) + (1 - logits) / 2 * np.log(small[n])
            quiet = solver.step(nothing, still, grid[i], grid[i + 1], ((), ()), keys)[0]
            scale = np.exp(0.25 * (np.log(betas[n]) + np.log(small[n])))
            noise = np.asarray(quiet) / scale if n else np.zeros(shape)
            ours = solver.step(denoiser, ours, grid[i], grid[i + 1], ((), ()), keys)[0]
            want = mean + (np.exp(0.5 * log) * noise if n else 0)
            noises.append(np.std(noise))
            np.testing.assert_allclose(ours, want, rtol=1e-9, atol=1e-9)
    assert told[0] == 999 and told[-1] == 0 and min(noises[:-1]) > 0.5


def test_training_sees_each_level_alike():
    path = paths.discrete(levels=10)
    keys = jax.random.split(jax.random.key(0), 20_000)
    t, weight = times.levels().draw(keys, jax.random.key(1), jnp.arange(20_000), path, ())
    counts = np.bincount(np.asarray(path.told(t)).astype(int), minlength=10)
    np.testing.assert_array_equal(path.told(t), np.round(path.told(t)))
    assert np.abs(counts / 2000 - 1).max() < 0.1 and (np.asarray(weight) == 1).all()
    # Elsewhere they lie evenly in t.
    t, _ = times.levels(4).draw(keys, jax.random.key(1), jnp.arange(20_000), LINEAR, ())
    np.testing.assert_allclose(np.unique(t), [0.25, 0.5, 0.75, 1 - paths.T_MIN], rtol=1e-6)


@pytest.mark.parametrize(
    "call,word",
    [
        (lambda: paths.discrete("lienar"), "path.betas.*'linear'"),
        (lambda: paths.discrete(beta_max=1.5), "path.betas"),
        (lambda: paths.discrete([0.1]), "path.betas"),
        (lambda: paths.discrete(levels=1), "path.levels"),
        (lambda: grids.respaced(11, paths.discrete(levels=10)), "sample.steps"),
        (lambda: grids.respaced(5, paths.discrete(levels=10), levels=20), "grid.levels"),
        (lambda: times.levels(0), "times.levels"),
        (lambda: Network(DiT(3, 2), paths.discrete(), "eps"), "model.time_scale.*1 with a path"),
        (lambda: cfg(Denoiser(None), Denoiser(None), 2.0, channels=0), "guidance.channels"),
    ],
)
def test_bad_options_are_named(call, word):
    with pytest.raises(UsageError, match=word):
        call()


# --- Guidance on some channels ---


def constant(value, channels=4):
    def call(keys, x, t, memory):
        x0 = jnp.full_like(x, value) * jnp.arange(1, channels + 1)
        return Prediction(x0, x - x0, x0 + 7), memory

    return Denoiser(call, path=LINEAR)


def likes_small(x0, t):
    return -jnp.abs(x0).sum((1, 2, 3))


FURTHER = {
    "cfg": lambda g: g,
    "apg": lambda g: apg(g, eta=0.5, radius=2.0),
    "cfg_zero": cfg_zero,
    "rescale": lambda g: rescale(g, share=0.6),
    "dynamic": lambda g: dynamic_cfg(g, likes_small, weights=(2.0, 3.0)),
}


@pytest.mark.parametrize("name", FURTHER)
def test_channels_beyond_are_the_conditional_models(name):
    good, bad = constant(1.0), constant(-0.4)
    x, t, keys = jnp.ones((2, 3, 3, 4)), jnp.float32(0.5), jax.random.split(jax.random.key(0), 2)

    def at(guided):
        return guided(keys, x, t, guided.init(x))[0]

    some, every = (at(FURTHER[name](cfg(good, bad, 2.5, channels=n))) for n in (3, None))
    plain = at(good)
    np.testing.assert_array_equal(some.x0[..., 3], plain.x0[..., 3])
    np.testing.assert_array_equal(some.eps[..., 3], plain.eps[..., 3])
    np.testing.assert_array_equal(some.variance, plain.variance)
    assert jnp.abs(every.x0[..., 3] - plain.x0[..., 3]).min() > 1e-2
    assert jnp.abs(some.x0[..., :3] - plain.x0[..., :3]).max() > 1e-2
    if name == "cfg":
        np.testing.assert_array_equal(some.x0[..., :3], every.x0[..., :3])
        # DiT's code: half_eps = uncond + scale (cond - uncond) on the first three.
        np.testing.assert_allclose(some.eps[0, 0, 0, :3], [-2.1, -5.2, -8.3], rtol=1e-6)


def test_weights_one_and_zero_on_some_channels():
    good, bad = constant(1.0), constant(-0.4)
    x, t, keys = jnp.ones((2, 3, 3, 4)), jnp.float32(0.5), jax.random.split(jax.random.key(0), 2)
    one, zero = (cfg(good, bad, w, channels=3) for w in (1.0, 0.0))
    assert one.calls(0.5) == 1 and zero.calls(0.5) == 2
    p = zero(keys, x, t, zero.init(x))[0]
    np.testing.assert_allclose(p.x0[0, 0, 0], [-0.4, -0.8, -1.2, 4.0], rtol=1e-6)
    out = cfgpp(cfg(good, bad, 0.5, channels=3))
    np.testing.assert_allclose(out(keys, x, t, out.init(x))[0].eps[0, 0, 0, 3], -3.0, rtol=1e-6)
    with pytest.raises(UsageError, match="guidance.channels: got 5.*1 to 4"):
        five = cfg(good, bad, 2.0, channels=5)
        five(keys, x, t, five.init(x))
