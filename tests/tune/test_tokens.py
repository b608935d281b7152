"""Tuning rows of a class's embedding: what moves, what gradients go through, what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.shared.tabular import SPEC as TABLE
from experiments.shared.tabular import table
from experiments.tune.class_embedding_tuning import Generator, judge
from jaxgen.api import train
from jaxgen.errors import UsageError
from jaxgen.families.adversarial import adversarial
from jaxgen.families.diffusion import denoising
from jaxgen.method import Spec
from jaxgen.method.learning import placed
from jaxgen.method.streams import NOISE, example_keys, fold, normal
from jaxgen.nn.edm2 import EDM2
from jaxgen.nn.gan import MLPDiscriminator
from jaxgen.run.model import load
from jaxgen.training.ema import Averages
from jaxgen.tune.tokens import DRAWS, drawn, tokens
from tests import toy_diffusion
from tests.base_run import base, config
from tests.nn_kit import live_params, quick_jit

KEY = jax.random.key(3)
SPEC = Spec((2,), 3, levels=None)
BATCH = placed(
    {"image": jnp.zeros((8, 2)), "label": jnp.zeros(8, jnp.int32)}, jnp.zeros((), jnp.int32)
)


def gan(**latent):
    model = {"generator": Generator(), "discriminator": MLPDiscriminator(8, 1)}
    latent = dict(name="normal", size=2) | latent
    return adversarial(SPEC, model, optax.adam(1e-2), Averages((500,)), latent=latent)


def live(method):
    params = method.init(jax.random.key(0)).params
    return jax.tree.map(
        lambda a: a + 0.3 * jax.random.normal(jax.random.key(a.size), a.shape), params
    )


def test_the_loss_of_a_generator_by_hand():
    """Pairs of neighbours of one class; distances in pixels over those of their latents."""
    method = tokens(gan(), spec=SPEC, classes=(1, "2"), reward=judge, diversity=0.7)
    params = live(method)
    value, (metrics, _) = method.loss(params, BATCH, KEY, ())
    label = jnp.array([1, 1, 2, 2] * 2)
    net = params["generator"]
    table = (
        net["labels"]["embedding"]
        .at[jnp.array([1, 2])]
        .add(params["tokens"]["generator"]["labels"]["embedding"])
    )
    m, g = jnp.split(table[label], 2, 1)
    keys = example_keys(jax.random.fold_in(KEY, DRAWS), BATCH)
    z = normal(fold(keys, NOISE), (2,))
    x = g * z @ net["B"]["kernel"] + m @ net["C"]["kernel"]
    ratio = np.linalg.norm(x[::2] - x[1::2], axis=1) / np.linalg.norm(z[::2] - z[1::2], axis=1)
    reward = judge(x, label).mean()
    np.testing.assert_allclose(value, -reward - 0.7 * ratio.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["diversity"], ratio.mean(), rtol=1e-5)


def test_only_the_rows_move_and_at_first_nothing_has():
    plain = gan()
    method = tokens(plain, spec=SPEC, classes=(1,), reward=judge)
    state = method.init(jax.random.key(0))
    assert set(state.params) - set(plain.init(jax.random.key(0)).params) == {"tokens"}
    assert all(set(average) == {"tokens"} for average in state.ema.values())
    stepped, _ = jax.jit(method.update)(state, {k: BATCH[k] for k in ("image", "label")}, KEY)
    for name in ("generator", "discriminator"):
        jax.tree.map(np.testing.assert_array_equal, stepped.params[name], state.params[name])
    keys, labels = jax.random.split(KEY, 30), jnp.arange(30) % 3
    draw = jax.jit(method.sampler().fn)
    before, after = draw(state.params, keys, labels), draw(stepped.params, keys, labels)
    np.testing.assert_array_equal(before, jax.jit(plain.sampler().fn)(state.params, keys, labels))
    moved = (before != after).any(1)
    np.testing.assert_array_equal(moved, labels == 1)


def test_gradients_go_through_the_last_steps_alone():
    """By hand: the steps before them with held parameters."""
    plain = toy_diffusion.build(1e-3)
    params, sampler = live_params(plain), plain.sampler(solver="euler", steps=4, guidance=1.0)
    keys, labels = jax.random.split(KEY, 6), jnp.arange(6) % 3

    def gradient(last):
        value = lambda p: (drawn(sampler, p, keys, labels, last) ** 2).sum()
        return quick_jit(jax.value_and_grad(value))(params)

    whole = quick_jit(jax.value_and_grad(lambda p: (sampler.fn(p, keys, labels) ** 2).sum()))
    (full, wanted), (value, every), (_, one) = whole(params), gradient(9), gradient(1)
    np.testing.assert_allclose(value, full, rtol=1e-5)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-2)
    jax.tree.map(close, every, wanted)

    def by_hand(p):
        def one(key, label):
            held, live = (sampler.chain(q, label) for q in (params, p))
            state = held.start(key[None])
            for n in range(3):
                state = held.step(key[None], state, n)
            return live.sample(live.step(key[None], state, 3))[0]

        return (jax.vmap(one)(keys, labels) ** 2).sum()

    jax.tree.map(close, one, quick_jit(jax.grad(by_hand))(params))
    differ = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), one, wanted)
    assert max(jax.tree.leaves(differ)) > 0.1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(classes=("4",)), "tune.tokens.classes: got '4'"),
        (dict(classes=()), "one class or more"),
        (dict(targets=(1, 2)), "as many targets"),
        (dict(diversity=-1.0), "diversity >= 0"),
        (dict(last=0), "last >= 1"),
        (dict(match="nothing"), "generator.labels.embedding"),
        (dict(reward="clasifier"), "tune.tokens.reward.*Did you mean 'classifier"),
    ],
)
def test_bad_input_is_named(change, words):
    with pytest.raises(UsageError, match=words):
        tokens(gan(), **dict(spec=SPEC, classes=(1,), reward=judge) | change).training.check()


def test_what_has_no_gradients_or_latents_is_refused():
    told = dict(classes=(1,), reward=judge)
    with pytest.raises(UsageError, match="without gradients"):
        tokens(table(1e-2), spec=TABLE, **told)
    diffusion = toy_diffusion.build(1e-3)
    with pytest.raises(UsageError, match="no latents"):
        tokens(diffusion, spec=toy_diffusion.SPEC, diversity=1.0, **told)
    silent = dataclasses.replace(diffusion, sampler=None)
    with pytest.raises(UsageError, match="without gradients"):
        tokens(silent, spec=toy_diffusion.SPEC, **told)
    spec = Spec((8, 8, 1), 3, levels=None)
    net = EDM2(3, 1, channels=8, multipliers=(1,), blocks=1, attention_sizes=())
    magnitudes = denoising(spec, net, optax.adam(1e-3), Averages((500,)))
    with pytest.raises(UsageError, match="EDM2.*rows of classes do not depend"):
        tokens(magnitudes, spec=spec, **told)


def test_it_trains_through_the_loop_and_resumes(tmp_path):
    np.save(tmp_path / "goal.npy", np.ones((8, 8, 1), np.float32))
    wrap = dict(
        name="tune.tokens",
        classes=(3,),
        reward=dict(name="likeness", file=str(tmp_path / "goal.npy")),
        sample=dict(solver="euler", steps=2),
    )
    told = ("wrap=" + repr([wrap]), f"start={base()}", "checkpoint.every=0")
    train(config(*told, "train.images=32"), tmp_path / "run")
    train(config(*told, "train.images=48"), tmp_path / "run")
    before, after = load(base()), load(tmp_path / "run")
    net = before.params["half_life_500"]["net"]
    jax.tree.map(np.testing.assert_array_equal, after.params["params"]["net"], net)
    old, new = (m.sample([2, 3], seed=1).images for m in (before, after))
    np.testing.assert_array_equal(old[0], new[0])
    assert (old[1] != new[1]).any()
