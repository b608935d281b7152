"""Ten steps on any mesh are the ten steps on one device, whatever is cut and however exchanged.

All twenty shapes of a mesh for all networks take minutes (pytest -m "" on this file).
"""

import dataclasses
import functools
import itertools
import math
import re

import jax
import numpy as np
import pytest

from jaxgen import config as configs
from jaxgen.data import batches, to_device
from jaxgen.errors import UsageError
from jaxgen.mesh import Layout
from jaxgen.nn import placement
from jaxgen.run.model import Model
from jaxgen.run.setup import TOP, set_up
from jaxgen.training.loop import empty_tally, jitted_step
from jaxgen.training.sharding import batch_sharding, make_mesh, replicated, state_sharding
from tests.every_family import DESCENT, built
from tests.nn_kit import quick_jit
from tests.training.test_train_mesh import assert_cut

STEPS, BATCH = 10, 32
UNET = dict(name="unet.UNet", channels=16, multipliers=(1, 2), blocks=1, attention_sizes=(4,))
UVIT = dict(name="uvit.UViT", width=32, heads=8, patch=2, depth=3)
NETWORKS = {
    "dit": ("tests/tiny.py", ["width=32", "heads=8", "patch=1", "depth=2"]),
    "unet": ("tests/tiny.py", [repr(UNET)]),
    "uvit": ("tests/tiny.py", [repr(UVIT)]),
    "llama": ("configs/digits_llamagen.py", ["width=32", "depth=2", "heads=8"]),
}
ALL = [s for s in itertools.product((1, 2, 4, 8), repeat=4) if math.prod(s) == 8]
QUICK = {
    "dit": [(1, 1, 1, 8), (1, 2, 2, 2), (2, 2, 2, 1)],
    "unet": [(2, 2, 2, 1)],
    "uvit": [(1, 2, 2, 2)],
    "llama": [(1, 2, 2, 2), (1, 4, 1, 2), (8, 1, 1, 1)],
}
"""On these each axis is cut in two, and but for `tensor` in four or eight too."""
SHAPES = [
    pytest.param(name, shape, marks=() if shape in QUICK[name] else pytest.mark.slow,
                 id=f"{name}-{shape}")
    for name in NETWORKS for shape in ALL
]  # fmt: skip


@pytest.fixture(autouse=True)
def cut_small_leaves(monkeypatch):
    monkeypatch.setattr(placement, "SMALLEST", 2**6)


def parts(name: str, *overrides: str):
    path, model = NETWORKS[name]
    changes = [f"model={m}" if m.startswith("{") else f"model.{m}" for m in model]
    config = configs.load(path)
    configs.override(config, [*changes, f"data.batch_size={BATCH}", *overrides], TOP)
    return set_up(config, devices=jax.devices()[:1])


def train(run_parts, layout: Layout, steps: int = STEPS):
    """The state after some steps, on its devices."""
    method, mesh = run_parts.method, layout.mesh
    abstract = jax.eval_shape(method.init, jax.random.key(0))
    shardings = state_sharding(mesh, abstract)
    state = quick_jit(method.init, out_shardings=shardings)(jax.random.key(0))
    stream = to_device(batches(run_parts.source, batch_size=BATCH, seed=0), batch_sharding(mesh))
    root = jax.device_put(jax.random.key(1), replicated(mesh))
    batch = next(stream)
    tally = jax.device_put(empty_tally(method, abstract, batch), replicated(mesh))
    step = jitted_step(method, layout, shardings).lower(state, tally, batch, root)
    step = step.compile(compiler_options={"xla_backend_optimization_level": 0})
    for _ in range(steps):
        state, tally = step(state, tally, batch, root)
        batch = next(stream)
    return state


@functools.cache
def alone(name: str, *overrides: str):
    """Parts, and the state of one device."""
    run_parts = parts(name, *overrides)
    mesh = make_mesh(devices=jax.devices()[:1])
    return run_parts, jax.device_get(train(run_parts, Layout(mesh)))


def distance(a, b) -> float:
    """The norm of the difference of two trees over the second's."""

    def vector(tree):
        return np.concatenate([np.ravel(x).astype(np.float64) for x in jax.tree.leaves(tree)])

    return float(np.linalg.norm(vector(a) - vector(b)) / np.linalg.norm(vector(b)))


def assert_same(state, expected) -> None:
    """Within 1e-5 in norm.

    Leaves alone are not compared: the gradient of a key's bias is zero but for rounding, and Adam
    makes steps of it.
    """
    for part in ("params", "opt_state", "ema"):
        assert distance(getattr(state, part), getattr(expected, part)) < 1e-5, part


@pytest.mark.parametrize(("name", "shape"), SHAPES)
def test_ten_steps_on_any_mesh_are_those_on_one_device(name, shape):
    run_parts, expected = alone(name)
    state = train(run_parts, Layout(make_mesh(*shape)))
    assert_cut(state.params, make_mesh(*shape))
    assert_same(state, expected)


def samples(name: str, mesh) -> np.ndarray:
    """Eight images, eight a call, by a model whose weights have learned a little."""
    run_parts, state = alone(name)
    built_parts = dataclasses.replace(run_parts, layout=Layout(mesh))
    model = Model(built_parts, {"params": state.params}, images=0, step=0)
    return model.sample([1, 2, 3, 4, 5, 6, 7, 8], seed=2, batch_size=8).images


@pytest.mark.parametrize(
    "shapes",
    [[(8,), (1, 2, 2, 2), (2, 1, 1, 4)], pytest.param(ALL, marks=pytest.mark.slow)],
    ids=["some", "all"],
)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_sample_is_the_same_on_any_mesh(name, shapes):
    """Float32 rounding where the weights are cut; of tokens, the same ones."""
    one = samples(name, make_mesh(devices=jax.devices()[:1]))
    assert np.ptp(one, axis=0).max() > 0.1
    for shape in shapes:
        np.testing.assert_allclose(samples(name, make_mesh(*shape)), one, atol=1e-5)


@pytest.mark.parametrize("name", ["dit", "llama"])
def test_a_ring_gives_what_a_gather_gives(name):
    """Also where the tokens (65 of the label and the image, or 64) are not a multiple of
    devices."""
    run_parts, expected = alone(name)
    state = train(run_parts, Layout(make_mesh(1, 2, 1, 4), exchange="ring"))
    assert_same(state, expected)


@pytest.mark.parametrize("exchange", ["gather", "ring"])
def test_tokens_that_devices_do_not_divide_are_padded(exchange):
    """A BERT has the label's token more than the image has."""
    run_parts = built("maskgit", "model.depth=2", "model.dropout=0.2")
    assert (8 // 2) ** 2 + 1 == 17
    single = train(run_parts, Layout(make_mesh(devices=jax.devices()[:1])), steps=3)
    state = train(run_parts, Layout(make_mesh(1, 2, 2, 2), exchange=exchange), steps=3)
    assert_same(jax.device_get(state), jax.device_get(single))


@pytest.mark.parametrize("via", ["shard_map", "pmap"])
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("diffusion", ["model.dropout=0.3", "train.accumulate=2"]),
        ("llamagen", ["model.dropout=0.2"]),
        ("cvae", ["model.dropout=0.2"]),
    ],
)
def test_the_update_is_the_same_under_shard_map_and_pmap(name, changes, via):
    """Dropout, microbatches, stratified times and all; plain descent, leaf by leaf."""
    run_parts = built(name, DESCENT, *changes)
    one = jax.device_get(train(run_parts, Layout(make_mesh(devices=jax.devices()[:1])), 3))
    state = train(run_parts, Layout(make_mesh(8), via=via, reduce="float32"), 3)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(one), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=str(path))


def test_methods_that_look_at_a_whole_batch_are_not_cut_by_hand():
    with pytest.raises(UsageError, match="config.mesh.via"):
        train(built("gan"), Layout(make_mesh(8), via="shard_map"))
    with pytest.raises(UsageError, match="config.mesh.via"):
        Layout(make_mesh(4, 2), via="pmap")


@pytest.mark.parametrize("bad", [dict(exchange="sing"), dict(reduce="int8"), dict(via="xmap")])
def test_layouts_that_there_are_not_are_refused(bad):
    with pytest.raises(UsageError, match=f"config.mesh.{next(iter(bad))}"):
        Layout(make_mesh(8), **bad)


def test_heads_that_devices_cannot_share_are_refused():
    with pytest.raises(UsageError, match="config.mesh.tensor"):
        train(parts("dit", "model.heads=2"), Layout(make_mesh(1, 1, 8)))


@pytest.mark.parametrize(
    ("reduce", "kind"), [("float32", "f32"), ("bfloat16", "bf16"), (None, "bf16")]
)
def test_gradients_of_blocks_cross_in_the_dtype_asked_for(reduce, kind):
    """Read off the program: the type of every reduce-scatter (of weights that `fsdp` cuts)."""
    run_parts = parts("dit", "model.dtype=bfloat16")
    layout = Layout(make_mesh(1, 8), reduce=reduce)
    method = run_parts.method
    state = jax.eval_shape(method.init, jax.random.key(0))
    shardings = state_sharding(layout.mesh, state)
    batch = {
        "image": jax.ShapeDtypeStruct((BATCH, 8, 8, 1), np.uint8),
        "label": jax.ShapeDtypeStruct((BATCH,), np.int32),
    }
    tally = empty_tally(method, state, batch)
    step = jitted_step(method, layout, shardings)
    text = step.lower(state, tally, batch, jax.random.key(0)).as_text()
    # One layer's kernels are matrices; vectors (biases, norms) stay in float32.
    after = text.split('"stablehlo.reduce_scatter"')[1:]
    operands = [re.search(r"\}\) : \(tensor<([\dx]+)x(\w+)>\)", each) for each in after]
    kernels = [each[2] for each in operands if each is not None and each[1].count("x") == 1]
    assert len(kernels) >= 4 and set(kernels) == {kind}
