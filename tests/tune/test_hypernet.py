"""A hypernetwork of LoRA weights: nothing at first, trained alone, by each example's image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.tune.hypernet_personalization import SPEC as LINEAR
from experiments.tune.hypernet_personalization import linear
from jaxgen.api import train
from jaxgen.errors import UsageError
from jaxgen.method.learning import placed
from jaxgen.run.model import load
from jaxgen.tune.hypernet import hypernet
from jaxgen.tune.lora import merge
from tests import toy_diffusion
from tests.base_run import base, config
from tests.nn_kit import live_params, quick_jit

KEY, SPEC = jax.random.key(3), toy_diffusion.SPEC
BATCH = placed({k: a[:6] for k, a in toy_diffusion.data(KEY).items()}, jnp.zeros((), jnp.int32))
MATCH = r"^net\.out\.kernel$"


def test_at_first_it_is_the_model_and_its_guided_samples():
    plain = toy_diffusion.build(1e-2)
    method = hypernet(plain, spec=SPEC, match=MATCH, rank=2)
    state = quick_jit(method.init)(KEY)
    params = {**state.params, **live_params(plain)}
    draw = quick_jit(method.sampler(solver="euler", steps=2, guidance=2.0).fn)
    keys, labels = jax.random.split(KEY, 6), BATCH["label"]
    wanted = quick_jit(plain.sampler(solver="euler", steps=2, guidance=2.0).fn)(
        live_params(plain), keys, labels
    )
    np.testing.assert_array_equal(draw(params, keys, labels), wanted)
    told = {"label": labels, "reference": BATCH["image"]}
    np.testing.assert_allclose(draw(params, keys, told), wanted, atol=1e-5)
    assert set(state.ema["half_life_2000"]) == {"hyper"}


def test_each_examples_loss_is_of_the_model_that_its_image_asks_for():
    plain = toy_diffusion.build(1e-2)
    method = hypernet(plain, spec=SPEC, match=MATCH, width=8, penalty=0.3)
    params = live_params(method)
    value, (metrics, _) = quick_jit(method.loss)(params, BATCH, KEY, {"times": ()})
    layers = params["hyper"]
    h = jax.nn.silu(BATCH["image"] @ layers["layers_0"]["kernel"] + layers["layers_0"]["bias"])
    changes = h @ layers["layers_2"]["kernel"] + layers["layers_2"]["bias"]
    kernel = params["net"]["out"]["kernel"]
    wanted = []
    for n in range(6):
        a, b = jnp.split(changes[n], [kernel.shape[0]])
        adapter = {"net": {"out": {"kernel": {"a": a[:, None], "b": b[None]}}}}
        merged = merge({"net": params["net"], "lora": adapter}, 1.0)
        np.testing.assert_allclose(
            merged["net"]["out"]["kernel"], kernel + a[:, None] * b, rtol=1e-4, atol=1e-5
        )
        one = {k: v[n : n + 1] if v.ndim else v for k, v in BATCH.items()}
        wanted.append(plain.loss(merged, one, KEY, {"times": ()})[0])
    np.testing.assert_allclose(metrics["fit"], np.mean(wanted), rtol=1e-4)
    np.testing.assert_allclose(value, np.mean(wanted) + 0.3 * (changes**2).mean(), rtol=1e-4)


def test_only_the_hypernetwork_moves():
    method = hypernet(toy_diffusion.build(1e-2), spec=SPEC, match=MATCH)
    state = quick_jit(method.init)(KEY)
    state = state.replace(params={**state.params, "net": live_params(method)["net"]})
    given = {k: BATCH[k] for k in ("image", "label")}
    after, _ = quick_jit(method.update)(state, given, KEY)
    jax.tree.map(np.testing.assert_array_equal, after.params["net"], state.params["net"])
    moved = jax.tree.map(lambda a, b: (a != b).any(), after.params, state.params)["hyper"]
    assert moved["layers_2"]["bias"] and moved["layers_2"]["kernel"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(rank=0), "rank >= 1"),
        (dict(width=0), "width >= 1"),
        (dict(penalty=-1.0), "penalty >= 0"),
        (dict(match="nothing"), "net.kernel"),
        (dict(encoder="flta"), "hypernet.encoder.*Did you mean 'flat'"),
    ],
)
def test_bad_input_is_named(change, words):
    with pytest.raises(UsageError, match=words):
        hypernet(linear(), spec=LINEAR, **change)


def test_it_trains_through_the_loop(tmp_path):
    told = (f"start={base()}", "wrap=['tune.hypernet']", "train.images=32")
    train(config(*told), tmp_path / "run")
    before, after = load(base()), load(tmp_path / "run")
    net = before.params["half_life_500"]["net"]
    jax.tree.map(np.testing.assert_array_equal, after.params["params"]["net"], net)
    drawn = [m.sample([1, 2], seed=1).images for m in (before, after)]
    np.testing.assert_array_equal(*drawn)
