"""Concepts by codes: the mapping alone is trained, the triplet by hand, what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.shared.tabular import SPEC as TABLE
from experiments.shared.tabular import table
from jaxgen.api import train
from jaxgen.errors import UsageError
from jaxgen.method.learning import placed
from jaxgen.method.streams import NOISE, OTHER, TIME, example_keys, fold, normal
from jaxgen.run.model import load
from jaxgen.tune.concepts import STREAM, concepts
from tests import toy_diffusion
from tests.base_run import base, config
from tests.nn_kit import live_params, quick_jit

KEY, SPEC = jax.random.key(3), toy_diffusion.SPEC
CODE = (("code", "vector", 2),)
BATCH = {k: a[:8] for k, a in toy_diffusion.data(KEY).items()}


def build(*more):
    return toy_diffusion.build(1e-2, conditions=(*more, *CODE))


def test_the_mapping_alone_is_trained_and_adds_nothing_at_first():
    method = concepts(build(("w", "number")), spec=SPEC)
    state = quick_jit(method.init)(KEY)
    assert set(state.params) == {"net", "mapping"} and set(state.ema["half_life_2000"]) == {
        "mapping"
    }
    assert set(state.params["net"]["conditions"]) == {"w"}
    live = {**state.params, "net": live_params(method)["net"]}
    keys, labels = jax.random.split(KEY, 8), BATCH["label"]
    draw = quick_jit(method.sampler(solver="euler", steps=2, guidance=1.0).fn)
    told = {"label": labels, "code": jnp.ones((8, 2))}
    np.testing.assert_array_equal(draw(live, keys, told), draw(live, keys, labels))


def test_only_the_mapping_moves():
    method = concepts(build(), spec=SPEC)
    state = quick_jit(method.init)(KEY)
    assert "conditions" not in state.params["net"]
    state = state.replace(params={**live_params(method)})
    after, metrics = quick_jit(method.update)(state, BATCH, KEY)
    jax.tree.map(np.testing.assert_array_equal, after.params["net"], state.params["net"])
    assert metrics["grad_norm"] > 0 and metrics["triplet"] > 0


def test_the_triplet_by_hand():
    method = concepts(build(), spec=SPEC, margin=0.7, keep=0.0, low=0.3)
    params, batch = live_params(method), placed(BATCH, jnp.zeros((), jnp.int32))
    value, _ = quick_jit(method.loss)(params, batch, KEY, {"times": ()})
    keys = example_keys(jax.random.fold_in(KEY, STREAM), batch)
    codes = normal(fold(keys, OTHER), (2,))[jnp.array([0, 0, 2, 2, 4, 4, 6, 6])]
    t = 0.3 + 0.7 * jax.vmap(jax.random.uniform)(fold(keys, TIME))
    x = (1 - t)[:, None] * batch["image"] + t[:, None] * normal(fold(keys, NOISE), (2,))
    told = {"label": batch["label"], "code": codes}
    f = method.sampler(guidance=1.0).denoiser(params, told)(keys, x, t, ())[0].x0
    f, wanted = np.asarray(f), []
    for n in range(8):
        near = ((f[n] - f[n + 1 if n % 2 == 0 else n - 1]) ** 2).mean()
        far = ((f[n] - f[(n // 2 * 2 + 2) % 8]) ** 2).mean()
        wanted.append(max(near - far + 0.7, 0))
    np.testing.assert_allclose(value, np.mean(wanted), rtol=1e-5)


def test_its_own_loss_is_told_codes_at_random():
    """With keep and no triplet to speak of, it is that of the method at its own noise."""
    few, more = (concepts(build(), spec=SPEC, keep=k) for k in (0.0, 2.0))
    params, batch = live_params(few), placed(BATCH, jnp.zeros((), jnp.int32))
    one, two = (quick_jit(m.loss)(params, batch, KEY, {"times": ()}) for m in (few, more))
    assert two[0] > one[0] and two[1][0]["triplet"] == one[1][0]["triplet"]
    np.testing.assert_allclose(two[0] - one[0], 2 * two[1][0]["mse"], rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(margin=0.0), "margin > 0"),
        (dict(keep=-1.0), "keep >= 0"),
        (dict(low=1.0), "low < 1"),
        (dict(encoder="flta"), "concepts.encoder.*Did you mean 'flat'"),
    ],
)
def test_bad_input_is_named(change, words):
    with pytest.raises(UsageError, match=words):
        concepts(build(), spec=SPEC, **change)


def test_a_model_that_is_not_told_codes_is_refused():
    for method, spec in ((toy_diffusion.build(1e-2), SPEC), (table(1e-2), TABLE)):
        with pytest.raises(UsageError, match="config.model.conditions"):
            concepts(method, spec=spec)
    silent = dataclasses.replace(build(), sampler=None)
    with pytest.raises(UsageError, match="config.model.conditions"):
        concepts(silent, spec=SPEC)


def test_it_trains_through_the_loop(tmp_path):
    model = dict(name="mlp.MLP", width=24, depth=1, conditions=CODE)
    told = (f"model={model!r}", f"start={base()}", "wrap=['tune.concepts']", "train.images=32")
    train(config(*told), tmp_path / "run")
    before, after = load(base()), load(tmp_path / "run")
    found = after.params["params"]
    jax.tree.map(np.testing.assert_array_equal, found["net"], before.params["half_life_500"]["net"])
    assert any((a != 0).any() for a in jax.tree.leaves(found["mapping"]["second"]))
