"""VQGAN as a method: published sizes, adaptive weight by hand, warm-up, resume, devices, errors."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen import config as configs
from jaxgen.errors import UsageError
from jaxgen.method import Spec
from jaxgen.nn.vqgan import VQGAN, PatchGAN
from jaxgen.run.setup import TOP, set_up
from jaxgen.tokenizers.autoencoding import adaptive_weight
from jaxgen.tokenizers.vqgan import vqgan
from jaxgen.training.ema import Averages
from tests.nn_kit import quick_jit

SPEC = Spec((4, 4, 1), 3, 17)
BATCH = {
    "image": jax.random.uniform(jax.random.key(5), (16, 4, 4, 1), minval=-1),
    "label": jnp.arange(16) % 3,
}


class Last(nn.Module):
    """The decoder's last layer, where `LAST` looks for it: 2x2 patches without overlap."""

    @nn.compact
    def __call__(self, z):
        y = nn.Dense(4, use_bias=False, name="conv_out")(z)
        return y.reshape(-1, 2, 2, 2, 2).transpose(0, 1, 3, 2, 4).reshape(-1, 4, 4, 1)


class Patches(nn.Module):
    """A linear autoencoder of 2x2 patches."""

    code_channels: int = 3

    def setup(self):
        self.encoder, self.decoder = nn.Dense(self.code_channels), Last()

    def encode(self, x, *, train=False):
        x = x.reshape(-1, 2, 2, 2, 2).transpose(0, 1, 3, 2, 4).reshape(-1, 2, 2, 4)
        return self.encoder(x)

    def decode(self, z, *, train=False):
        return self.decoder(z)

    def __call__(self, x):
        return self.decode(self.encode(x))


class Judge(nn.Module):
    """A linear discriminator."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1, name="out")(x.reshape(-1, 16))


NEAREST = dict(name="nearest", levels=6, width=3, codebook="average", decay=0.5, revive=0.3)


def make(*, adversary=True, tx=None, **options):
    model = {"autoencoder": Patches(), "discriminator": Judge()} if adversary else Patches()
    options = {"quantiser": NEAREST, **options}
    return vqgan(SPEC, model, tx or optax.adam(1e-2), Averages(half_life=(100,)), **options)


def run(method, steps, state=None):
    update = quick_jit(method.update)
    state = quick_jit(method.init)(jax.random.key(0)) if state is None else state
    for _ in range(steps):
        state, metrics = update(state, BATCH, jax.random.fold_in(jax.random.key(1), state.step))
    return state, metrics


def count(module) -> int:
    x = jnp.zeros((1, 64, 64, 3))
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    return sum(math.prod(a.shape) for a in jax.tree.leaves(shapes))


def test_networks_have_the_published_sizes():
    # pix2pix's discriminator with three layers, as VQGAN's code builds it.
    assert count(PatchGAN()) == 2_765_633
    # Sun et al. 2024, LlamaGen: VQ-16 72M and VQ-8 70M, with 16384 codes of 8 channels.
    book = 16384 * 8
    assert round((count(VQGAN(3, 8)) + book) / 1e6) == 72
    eighth = VQGAN(3, 8, widths=(128, 256, 256, 512), attention_levels=(3,))
    assert round((count(eighth) + book) / 1e6) == 70


def test_two_steps_saved_and_two_more_are_four():
    method = make(adversarial_weight=0.1)
    whole, _ = run(method, 4)
    half, _ = run(method, 2)
    leaves, tree = jax.tree.flatten(half)
    saved = [(np.asarray(a).tobytes(), a.dtype, a.shape) for a in leaves]
    loaded = [np.frombuffer(b, dtype).reshape(shape) for b, dtype, shape in saved]
    again, metrics = run(method, 2, jax.tree.unflatten(tree, loaded))
    jax.tree.map(np.testing.assert_array_equal, again, whole)
    assert set(whole.params) == {"net", "codebook", "discriminator"}
    assert set(whole.ema["half_life_100"]) == {"net", "codebook"}
    assert 1 <= float(metrics["perplexity"]) <= 6 and 0 < float(metrics["used"]) <= 1


def test_microbatches_are_the_batch():
    plain = dict(NEAREST, revive=0.0)
    a, b = (run(make(adversary=False, quantiser=plain, accumulate=n), 1)[0] for n in (1, 4))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), a.params, b.params)


def test_the_adaptive_weight_is_the_ratio_by_hand():
    method = make(reconstruction="l2", loss="hinge")
    state = quick_jit(method.init)(jax.random.key(0))
    _, metrics = quick_jit(method.update)(state, BATCH, jax.random.key(1))
    tokens = method.encode(state.params, BATCH["image"])
    z = np.asarray(state.params["codebook"]["codes"], np.float64)[np.asarray(tokens)]
    kernel = np.asarray(state.params["net"]["decoder"]["conv_out"]["kernel"], np.float64)
    x = np.asarray(BATCH["image"], np.float64).reshape(-1, 2, 2, 2, 2).transpose(0, 1, 3, 2, 4)
    x = x.reshape(-1, 2, 2, 4)
    # d/dW of mean (z W - x)^2, and of -mean over images of v . z W.
    one = 2 * np.einsum("bijc,bijo->co", z, z @ kernel - x) / x.size
    v = np.asarray(state.params["discriminator"]["out"]["kernel"], np.float64).reshape(4, 4)
    v = v.reshape(2, 2, 2, 2).transpose(0, 2, 1, 3).reshape(2, 2, 4)
    two = -np.einsum("bijc,ijo->co", z, v) / 16
    expected = np.linalg.norm(one) / (np.linalg.norm(two) + 1e-4)
    np.testing.assert_allclose(metrics["adaptive_weight"], expected, rtol=1e-4)
    assert float(adaptive_weight(jnp.ones(()), jnp.zeros(()))) == 1e4


def test_before_its_start_the_adversary_changes_nothing():
    late, early = make(adversarial_start=33), make(adversarial_start=32)
    start = quick_jit(late.init)(jax.random.key(0))
    without, _ = run(make(adversary=False), 3)
    state, _ = run(late, 3)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), start.params, state.params)
    assert all(jax.tree.leaves(same["discriminator"]))
    for name in ("net", "codebook"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
            state.params[name],
            without.params[name],
        )
    # 32 images are seen before the third step.
    state, _ = run(early, 3)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), start.params, state.params)
    assert all(jax.tree.leaves(moved["discriminator"]))
    assert not np.allclose(
        state.params["net"]["decoder"]["conv_out"]["kernel"],
        without.params["net"]["decoder"]["conv_out"]["kernel"],
        atol=1e-6,
    )


@pytest.mark.parametrize(
    "quantiser",
    [
        dict(name="nearest", levels=5, width=2),
        dict(name="lookup_free", bits=4),
        dict(name="bernoulli", bits=3),
    ],
    ids=["loss", "lookup_free", "bernoulli"],
)
def test_codes_are_tokens_of_the_spec_and_training_lowers_the_error(quantiser):
    method = make(adversary=False, quantiser=quantiser, reconstruction="l2", tx=optax.adam(3e-2))
    state, first = run(method, 1)
    state, last = run(method, 150, state)
    assert float(last["reconstruction"]) < 0.8 * float(first["reconstruction"])
    for params in (state.params, state.ema["half_life_100"]):
        tokens = method.encode(params, BATCH["image"])
        assert tokens.dtype == jnp.int32 and tokens.shape == (16, *method.code.shape) == (16, 2, 2)
        assert (
            method.code.tokens and 0 <= int(tokens.min()) <= int(tokens.max()) < method.code.levels
        )
        made = method.decode(params, tokens)
        assert made.shape == BATCH["image"].shape and float(jnp.abs(made).max()) <= 1
    assert float(jnp.square(made - BATCH["image"]).mean()) < float(
        jnp.square(BATCH["image"]).mean()
    )
    assert method.sampler is None and method.label_error is None


def test_a_perceptual_loss_takes_any_features():
    def features():
        return lambda x: {"sum": 3 * x, "more": [x, x]}

    method = make(
        adversary=False, perceptual=features(), perceptual_weight=0.5, reconstruction="l2"
    )
    _, metrics = run(method, 1)
    # (9 + 1 + 1) / 3 of the squared error.
    np.testing.assert_allclose(metrics["perceptual"], metrics["reconstruction"] * 11 / 3, rtol=1e-5)
    total = metrics["reconstruction"] + 0.5 * metrics["perceptual"] + metrics["quantiser"]
    np.testing.assert_allclose(metrics["loss"], total, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ("method.quantiser=nearset", "method.quantiser"),
        ("method.quantiser.levels=1", "levels >= 2"),
        ("method.quantiser.depth=1", "method.quantiser.depth"),
        ("method.loss=wasserstein", "slope"),
        ("method.adversarial_weight=-1.0", "adversarial_weight"),
        ("method.reconstruction=l3", "'l1', 'l2'"),
        ("method.perceptual=lpips", "method.perceptual"),
        ("model.widths=(32,64,64,64,64)", "image size"),
        ("model.attention_levels=(7,)", "attention_levels"),
        ("model={'name': 'dit.DiT'}", "autoencoder"),
        ("optimizer={'discriminator': {'name': 'adam'}}", "config.optimizer"),
    ],
)
def test_what_does_not_fit_is_refused_when_built(change, word):
    config = configs.load("configs/digits_vqgan.py")
    configs.override(config, [change], TOP)
    with pytest.raises(UsageError) as error:
        set_up(config)
    assert word in str(error.value)


def test_tokens_cannot_be_tokenized():
    with pytest.raises(UsageError, match="config.data.source"):
        vqgan(Spec((4, 4), 2, 8, tokens=True), Patches(), optax.adam(1e-3), Averages((10,)))


def test_a_patch_discriminator_looks_at_patches():
    x = jax.random.normal(jax.random.key(0), (2, 32, 32, 1))
    module = PatchGAN(width=4, depth=2)
    params = quick_jit(module.init)(jax.random.key(1), x)["params"]
    apply = quick_jit(lambda p, x: module.apply({"params": p}, x, mutable=["batch_stats"])[0])
    logits = apply(params, x)
    assert logits.shape == (2, 6, 6)
    with pytest.raises(UsageError, match="discriminator.depth"):
        PatchGAN(depth=5).init(jax.random.key(0), x)
