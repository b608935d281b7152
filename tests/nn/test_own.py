"""Networks of one's own: four kinds are one function, train, resume, sample and lie on meshes."""

from __future__ import annotations

import functools
import importlib
import sys

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.export import symbolic_shape
from jax.sharding import PartitionSpec

from jaxgen import config as configs
from jaxgen.data import batches, to_device
from jaxgen.errors import UsageError
from jaxgen.export.program import sampler_program
from jaxgen.families.diffusion.core.denoiser import Network
from jaxgen.families.diffusion.core.path import discrete
from jaxgen.mesh import Layout
from jaxgen.method import is_constant
from jaxgen.nn import own, placement
from jaxgen.run import start
from jaxgen.run.model import of_state
from jaxgen.run.setup import TOP, set_up, trace_own
from jaxgen.testing import check_network
from jaxgen.training.checkpoint import Checkpoints
from jaxgen.training.loop import empty_tally, make_step, read_tally
from jaxgen.training.sharding import batch_sharding, make_mesh, replicated, state_sharding
from jaxgen.training.weights import dump
from tests import own_kit, tiny
from tests.every_family import DESCENT
from tests.nn_kit import live_variables, quick_jit
from tests.own_kit import files  # noqa: F401
from tests.running import assert_same_bits, run_here
from tests.training.test_train_mesh import assert_close, assert_cut, one_device

SHAPE, CLASSES, WIDTH = (8, 8, 1), 2, 8
KINDS = {
    "linen": (own.Linen, "my_linen.Net", {}),
    "nnx": (own.NNX, "my_nnx.Net", {}),
    "equinox": (own.Equinox, "my_equinox.Net", {"channels_first": True}),
    "pure": (own.Pure, "my_pure.net", {}),
}
DRAWS = {
    "linen": (own.Linen, own_kit.LinenDraws, {}),
    "nnx": (own.NNX, own_kit.NNXDraws, {}),
    "equinox": (own.Equinox, own_kit.EquinoxDraws, {"channels_first": True}),
    "pure": (own.Pure, own_kit.pure_draws, {}),
    "stack": (own.NNX, own_kit.NNXStack, {}),
}
each_kind = pytest.mark.parametrize("kind", KINDS)
pytestmark = pytest.mark.usefixtures("files")


def section(kind, **options):
    """A config's section of a page's network."""
    adapter, name, more = KINDS[kind]
    return dict(name=f"own.{adapter.__name__}", of=dict(name=name, width=WIDTH, **options), **more)


def network(kind, **options):
    """The same, made in Python."""
    adapter, name, more = KINDS[kind]
    module, _, attribute = name.partition(".")
    of = getattr(importlib.import_module(module), attribute)
    told = dict(num_classes=CLASSES, out_channels=1, shape=SHAPE)
    return adapter(functools.partial(of, width=WIDTH, **options), **more, **told)


def batch(count=6):
    x = np.random.default_rng(0).normal(size=(count, *SHAPE)).astype(np.float32)
    return jnp.asarray(x), jnp.linspace(0.1, 0.9, count), jnp.arange(count) % (CLASSES + 1)


def setup(kind, *overrides, **options):
    """Parts of a tiny run on the digits."""
    config = tiny.get_config()
    config.model = section(kind, **options)
    configs.override(config, list(overrides), TOP)
    return set_up(config)


# One function in four kinds


def as_linen(kind, params):
    """Parameters of another kind as those of the Linen network."""
    names = flax.traverse_util.flatten_dict(params, sep=".")
    if kind == "pure":
        names = {
            ("label.embedding" if n == "label" else f"{n}.kernel"): a for n, a in names.items()
        }
    if kind == "equinox":
        turn = {"weight": "kernel", "bias": "bias"}
        names = {f"{n.split('.')[0]}.{turn[n.split('.')[1]]}": a for n, a in names.items()}
        names["label.embedding"] = names.pop("label.kernel")
        for name, array in names.items():
            if name.endswith("kernel"):  # [out, in, 3, 3], or [out, in]
                names[name] = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
            elif name.endswith("bias"):
                names[name] = array.reshape(-1)
    for name, size in {"time": WIDTH, "first": WIDTH, "last": 1}.items():
        names.setdefault(f"{name}.bias", jnp.zeros(size))
    return flax.traverse_util.unflatten_dict(names, sep=".")


@each_kind
def test_each_kind_is_the_same_function_as_the_linen_module_itself(kind):
    """Flax's own `apply` of the page's module is what all are compared with."""
    import my_linen

    variables = live_variables(network(kind), SHAPE)
    plain = my_linen.Net(CLASSES, width=WIDTH)
    expected = quick_jit(plain.apply)({"params": as_linen(kind, variables["params"])}, *batch())
    assert np.abs(expected).max() > 0.1
    found = quick_jit(network(kind).apply)(variables, *batch())
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.dtype == jnp.float32


@each_kind
def test_each_kind_has_the_laws_of_networks(kind):
    net = network(kind)
    check_network(net.apply, live_variables(net, SHAPE, 0.5), SHAPE, CLASSES)


# Training


def compiled(parts, mesh):
    """The update on a mesh."""
    out = (placed_as(parts, mesh), replicated(mesh))
    return quick_jit(make_step(parts.method, Layout(mesh)), out_shardings=out)


def steps(parts, mesh, step, state, first, last):
    """The state after steps `first` to `last`, and their metrics, on the batches of seed 0."""
    stream = to_device(batches(parts.source, batch_size=16, seed=0), batch_sharding(mesh))
    root = jax.device_put(jax.random.key(1), replicated(mesh))
    tally = None
    for number in range(last):
        batch = next(stream)
        if tally is None:
            tally = empty_tally(parts.method, jax.eval_shape(parts.method.init, root), batch)
            tally = jax.device_put(tally, replicated(mesh))
        if number >= first:
            state, tally = step(state, tally, batch, root)
    return state, read_tally(tally, last - first)


def placed_as(parts, mesh):
    return state_sharding(mesh, jax.eval_shape(parts.method.init, jax.random.key(0)))


def first(parts, mesh):
    return quick_jit(parts.method.init, out_shardings=placed_as(parts, mesh))(jax.random.key(0))


@pytest.fixture(scope="module", params=KINDS)
def trained(request, files):  # noqa: F811
    """(kind, parts, update, state, metrics) after 20 steps of plain descent with dropout."""
    parts, mesh = setup(request.param, DESCENT, dropout=0.5), one_device()
    step = compiled(parts, mesh)
    state, metrics = steps(parts, mesh, step, first(parts, mesh), 0, 20)
    return request.param, parts, step, jax.device_get(state), metrics


def test_twenty_steps_on_a_mesh_are_those_on_one_device(trained, monkeypatch):
    """Dropout's masks included."""
    monkeypatch.setattr(placement, "SMALLEST", 2**3)
    _, parts, _, expected, metrics = trained
    mesh = make_mesh(2, 2, 2)
    state, told = steps(parts, mesh, compiled(parts, mesh), first(parts, mesh), 0, 20)
    assert_cut(state.params, mesh)
    assert_close(state.params, expected.params)
    assert_close(state.ema, expected.ema)
    np.testing.assert_allclose(told["loss"], metrics["loss"], rtol=1e-4)


def test_a_restored_run_is_the_unbroken_run_bit_for_bit(trained, tmp_path):
    _, parts, update, expected, _ = trained
    mesh = one_device()
    half, _ = steps(parts, mesh, update, first(parts, mesh), 0, 10)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(10, half, {}, wait=True)
    abstract = jax.eval_shape(parts.method.init, jax.random.key(0))
    with Checkpoints(tmp_path) as checkpoints:
        step, restored, *_ = checkpoints.restore(abstract, placed_as(parts, mesh))
    assert step == 10
    found, _ = steps(parts, mesh, update, restored, 10, 20)
    assert_same_bits(jax.device_get(found), expected)


def test_a_trained_network_is_sampled_and_guided(trained):
    """One Euler step is linear in the velocity, so guidance is a line through w = 0 and w = 1."""
    kind, parts, _, state, _ = trained
    keys, labels = jax.random.split(jax.random.key(0), 4), jnp.arange(4)

    def sampled(parts, w, labels=labels):
        return parts.method.sampler(solver="euler", steps=1, guidance=w).fn(
            state.params, keys, labels
        )

    null = jnp.full(4, parts.spec.null_label)
    drawn = quick_jit(lambda: [sampled(parts, 1, null), *(sampled(parts, w) for w in (0, 1, 2))])()
    unlabelled, zero, one, two = map(np.asarray, drawn)
    assert np.abs(one - zero).max() > 1e-4
    np.testing.assert_allclose(two, zero + 2 * (one - zero), atol=1e-5)
    np.testing.assert_array_equal(zero, unlabelled)
    # w = 1 of two calls is one call's, and sampling drops nothing: bit for bit.
    for other, w in ((parts, [dict(name="cfg", weight=1.0)]), (setup(kind), 1)):
        np.testing.assert_array_equal(one, quick_jit(functools.partial(sampled, other, w))())


def test_its_sampler_is_a_program_of_any_batch(trained):
    _, parts, _, state, _ = trained
    program = sampler_program(of_state(parts, state), None, {})
    (rows,) = symbolic_shape("rows")
    numbers = [jax.ShapeDtypeStruct((rows,), kind) for kind in (np.uint32, np.int32)]
    images = jax.eval_shape(program.fn, program.params, np.uint32(0), *numbers)
    assert images.dtype == np.uint8 and images.shape == (rows, *SHAPE)


def test_guidance_that_reads_inside_of_a_network_is_refused():
    for guidance, said in (("cads", "embedding"), ("pag", "attention")):
        section = dict(name=guidance, layers=[1]) if guidance == "pag" else dict(name=guidance)
        with pytest.raises(UsageError, match=said):
            trace_own(setup("nnx", f"sample.guidance={['cfg', section]}"))


# What is drawn


def masks(kind, key):
    """The four draws [4, B * H * W] of a network in training, each 0 or 2."""
    adapter, of, more = DRAWS[kind]
    net = adapter(of, out_channels=4, **more)
    variables = net.init(jax.random.key(9), *batch())
    draw = lambda key: net.apply(variables, *batch(), train=True, rngs={"dropout": key})
    out = quick_jit(draw)(key)
    return np.asarray(out).reshape(-1, 4).T


@pytest.mark.parametrize("kind", DRAWS)
def test_every_stream_and_layer_draws_for_itself_and_again_the_same(kind):
    """Layers of dropout and streams of other names; independent: any two agree at half."""
    found = masks(kind, jax.random.key(0))
    assert set(np.unique(found)) == {0, 2}
    np.testing.assert_array_equal(found, masks(kind, jax.random.key(0)))
    rows = np.concatenate([found, masks(kind, jax.random.key(1))])
    agree = (rows[:, None] == rows[None]).mean(-1)[np.triu_indices(8, 1)]
    assert np.abs(agree - 0.5).max() < 5 * 0.5 / rows.shape[1] ** 0.5, agree


@pytest.mark.parametrize("kind", DRAWS)
def test_sampling_draws_nothing(kind):
    adapter, of, more = DRAWS[kind]
    net = adapter(of, out_channels=4, **more)
    variables = quick_jit(net.init)(jax.random.key(9), *batch())
    np.testing.assert_array_equal(net.apply(variables, *batch()), np.ones((6, 8, 8, 4)))


@pytest.mark.parametrize("kind", DRAWS)
def test_devices_that_each_hold_a_part_draw_for_their_own_examples(kind):
    """As under `mesh.via="shard_map"`; one example at a time the whole batch's draws, exactly."""
    adapter, of, more = DRAWS[kind]
    net = adapter(of, out_channels=4, **more)
    inputs = batch(8)
    variables = net.init(jax.random.key(9), *inputs)

    def draws(*inputs):
        return net.apply(variables, *inputs, train=True, rngs={"dropout": jax.random.key(0)})

    cut = PartitionSpec(("data", "fsdp"))
    mesh = make_mesh(2, 2, 1, devices=jax.devices()[:4])
    shards = jax.shard_map(draws, mesh=mesh, in_specs=cut, out_specs=cut, check_vma=False)
    parts = quick_jit(shards)(*inputs)
    if kind == "equinox":
        np.testing.assert_array_equal(parts, quick_jit(draws)(*inputs))
    each = np.asarray(parts).reshape(4, -1)
    agree = (each[:, None] == each[None]).mean(-1)[np.triu_indices(4, 1)]
    assert agree.max() < 0.7, agree


# How a network is called


@pytest.mark.parametrize(
    ("call", "told"),
    [("x, t, y", lambda t: t), ("x, 1000 * t, y", lambda t: 1000 * t),
     ("x, t=1 - t, y=y", lambda t: 1 - t), ("x, y=None, t=(t + 0.5) / 2", lambda t: t / 2 + 0.25)],
)  # fmt: skip
def test_time_is_presented_as_the_call_says(call, told):
    net = own.Pure(own_kit.times, call=call, out_channels=2)
    x, t, y = batch()
    found = net.apply(net.init(jax.random.key(0), x, t, y), x, t, y)
    np.testing.assert_allclose(found[:, 0, 0, 0], told(t), rtol=1e-6)
    assert net.time_scale == pytest.approx(told(1.0) - told(0.0))


def test_a_path_that_tells_indices_refuses_a_call_that_multiplies_them():
    net = own.Pure(own_kit.times, call="x, 1000 * t, y")
    with pytest.raises(UsageError, match="config.model.time_scale: got 1000"):
        Network(net, discrete(), "eps")


def test_a_pair_whose_init_takes_what_apply_takes():
    """A dot in a name would be two names in a file."""
    net, x, t, y = own.Pure(own_kit.like_haiku, call="key, x, t, y"), *batch()
    variables = net.init(jax.random.key(0), x, t, y)
    assert variables["params"]["linear/~/a"]["w_x"].shape == (1, 1)
    sampled = net.apply(variables, x, t, y)
    trained = net.apply(variables, x, t, y, train=True, rngs={"dropout": jax.random.key(1)})
    np.testing.assert_array_equal(trained, sampled)


def test_conditions_are_words_of_the_call_and_none_is_what_the_table_says():
    options = dict(conditions=(("angle", "number"),), out_channels=2, num_classes=CLASSES)
    net = own.Pure(own_kit.times, call="x, t, y, angle", **options)
    x, t, y = batch()
    variables = net.init(jax.random.key(0), x, t, y)
    told = net.apply(variables, x, t, {"label": y, "angle": 2 * t})
    np.testing.assert_allclose(told[:, 0, 0], np.stack([t, 2 * t], -1), rtol=1e-6)
    assert (np.asarray(net.apply(variables, x, t, y))[..., 1] == -7).all()
    with pytest.raises(UsageError, match="condition.*got 'angel'"):
        net.apply(variables, x, t, {"label": y, "angel": t})
    with pytest.raises(UsageError, match="config.model.call.*angle"):
        own.Pure(own_kit.times, **options)


def test_labels_of_a_mapping_below_zero_are_no_label():
    net = network("nnx")
    variables = live_variables(net, SHAPE)
    x, t, y = batch()
    null = net.apply(variables, x, t, jnp.full_like(y, CLASSES))
    np.testing.assert_array_equal(net.apply(variables, x, t, {"label": jnp.full_like(y, -1)}), null)
    np.testing.assert_array_equal(net.apply(variables, x, t, {}), null)


# Parameters


def test_parameters_are_float32_and_the_network_has_its_own_dtype():
    """A pair whose parameters are bfloat16: kept in float32, handed over as they were made."""
    net = own.Pure(
        lambda: ((lambda key: [jnp.ones((), jnp.bfloat16)]), lambda p, x, t, y: p[0] * x)
    )
    variables = net.init(jax.random.key(0), *batch())
    assert variables["params"]["0"].dtype == jnp.float32
    low = net.apply(variables, jnp.ones((1, *SHAPE), jnp.bfloat16), jnp.ones(1), jnp.zeros(1))
    assert low.dtype == jnp.float32


def test_an_existing_network_is_started_from_and_handed_back(files, tmp_path):  # noqa: F811
    import my_nnx

    made = my_nnx.Net(10, SHAPE, WIDTH, rngs=nnx.Rngs(5))
    (tmp_path / "mine.safetensors").write_bytes(dump({"net": own.parameters(made)}))
    parts = setup("nnx", f"start={dict(file=str(tmp_path / 'mine.safetensors'))}")
    initial, _ = start.initial(parts.method, parts.start, parts.spec.classes)
    params = initial(first(parts, one_device())).params["net"]
    back = own.filled(my_nnx.Net(10, SHAPE, WIDTH, rngs=nnx.Rngs(6)), params)
    x, t, y = batch()
    np.testing.assert_array_equal(back(x, t, y), made(x, t, y))
    with pytest.raises(UsageError, match="parameter first.bias: got None"):
        own.filled(made, {})


def test_constants_of_an_nnx_module_are_the_runs_and_not_trained():
    net = own.NNX(own_kit.Constants)
    one, two = (net.init(jax.random.key(seed), *batch())["params"] for seed in (0, 1))
    assert (one["constants"]["random"] != two["constants"]["random"]).all()
    np.testing.assert_array_equal(one["constants"]["even"], np.arange(3.0))
    paths = jax.tree_util.tree_leaves_with_path({"net": one})
    assert sum(is_constant(path) for path, _ in paths) == 2 < len(paths)
    shifted = {**one, "constants": {**one["constants"], "random": one["constants"]["random"] + 1}}
    apply = quick_jit(lambda params: net.apply({"params": params}, *batch()))
    np.testing.assert_allclose(apply(shifted) - apply(one), 3.0, rtol=1e-5)


def test_an_equinox_module_trains_its_jax_arrays_of_floats():
    """Others are constants of the program."""
    net = own.Equinox(own_kit.EquinoxConstants)
    variables = net.init(jax.random.key(0), *batch())
    assert own.parameters(own_kit.EquinoxConstants()).keys() == variables["params"].keys() == {"w"}
    x, t, y = batch()
    np.testing.assert_allclose(net.apply(variables, x, t, y), x + 3.5, rtol=1e-6)


@pytest.mark.parametrize("kind", ["linen", "nnx", "pure"])
def test_a_network_of_one_example_is_mapped_over_the_batch(kind):
    """With channels first; and each example draws for itself."""
    adapter = {"linen": own.Linen, "nnx": own.NNX, "pure": own.Pure}[kind]
    net = adapter(getattr(own_kit, f"{kind}_alone"), per_example=True, channels_first=True)
    x, t, y = batch()
    variables = quick_jit(net.init)(jax.random.key(0), x, t, y)
    apply = functools.partial(net.apply, variables, train=True, rngs={"dropout": jax.random.key(1)})
    draws = np.asarray(quick_jit(apply)(jnp.ones_like(x), 0 * t, y)).reshape(6, -1)
    assert set(np.unique(draws)) == {0, 2}
    assert len({row.tobytes() for row in draws}) == 6
    found = quick_jit(net.apply)(variables, x, t, y)
    np.testing.assert_allclose(found, x + t[:, None, None, None], rtol=1e-6)


# Bad input

HERE = "tests.own_kit"
BAD = {
    "statistics in NNX": (
        dict(name="own.NNX", of=f"{HERE}.NNXNorm"),
        "norm.mean (BatchStat), norm.var (BatchStat)",
    ),
    "an NNX class itself": (f"{HERE}.NNXNorm", "norm.mean (BatchStat)"),
    "statistics in Linen": (
        dict(name="own.Linen", of=f"{HERE}.LinenNorm"),
        "batch_stats.norm.mean",
    ),
    "statistics in Equinox": (
        dict(name="own.Equinox", of=f"{HERE}.EquinoxNorm"),
        "norm.batch_state_index",
    ),
    "a count in a pair": (dict(name="own.Pure", of=f"{HERE}.counted"), "got 'seen'"),
    "no parameters": (dict(name="own.Pure", of=f"{HERE}.nothing"), "without parameters"),
    "another shape": (
        dict(name="own.Pure", of=f"{HERE}.halved"),
        "got 'an output of (1, 4, 4, 1)'; allowed: an array (1, 8, 8, 1)",
    ),
    "code that fails": (dict(name="own.Pure", of=f"{HERE}.broken"), "own_kit.py:"),
    "another kind": (dict(name="own.Linen", of=f"{HERE}.nothing"), "flax.linen"),
    "no pair": (dict(name="own.Pure", of=f"{HERE}.LinenNorm"), "a pair (init, apply)"),
    "no such network": (dict(name="own.NNX", of=f"{HERE}.NNXNrm"), "Did you mean"),
    "no such keyword": (
        dict(name="own.NNX", of=dict(name=f"{HERE}.Constants", widht=3)),
        "config.model.of.widht",
    ),
    "what the run supplies": (
        dict(name="own.Linen", of=dict(name="my_linen.Net", num_classes=3)),
        "config.model.of.num_classes",
    ),
    "no section": (dict(name="own.NNX", of=3), "config.model.of: got 3"),
    "a call that is none": (
        dict(name="own.Pure", of=f"{HERE}.halved", call="x, time, y"),
        "config.model.call: got 'x, time, y'; allowed: x, t, y, key, train and",
    ),
    "a call that does more": (
        dict(name="own.Pure", of=f"{HERE}.nothing", call="x, open('a'), y"),
        "config.model.call",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_message_before_the_run(case, tmp_path):
    model, said = BAD[case]
    words = ["train", "--config", "tests/tiny.py", "--workdir", str(tmp_path / "run")]
    code, _, err = run_here(*words, f"--config.model={model!r}")
    assert code == 2 and len(err.strip().splitlines()) == 1, err
    assert said in err, err
    assert not (tmp_path / "run").exists()


def test_equinox_is_only_asked_for_where_it_is_used(monkeypatch):
    net = network("equinox")
    monkeypatch.setitem(sys.modules, "equinox", None)
    with pytest.raises(UsageError, match=r"jaxgen\[equinox\]"):
        net.init(jax.random.key(0), *batch())
    network("nnx").init(jax.random.key(0), *batch())


def test_a_class_named_by_itself_is_the_adapters(files):  # noqa: F811
    import my_equinox
    import my_linen
    import my_nnx

    assert own.adapted("a", my_nnx.Net) == {"name": "own.NNX", "of": "a"}
    assert own.adapted("a", my_equinox.Net) == {"name": "own.Equinox", "of": "a"}
    assert own.adapted("a", my_linen.Net) == "a"


def test_a_loaded_config_names_no_code_of_an_adapter():
    for name in ("nnx", "equinox"):
        with configs.foreign(()), pytest.raises(UsageError, match="config.model.of.*--trust my_"):
            KINDS[name][0](section(name)["of"])
    with configs.foreign(("my_nnx",)):
        own.NNX(section("nnx")["of"])
