"""Directional tuning: by hand, of the layers that are named, from the same latents."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.errors import UsageError
from jaxgen.tune.directional import GROUP, directional
from tests.nn_kit import quick_jit, random_like
from tests.unlearn.test_redact import gan

MIXING = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3)), jnp.float32)
TOWARDS = np.array([1.0, -2.0]) @ np.asarray(MIXING)
BATCH = {"label": jnp.arange(16) % 3}


def encode(x):
    return x @ MIXING


def made(base=None, **options):
    base = base or gan()
    told = dict(spec=base.spec, encoder=encode, direction=TOWARDS) | options
    return directional(base, **told)


def test_the_loss_by_hand():
    """The same latents on both sides: a change of the last bias moves all by as much."""
    method = made(gan(squash=False), match=r"generator\.out\.bias$")
    params = random_like(jax.eval_shape(method.init, jax.random.key(0)).params, 0.5)
    assert set(params[GROUP]["generator"]) == {"out"}
    shift = params[GROUP]["generator"]["out"]["bias"]
    batch = {**BATCH, "index": jnp.arange(16), "microbatch": jnp.int32(0)}
    value, _ = method.loss({**params, "frozen": method.frozen}, batch, jax.random.key(1), ())
    moved = np.asarray(shift @ MIXING, np.float64)
    cosine = moved @ TOWARDS / np.linalg.norm(moved) / np.linalg.norm(TOWARDS)
    np.testing.assert_allclose(value, 1 - cosine, rtol=1e-4)


def test_layers_that_are_not_named_keep_their_bits_and_samples_move_the_way():
    base = gan(squash=False)
    method = made(base, match=r"^generator\.out\.")
    state = quick_jit(method.init)(jax.random.key(0))
    step = lambda s, n: (method.update(s, BATCH, jax.random.key(n))[0], None)
    after = jax.jit(lambda s: jax.lax.scan(step, s, jnp.arange(300))[0])(state)
    for name, group in state.params.items():
        if name != GROUP:
            jax.tree.map(np.testing.assert_array_equal, after.params[name], group)
    keys, labels = jax.random.split(jax.random.key(5), 50), jnp.arange(50) % 3
    one, two = (m.sampler().fn(after.params, keys, labels) for m in (base, method))
    off = np.asarray(encode(two - one), np.float64)
    cosine = off @ TOWARDS / np.linalg.norm(off, axis=1) / np.linalg.norm(TOWARDS)
    assert cosine.min() > 0.99


def test_a_direction_is_read_from_a_file(tmp_path):
    np.save(tmp_path / "a.npy", np.array(TOWARDS))
    params = random_like(jax.eval_shape(made().init, jax.random.key(0)).params, 0.5)
    batch = {**BATCH, "index": jnp.arange(16), "microbatch": jnp.int32(0)}
    values = [
        m.loss({**params, "frozen": m.frozen}, batch, jax.random.key(1), ())[0]
        for m in (made(), made(direction=str(tmp_path / "a.npy")))
    ]
    assert values[0] == values[1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(match="nothing"), r"generator\.out\.kernel"),
        (dict(direction=(1.0, 2.0)), "2 numbers.*3 numbers"),
        (dict(direction=(0.0, 0.0, 0.0)), "not 0"),
        (dict(direction="nowhere.npy"), "a .npy file"),
        (dict(base=dataclasses.replace(gan(), sampler=None)), "a method that generates"),
    ],
)
def test_bad_input_is_named(options, words):
    with pytest.raises(UsageError, match=words):
        made(**options)
