"""Quantisers: brute force, straight-through gradients, optimal codebooks, bits, their entropies."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.errors import UsageError
from jaxgen.tokenizers import quantisers as q
from tests.nn_kit import quick_jit

Z = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))


def book(quantiser, seed=1):
    return quantiser.init(jax.random.key(seed))


@pytest.mark.parametrize("l2", [False, True])
def test_the_nearest_code_is_brute_force(l2):
    quantiser = q.nearest(11, width=5, l2=l2)
    codes = book(quantiser)
    found = quantiser.quantise(codes, Z, None)
    z, e = np.asarray(Z, np.float64), np.asarray(codes["codes"], np.float64)
    if l2:
        z, e = (a / np.linalg.norm(a, axis=-1, keepdims=True) for a in (z, e))
    squares = ((z[..., None, :] - e) ** 2).sum(-1)
    np.testing.assert_array_equal(found.code, squares.argmin(-1))
    np.testing.assert_allclose(found.z, e[squares.argmin(-1)], atol=1e-6)
    np.testing.assert_allclose(quantiser.embed(codes, found.code), found.z, atol=1e-6)
    # A mean over elements of both terms: commitment 1/4 and the codebook's own.
    np.testing.assert_allclose(found.loss, 1.25 * squares.min(-1).mean() / 5, rtol=1e-5)
    again = quantiser.quantise(codes, found.z, None).code
    np.testing.assert_array_equal(again, found.code)


def test_gradients_pass_straight_and_the_losses_go_to_their_own_side():
    quantiser = q.nearest(11, width=5)
    codes = book(quantiser)
    weight = jax.random.normal(jax.random.key(2), Z.shape)
    gradient = jax.grad(lambda z, c: (weight * quantiser.quantise(c, z, None).z).sum(), (0, 1))
    of_z, of_codes = gradient(Z, codes)
    np.testing.assert_allclose(of_z, weight, rtol=1e-6)
    assert float(jnp.abs(of_codes["codes"]).max()) == 0
    of_z, of_codes = jax.grad(lambda z, c: quantiser.quantise(c, z, None).loss, (0, 1))(Z, codes)
    chosen = quantiser.quantise(codes, Z, None).z
    np.testing.assert_allclose(of_z, 0.25 * 2 * (Z - chosen) / Z.size, atol=1e-7)
    one = np.asarray(of_codes["codes"])
    sums = np.zeros((11, 5))
    tokens = np.asarray(quantiser.quantise(codes, Z, None).code)
    np.add.at(sums, tokens, 2 * np.asarray(chosen - Z) / Z.size)
    np.testing.assert_allclose(one, sums, atol=1e-7)


# Lloyd-Max distortion of N(0, 1).
@pytest.mark.parametrize(("levels", "distortion"), [(2, 0.363380), (4, 0.117482), (8, 0.034548)])
def test_running_means_find_the_optimal_codebook(levels, distortion):
    # Equal slices of the normal law stand for a batch: no sampling error.
    z = jax.scipy.special.ndtri((jnp.arange(4000) + 0.5) / 4000).reshape(1, 1, -1, 1)
    quantiser = q.nearest(levels, width=1, codebook="average", decay=0.5, revive=0.01)
    codes = book(quantiser)

    @quick_jit
    def step(codes, state, key):
        found = quantiser.quantise(codes, z, None)
        share = jnp.zeros(levels).at[found.code.ravel()].add(1.0) / z.size
        picked = z.reshape(-1, 1)[jax.random.randint(key, (levels,), 0, z.size)]
        return quantiser.refresh(codes, state, share, found.sums, picked), found.metrics

    state = quantiser.start(codes)
    for i in range(300):
        (codes, state), metrics = step(codes, state, jax.random.key(i))
    np.testing.assert_allclose(metrics["distortion"], distortion, rtol=5e-3)


def test_a_code_that_nobody_chooses_is_revived_and_others_are_not():
    for kind in ("loss", "average"):
        quantiser = q.nearest(3, width=2, codebook=kind, decay=0.5, revive=0.3)
        codes = {"codes": jnp.array([[0.0, 0], [1, 1], [9, 9]])}
        state, share = quantiser.start(codes), jnp.array([0.5, 0.5, 0.0])
        sums = share[:, None] * codes["codes"]
        new = jnp.full((3, 2), 7.0)
        first, state = quantiser.refresh(codes, state, share, sums, new)
        np.testing.assert_allclose(first["codes"][2], [9, 9], rtol=1e-6)  # use .5, not yet dead
        second, state = quantiser.refresh(first, state, share, sums, new)
        np.testing.assert_allclose(second["codes"], [[0, 0], [1, 1], [7, 7]], atol=1e-6)
        assert float(state["use"][2]) == 1


def test_running_means_are_running_means():
    quantiser = q.nearest(2, width=1, codebook="average", decay=0.75)
    codes = {"codes": jnp.array([[-1.0], [2.0]])}
    found = quantiser.quantise(
        codes, jnp.array([-3.0, -1, 3, 3, 3, 3, 3, 3]).reshape(1, 1, 8, 1), None
    )
    share = jnp.array([0.25, 0.75])
    new, _ = quantiser.refresh(codes, quantiser.start(codes), share, found.sums, None)
    # In units of 1 / levels: totals .75 x (-1, 2) + .25 x (-1, 4.5), uses .75 + .25 x (.5, 1.5).
    np.testing.assert_allclose(new["codes"][:, 0], [-1.0 / 0.875, 2.625 / 1.125], rtol=1e-5)
    assert quantiser.quantise(codes, Z[..., :1], None).loss > 0 and not quantiser.trained


@pytest.mark.parametrize("bits", [1, 5, 18])
def test_bits_and_indices_are_inverse(bits):
    index = jnp.arange(min(2**bits, 4096)) * max(2**bits // 4096, 1)
    on = q.to_bits(index, bits)
    np.testing.assert_array_equal(q.to_index(on > 0), index)
    text = [int("".join(str(b) for b in row[::-1]), 2) for row in np.asarray(on)[:50]]
    assert text == np.asarray(index)[:50].tolist()


def test_lookup_free_is_the_nearest_corner_and_its_tokens_go_back():
    quantiser = q.lookup_free(5, group=5)
    found = quantiser.quantise({}, Z, jax.random.split(jax.random.key(0), 2))
    corners = np.array(list(itertools.product([-1, 1], repeat=5)))
    squares = ((np.asarray(Z)[..., None, :] - corners) ** 2).sum(-1)
    np.testing.assert_array_equal(found.z, corners[squares.argmin(-1)])
    np.testing.assert_array_equal(quantiser.embed({}, found.code), found.z)
    every = quantiser.embed({}, jnp.arange(32).reshape(1, 4, 8))
    np.testing.assert_array_equal(quantiser.quantise({}, every, None).code.ravel(), jnp.arange(32))
    gradient = jax.grad(lambda z: (Z * quantiser.quantise({}, z, None).z).sum())(Z)
    np.testing.assert_allclose(gradient, Z, rtol=1e-6)


def test_bit_entropies_against_enumeration():
    logits = jax.random.normal(jax.random.key(3), (7, 4)) * 2
    p = np.asarray(jax.nn.sigmoid(logits), np.float64)
    one = -(p * np.log(p) + (1 - p) * np.log(1 - p)).mean()
    corners = np.array(list(itertools.product([0, 1], repeat=4)))
    law = np.prod(np.where(corners, p[:, None], 1 - p[:, None]), -1).mean(0)
    found = q.bit_entropies(logits, 4)
    np.testing.assert_allclose(found[0], one, rtol=1e-5)
    np.testing.assert_allclose(found[1], -(law * np.log(law)).sum() / 4, rtol=1e-5)
    mean = p.mean(0)
    apart = -(mean * np.log(mean) + (1 - mean) * np.log(1 - mean)).mean()
    np.testing.assert_allclose(q.bit_entropies(logits, 1)[1], apart, rtol=1e-5)
    assert apart > found[1]  # independence is an upper bound


def test_the_entropy_loss_is_least_for_sure_and_uniform_codes():
    quantiser = q.lookup_free(3, commitment=0.0, entropy=1.0, temperature=1.0, group=3)

    def loss(z):
        return float(quantiser.quantise({}, z, None).loss)

    corners = quantiser.embed({}, jnp.arange(8)).reshape(1, 2, 4, 3)
    best = loss(8 * corners)
    np.testing.assert_allclose(best, -math.log(2), atol=1e-4)  # 0 - ln 2 a bit
    for worse in (0.05 * corners, 8 * jnp.ones_like(corners), 8 * corners.at[:, 0].set(1.0)):
        assert loss(worse) > best + 0.05
    # Bits that always agree look uniform one by one, and are not as a group.
    same = 8 * jnp.array([1.0, -1.0] * 4).reshape(1, 2, 4, 1) * jnp.ones(3)
    apart = q.lookup_free(3, commitment=0.0, entropy=1.0, temperature=1.0, group=1)
    np.testing.assert_allclose(float(apart.quantise({}, same, None).loss), best, atol=1e-4)
    np.testing.assert_allclose(loss(same), -math.log(2) / 3, atol=1e-4)


def test_bernoulli_bits_have_their_probability_and_round_without_noise():
    quantiser, z = q.bernoulli(4), jnp.array([-1.0, 0.2, 1.5, -0.1])
    p = jax.nn.sigmoid(z)
    many = jnp.broadcast_to(z, (2000, 2, 2, 4))
    keys = jax.random.split(jax.random.key(0), 2000)
    found = quantiser.quantise({}, many, keys)
    assert set(np.unique(np.round(found.z, 5))) == {0, 1}
    np.testing.assert_allclose(found.z.mean((0, 1, 2)), p, atol=5 * 0.5 / 8000**0.5)
    np.testing.assert_allclose(quantiser.embed({}, found.code), found.z, atol=1e-6)
    gradient = jax.grad(lambda z: quantiser.quantise({}, z, keys[:1]).z.sum())(many[:1])
    np.testing.assert_allclose(gradient[0, 0, 0], p * (1 - p), rtol=1e-4)
    np.testing.assert_array_equal(quantiser.quantise({}, many[:1], None).code, 0b0110)


def test_perplexity():
    np.testing.assert_allclose(q.perplexity(jnp.array([0.25] * 4 + [0.0] * 3)), 4, rtol=1e-5)
    np.testing.assert_allclose(q.perplexity(jnp.array([1.0, 0])), 1, rtol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: q.nearest(1),
        lambda: q.nearest(8, decay=1.0),
        lambda: q.nearest(8, revive=1.0),
        lambda: q.lookup_free(0),
        lambda: q.lookup_free(12, group=5),
        lambda: q.lookup_free(8, temperature=0.0),
        lambda: q.bernoulli(25),
        lambda: q.bernoulli(8, entropy=-1.0),
    ],
)
def test_values_out_of_range_are_refused(make):
    with pytest.raises(UsageError, match="quantiser"):
        make()
