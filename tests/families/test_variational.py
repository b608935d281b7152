"""Variational autoencoders: densities, observation models, bounds and the method."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scipy.stats import multivariate_normal

from jaxgen.errors import UsageError
from jaxgen.families.variational import observation, posterior, vae
from jaxgen.families.variational.bounds import free_bits
from jaxgen.method import Spec
from jaxgen.nn.vae import VAE
from jaxgen.testing import check_sampler
from jaxgen.training.ema import Averages
from tests.nn_kit import first_state

DIGITS = Spec((4, 4, 1), 3, levels=5)


def head(rank_one: bool, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    names = ["mean", "log_scale"] + ["direction"] * rank_one
    return {n: rng.normal(size=4).astype(np.float32) for n in names}


def covariance(h) -> np.ndarray:
    precision = np.diag(np.exp(-2 * h["log_scale"].astype(np.float64)))
    if "direction" in h:
        precision = precision + np.outer(h["direction"], h["direction"])
    return np.linalg.inv(precision)


@pytest.mark.parametrize("rank_one", [False, True])
def test_posteriors_are_the_gaussians_that_their_precision_says(rank_one):
    h = head(rank_one)
    c = covariance(h)
    z = np.random.default_rng(1).normal(size=(7, 4)).astype(np.float32)
    np.testing.assert_allclose(
        posterior.log_density(h, z), multivariate_normal(h["mean"], c).logpdf(z), rtol=1e-4
    )
    np.testing.assert_allclose(
        posterior.log_determinant(h), np.linalg.slogdet(c)[1], rtol=1e-4, atol=1e-5
    )
    m = h["mean"].astype(np.float64)
    kl = 0.5 * (np.trace(c) + m @ m - 4 - np.linalg.slogdet(c)[1])
    np.testing.assert_allclose(posterior.kl_to_standard(h), kl, rtol=1e-4)
    # The draw is linear in its noise: its matrix R has R R^T = C.
    r = jax.jacobian(lambda e: posterior.sample(h, e))(jnp.zeros(4))
    np.testing.assert_allclose(r @ r.T, c, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["categorical", "logistic", "bernoulli"])
def test_masses_of_all_values_sum_to_one_and_samples_follow_them(name):
    levels = 2 if name == "bernoulli" else 5
    spec = Spec((1,), 1, levels=levels)
    view = getattr(observation, name)(spec)
    params = jnp.asarray(np.random.default_rng(2).normal(size=(1, view.outputs)), jnp.float32)
    values = spec.from_tokens(jnp.arange(levels))
    mass = np.exp([view.log_prob(params, v[None]) for v in values])
    np.testing.assert_allclose(mass.sum(), 1, rtol=1e-5)
    keys = jax.random.split(jax.random.key(0), 20_000)
    drawn = jax.vmap(lambda k: view.sample(params, k))(keys)
    shares = np.bincount(np.asarray(spec.to_tokens(drawn))[:, 0], minlength=levels) / 20_000
    # Four standard errors of a share of at most 1/2.
    np.testing.assert_allclose(shares, mass, atol=4 * 0.5 / 20_000**0.5)
    assert -1 <= float(view.mean(params)[0]) <= 1


def test_logistic_masses_are_finite_far_from_the_mean():
    spec = Spec((1,), 1, levels=256)
    view = observation.logistic(spec)
    for mean in (-30.0, 0.0, 30.0):
        for log_scale in (-30.0, 0.0, 5.0):
            params = jnp.array([[mean, log_scale]])
            x = jnp.array([0.5])
            value, slope = jax.value_and_grad(lambda p, x=x: view.log_prob(p, x))(params)
            assert np.isfinite(value) and np.isfinite(slope).all()


def test_a_gaussian_integrates_to_one():
    view = observation.gaussian(Spec((1,), 1, levels=None))
    x = np.linspace(-20, 20, 4001, dtype=np.float32)[:, None]
    params = jnp.broadcast_to(jnp.array([[0.3, -0.5]]), (4001, 1, 2))
    np.testing.assert_allclose(np.exp(view.log_prob(params, x)).sum() * 0.01, 1, rtol=1e-4)


def test_free_bits_cost_nothing_and_give_no_gradient_below_the_floor():
    for kl, value, slope in ((0.2, 0.5, 0.0), (0.8, 0.8, 1.0)):
        found = jax.value_and_grad(lambda k: free_bits(k[None], 0.5))(jnp.float32(kl))
        np.testing.assert_allclose(found, (value, slope), rtol=1e-6)


SETTINGS = {
    "elbo": (dict(), dict()),
    "layers": (dict(latents=(3, 2), hidden=((8,), (6,))), dict(free_nats=0.1)),
    "prior": (dict(conditional_prior=True), dict(beta_warmup_images=64)),
    "iwae": (dict(latents=(3, 2)), dict(samples=3)),
    "doubly": (dict(), dict(samples=3, gradient="doubly")),
    "dlgm": (dict(latents=(3, 2), chain=False, noise=True, rank_one=True), dict(beta=0.5)),
    "gaussian": (dict(), dict(observation="gaussian")),
}


def make(name: str, spec: Spec = DIGITS, optimizer=None, **changes):
    net, settings = SETTINGS[name]
    model = VAE(
        num_classes=spec.num_classes, shape=spec.shape, **{"latents": (3,), "hidden": (8,), **net}
    )
    settings = {"observation": "categorical", **settings, **changes}
    return vae(spec, model, optimizer or optax.adam(3e-3), Averages((200,)), **settings)


def batch(spec: Spec, size: int = 16):
    tokens = jax.random.randint(jax.random.key(5), (size, *spec.shape), 0, spec.levels)
    labels = jnp.arange(size) % spec.num_classes
    # The label is seen in the first row, so there is something to learn.
    tokens = tokens.at[:, 0].set(labels[:, None, None])
    return {"image": spec.from_tokens(tokens), "label": labels}


@pytest.mark.parametrize("name", SETTINGS)
def test_training_lowers_the_loss(name):
    method, data = make(name), batch(DIGITS)
    step, state = jax.jit(method.update), first_state(method)
    losses = []
    for n in range(200):
        state, metrics = step(state, data, jax.random.fold_in(jax.random.key(1), n))
        losses.append(metrics["loss"])
    assert np.isfinite(losses).all()
    assert np.mean(losses[-20:]) < np.mean(losses[:20]) - 1.0


@pytest.mark.parametrize("name", ["layers", "doubly", "dlgm"])
def test_a_mesh_does_not_change_a_step(name):
    # Plain descent: Adam would make a step out of the rounding of a gradient that is zero.
    method, data = make(name, optimizer=optax.sgd(1e-2)), batch(DIGITS)
    step, state = jax.jit(method.update), first_state(method)
    mesh = Mesh(np.asarray(jax.devices()), ("data",))
    cut = jax.device_put(data, NamedSharding(mesh, PartitionSpec("data")))
    states = [step(state, b, jax.random.key(3))[0] for b in (data, cut)]
    for a, b in zip(*(jax.tree.leaves(s.params) for s in states), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(("name", "pixels"), [("layers", "mean"), ("dlgm", "sample")])
def test_samples_keep_the_laws(name, pixels):
    method = make(name)
    params = first_state(method).params
    fn = method.sampler(pixels=pixels).fn
    check_sampler(jax.jit(fn), params, jnp.array([0, 1, 2, 3]), atol=1e-5)


def test_accumulation_is_the_batch():
    data, key = batch(DIGITS), jax.random.key(3)
    updates = {}
    for name, changes in (("plain", {}), ("cut", {"accumulate": 4})):
        method = make("elbo", optimizer=optax.sgd(1e-2), **changes)
        updates[name] = method.update(first_state(method), data, key)[0].params
    for a, b in zip(*map(jax.tree.leaves, updates.values()), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("name", ["elbo", "layers", "dlgm", "prior"])
def test_estimated_probabilities_of_all_images_sum_to_one(name):
    # Importance weights are unbiased, so the estimates' sum over all 16 images has mean 1.
    spec = Spec((2, 2, 1), 2, levels=2)
    method = make(name, spec, observation="bernoulli")
    params = first_state(method).params
    every = np.array(list(itertools.product((-1.0, 1.0), repeat=4)), np.float32)
    x, labels = every.reshape(16, 2, 2, 1), jnp.ones(16, jnp.int32)
    estimate = jax.jit(method.log_prob(samples=500))
    bound = jax.jit(method.log_prob(samples=1))
    sums, bounds = [], []
    for n in range(8):
        keys = jax.random.split(jax.random.key(n), 16)
        sums.append(np.exp(estimate(params, x, labels, keys)).sum())
        bounds.append(np.asarray(bound(params, x, labels, keys)))
    error = np.std(sums, ddof=1) / 8**0.5
    assert abs(np.mean(sums) - 1) < 5 * error + 1e-4
    assert np.mean(bounds) < np.log(np.mean(sums) / 16) + 1e-3


def test_the_label_error_is_the_negative_bound_with_noise_shared_across_labels():
    method = make("elbo")
    params = first_state(method).params
    data = batch(DIGITS, 4)
    keys = jax.random.split(jax.random.key(0), 4)
    draw = jnp.zeros(4, jnp.int32)
    error = method.label_error(params, data["image"], data["label"], keys, draw, 4)
    own = jax.vmap(jax.random.fold_in)(keys, draw)
    same = method.log_prob(samples=1)(params, data["image"], data["label"], own)
    np.testing.assert_allclose(error, -same, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(samples=0), "draws >= 1"),
        (dict(beta=-1.0), ">= 0"),
        (dict(samples=4, beta=0.5), "no KL to weigh"),
        (dict(samples=4, free_nats=0.5), "no KL to weigh"),
        (dict(gradient="score"), "'doubly'"),
        (dict(observation="bernoulli"), "2 levels"),
        (dict(observation="poisson"), "method.observation"),
    ],
)
def test_bad_settings_are_refused(changes, words):
    with pytest.raises(UsageError, match=words):
        make("elbo", **changes)


def test_bad_sampling_and_bad_networks_are_refused():
    method = make("elbo")
    for options in (dict(temperature=-1.0), dict(pixels="median")):
        with pytest.raises(UsageError, match="sample"):
            method.sampler(**options)
    with pytest.raises(UsageError, match="log_prob.samples"):
        method.log_prob(samples=0)
    for net in (
        dict(activation="sine"),
        dict(latents=()),
        dict(noise=True, conditional_prior=True),
    ):
        model = VAE(num_classes=3, shape=(4, 4, 1), **net)
        method = vae(DIGITS, model, optax.adam(1e-3), Averages((200,)), observation="logistic")
        with pytest.raises(UsageError, match="config.model"):
            jax.eval_shape(method.init, jax.random.key(0))
