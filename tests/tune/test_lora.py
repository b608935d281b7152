"""LoRA: as peft computes it, trained alone, merged and taken apart, saved with its alpha."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.api import train
from jaxgen.errors import UsageError
from jaxgen.run.model import load
from jaxgen.run.setup import set_up
from jaxgen.tune import adapters
from jaxgen.tune import lora as loras
from tests.base_run import base, config

LORA = "wrap=" + repr([dict(name="tune.lora", rank=2, alpha=8.0)])


def live(adapter):
    """The same with B that is not zero."""
    return jax.tree.map(
        lambda a: a + 0.1 * jax.random.normal(jax.random.key(a.size), a.shape), adapter
    )


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_the_change_is_pefts(kind):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    torch.manual_seed(0)
    layer = torch.nn.Linear(6, 5) if kind == "linear" else torch.nn.Conv2d(3, 5, 3, padding=1)
    given = peft.LoraConfig(r=2, lora_alpha=8, target_modules=["0"], init_lora_weights=False)
    theirs = peft.get_peft_model(torch.nn.Sequential(layer), given).base_model.model[0]
    a, b = (getattr(theirs, f"lora_{n}").default.weight.detach().numpy() for n in "AB")
    weight, bias = (p.detach().numpy() for p in (layer.weight, layer.bias))
    x = np.random.default_rng(0).normal(size=(4, 6) if kind == "linear" else (4, 7, 7, 3))
    x = x.astype(np.float32)
    if kind == "linear":
        ours, seen = nn.Dense(5), torch.tensor(x)
        kernel, adapter = weight.T, {"a": a.T, "b": b.T}
    else:
        ours, seen = nn.Conv(5, (3, 3)), torch.tensor(x.transpose(0, 3, 1, 2))
        kernel = weight.transpose(2, 3, 1, 0)
        adapter = {"a": a.transpose(2, 3, 1, 0), "b": b[:, :, 0, 0].T}
    params = {"net": {"kernel": kernel, "bias": bias}, "lora": {"net": {"kernel": adapter}}}
    found = ours.apply({"params": loras.merge(params, 8 / 2)["net"]}, x)
    expected = theirs(seen).detach().numpy()
    expected = expected if kind == "linear" else expected.transpose(0, 2, 3, 1)
    np.testing.assert_allclose(found, expected, atol=2e-6 * np.abs(expected).max())


def test_a_stack_gets_a_change_for_each_layer():
    params = {"net": {"blocks": {"qkv": {"kernel": jnp.zeros((3, 4, 6))}}, "out": jnp.zeros(2)}}
    adapter = live(loras.adapters(jax.random.key(0), params, 2, r"kernel"))
    one = adapter["net"]["blocks"]["qkv"]["kernel"]
    assert one["a"].shape == (3, 4, 2) and one["b"].shape == (3, 2, 6)
    merged = loras.merge({**params, "lora": adapter}, 0.5)["net"]["blocks"]["qkv"]["kernel"]
    for n in range(3):
        np.testing.assert_allclose(merged[n], 0.5 * one["a"][n] @ one["b"][n], rtol=1e-5)


def test_it_begins_at_the_model_and_trains_alone(tmp_path):
    told = (LORA, f"start={base()}")
    train(config(*told), tmp_path / "run")
    before, after = load(base()), load(tmp_path / "run")
    start = before.params["half_life_500"]["net"]
    for name in ("params", "half_life_500"):
        assert set(after.params[name]) == {"net", "lora"}
        jax.tree.map(np.testing.assert_array_equal, after.params[name]["net"], start)
    assert any((a != 0).any() for a in jax.tree.leaves(after.params["params"]["lora"]))
    method = after.setup.method
    drawn = before.sample([1, 2], seed=1).images
    fresh = method.init(jax.random.key(0)).params
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(1), i))(jnp.arange(2))
    sampler = method.sampler(**before.sample([1, 2]).options)
    begun = sampler({**fresh, "net": start}, keys, jnp.array([1, 2]))
    np.testing.assert_allclose(begun, drawn, atol=1e-6)
    assert np.abs(after.sample([1, 2], seed=1).images - drawn).max() > 1e-4
    # Autoguidance by its own worse average, merged too.
    guided = after.sample(
        [1, 2], weak="params", guidance=[{"name": "autoguidance.autoguidance", "weight": 2.0}]
    )
    assert np.isfinite(guided.images).all()
    # A run without the wrap starts from the adapter merged in; one with it goes on with it.
    still = "optimizer=" + repr(dict(name="sgd", learning_rate=1e-30))
    merged = loras.merge(after.params["half_life_500"], 8.0 / 2)["net"]
    for wrap, wanted in (([], merged), ([LORA], start)):
        told = [still, f"start={tmp_path / 'run'}", "train.images=16", *wrap]
        train(config(*told), tmp_path / f"next{len(wrap)}")
        found = load(tmp_path / f"next{len(wrap)}").params["params"]
        assert set(found) == ({"net", "lora"} if wrap else {"net"})
        for a, b in zip(jax.tree.leaves(found["net"]), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
    state = jax.eval_shape(method.init, jax.random.key(0))
    trained = sum(a.size for a in jax.tree.leaves(state.params["lora"]))
    moments = sum(a.size for a in jax.tree.leaves(state.opt_state))
    assert 2 * trained <= moments <= 2 * trained + 4


def test_merged_and_unmerged_saved_and_loaded(tmp_path):
    params = set_up(config(LORA)).method.init(jax.random.key(0)).params
    params = {**params, "lora": live(params["lora"])}
    merged = loras.merge(params, 4.0)
    back = loras.merge({**merged, "lora": params["lora"]}, -4.0)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), back["net"], params["net"]
    )
    adapters.save(tmp_path / "a.safetensors", params["lora"], rank=2, alpha=8.0)
    adapter, scale = adapters.load(tmp_path / "a.safetensors")
    assert scale == 4.0
    jax.tree.map(np.testing.assert_array_equal, adapter, params["lora"])
    from jaxgen.training.weights import dump

    (tmp_path / "b.safetensors").write_bytes(dump(params["lora"]))
    with pytest.raises(UsageError, match="rank and alpha"):
        adapters.load(tmp_path / "b.safetensors")


def test_a_family_of_two_losses_is_refused():
    from jaxgen import config as configs
    from jaxgen.run.setup import TOP

    gan = configs.load("configs/digits_gan.py")
    configs.override(gan, [LORA], TOP)
    with pytest.raises(UsageError, match=r"tune\.lora.*2 losses \(discriminator, generator\)"):
        set_up(gan)
