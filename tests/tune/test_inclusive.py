"""Inclusive tokens: where they are nothing, what is compared by hand, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.tune.class_embedding_tuning import Generator
from jaxgen.errors import UsageError
from jaxgen.families.adversarial import adversarial
from jaxgen.method import Spec
from jaxgen.method.learning import placed
from jaxgen.method.streams import example_keys
from jaxgen.nn.gan import MLPDiscriminator
from jaxgen.training.ema import Averages
from jaxgen.tune.inclusive import DRAWS, inclusive
from tests.nn_kit import live_params, quick_jit

KEY = jax.random.key(3)
SPEC = Spec((2,), 3, levels=None, classes=("all", "one", "two"))
IMAGES = jax.random.normal(KEY, (8, 2))
TOLD = dict(spec=SPEC, classes=("one", "two"), parent="all")


def batch(labels):
    return placed({"image": IMAGES, "label": jnp.asarray(labels)}, jnp.zeros((), jnp.int32))


def gan():
    model = {"generator": Generator(), "discriminator": MLPDiscriminator(8, 1)}
    latent = dict(name="normal", size=2)
    return adversarial(SPEC, model, optax.adam(1e-2), Averages((500,)), latent=latent)


def test_the_loss_by_hand():
    method = inclusive(gan(), **TOLD, meaning=0.5, margin=1.0)
    params, labels = live_params(method), np.array([1, 2, 2, 2, 1, 1, 0, 0])
    value, (metrics, _) = quick_jit(method.loss)(params, batch(labels), KEY, ())
    keys = example_keys(jax.random.fold_in(KEY, DRAWS), batch(labels))
    draw = gan().sampler().fn
    change = params["tokens"]["generator"]["labels"]["embedding"]
    net = params["generator"]
    table = net["labels"]["embedding"].at[jnp.array([1, 2])].add(change)
    tuned = {**params, "generator": {**net, "labels": {"embedding": table}}}
    x = np.asarray(draw(tuned, keys, jnp.arange(8) % 2 + 1))
    ours = np.stack([x[0::2].mean(0), x[1::2].mean(0)])
    theirs = np.stack([np.asarray(IMAGES)[labels == n].mean(0) for n in (1, 2)])
    wanted = ((ours[0] - ours[1] - theirs[0] + theirs[1]) ** 2).sum()
    wanted /= ((theirs[0] - theirs[1]) ** 2).sum()
    np.testing.assert_allclose(metrics["apart"], wanted, rtol=1e-4)
    base = np.asarray(draw(params, keys, jnp.zeros(8, int))).mean(0)
    cos = ours @ base / np.linalg.norm(ours, axis=1) / np.linalg.norm(base)
    np.testing.assert_allclose(metrics["meaning"], (1 - cos).mean(), rtol=1e-4)
    np.testing.assert_allclose(value, wanted + 0.5 * (1 - cos).mean(), rtol=1e-4)


def test_a_batch_without_a_category_says_nothing_and_has_no_nan():
    method = inclusive(gan(), **TOLD, meaning=0.0)
    params = live_params(method)
    run = quick_jit(jax.value_and_grad(lambda p, b: method.loss(p, b, KEY, ())[0]))
    value, grads = run(params, batch([1] * 8))
    assert value == 0 and all((g == 0).all() for g in jax.tree.leaves(grads))


def test_gradients_reach_the_tokens_alone():
    method = inclusive(gan(), **TOLD)
    state = quick_jit(method.init)(KEY)
    given = {"image": IMAGES, "label": jnp.arange(8) % 2 + 1}
    after, _ = quick_jit(method.update)(state, given, KEY)
    jax.tree.map(
        np.testing.assert_array_equal, after.params["generator"], state.params["generator"]
    )
    moved = after.params["tokens"]["generator"]["labels"]["embedding"]
    assert moved.shape == (2, 4) and (moved != 0).any(1).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(classes=("one",)), "two categories"),
        (dict(classes=("one", "tow")), "inclusive.classes: got 'tow'.*Did you mean 'two'"),
        (dict(parent="al"), "inclusive.parent: got 'al'"),
        (dict(meaning=-1.0), "meaning >= 0"),
        (dict(margin=2.0), "margin <= 1"),
        (dict(last=0), "last >= 1"),
        (dict(encoder="flta"), "inclusive.encoder.*Did you mean 'flat'"),
    ],
)
def test_bad_input_is_named(change, words):
    with pytest.raises(UsageError, match=words):
        inclusive(gan(), **TOLD | change)
