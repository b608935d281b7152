"""Flows: inverses, determinants, densities that integrate to one, denoising, guidance."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen.errors import UsageError
from jaxgen.families.flows import flow
from jaxgen.families.flows.method import denoise, density
from jaxgen.method import Spec
from jaxgen.nn.glow import EdgeConv, Glow, squeeze, unsqueeze
from jaxgen.nn.realnvp import RealNVP
from jaxgen.nn.tarflow import TarFlow
from jaxgen.testing import check_sampler
from jaxgen.training.ema import Averages
from tests.nn_kit import first_state, quick_jit, random_like

SPEC = Spec((4, 4, 1), 3, levels=17)


def network(name: str, shape=(4, 4, 1), **changes):
    common = dict(num_classes=3, shape=shape)
    if name == "tarflow":
        sizes = dict(patch=2 if shape[0] > 2 else 1, width=8, flows=2, layers=1, heads=2)
        return TarFlow(**common, **{**sizes, **changes})
    if name == "realnvp":
        return RealNVP(**common, **{"width": 8, "couplings": 3, **changes})
    sizes = dict(scales=2 if shape[0] > 2 else 1, steps=2, hidden=8, label_couplings=True)
    return Glow(**common, **{**sizes, **changes})


def shaken(model, x, labels, size=0.15):
    """Parameters away from the identity start."""
    params = quick_jit(model.init)(jax.random.key(0), x, labels)["params"]
    return jax.tree.map(lambda a, b: a + b, params, random_like(params, size))


@pytest.fixture(scope="module", params=["tarflow", "glow", "realnvp"])
def case(request):
    model = network(request.param)
    x = jax.random.normal(jax.random.key(2), (3, 4, 4, 1))
    labels = jnp.array([0, 1, 3])
    return model, shaken(model, x, labels), x, labels


def test_the_inverse_undoes_the_flow(case):
    model, params, x, labels = case
    z, _ = quick_jit(model.apply)({"params": params}, x, labels)
    assert np.abs(z.reshape(3, -1) - x.reshape(3, -1)).max() > 0.1
    np.testing.assert_allclose(quick_jit(model.inverse)(params, z, labels), x, atol=1e-4)


def test_the_log_determinant_is_that_of_the_jacobian(case):
    model, params, x, labels = case
    _, log_det = quick_jit(model.apply)({"params": params}, x, labels)

    def one(x, label):
        return model.apply({"params": params}, x.reshape(1, 4, 4, 1), label[None])[0][0]

    jacobians = quick_jit(jax.vmap(jax.jacfwd(one)))(x.reshape(3, 16), labels)
    np.testing.assert_allclose(log_det, np.linalg.slogdet(np.asarray(jacobians))[1], atol=1e-4)


def test_labels_are_told_apart(case):
    model, params, x, _ = case
    found = [density(model, params, x, jnp.full(3, c)) for c in (0, 1, 3)]
    assert np.abs(found[0] - found[1]).min() > 1e-3 and np.abs(found[0] - found[2]).min() > 1e-3


@pytest.mark.parametrize("name", ["tarflow", "glow", "realnvp"])
def test_the_density_of_two_dimensions_integrates_to_one(name):
    # Two free pixels: a 2x2 image has four, so integrate by importance with a wide normal instead.
    model = network(name, shape=(2, 2, 1))
    x = jax.random.normal(jax.random.key(3), (200_000, 2, 2, 1)) * 1.5
    labels = jnp.ones(200_000, jnp.int32)
    size = 0.1 if name == "realnvp" else 0.05  # nearer to the wide normal
    params = shaken(model, x[:1], labels[:1], size)
    log_q = (-0.5 * (x / 1.5) ** 2 - 0.5 * np.log(2 * np.pi * 1.5**2)).sum((1, 2, 3))
    ratio = np.exp(density(model, params, x, labels) - log_q)
    error = ratio.std() / 200_000**0.5
    assert error < 0.02 and abs(ratio.mean() - 1) < 4 * error


def test_actnorm_gives_the_first_batch_mean_zero_and_deviation_one():
    model = network("glow", scales=1, steps=1)
    x = 3 + 2 * jax.random.normal(jax.random.key(4), (64, 4, 4, 1))
    labels = jnp.zeros(64, jnp.int32)
    params = model.init(jax.random.key(0), x, labels)["params"]
    _, new = model.apply({"params": params}, x, labels, initialise=True, mutable=["params"])
    norm = new["params"]["step0_0"]["norm"]
    y = (squeeze(x) + norm["shift"]) * jnp.exp(3 * norm["log_scale"])
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(y.std((0, 1, 2)), 1, atol=1e-4)
    np.testing.assert_array_equal(unsqueeze(squeeze(x)), x)
    # So do those inside of the coupling, of what they see after the ones before them.
    coupling = new["params"]["step0_0"]["coupling"]
    half = (y @ new["params"]["step0_0"]["mixing"]["weight"])[..., :2]
    conv = EdgeConv(8, jax.nn.initializers.zeros, False, jnp.float32)
    h = conv.apply({"params": coupling["conv1"]}, half)
    norm = coupling["norm1"]
    h = (h + norm["shift"]) * jnp.exp(3 * norm["log_scale"])
    np.testing.assert_allclose(h.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(h.std((0, 1, 2)), 1, atol=1e-4)


class Scale:
    """z = x / s: the exact flow of N(0, s^2)."""

    guidable = False

    def __init__(self, s: float) -> None:
        self.s = s

    def apply(self, params, x, labels, **kwargs):
        return x.reshape(len(x), -1) / self.s, jnp.full(len(x), -16 * np.log(self.s))


def test_denoising_is_the_posterior_mean_on_gaussian_data():
    clean, noise = 0.8, 0.3
    x = jax.random.normal(jax.random.key(5), (5, 4, 4, 1))
    found = denoise(Scale((clean**2 + noise**2) ** 0.5), {}, x, jnp.zeros(5, jnp.int32), noise)
    np.testing.assert_allclose(found, x * clean**2 / (clean**2 + noise**2), rtol=1e-5)


def method(name: str, optimizer=None, **changes):
    settings = dict(label_dropout=0.1) | changes
    tx = optimizer or optax.adam(3e-3)
    return flow(SPEC, network(name), tx, Averages((200,)), **settings)


def data(size: int = 16):
    tokens = jax.random.randint(jax.random.key(5), (size, 4, 4, 1), 0, 17)
    labels = jnp.arange(size) % 3
    return {
        "image": SPEC.from_tokens(tokens.at[:, 0].set(5 * labels[:, None, None])),
        "label": labels,
    }


KINDS = [("tarflow", "gaussian"), ("glow", "uniform")]


@pytest.mark.parametrize(("name", "noise"), KINDS)
def test_training_lowers_the_loss_and_samples_keep_the_laws(name, noise):
    built, batch = method(name, noise=noise), data()
    step = jax.jit(built.update)
    state, metrics = step(first_state(built), batch, jax.random.key(3))
    first = float(metrics["loss"])
    for n in range(60):
        state, metrics = step(state, batch, jax.random.fold_in(jax.random.key(1), n))
    assert float(metrics["loss"]) < first - 0.2
    sampler = built.sampler()
    check_sampler(jax.jit(sampler.fn), state.params, jnp.array([0, 1, 2, 0]), atol=1e-4)
    if name == "tarflow":
        guided = built.sampler(guidance=2.0)
        assert guided.calls == 1 + 2 * (sampler.calls - 1)
        keys, labels = jax.random.split(jax.random.key(0), 4), jnp.array([0, 1, 2, 0])
        plain = sampler.fn(state.params, keys, labels)
        assert np.abs(guided.fn(state.params, keys, labels) - plain).max() > 1e-3
        # Guiding towards "no label" changes nothing, whatever the scale.
        null = jnp.full(4, 3)
        np.testing.assert_allclose(
            guided.fn(state.params, keys, null), sampler.fn(state.params, keys, null), atol=1e-4
        )


@pytest.mark.parametrize(
    ("name", "changes", "options", "words"),
    [
        ("tarflow", dict(noise="salt"), {}, "'uniform', 'gaussian'"),
        ("tarflow", dict(noise_std=0.0), {}, "noise_std > 0"),
        ("tarflow", dict(label_dropout=1.0), {}, "label_dropout"),
        ("tarflow", dict(label_dropout=0.0), dict(guidance=2.0), "label dropout"),
        ("tarflow", {}, dict(temperature=-1.0), "temperature"),
        ("tarflow", {}, dict(denoised=True), "denoised"),
        ("glow", {}, dict(guidance=2.0), "cannot be guided"),
        ("glow", {}, dict(annealed=True), "sample.annealed"),
    ],
)
def test_bad_options_are_refused(name, changes, options, words):
    with pytest.raises(UsageError, match=words):
        method(name, **changes).sampler(**options)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("tarflow", dict(patch=3), "proper divisor"),
        ("tarflow", dict(patch=4), "proper divisor"),
        ("tarflow", dict(heads=3), "divisor of width"),
        ("glow", dict(scales=3), "divides"),
        ("realnvp", dict(couplings=0), "couplings >= 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(name, changes, words):
    built = flow(SPEC, network(name, **changes), optax.adam(1e-3), Averages((200,)))
    with pytest.raises(UsageError, match=words):
        jax.eval_shape(built.init, jax.random.key(0))


def test_paper_sizes():
    """TarFlow [2-768-8-8] of ImageNet 64 and Glow of CIFAR-10, by their own arithmetic."""

    def size(model, shape):
        found = jax.eval_shape(
            model.init, jax.random.key(0), jnp.zeros((1, *shape)), jnp.zeros(1, jnp.int32)
        )
        return sum(int(np.prod(a.shape)) for a in jax.tree.leaves(found))

    # 64 layers of 12 w^2 + 13 w, and per flow the places, labels, embedding and head.
    w, places, dim = 768, 1024, 12
    layers = 64 * (12 * w * w + 13 * w)
    ends = 8 * ((places + 1000) * w + (dim + 1) * w + (w + 1) * 2 * dim)
    assert size(TarFlow(1000, (64, 64, 3)), (64, 64, 3)) == layers + ends
    # Couplings of 3x3, 1x1 and 3x3 convolutions to 512 channels with an actnorm each or a bias and
    # a gain; the 3x3 ones see a channel more, of edges. c channels after the squeeze.
    total, h = 0, 512
    for c in (12, 24, 48):
        coupling = 9 * (c // 2 + 1) * h + 2 * h + h * h + 2 * h + 9 * (h + 1) * c + 2 * c
        total += 32 * (coupling + 2 * c + c * c)
        # Priors: of a level from the half that stays, of the top from edges and the label.
        total += 9 * (c // 2 + 1) * c + 2 * c if c < 48 else (9 + 2 + 11 + 2) * 2 * c
    assert size(Glow(10, (32, 32, 3)), (32, 32, 3)) == total


def test_actnorm_is_set_by_the_first_batch_and_never_again():
    spec = Spec((4, 4, 1), 3, 4)
    made = flow(spec, network("glow", scales=1, steps=1), optax.sgd(1e-9), Averages((10,)))
    state = made.init(jax.random.key(0))
    image = jax.random.normal(jax.random.key(1), (16, 4, 4, 1))
    norms = []
    for scale in (1.0, 5.0):
        batch = {"image": scale * image, "label": jnp.zeros(16, jnp.int32)}
        state, _ = jax.jit(made.update)(state, batch, jax.random.key(2))
        norms.append(state.params["net"]["step0_0"]["norm"]["log_scale"])
    fresh = made.init(jax.random.key(0)).params["net"]["step0_0"]["norm"]["log_scale"]
    assert np.abs(norms[0] - fresh).max() > 0.03  # a third of the logarithm of its gain
    np.testing.assert_allclose(norms[1], norms[0], atol=1e-6)
