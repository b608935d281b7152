"""Priors: codes of images in training, of one's own samples in drawing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen.errors import UsageError
from jaxgen.families.diffusion.methods.denoising import denoising
from jaxgen.method import Spec
from jaxgen.nn.mlp import MLP
from jaxgen.testing import check_sampler
from jaxgen.training.ema import Averages
from jaxgen.tune.priors import priors
from tests.nn_kit import live_params, quick_jit

SPEC = Spec((4, 4, 1), 2)
SMALL = dict(patch=2, width=8, depth=1, heads=2)


def build(told=(("prior", "vector", 2),), **options):
    model = MLP(2, 1, width=8, depth=1, conditions=told)
    base = denoising(SPEC, model, optax.adam(1e-2), Averages((100,)))
    return priors(base, spec=SPEC, **{**SMALL, **options})


def test_the_compressor_learns_with_the_denoiser_and_each_image_has_its_key():
    method = build(stages=3)
    params = live_params(method)
    state = quick_jit(method.init)(jax.random.key(0))
    image = np.random.default_rng(0).normal(size=(16, 4, 4, 1)).astype(np.float32)
    batch = {"image": jnp.asarray(image), "label": jnp.arange(16, dtype=jnp.int32) % 2}
    after, metrics = quick_jit(method.update)(
        state.replace(params=params), batch, jax.random.key(1)
    )
    assert np.isfinite(metrics["loss"])
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), params, after.params)
    assert moved["prior"]["code"]["kernel"] and moved["net"]["conditions"]["prior"]
    sampler = method.sampler(solver="euler", steps=2, guidance=1.0)
    assert (sampler.calls, sampler.steps) == (6, 6)
    check_sampler(quick_jit(sampler.fn), params, jnp.arange(4, dtype=jnp.int32) % 2, atol=1e-4)


def test_a_later_stage_is_told_what_the_compressor_says_of_the_sample_before():
    keys, labels = jax.random.split(jax.random.key(2), 4), jnp.arange(4, dtype=jnp.int32) % 2
    params = live_params(build())
    other = {**params, "prior": jax.tree.map(lambda a: -a, params["prior"])}
    for stages in (1, 2):
        fn = quick_jit(build(stages=stages).sampler(solver="euler", steps=2, guidance=1.0).fn)
        one, two = (fn(p, keys, labels) for p in (params, other))
        assert (jnp.abs(one - two).max((1, 2, 3)) > 1e-5).all() == (stages == 2)


def test_what_does_not_fit_is_a_usage_error():
    for make, match in (
        (lambda: build(told=()), "config.model.conditions"),
        (lambda: build(stages=0), "tune.priors"),
        (lambda: build(first=0.0), "tune.priors"),
        (lambda: build(patch=3), "tune.priors"),
        (lambda: build(width=12), "tune.priors"),
        (lambda: build().sampler(preview=1), "sample.preview"),
    ):
        with pytest.raises(UsageError, match=match):
            make()
