"""Energies: chains against closed forms, the ring, densities whose best fit is known."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from jaxgen.errors import UsageError
from jaxgen.families.energy import energy
from jaxgen.method import Spec
from jaxgen.method.mcmc import chain, langevin, mala
from jaxgen.method.ring import put, ring_of, turn, turned
from jaxgen.training.ema import Averages
from jaxgen.training.sharding import make_mesh, state_sharding
from tests.nn_kit import quick_jit

MEANS, STD = np.array([-0.6, 0.5]), 0.4


def gaussian(x):
    return -((x - 0.3) ** 2).sum(-1) / (2 * STD**2)


@pytest.mark.parametrize(
    ("kernel", "step", "variance"),
    [
        (langevin, 0.16, STD**2 / (1 - 0.16 / (4 * STD**2))),
        (mala, 0.16, STD**2),
    ],
)
def test_a_chain_has_the_law_of_its_step(kernel, step, variance):
    """Unadjusted Langevin widens a Gaussian by a known factor, here 4/3; Metropolis' does not."""
    keys = jax.random.split(jax.random.key(0), 20_000)
    out = jax.jit(lambda k: chain(kernel(gaussian, step), k, jnp.zeros((20_000, 1)), 60))(keys)
    # Four standard errors of a mean, and of a variance, of 20,000 draws.
    assert abs(float(out.mean()) - 0.3) < 4 * (variance / 20_000) ** 0.5
    assert abs(float(out.var()) / variance - 1) < 4 * (2 / 20_000) ** 0.5


def test_a_chain_moves_by_its_own_key():
    keys = jax.random.split(jax.random.key(0), 4)
    run = jax.jit(lambda k: chain(mala(gaussian, 0.1), k, jnp.zeros((len(k), 1)), 5))
    np.testing.assert_allclose(run(keys)[1:3], run(keys[1:3]), rtol=1e-6)


def test_every_row_has_its_turn_and_puts_replace_the_oldest():
    ring, seen = ring_of({"x": jnp.arange(12)}), []
    for _ in range(3):
        rows = turn(ring, 4)
        seen += np.asarray(rows["x"]).tolist()
        ring = turned(ring, {"x": rows["x"] + 100})
    assert sorted(seen) == list(range(12))
    np.testing.assert_array_equal(ring.rows["x"], np.arange(12) + 100)
    np.testing.assert_array_equal(turn(ring, 4)["x"] - 100, seen[:4])
    ring = ring_of(jnp.zeros(3, jnp.int32))
    for n in range(1, 6):
        ring = put(ring, jnp.array([n]))
    assert set(ring.rows.tolist()) == {3, 4, 5}
    with pytest.raises(UsageError, match="multiple of the batch size 4"):
        turn(ring, 4)


def test_a_buffer_lies_on_a_mesh_by_its_rows():
    """Also where another axis is longer, and where cutting it would be the default."""
    abstract = {"replay": ring_of(jax.ShapeDtypeStruct((512, 64, 64, 3), jnp.float32))}
    placed = state_sharding(make_mesh(2, 2, 2), {"extra": abstract})["extra"]["replay"]
    assert placed.rows.spec == PartitionSpec(("data", "fsdp"))
    assert placed.count.spec == PartitionSpec()


class Moments(nn.Module):
    """x and x^2: an energy linear in them is any Gaussian's."""

    @nn.compact
    def __call__(self, x, *, train=False):
        return jnp.concatenate([x, x**2], -1)


def fitted(joint, steps, optimizer):
    """The method and its averaged parameters after updates on two Gaussians."""
    size = 0.02
    method = energy(
        Spec((1,), 2, None), Moments(), optimizer, Averages((20_000,)), joint=joint, buffer=512,
        restart=0.0, steps=5, step_size=size, noise=size**0.5, data_noise=0.0, decay=0.0,
    )  # fmt: skip

    def body(state, n):
        key = jax.random.fold_in(jax.random.key(1), n)
        labels = jnp.arange(256) % 2
        x = jnp.asarray(MEANS)[labels][:, None] + STD * jax.random.normal(key, (256, 1))
        return method.update(state, {"image": x, "label": labels}, key)

    state = quick_jit(method.init)(jax.random.key(0))
    run = jax.jit(lambda s: jax.lax.scan(body, s, jnp.arange(steps)))
    return method, run(state)[0]


def test_persistent_contrastive_divergence_finds_the_maximum_likelihood():
    """exp(a x + b x^2) is N(m, s^2) at a = m / s^2, b = -1 / (2 s^2); Langevin of step h then has
    the variance s^2, so what is learned is s^2 - h / 4."""
    method, state = fitted(False, 3000, optax.adam(optax.cosine_decay_schedule(0.05, 3000)))
    kernel = np.asarray(state.ema["half_life_20000"]["net"]["logits"]["kernel"])
    variance = STD**2 - 0.02 / 4
    np.testing.assert_allclose(kernel[1], -1 / (2 * variance), rtol=0.06)
    np.testing.assert_allclose(kernel[0], MEANS / variance, rtol=0.08)
    drawn = method.sampler(steps=300)(
        state.params, jax.random.split(jax.random.key(2), 4000), jnp.arange(4000) % 2
    )
    # Four standard errors of a mean of 2,000, and what the fit is off by.
    for label in (0, 1):
        assert abs(float(drawn[label::2].mean()) - MEANS[label]) < 4 * STD / 2000**0.5 + 0.04


def test_jem_is_the_classifier_that_bayes_rule_gives():
    method, state = fitted(True, 1500, optax.adam(optax.cosine_decay_schedule(0.05, 1500)))
    x = jnp.linspace(-1.2, 1.2, 9)[:, None]
    errors = jnp.stack(
        [method.label_error(state.params, x, jnp.full(9, c), None, 0, 1) for c in (0, 1)]
    )
    found = jax.nn.sigmoid(errors[0] - errors[1])
    exact = jax.nn.sigmoid((MEANS[1] - MEANS[0]) / STD**2 * (x[:, 0] - MEANS.mean()))
    np.testing.assert_allclose(found, exact, atol=0.05)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(buffer=0), "method.buffer"),
        (dict(steps=0), "method.steps"),
        (dict(restart=1.5), "method.restart"),
        (dict(noise=-1.0), "method.noise"),
    ],
)
def test_bad_options_are_named(options, words):
    with pytest.raises(UsageError, match=words):
        energy(Spec((1,), 2), Moments(), optax.sgd(0.1), Averages((10,)), **options)
