"""PixelFlow: where stages begin and end, its laws as a method and as a sampler, what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen import testing
from jaxgen.errors import UsageError
from jaxgen.families.diffusion import pixel_flow
from jaxgen.families.diffusion.core.path import linear
from jaxgen.families.diffusion.methods.pixelflow import Stage
from jaxgen.method import Spec
from jaxgen.nn.dit import DiT
from jaxgen.nn.mlp import MLP
from jaxgen.training.ema import Averages
from tests.nn_kit import live_params, quick_jit

SPEC = Spec((4, 8, 2), 3)
NET = DiT(3, 2, depth=1, width=8, heads=2, patch=1, remat="none", scan=False)


def build(model=NET, **options):
    return pixel_flow(SPEC, model, optax.sgd(0.05), Averages((100,)), **{"stages": 2} | options)


def stages(count):
    return [Stage(None, linear(), "velocity", number=k, count=count) for k in range(count)]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_stages_go_from_noise_to_data_and_begin_where_blocks_can_be_hidden(count):
    noise = [stage.noise for stage in stages(count)]
    assert noise[0][0] == 1 and noise[-1][1] == 0
    for (_, before), (after, _) in zip(noise, noise[1:], strict=False):
        assert after == pytest.approx(2 * before / (1 + before))


def test_ends_are_of_the_stages_resolution():
    x, (coarse, fine) = jax.random.normal(jax.random.key(0), (2, 4, 8, 2)), stages(2)
    half = x.reshape(2, 2, 2, 4, 2, 2).mean((2, 4))
    end, start = coarse.ends(x, jnp.zeros_like(half))
    np.testing.assert_allclose(end, half / 2, atol=1e-6)
    np.testing.assert_array_equal(start, 0)
    end, start = fine.ends(x, jnp.zeros_like(x))
    np.testing.assert_array_equal(end, x)
    np.testing.assert_allclose(start, half.repeat(2, 1).repeat(2, 2) / 3, atol=1e-6)


def test_the_network_is_told_one_time_for_all_stages():
    told = [float(s._inputs(jnp.zeros((1, 2)), jnp.float32(t), None)[1])
            for s in stages(2) for t in (1, 0.5, 0)]  # fmt: skip
    assert told == [1, 0.75, 0.5, 0.5, 0.25, 0]


def test_each_image_is_drawn_from_its_own_key():
    method = build()
    sampler = method.sampler(solver="euler", steps=2, guidance=2.0)
    assert (sampler.calls, sampler.steps) == (2 * 2 * 2, 4)
    labels = jnp.arange(4, dtype=jnp.int32) % 3
    testing.check_sampler(quick_jit(sampler.fn), live_params(method), labels, atol=1e-4)


def batch(n):
    x = np.random.default_rng(n).normal(size=(8, *SPEC.shape))
    return {"image": jnp.asarray(x, jnp.float32), "label": jnp.arange(8, dtype=jnp.int32) % 3}


def test_it_is_a_method_by_law():
    testing.check_method(build, [batch(n) for n in range(4)], jax.random.key(0))


def test_what_does_not_go_is_a_usage_error():
    for make, match in (
        (functools.partial(build, stages=4), "method.stages: got 4"),
        (functools.partial(build, stages=0), "method.stages: got 0"),
        (functools.partial(build, MLP(3, 2, 8, 1)), "config.model: got 'MLP'"),
        (functools.partial(build, DiT(3, 2, depth=1, width=8, heads=2, patch=4)), "image size"),
        (lambda: build().sampler(solver="ancestral.ddpm"), "sample.solver"),
        (lambda: build(label_dropout=0.0).sampler(guidance=2.0), "guidance"),
    ):
        with pytest.raises(UsageError, match=match):
            make()
