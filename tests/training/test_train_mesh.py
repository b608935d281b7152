"""Samples do not depend on the mesh; microbatches are the batch; schedules in images."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from jaxgen import config as configs
from jaxgen.data import batches, to_device
from jaxgen.errors import UsageError
from jaxgen.mesh import Layout
from jaxgen.run.model import Model
from jaxgen.run.setup import TOP, set_up
from jaxgen.training.loop import Diverged, empty_tally, make_step, read_tally
from jaxgen.training.optim import schedule
from jaxgen.training.sharding import (
    batch_sharding,
    check_batch,
    make_mesh,
    replicated,
    state_sharding,
)

STEPS = 3
OVERRIDES = ["data.batch_size=32", "model.width=64", "optimizer.warmup_images=0"]


def parts(*overrides: str):
    config = configs.load("tests/tiny.py")
    configs.override(config, [*OVERRIDES, *overrides], TOP)
    return set_up(config)


def one_device() -> Mesh:
    return make_mesh(devices=jax.devices()[:1])


def run(run_parts, mesh: Mesh, jit=jax.jit, seed: int = 0):
    """State and metrics after a few steps on the batches of a seed, on the host."""
    method = run_parts.method
    abstract = jax.eval_shape(method.init, jax.random.key(0))
    shardings = state_sharding(mesh, abstract)
    state = jit(method.init, out_shardings=shardings)(jax.random.key(0))
    stream = to_device(batches(run_parts.source, batch_size=32, seed=seed), batch_sharding(mesh))
    root = jax.device_put(jax.random.key(1), replicated(mesh))
    step = jit(make_step(method, Layout(mesh)), out_shardings=(shardings, replicated(mesh)))
    tally = None
    for _ in range(STEPS):
        batch = next(stream)
        if tally is None:
            tally = jax.device_put(empty_tally(method, abstract, batch), replicated(mesh))
        state, tally = step(state, tally, batch, root)
    return state, read_tally(tally, STEPS)


def assert_close(a, b):
    """Within 1e-5 of each leaf's largest value, plus Adam's step where a gradient is nearly 0."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        np.testing.assert_allclose(x, y, atol=1e-5 * max(np.abs(y).max(), 1.0), rtol=1e-5)


def assert_cut(params, mesh):
    """Some leaf lies in parts along each axis for parameters that has more than one device."""
    used = {
        axis
        for leaf in jax.tree.leaves(params)
        for names in leaf.sharding.spec
        for axis in ((names,) if isinstance(names, str) else names or ())
    }
    assert used >= {axis for axis in ("fsdp", "tensor") if mesh.shape[axis] > 1}, used


@pytest.fixture(scope="module")
def single():
    return run(parts(), one_device())


def test_microbatches_are_the_batch(single):
    state, metrics = run(parts("train.accumulate=4"), one_device())
    assert_close(state.params, single[0].params)
    np.testing.assert_allclose(metrics["loss"], single[1]["loss"], rtol=1e-5)


def test_samples_do_not_depend_on_the_mesh(single):
    images = []
    for mesh in (one_device(), make_mesh(8, 1), make_mesh(2, 4)):
        built = dataclasses.replace(parts(), layout=Layout(mesh))
        params = jax.device_get({"params": single[0].params})
        model = Model(built, params, images=0, step=0)
        images.append(model.sample([1, 2, 3, 4, 5, 6, 7, 8], seed=2, batch_size=8).images)
    np.testing.assert_allclose(images[1], images[0], atol=1e-5)
    np.testing.assert_allclose(images[2], images[0], atol=1e-5)


@pytest.mark.parametrize(("data", "fsdp"), [(3, 1), (-1, -1), (0, 1), (-2, 1), (8, 8)])
def test_impossible_meshes_are_refused(data, fsdp):
    with pytest.raises(UsageError, match="config.mesh"):
        make_mesh(data, fsdp)


def test_a_batch_that_devices_cannot_share_is_refused():
    check_batch(48, make_mesh(8, 1), 3)
    with pytest.raises(UsageError, match="multiple of 24"):
        check_batch(32, make_mesh(8, 1), 3)


@pytest.mark.parametrize("batch", [10, 50])
def test_schedules_are_in_images_whatever_the_batch(batch):
    settings = dict(learning_rate=2.0, warmup_images=1000, images=9000, batch_size=batch)
    cosine = schedule("cosine", final_fraction=0.1, decay_images=None, **settings)
    at = {n: float(cosine(np.int32(n // batch))) for n in (500, 1000, 5000, 9000)}
    # The first step is not at zero: the warm-up is one batch ahead.
    assert at[500] == pytest.approx(1.0 + 2.0 * batch / 1000)
    assert at[1000] == pytest.approx(2.0, rel=1e-2)
    assert at[5000] == pytest.approx(2 * (0.1 + 0.9 / 2), rel=1e-5)
    assert at[9000] == pytest.approx(0.2, rel=1e-5)
    root = schedule("inverse_sqrt", final_fraction=0.0, decay_images=2000, **settings)
    assert float(root(np.int32(2000 // batch))) == pytest.approx(2.0)
    assert float(root(np.int32(8000 // batch))) == pytest.approx(1.0)


def test_the_first_metric_that_is_not_finite_is_named_with_its_step():
    limit = np.iinfo(np.int32).max
    tally = {"loss": (np.float32("nan"), np.int32(7)), "grad_norm": (np.float32(1), limit)}
    with pytest.raises(Diverged, match="'loss' is not finite at step 7"):
        read_tally(tally, 10)
