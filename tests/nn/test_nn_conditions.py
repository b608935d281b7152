"""What networks are told: every kind of condition, several at once, none, on every backbone."""

import functools
import importlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen.errors import UsageError
from jaxgen.mesh import Layout, using
from jaxgen.nn.conditions import SHAPES, Condition, Embedding, changed, embed
from jaxgen.nn.dit import DiT
from jaxgen.nn.edm2 import EDM2
from jaxgen.nn.exits import ExitMLP
from jaxgen.nn.masked_dit import MaskedDiT
from jaxgen.nn.mlp import MLP
from jaxgen.nn.unet import ADM, NCSNpp, UNet
from jaxgen.nn.uvit import UViT
from jaxgen.training.sharding import make_mesh
from tests.nn_kit import abstract, inputs, live_variables, quick_jit, random_like

IMAGE = (4, 4, 2)
DECLARED = (
    ("group", "label", 3),
    ("weight", "number"),
    ("feature", "vector", 5),
    ("neighbours", "set", 4),
    ("path", "sequence", 6, 2),
    ("text", "tokens", 6, 7),
    ("picture", "image", 4, 4, 1, 2),
)
NAMES = [name for name, *_ in DECLARED]
SMALL_UNET = dict(channels=8, multipliers=(1, 2), blocks=1, attention_sizes=(2,))
SMALL_DIT = dict(depth=2, width=16, heads=2, patch=2)
BACKBONES = {
    "dit": DiT(4, 2, **SMALL_DIT),
    "masked_dit": MaskedDiT(4, 2, **SMALL_DIT, decoder_depth=1, decoder_width=16, decoder_heads=2),
    "uvit": UViT(4, 2, **{**SMALL_DIT, "depth": 3}),
    "mlp": MLP(4, 2, width=16, depth=1),
    "exits": ExitMLP(4, 2, width=16, depth=2),
    "unet": UNet(4, 2, **SMALL_UNET),
    "ncsnpp": NCSNpp(4, 2, **SMALL_UNET),
    "adm": ADM(4, 2, **SMALL_UNET, head_channels=8),
    "edm2": EDM2(4, 2, **SMALL_UNET, head_channels=8),
}
TABLES = {
    "mlp": (("labels", "embedding"), (5, 16)),
    "unet": (("labels", "kernel"), (4, 8)),
    "ncsnpp": (("labels", "kernel"), (4, 16)),
    "adm": (("labels", "kernel"), (4, 32)),
    "edm2": (("labels", "kernel"), (4, 16)),
}
"""Where label embeddings were before there were other conditions; else as the MLP's."""


def values(size, seed=0):
    """Something of every kind, for so many examples."""
    rng = np.random.default_rng(seed)
    own = lambda *shape: jnp.asarray(rng.normal(size=(size, *shape)), jnp.float32)
    number = lambda top, *shape: jnp.asarray(rng.integers(0, top, (size, *shape)), jnp.int32)
    return {
        "label": number(4), "group": number(3), "weight": own(), "feature": own(5),
        "neighbours": own(3, 4), "path": own(6, 2), "text": number(7, 6), "picture": own(4, 4, 1),
    }  # fmt: skip


def none(a):
    return jnp.full_like(a, -1 if jnp.issubdtype(a.dtype, jnp.integer) else jnp.nan)


@pytest.mark.parametrize("name", BACKBONES)
def test_plain_labels_run_the_program_that_they_ran(name, monkeypatch):
    """The same parameters and, operation by operation, the label table and nothing else."""
    module, args = BACKBONES[name], inputs(IMAGE)
    variables = abstract(module, IMAGE)
    path, shape = TABLES.get(name, TABLES["mlp"])
    assert functools.reduce(lambda tree, key: tree[key], path, variables["params"]).shape == shape
    assert "conditions" not in variables["params"]
    own = str(jax.make_jaxpr(module.apply)(variables, *args))
    for file in ("dit", "edm2", "exits", "long_skips", "mlp", "stages", "unet"):
        plain = lambda condition, table, *_, **options: table(condition)
        monkeypatch.setattr(importlib.import_module(f"jaxgen.nn.{file}"), "embed", plain)
    assert own == str(jax.make_jaxpr(module.apply)(variables, *args))


@pytest.mark.parametrize("name", ["dit", "masked_dit", "uvit", "mlp", "exits", "ncsnpp", "edm2"])
def test_every_backbone_is_told_every_kind(name):
    """Each leaves its mark; none of any is what is left out; a change reaches what is embedded."""
    module = BACKBONES[name].clone(conditions=DECLARED)
    size = len(NAMES) + 3
    x, noise = (jnp.broadcast_to(a[:1], (size, *a.shape[1:])) for a in inputs(IMAGE)[:2])
    told = {k: jnp.broadcast_to(a, (size, *a.shape[1:])) for k, a in values(1).items()}
    # Example 0 has all of them, one more lacks each in turn, and the last has none.
    lacking = {k: a.at[n + 1].set(none(a[0])) for n, (k, a) in enumerate(told.items())}
    lacking = {k: a.at[-1].set(none(a[0])) for k, a in lacking.items()}
    variables = live_variables(module, IMAGE, 0.5)

    def outputs(variables):
        apply = functools.partial(module.apply, variables, x, noise)
        first = lambda y: jnp.broadcast_to(y[:1], y.shape)
        return apply(lacking), apply({}), apply(jnp.full(size, 4)), apply(changed(lacking, first))

    out, without, no_label, alike = quick_jit(outputs)(variables)
    gaps = np.abs(out - out[0]).reshape(size, -1).max(1)
    assert (gaps[1:] > 1e-3).all(), dict(zip(told, gaps[1:], strict=False))
    for other in (without, no_label):
        np.testing.assert_allclose(other, jnp.broadcast_to(out[-1], out.shape), atol=1e-5)
    np.testing.assert_allclose(alike, jnp.broadcast_to(out[0], out.shape), atol=1e-5)


class Told(nn.Module):
    """The embedding alone, with a table of labels like a network's."""

    preserving: bool
    width: int = 32
    conditions: tuple = DECLARED

    @nn.compact
    def __call__(self, condition, size):
        table = nn.Embed(5, self.width, name="labels")
        options = dict(width=self.width, dtype=jnp.float32, preserving=self.preserving)
        return embed(condition, table, self.conditions, size, **options)


@pytest.mark.parametrize("preserving", [False, True])
def test_at_first_conditions_add_nothing(preserving):
    """So a network that is given more to know starts as the one that it was."""
    module, told = Told(preserving), values(6)
    variables = quick_jit(module.init, static_argnums=2)(jax.random.key(0), told, 6)
    out = quick_jit(module.apply, static_argnums=2)(variables, told, 6)
    np.testing.assert_array_equal(out, variables["params"]["labels"]["embedding"][told["label"]])


def encode(name, preserving):
    kind, *sizes = dict((n, spec) for n, *spec in DECLARED)[name]
    module = Embedding(kind, tuple(sizes), 64, jnp.float32, preserving)
    params = jax.eval_shape(module.init, jax.random.key(0), values(2)[name])
    return functools.partial(quick_jit(module.apply), random_like(params, 1.0))


@pytest.mark.parametrize("preserving", [False, True])
def test_order_matters_in_sequences_and_not_in_sets(preserving):
    told = values(6)
    for name, ordered in (("neighbours", False), ("path", True), ("text", True)):
        run = encode(name, preserving)
        gap = jnp.abs(run(told[name]) - run(told[name][:, ::-1])).max()
        assert gap > 0.1 if ordered else gap < 1e-4, name


def test_rows_that_are_missing_are_left_out():
    run, sets = encode("neighbours", False), values(6)["neighbours"]
    holes = jnp.concatenate([sets, sets], axis=1).at[:, 3:].set(jnp.nan)
    np.testing.assert_allclose(run(holes), run(sets), atol=1e-5)
    run, words = encode("text", False), values(6)["text"]
    assert jnp.abs(run(words.at[:, 4:].set(-1)) - run(words)).max() > 0.1


def test_magnitudes_are_kept():
    """Of encodings, of what stands for none, and of the sum with the label's: mean square 1."""
    told = values(400)
    for name in NAMES[1:]:
        run = encode(name, True)
        for value in (told[name], none(told[name])):
            assert 0.8 < jnp.square(run(value)).mean() < 1.25, name
    module = Told(True, width=256)
    params = random_like(jax.eval_shape(functools.partial(module.init, size=400),
                                        jax.random.key(0), told), 1.0)  # fmt: skip
    out = quick_jit(module.apply, static_argnums=2)(params, told, 400)
    assert 0.85 < jnp.square(out).mean() < 1.18


@pytest.mark.parametrize("preserving", [False, True])
def test_gradients_are_finite_where_nothing_is_told(preserving):
    module, told = Told(preserving), values(4)
    told = {k: a.at[:2].set(none(a[:2])) for k, a in told.items()}
    params = random_like(jax.eval_shape(functools.partial(module.init, size=4),
                                        jax.random.key(0), told), 1.0)  # fmt: skip

    def loss(params):
        return jnp.sin(module.apply(params, told, 4)).sum()

    grads = quick_jit(jax.grad(loss))(params)
    assert all(bool(jnp.isfinite(g).all() and (g != 0).any()) for g in jax.tree.leaves(grads))


def wanted(told):
    """For each kind a target of variance about 1 that the condition decides, [B, 7]."""
    words = (told["text"] == 0) * jnp.array([1, 1, 1, -1, -1, -1])
    picture = told["picture"]
    return jnp.stack([
        1.2 * (told["group"] - 1),
        jnp.sign(told["weight"]),
        told["feature"][:, 0],
        jnp.abs(told["neighbours"]).mean((1, 2)) * 6 - 4.8,
        told["path"][:, 0, 0] - told["path"][:, -1, 0],
        words.sum(1) * 1.2,
        2 * (picture[:, :2, :2].mean((1, 2, 3)) - picture[:, 2:, 2:].mean((1, 2, 3))),
    ], axis=1)  # fmt: skip


@pytest.mark.parametrize("preserving", [False, True])
def test_each_kind_is_learned_below_the_floor_of_not_knowing(preserving):
    """The floor is the target's variance, which is all that a network without it can reach."""

    class Reader(nn.Module):
        @nn.compact
        def __call__(self, told):
            return nn.Dense(len(NAMES))(Told(preserving, width=64)(told, 256))

    module, adam = Reader(), optax.adam(1e-2)

    def draw(key):
        keys = dict(zip(["label", *NAMES], jax.random.split(key, len(NAMES) + 1), strict=True))
        normal = lambda name, *shape: jax.random.normal(keys[name], (256, *shape))
        whole = lambda name, top, *shape: jax.random.randint(keys[name], (256, *shape), 0, top)
        return {
            "label": whole("label", 4), "group": whole("group", 3), "weight": normal("weight"),
            "feature": normal("feature", 5), "neighbours": normal("neighbours", 3, 4),
            "path": normal("path", 6, 2), "text": whole("text", 7, 6),
            "picture": normal("picture", 4, 4, 1),
        }  # fmt: skip

    def errors(params, told):
        return jnp.square(module.apply(params, told) - wanted(told)).mean(0)

    def step(carry, key):
        params, state = carry
        grads = jax.grad(lambda p: errors(p, draw(key)).sum())(params)
        updates, state = adam.update(grads, state)
        return (optax.apply_updates(params, updates), state), None

    def fit(key):
        told = draw(key)
        params = module.init(key, told)
        (params, _), _ = jax.lax.scan(step, (params, adam.init(params)), jax.random.split(key, 300))
        return errors(params, told), wanted(told).var(0)

    error, floor = jax.jit(fit)(jax.random.key(0))
    shares = dict(zip(NAMES, (error / floor).tolist(), strict=True))
    assert max(shares.values()) < 0.25, shares


def test_many_conditions_are_the_same_on_a_mesh():
    """Cut over data, fsdp and tensor: the output and the gradient of one device."""
    module, told = BACKBONES["dit"].clone(conditions=DECLARED), values(8)
    told = {k: a.at[:3].set(none(a[:3])) for k, a in told.items()}
    x, noise, _ = inputs(IMAGE, 8)
    variables = live_variables(module, IMAGE, 0.3)

    def loss(variables, x, noise, told):
        out = module.apply(variables, x, noise, told)
        return jnp.square(out).mean(), out

    found = []
    for shape in (None, (2, 2, 1, 2)):
        with using(None if shape is None else Layout(make_mesh(*shape))):
            run = quick_jit(lambda *a: jax.value_and_grad(loss, has_aux=True)(*a))
            found.append(run(variables, x, noise, told))
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5 * np.abs(a).max())


WRONG = [
    ((("label", "number"),), {}, "model.conditions: got 'label'; allowed: other names"),
    ((("w", "numbers"),), {}, "Did you mean 'number'"),
    ((("w", "vector"),), {}, r"model.conditions: got \('w', 'vector'\); allowed: vector with"),
    ((("w", "image", 4, 4, 1, 3),), {}, "a patch that divides the image"),
    (DECLARED, {"wieght": jnp.zeros(2)}, "condition: got 'wieght'.*Did you mean 'weight'"),
    (DECLARED, {"weight": jnp.zeros((2, 1))}, r"condition.weight: got 'float32 \(2, 1\)'"),
    (DECLARED, {"group": jnp.zeros(2)}, r"condition.group: got .* allowed: int \(2,\)"),
    (DECLARED, {"neighbours": jnp.zeros((2, 3, 5))}, r"allowed: float \(2, 1, 4\)"),
]


@pytest.mark.parametrize("declared, told, message", WRONG, ids=range(len(WRONG)))
def test_what_is_not_declared_is_an_error(declared, told, message):
    module = Told(False, conditions=declared)
    with pytest.raises(UsageError, match=message):
        jax.eval_shape(functools.partial(module.init, size=2), jax.random.key(0), told)


def test_every_kind_is_tested_and_changes_follow_each_other():
    assert {kind for _, kind, *_ in DECLARED} == set(SHAPES)
    condition = changed(changed(jnp.zeros(2), lambda y: y + 1), lambda y: 3 * y)
    assert isinstance(condition, Condition) and condition.change(1) == 6
