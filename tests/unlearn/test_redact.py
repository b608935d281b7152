"""Redaction: a label's rows become the reference's, and nothing else has other bits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen.api import train
from jaxgen.errors import UsageError
from jaxgen.families.adversarial import adversarial
from jaxgen.method import Spec
from jaxgen.nn.gan import MLPDiscriminator, MLPGenerator
from jaxgen.run.model import load
from jaxgen.training.ema import Averages
from jaxgen.unlearn.redact import redact
from tests import toy_diffusion
from tests.base_run import base, config
from tests.nn_kit import quick_jit, random_like

SPEC = toy_diffusion.SPEC


def gan(**model):
    spec = Spec((2,), 3, None)
    networks = {
        "generator": MLPGenerator((2,), 3, width=8, depth=1, **model),
        "discriminator": MLPDiscriminator(8, 1),
    }
    return adversarial(
        spec, networks, optax.adam(3e-2), Averages((100,)), latent=dict(name="normal", size=2)
    )


def trained(base, steps=300, **options):
    """(the wrapped method, its state) from random parameters, on no data to speak of."""
    method = redact(base, spec=base.spec, **options)
    state = quick_jit(method.init)(jax.random.key(0))
    live = random_like({k: a for k, a in state.params.items() if k != "redaction"}, 0.5)
    batch = {"image": jnp.zeros((4, *base.spec.shape)), "label": jnp.zeros(4, jnp.int32)}
    step = lambda s, n: (method.update(s, batch, jax.random.key(n))[0], None)
    run = jax.jit(lambda s: jax.lax.scan(step, s, jnp.arange(steps))[0])
    return method, run(state.replace(params={**state.params, **live})), live


def drawn(method, params, label):
    keys = jax.random.split(jax.random.key(5), 50)
    return np.asarray(method.sampler().fn(params, keys, jnp.full(50, label)))


@pytest.mark.parametrize("made", [lambda: toy_diffusion.build(3e-2), gan], ids=["diffusion", "gan"])
def test_the_redacted_class_draws_the_references_samples_and_the_rest_its_own(made):
    model = made()
    method, state, before = trained(model, classes=(0,), reference=2)
    for name, group in before.items():
        jax.tree.map(np.testing.assert_array_equal, state.params[name], group)
    np.testing.assert_allclose(drawn(method, state.params, 0), drawn(model, before, 2), atol=1e-2)
    for label in (1, 2):
        np.testing.assert_array_equal(
            drawn(method, state.params, label), drawn(model, before, label)
        )
    assert np.abs(drawn(model, before, 0) - drawn(model, before, 2)).max() > 0.1
    assert set(next(iter(state.ema.values()))) == {"redaction"}


def test_no_label_can_be_the_reference_and_the_plain_parameters_are_merged():
    method, state, before = trained(toy_diffusion.build(3e-2), classes=(1, 2))
    table = np.asarray(method.plain(state.params)["net"]["labels"]["embedding"])
    old = np.asarray(before["net"]["labels"]["embedding"])
    np.testing.assert_allclose(table[1:3], old[[3, 3]], atol=1e-3)
    np.testing.assert_array_equal(table[[0, 3]], old[[0, 3]])
    assert "redaction" not in method.plain(state.params)


def test_the_loss_by_hand():
    """Of the change of a kept row and of a redacted one, each a mean over its rows."""
    method = redact(toy_diffusion.build(1e-3), spec=SPEC, classes=(0,), reference=1, weight=3.0)
    params = random_like(jax.eval_shape(method.init, jax.random.key(0)).params, 0.5)
    table = np.asarray(params["net"]["labels"]["embedding"])
    change = np.asarray(params["redaction"]["net"]["labels"]["embedding"])
    kept = (change[1:] ** 2).mean()
    moved = ((table[0] + change[0] - table[1]) ** 2).mean()
    value, (metrics, _) = method.loss(params, {}, jax.random.key(0), ())
    np.testing.assert_allclose([metrics["kept"], metrics["redacted"]], [kept, moved], rtol=1e-5)
    np.testing.assert_allclose(value, kept + 3 * moved, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(classes=()), "a class or more"),
        (dict(classes=(0, 1, 2)), "neither all of them"),
        (dict(classes=(0,), reference=0), "nor the reference"),
        (dict(classes=(3,)), "0 to 2"),
        (dict(classes=(0,), weight=0.0), "weight > 0"),
        (dict(classes=(0,), match="nothing"), r"net\.labels\.embedding"),
    ],
)
def test_bad_input_is_named(options, words):
    with pytest.raises(UsageError, match=words):
        redact(toy_diffusion.build(1e-3), spec=SPEC, **options)


def test_a_model_without_no_label_or_without_labels_is_refused():
    with pytest.raises(UsageError, match="no row for no label"):
        redact(gan(), spec=SPEC, classes=(0,), match="generator.labels")
    with pytest.raises(UsageError, match="matches discriminator"):
        redact(gan(conditional=False), spec=SPEC, classes=(0,), match="generator", reference=1)


def test_a_run_trains_the_change_alone(tmp_path):
    wrap = "wrap=" + repr([dict(name="unlearn.redact", classes=(3,), reference=1)])
    fast = "optimizer=" + repr(dict(name="adam", learning_rate=0.1))
    train(config(wrap, fast, f"start={base()}"), tmp_path / "run")
    after, start = load(tmp_path / "run"), load(base()).params["half_life_500"]["net"]
    for found in after.params.values():
        assert set(found) == {"net", "redaction"}
        jax.tree.map(np.testing.assert_array_equal, found["net"], start)
    table = after.setup.method.plain(after.params["params"])["net"]["labels"]["embedding"]
    old = start["labels"]["embedding"]
    assert np.abs(table[3] - old[1]).mean() < 0.5 * np.abs(old[3] - old[1]).mean()
    assert np.isfinite(after.sample([3, 4]).images).all()
