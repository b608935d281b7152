"""A control branch: nothing at first, trained alone, a copy of what it controls."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.tune.class_embedding_tuning import Generator
from jaxgen import config as configs
from jaxgen.api import train
from jaxgen.errors import UsageError
from jaxgen.families.diffusion import denoising
from jaxgen.method import Spec
from jaxgen.method.columns import Column
from jaxgen.nn.control import controlled
from jaxgen.nn.mlp import MLP
from jaxgen.run import start
from jaxgen.run.model import load
from jaxgen.training.ema import Averages
from jaxgen.tune.control import control
from tests.base_run import config, write
from tests.nn_kit import live_params, quick_jit

SPEC = Spec((4, 4, 1), 2, levels=None, columns={"edges": Column((4, 4, 2), "float32")})
KEY = jax.random.key(1)
KEYS, LABELS = jax.random.split(KEY, 6), jnp.arange(6) % 2
HINTS = jax.random.normal(KEY, (6, 4, 4, 2))


def network(model=None):
    model = MLP(2, 1, width=16, depth=1) if model is None else model
    return controlled(
        model=model, column="edges", channels=2, shape=SPEC.shape, num_classes=2, out_channels=1
    )


def plain():
    net = MLP(2, 1, width=16, depth=1)
    return denoising(SPEC, net, optax.adam(1e-2), Averages((100,)), label_dropout=0.2)


def made():
    return control(
        denoising(SPEC, network(), optax.adam(1e-2), Averages((100,)), label_dropout=0.2)
    )


@pytest.fixture(scope="module")
def begun():
    """(the base's parameters, the wrapped method, its state started from them)."""
    base, method = plain(), made()
    params = live_params(base)
    patch = pytest.MonkeyPatch()
    patch.setattr(start, "source_of", lambda *_: (params, "there", ()))
    begin, _ = start.initial(method, start.StartOptions(workdir="there"))
    patch.undo()
    return params, method, begin(quick_jit(method.init)(KEY))


def drawn(method, params, condition):
    return quick_jit(method.sampler(solver="euler", steps=3, guidance=1.5).fn)(
        params, KEYS, condition
    )


def test_at_first_it_is_the_model_to_the_bit_whatever_it_is_told(begun):
    params, method, state = begun
    wanted = drawn(plain(), params, LABELS)
    np.testing.assert_array_equal(drawn(method, state.params, LABELS), wanted)
    told = {"label": LABELS, "edges": HINTS}
    np.testing.assert_array_equal(drawn(method, state.params, told), wanted)
    jax.tree.map(np.testing.assert_array_equal, state.params["branch"], params["net"])
    assert set(state.ema["half_life_100"]) == {"branch", "control"}


def test_the_branch_alone_is_trained_and_then_the_image_counts(begun):
    params, method, state = begun
    batch = {"image": HINTS[..., :1], "label": LABELS, "edges": HINTS}
    for n in range(2):
        state, metrics = jax.jit(method.update)(state, batch, jax.random.key(n))
        assert metrics["grad_norm"] > 0
    jax.tree.map(np.testing.assert_array_equal, state.params["net"], params["net"])
    told = {"label": LABELS, "edges": HINTS}
    one = drawn(method, state.params, told)
    two = drawn(method, state.params, told | {"edges": HINTS.at[0].add(1.0)})
    moved = jnp.abs(one - two).reshape(6, -1).max(1)
    assert moved[0] > 0 and (moved[1:] == 0).all()
    # Not told, it is the model as it was.
    nothing = told | {"edges": jnp.full_like(HINTS, jnp.nan)}
    wanted = drawn(plain(), params, LABELS)
    np.testing.assert_array_equal(drawn(method, state.params, nothing), wanted)


def test_it_is_controlnets_equation():
    net = network()
    x, t = HINTS[..., :1], jnp.linspace(0.1, 0.9, 6)
    variables = net.init(KEY, x, t, LABELS)
    params = jax.tree.map(lambda a: a + 0.1 * jax.random.normal(KEY, a.shape), variables["params"])
    found = net.apply({"params": params}, x, t, {"label": LABELS, "edges": HINTS})
    model, parts = MLP(2, 1, width=16, depth=1), params["control"]
    told = model.clone(conditions=net.conditions)
    own = {k: v for k, v in params.items() if k != "control"}
    first = HINTS @ parts["hint"]["kernel"]
    both = {"label": LABELS, "edges": HINTS}
    branch = told.apply({"params": parts["model"]}, x + first, t, both)
    wanted = model.apply({"params": own}, x, t, LABELS) + branch @ parts["out"]["kernel"]
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_other_conditions_go_to_both(begun):
    model = MLP(2, 1, width=16, depth=1, conditions=(("w", "number"),))
    net = network(model)
    assert net.conditions == (("w", "number"), ("edges", "image", 4, 4, 2, 1))
    told = {"label": LABELS, "w": jnp.ones(6), "edges": HINTS}
    x, t = HINTS[..., :1], jnp.linspace(0.1, 0.9, 6)
    variables = net.init(KEY, x, t, told)
    assert net.apply(variables, x, t, told).shape == x.shape


def test_from_a_config():
    section = dict(
        name="control.controlled",
        model=dict(name="mlp.MLP", width=16, depth=1),
        column="edges",
        channels=2,
    )
    given = dict(shape=(4, 4, 1), num_classes=2, out_channels=1, levels=None)
    built = configs.build(section, configs.ROOMS["model"], "config.model", **given)
    assert built.model.num_classes == 2 and built.sizes == (4, 4, 2)


def test_bad_input_is_named():
    with pytest.raises(UsageError, match="control.controlled"):
        control(plain())
    with pytest.raises(UsageError, match="channels >= 1"):
        controlled(model=MLP(2, 1), column="a", channels=0, shape=(2,), num_classes=2,
                   out_channels=1)  # fmt: skip
    with pytest.raises(UsageError, match="config.model.model: got 'Generator'"):
        network(Generator())
    net, x, t = network(), HINTS[..., :1], jnp.ones(6)
    variables = net.init(KEY, x, t, LABELS)
    with pytest.raises(UsageError, match="as declared"):
        net.apply(variables, x, t, {"label": LABELS, "edges": HINTS[..., :1]})
    lacks = dataclasses.replace(SPEC, columns={})
    method = denoising(lacks, network(), optax.adam(1e-2), Averages((100,)))
    batch = {"image": x, "label": LABELS}
    with pytest.raises(UsageError, match="columns of the data"):
        jax.eval_shape(method.update, jax.eval_shape(method.init, KEY), batch, KEY)


def test_from_a_config_through_the_loop(tmp_path):
    """A consistency model of images, controlled by a column of them, by both wraps."""
    chance = np.random.default_rng(0)
    images = chance.uniform(-1, 1, (48, 8, 8, 1)).astype(np.float32)
    np.savez(tmp_path / "x.npz", images=images, labels=np.arange(48) % 2, edges=np.sign(images))
    source = dict(name="arrays.arrays", path=str(tmp_path / "x.npz"))
    wraps = [dict(name="distill.consistency", teacher=None, steps=8), "tune.control"]
    first = write(tmp_path / "first", f"data.source={source!r}")
    model = dict(name="mlp.MLP", width=24, depth=1)
    model = dict(name="control.controlled", model=model, column="edges")
    told = (f"data.source={source | dict(columns=('edges',))!r}", f"start={first}")
    train(config(*told, f"model={model!r}", f"wrap={wraps!r}", "train.images=32"), tmp_path / "run")
    before, after = load(first), load(tmp_path / "run")
    found = after.params["params"]
    jax.tree.map(np.testing.assert_array_equal, found["net"], before.params["half_life_500"]["net"])
    assert (found["control"]["out"]["kernel"] != 0).any()
    # Not told, it is the model.
    drawn = [m.sample([0, 1], seed=1, guidance=1.0).images for m in (before, after)]
    np.testing.assert_array_equal(*drawn)
