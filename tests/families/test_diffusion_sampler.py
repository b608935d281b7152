"""Laws of samplers: batch and key independence, one compilation, previews, options."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen import testing
from jaxgen.errors import UsageError
from jaxgen.families.diffusion import denoising, solvers
from jaxgen.families.diffusion.core import path as paths
from jaxgen.families.diffusion.core.sampler import build_sampler
from jaxgen.method import Spec
from jaxgen.nn.mlp import MLP
from jaxgen.training.ema import Averages
from tests.nn_kit import first_state

PATH = paths.cosine()
MEANS = jnp.array([-1.0, 0.5, 2.0])


def cond(params, labels):
    mean = 0.0 if labels is None else MEANS[labels][:, None]
    return testing.gaussian_denoiser(PATH, mean, 0.1)


def build(**options):
    plain = {"solver": "heun", "steps": 6, "grid": "uniform", "guidance": [], "clip": "none"}
    return build_sampler(PATH, (3,), {"cond": cond}, **{**plain, **options})


def method(**options):
    model = MLP(num_classes=3, out_channels=3, width=16, depth=1, scan=False)
    return denoising(Spec((3,), 3), model, optax.adam(1e-3), Averages((1000,)), **options)


@pytest.mark.parametrize("name", [n for n in solvers.__all__ if n != "Solver"])
def test_each_image_depends_on_its_key_alone(name):
    labels = jnp.array([0, 1, 2, 2, 1, 0])
    testing.check_sampler(build(solver=name), {}, labels)


def test_images_of_a_network_are_the_same_in_any_batch():
    m = method()
    params = jax.tree.map(
        lambda p: p + 0.05 * jax.random.normal(jax.random.key(2), p.shape),
        first_state(m).params,
    )
    run = m.sampler(solver="dpmpp_sde_2m", steps=4, guidance=2.0)
    testing.check_sampler(run, params, jnp.array([0, 1, 2, 2, 1, 0]), atol=1e-5)


def test_labels_are_honoured():
    labels = jnp.repeat(jnp.arange(3), 50)
    keys = jax.random.split(jax.random.key(0), 150)
    x = build(solver="ddim", steps=20)({}, keys, labels)
    for k in range(3):
        assert abs(float(x[labels == k].mean()) - float(MEANS[k])) < 0.1


def test_the_second_call_does_not_compile():
    run = build()
    keys, labels = jax.random.split(jax.random.key(0), 4), jnp.zeros(4, jnp.int32)
    testing.check_compiles_once(run.fn, {}, keys, labels)


def test_the_same_on_all_devices():
    """Keys and labels sharded over devices give the images of one device."""
    devices = jax.devices()
    mesh = jax.sharding.Mesh(devices, ("data",))
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    count = 2 * len(devices)
    keys, labels = jax.random.split(jax.random.key(0), count), jnp.arange(count) % 3
    run = build(solver="ddpm")
    one = run({}, keys, labels)
    many = run({}, jax.device_put(keys, where), jax.device_put(labels, where))
    np.testing.assert_allclose(one, many, atol=1e-6)


def test_previews_are_states_on_the_way():
    keys, labels = jax.random.split(jax.random.key(0), 4), jnp.zeros(4, jnp.int32)
    x, seen = build(solver="heun", steps=7, preview=2)({}, keys, labels)
    np.testing.assert_allclose(x, build(solver="heun", steps=7)({}, keys, labels), atol=1e-6)
    assert seen.shape == (3, 4, 3)
    x, seen = build(solver="heun", steps=6, preview=2)({}, keys, labels)
    np.testing.assert_array_equal(seen[-1], x)


def test_clipping_is_an_option_and_not_the_default():
    keys, labels = jax.random.split(jax.random.key(0), 4), jnp.full(4, 2)
    assert (build(steps=12)({}, keys, labels) > 1.5).any()
    assert (build(steps=12, clip="static")({}, keys, labels) <= 1.0).all()
    assert (build(steps=12, clip="dynamic")({}, keys, labels) <= 1.0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(steps=0), "sample.steps"),
        (dict(steps=2.5), "sample.steps"),
        (dict(steps=True), "sample.steps"),
        (dict(preview=9), "sample.preview"),
        (dict(clip="hard"), "sample.clip"),
        (dict(solver="huen"), "sample.solver"),
        (dict(solver=dict(name="ddim", etta=1.0)), "eta"),
        (dict(grid="karas"), "sample.grid"),
        (dict(grid=dict(name="karras", rho="seven")), "float"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(UsageError, match=message):
        build(**options)


def test_guidance_without_label_dropout_is_refused():
    plain = method(label_dropout=0.0)
    assert plain.sampler(steps=4).calls == 7
    for guidance in (2.0, 0.0, [dict(name="cfg.cfg", weight=3.0)]):
        with pytest.raises(UsageError, match="guidance.*label dropout"):
            plain.sampler(guidance=guidance)


def test_autoguidance_takes_a_second_set_of_parameters():
    m = method()
    state = first_state(m)
    near, far = (
        jax.tree.map(lambda p, k=k: p + 0.05 * jax.random.normal(jax.random.key(k), p.shape),
                     state.params["net"])
        for k in (1, 2)
    )  # fmt: skip
    keys, labels = jax.random.split(jax.random.key(0), 4), jnp.array([0, 1, 2, 0])
    section = [dict(name="autoguidance.autoguidance", weight=2.0)]
    run = m.sampler(steps=3, guidance=section)
    assert run.calls == 10
    plain = m.sampler(steps=3)({"net": near}, keys, labels)
    np.testing.assert_allclose(run({"net": near, "weak": near}, keys, labels), plain, atol=1e-5)
    assert not np.allclose(run({"net": near, "weak": far}, keys, labels), plain, atol=1e-2)
    with pytest.raises(UsageError, match="weak"):
        run({"net": near}, keys, labels)


def test_a_smaller_network_can_guide():
    """The `branches` seam: any denoiser under the name that guidance asks for."""
    m = method()
    params = first_state(m).params
    weak = {"weak": lambda params, labels: testing.gaussian_denoiser(paths.linear(), 0.3, 0.5)}
    run = m.sampler(
        steps=3, guidance=[dict(name="autoguidance.autoguidance", weight=2.0)], branches=weak
    )
    keys, labels = jax.random.split(jax.random.key(0), 4), jnp.array([0, 1, 2, 0])
    assert jnp.isfinite(run(params, keys, labels)).all()
