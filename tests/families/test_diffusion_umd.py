"""A masked DiT reads only what it sees; its method trains in both kinds of steps and samples."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen import testing
from jaxgen.errors import UsageError
from jaxgen.families.diffusion import masked_denoising
from jaxgen.families.diffusion.methods.masked import divided, patch_mean, visible_patches
from jaxgen.method import Spec
from jaxgen.nn.masked_dit import MaskedDiT
from jaxgen.nn.mlp import MLP
from jaxgen.training.ema import Averages
from tests.nn_kit import inputs, live_variables, quick_jit

SPEC = Spec((4, 6, 2), 3)
NET = MaskedDiT(
    num_classes=3,
    out_channels=2,
    depth=1,
    width=16,
    heads=2,
    decoder_depth=1,
    decoder_width=8,
    decoder_heads=2,
    remat="none",
    scan=False,
)
VISIBLE = jnp.array([[0, 4], [5, 2], [1, 3]])  # of six patches, two rows of three


@functools.cache
def live():
    return live_variables(NET, SPEC.shape)


@functools.cache
def run(method="__call__"):
    call = functools.partial(NET.apply, live(), method=method)
    return quick_jit(lambda x, visible: call(x, *inputs(SPEC.shape)[1:], visible=visible))


def place(patch):
    """The pixels of a patch."""
    row, column = divmod(int(patch), 3)
    return slice(2 * row, 2 * row + 2), slice(2 * column, 2 * column + 2)


def test_features_and_output_have_their_shapes():
    x = inputs(SPEC.shape)[0]
    assert run()(x, None).shape == run()(x, VISIBLE).shape == x.shape
    assert run("features")(x, None).shape == (3, 6, 16)
    assert run("features")(x, VISIBLE).shape == (3, 2, 16)


def test_what_a_masked_patch_holds_changes_nothing():
    x = np.array(inputs(SPEC.shape)[0])
    before = run("features")(x, VISIBLE), run()(x, VISIBLE)
    for n in range(3):
        for patch in set(range(6)) - set(np.asarray(VISIBLE[n]).tolist()):
            x[n][place(patch)] = 1e6
    np.testing.assert_array_equal(run("features")(x, VISIBLE), before[0])
    np.testing.assert_array_equal(run()(x, VISIBLE), before[1])
    x[0][place(VISIBLE[0, 0])] += 1.0
    assert np.abs(run()(x, VISIBLE) - before[1])[0].max() > 1e-3


def test_tokens_of_visible_patches_stand_where_the_patches_are():
    """In any order; and all patches given are all patches."""
    x = inputs(SPEC.shape)[0]
    np.testing.assert_allclose(run()(x, VISIBLE[:, ::-1]), run()(x, VISIBLE), atol=1e-4)
    every = jnp.broadcast_to(jnp.arange(6), (3, 6))
    np.testing.assert_allclose(run()(x, every[:, ::-1]), run()(x, None), atol=1e-4)
    # Without blocks' attention a mask token knows only its place: the same in every image.
    params = live()["params"]
    cut = jax.tree.map(jnp.zeros_like, params["decoder"]["blocks"])
    same = {**params, "decoder": {**params["decoder"], "blocks": cut}}
    noise, labels = jnp.zeros(3), jnp.zeros(3, jnp.int32)
    visible = jnp.array([[0, 4], [5, 4], [1, 4]])
    apply = quick_jit(functools.partial(NET.apply, visible=visible))
    out = np.asarray(apply({"params": same}, x, noise, labels))
    for patch in (2, 3):
        np.testing.assert_allclose(out[0][place(patch)], out[1][place(patch)], atol=1e-5)
    assert np.abs(out[0][place(2)] - out[0][place(3)]).max() > 1e-3
    assert np.abs(out[0][place(4)] - out[1][place(4)]).max() > 1e-3


def test_visible_patches_are_uniform_sorted_and_each_from_its_key():
    keys = jax.random.split(jax.random.key(0), 2000)
    found = np.asarray(visible_patches(keys, 6, 2))
    assert (found[:, 0] < found[:, 1]).all() and found.min() == 0 and found.max() == 5
    # A count of 2000 draws with chance 1/3, within four standard deviations.
    counts = np.bincount(found.ravel(), minlength=6)
    assert np.abs(counts - 2000 / 3).max() < 4 * (2000 * 2 / 9) ** 0.5
    np.testing.assert_array_equal(visible_patches(keys[5:6], 6, 2)[0], found[5])


def test_a_mean_over_patches_is_that_of_their_pixels():
    a = inputs(SPEC.shape)[0]
    chosen = jnp.zeros((3, 6), bool).at[jnp.arange(3)[:, None], VISIBLE].set(True)
    for n in range(3):
        both = [a[n][place(p)].mean() for p in VISIBLE[n]]
        np.testing.assert_allclose(patch_mean(a, chosen, 2)[n], np.mean(both), rtol=1e-5)


@pytest.mark.parametrize("count", [0, 3, 4, 12])
def test_a_batch_is_divided_evenly(count):
    first, rest = divided({"a": jnp.arange(12)}, count)
    assert len(first["a"]) == count
    assert sorted([*first["a"].tolist(), *rest["a"].tolist()]) == list(range(12))
    if count == 4:
        assert first["a"].tolist() == [0, 3, 6, 9]


def built(net=NET, **options):
    return masked_denoising(SPEC, net, optax.sgd(0.1), Averages((100,)), **options)


def test_it_trains_and_samples_each_image_from_its_key():
    m = built()
    state = quick_jit(m.init)(jax.random.key(0)).replace(params={"net": live()["params"]})
    batch = {"image": jax.random.normal(jax.random.key(1), (8, *SPEC.shape))}
    batch["label"] = jnp.arange(8) % 3
    after, metrics = quick_jit(m.update)(state, batch, jax.random.key(2))
    assert all(np.isfinite(v) for v in metrics.values())
    # As many examples of both kinds: half each.
    both = 0.5 * (metrics["mse"] + metrics["mse_masked"] + metrics["mse_representation"])
    np.testing.assert_allclose(metrics["loss"], both, rtol=1e-5)
    changed = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.params, after.params)
    assert all(np.isfinite(v) for v in jax.tree.leaves(changed))
    assert changed["net"]["decoder"]["mask"] > 1e-6
    sampler = m.sampler(steps=2, solver="euler", guidance=2.0)
    assert sampler.calls == 4 and not m.separable
    testing.check_sampler(jax.jit(sampler.fn), after.params, jnp.arange(4) % 3, atol=1e-4)
    # Microbatches of any times: the same state and metrics, by their shapes.
    parts = built(accumulate=2, times="by_loss")
    abstract = jax.eval_shape(parts.init, jax.random.key(0))
    again, more = jax.eval_shape(parts.update, abstract, batch, jax.random.key(2))
    assert jax.tree.leaves(again) == jax.tree.leaves(abstract) and set(more) == set(metrics)


@pytest.mark.parametrize(
    "call",
    [
        lambda: built(representation=1.5),
        lambda: built(representation_mask=1.0),
        lambda: built(representation_mask=0.05),
        lambda: built(mask=-0.1),
        lambda: built(mask=0.95),
        lambda: built(reconstruction=-1.0),
        lambda: built(MLP(num_classes=3, out_channels=2)),
        lambda: jax.eval_shape(NET.clone(rope=True).init, jax.random.key(0), *inputs(SPEC.shape)),
        lambda: jax.eval_shape(
            NET.clone(decoder_width=12).init, jax.random.key(0), *inputs(SPEC.shape)
        ),
        lambda: jax.eval_shape(
            built(representation=0.2).update,
            jax.eval_shape(built().init, jax.random.key(0)),
            {"image": jnp.zeros((2, *SPEC.shape)), "label": jnp.zeros(2, jnp.int32)},
            jax.random.key(0),
        ),
    ],
)
def test_bad_options_are_named(call):
    with pytest.raises(UsageError, match="allowed"):
        call()
