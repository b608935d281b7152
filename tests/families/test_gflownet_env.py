"""Environments against enumeration: transitions and their inverses, rewards, their sums."""

from fractions import Fraction
from itertools import combinations, product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.data.bit_sequences import bit_sequences
from jaxgen.data.hypergrid import additive, bands, hypergrid
from jaxgen.data.sets import sets
from jaxgen.errors import UsageError

SMALL = {
    "hypergrid": lambda: hypergrid(dims=2, height=6),
    "cube": lambda: hypergrid(dims=3, height=4),
    "additive": lambda: additive(dims=2, height=5),
    "bits": lambda: bit_sequences(length=6, word=2, modes=2),
    "sets": lambda: sets(items=6, size=3),
}


@pytest.mark.parametrize("make", SMALL.values(), ids=SMALL)
def test_every_action_has_its_way_back(make):
    env = make()
    states = env.states()
    here = jnp.asarray(states)
    assert len(states) == env.count == len(np.unique(states, axis=0))
    np.testing.assert_array_equal(env.index(here), np.arange(env.count))
    allowed, parents = np.asarray(env.allowed(here)), np.asarray(env.parents(here))
    assert allowed.shape == (env.count, env.actions) and allowed.any(1).all()
    assert parents.shape == (env.count, env.back_actions)

    @jax.jit
    def follow(here, a):
        child, way = env.step(here, a), env.back(a)
        ways = jnp.take_along_axis(env.parents(child), way[:, None], 1)[:, 0]
        return env.index(child), ways, *env.undo(child, way)

    edges, reached = set(), 0
    for action in range(env.stop):
        ok = allowed[:, action]
        found = follow(here, jnp.full(env.count, action, jnp.int32))
        child, ways, back, through = (np.asarray(a)[ok] for a in found)
        assert ways.all()
        np.testing.assert_array_equal(back, states[ok])
        np.testing.assert_array_equal(through, action)
        edges |= set(zip(np.flatnonzero(ok).tolist(), child.tolist(), strict=True))
        reached += ok.sum()
    # As many ways back as there are edges, and only the root has none.
    assert parents.sum() == reached == len(edges)
    alone = np.flatnonzero(~parents.any(1))
    np.testing.assert_array_equal(states[alone], env.root()[None])
    stop = jnp.full(env.count, env.stop, jnp.int32)
    np.testing.assert_array_equal(env.step(here, stop), states)
    # Graded, and `steps` is the longest path with its stop.
    depth = {int(env.index(jnp.asarray(env.root()))): 0}
    for _ in range(env.steps):
        for a, b in edges:
            if a in depth:
                assert depth.setdefault(int(b), depth[a] + 1) == depth[a] + 1
    assert len(depth) == env.count and max(depth.values()) + 1 == env.steps


@pytest.mark.parametrize(
    ("dims", "height", "z", "modes"), [(2, 8, 22.4, 4), (2, 16, 65.6, 4), (4, 8, 569.6, 16)]
)
def test_hypergrids_have_the_known_sums(dims, height, z, modes):
    env = hypergrid(dims=dims, height=height)
    np.testing.assert_allclose(np.exp(env.log_z), z, rtol=1e-6)
    assert env.modes == modes
    np.testing.assert_allclose(env.target().sum(), 1, rtol=1e-12)
    top = env.target().max()
    assert (env.target() > 0.999 * top).sum() == modes


@pytest.mark.parametrize("height", [6, 8, 11, 16, 21, 26])
def test_bands_are_the_papers_in_rational_arithmetic(height):
    outer, band = bands(np.arange(height)[:, None], height)
    off = [abs(Fraction(x, height - 1) - Fraction(1, 2)) for x in range(height)]
    assert list(np.asarray(outer)) == [o > Fraction(1, 4) for o in off]
    assert list(np.asarray(band)) == [Fraction(3, 10) < o < Fraction(4, 10) for o in off]
    np.testing.assert_array_equal(band, np.asarray(band)[::-1])


def test_sets_sum_by_enumeration():
    env = sets(items=9, size=4, spread=0.7, seed=3)
    total = sum(
        np.exp(-sum(env.energies[i] for i in chosen)) for chosen in combinations(range(9), 4)
    )
    np.testing.assert_allclose(env.log_z, np.log(total), rtol=1e-12)
    np.testing.assert_allclose(np.logaddexp.reduce(env._log_rewards), env.log_z, rtol=1e-6)
    big = sets(items=60, size=20)
    assert not big.enumerable and np.isfinite(big.log_z)


def test_bit_sequences_are_as_far_as_they_differ():
    env = bit_sequences(length=8, word=4, modes=3, beta=0.5, seed=1)
    states = env.states()
    whole = states[np.asarray(env.allowed(jnp.asarray(states)))[:, env.stop]]
    bits = np.asarray(env.sample(jnp.asarray(whole)))
    assert sorted(map(tuple, bits)) == sorted(product((0, 1), repeat=8))
    far = np.abs(bits[:, None] - env.modes[None]).sum(-1).min(1)
    np.testing.assert_allclose(env.log_reward(jnp.asarray(whole)), -0.5 * far)
    np.testing.assert_allclose(env.potential(jnp.asarray(whole)), -0.5 * far)
    assert float(env.potential(jnp.asarray(env.root()))) == 0


def test_pictures():
    for make in SMALL.values():
        env = make()
        found = env.picture(np.asarray(env.sample(jnp.asarray(env.states()[:5]))), 4)
        assert found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3
    # Left the samples, right the target: a sample in one corner is dark there alone.
    env = hypergrid(dims=2, height=8)
    picture = env.picture(np.zeros((3, 2), int), 1)
    assert picture[5, 5].sum() < 300 < picture[5, 150].sum()


@pytest.mark.parametrize(
    "make",
    [
        lambda: hypergrid(dims=0),
        lambda: hypergrid(height=1),
        lambda: hypergrid(r0=0.0),
        lambda: additive(spread=-1.0),
        lambda: bit_sequences(length=10, word=4),
        lambda: bit_sequences(word=0),
        lambda: bit_sequences(modes=0),
        lambda: bit_sequences(beta=0.0),
        lambda: sets(items=3, size=4),
        lambda: sets(spread=-1.0),
    ],
)
def test_bad_sizes_are_refused(make):
    with pytest.raises(UsageError, match="source."):
        make()
