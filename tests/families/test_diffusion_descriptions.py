"""Descriptions in the place of labels: RCG's representations, retrieved neighbours."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec
from sklearn.neighbors import NearestNeighbors

from jaxgen.errors import UsageError
from jaxgen.families.diffusion.descriptions.base import Description
from jaxgen.families.diffusion.descriptions.neighbours import nearest, neighbours
from jaxgen.families.diffusion.descriptions.representation import representation
from jaxgen.families.diffusion.methods.denoising import denoising
from jaxgen.frozen.encoders import flat
from jaxgen.method import Spec, drop_labels
from jaxgen.nn.mlp import MLP
from jaxgen.steer.sampler import steered
from jaxgen.steer.search import branch
from jaxgen.testing import check_sampler
from jaxgen.training.ema import Averages
from tests.nn_kit import quick_jit

SPEC = Spec((3,), 2, levels=None)
POINTS = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)


def told(x: jax.Array) -> jax.Array:
    """The first coordinate and its square."""
    return jnp.stack([x[:, 0], x[:, 0] ** 2], axis=1)


def method(describe, **options):
    return denoising(
        SPEC, MLP(2, 3, width=16, depth=1), optax.adam(1e-2), Averages((100,)), describe=describe,
        **options,
    )  # fmt: skip


@pytest.mark.parametrize("block", [7, 8, 40, 1000])
def test_neighbours_are_those_of_scikit_learn(block):
    queries = np.random.default_rng(1).normal(size=(9, 3)).astype(np.float32)
    want = NearestNeighbors(n_neighbors=5).fit(POINTS).kneighbors(queries)[1]
    found = jax.jit(lambda q, d: nearest(q, d, 5, block=block))(queries, POINTS)
    np.testing.assert_array_equal(found, want)


def test_a_database_cut_over_devices_gives_the_same_neighbours():
    mesh = Mesh(np.array(jax.devices()), ("rows",))
    queries = np.random.default_rng(2).normal(size=(6, 3)).astype(np.float32)
    search = jax.shard_map(
        lambda q, d: nearest(q, d, 4, block=2, axis="rows"),
        mesh=mesh, in_specs=(PartitionSpec(), PartitionSpec("rows")), out_specs=PartitionSpec(),
        check_vma=False,
    )  # fmt: skip
    np.testing.assert_array_equal(jax.jit(search)(queries, POINTS), nearest(queries, POINTS, 4))


def test_far_from_the_origin_distances_keep_their_digits():
    queries = np.random.default_rng(3).normal(size=(9, 3)).astype(np.float32)
    near = nearest(queries, POINTS, 5)
    np.testing.assert_array_equal(nearest(queries + 512.0, POINTS + 512.0, 5), near)


def test_descriptions_are_dropped_at_the_share_asked_for_labels_too():
    keys = jax.random.split(jax.random.key(4), 4000)
    dropped = np.asarray(jnp.isnan(drop_labels(keys, jnp.ones((4000, 3)), 0.3, 2)))
    assert (dropped.all(1) == dropped.any(1)).all()
    assert abs(dropped[:, 0].mean() - 0.3) < 4 * (0.3 * 0.7 / 4000) ** 0.5
    labels = np.asarray(drop_labels(keys, jnp.zeros(4000, jnp.int32), 0.3, 2))
    np.testing.assert_array_equal(labels == 2, dropped[:, 0])


DESCRIPTIONS = {
    "representation": lambda: representation(SPEC, encoder=told, width=16, depth=1, steps=3),
    "by label": lambda: representation(
        SPEC, encoder=told, width=16, depth=1, steps=3, labelled=True
    ),
    "neighbours": lambda: neighbours(SPEC, encoder=told, database=(POINTS, None), count=3, skip=1),
}


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_they_train_and_sample_each_image_from_its_key(name):
    describe = DESCRIPTIONS[name]()
    made = method(describe)
    state = jax.jit(made.init)(jax.random.key(0))
    assert ("describe" in state.params) == (describe.init is not None)
    batch = {"image": jnp.asarray(POINTS[:8]), "label": jnp.arange(8, dtype=jnp.int32) % 2}
    update = jax.jit(made.update)
    first, metrics = update(state, batch, jax.random.key(1))
    for number in range(3):
        first, metrics = update(first, batch, jax.random.key(number))
    assert np.isfinite(metrics["loss"]) and ("describe" in metrics) == (describe.init is not None)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), state.params, first.params)
    assert moved["net"]["conditions"]["description"]["first"]["kernel"]
    assert describe.init is None or moved["describe"]["in"]["kernel"]
    sampler = made.sampler(solver="euler", steps=3, guidance=2.0)
    assert sampler.calls == 2 * 3 + describe.calls
    assert describe.calls == (2 * 3 - 1 if describe.init is not None else 0)
    run = jax.jit(sampler.fn)
    labels, labelled = jnp.arange(8, dtype=jnp.int32) % 2, name == "by label"
    check_sampler(run, first.params, labels, labelled=labelled, atol=1e-5)
    assert made.label_error is None and made.log_prob is None


def test_representations_are_drawn_with_their_frequencies():
    # Codes 1 and -1, four to one, given label 1; the other way round given label 0.
    sign = lambda x: jnp.sign(x[:, :1])
    rdm = representation(SPEC, encoder=sign, width=32, depth=1, steps=8, labelled=True)
    adam = optax.adam(5e-3)

    def fit(key):
        def body(carry, number):
            params, state = carry
            keys = jax.random.split(jax.random.fold_in(key, number), 128)
            labels = jnp.arange(128, dtype=jnp.int32) % 2
            often = jax.vmap(lambda k: jax.random.bernoulli(k, 0.8))(keys) == (labels == 1)
            codes = rdm.of(rdm.frozen, jnp.where(often, 1.0, -1.0)[:, None] * jnp.ones((128, 3)))
            grads = jax.grad(lambda p: rdm.loss(p, codes, labels, keys).mean())(params)
            updates, state = adam.update(grads, state)
            return (optax.apply_updates(params, updates), state), None

        params = rdm.init(key)
        return params, jax.lax.scan(body, (params, adam.init(params)), jnp.arange(600))[0][0]

    first, params = jax.jit(fit)(jax.random.key(0))
    keys, labels = jax.random.split(jax.random.key(1), 2000), jnp.arange(2000) % 2

    def shares(params):
        x = np.asarray(rdm.draw(params, rdm.frozen, keys, labels.astype(jnp.int32)))[:, 0]
        assert x.shape == (2000,)
        return np.array([(x[label::2] > 0).mean() for label in (0, 1)])

    # Four standard errors of 1,000 draws, .05, and as much for what 600 steps leave.
    np.testing.assert_allclose(shares(params), [0.2, 0.8], atol=0.1)
    assert np.abs(shares(first) - [0.2, 0.8]).min() > 0.1


@pytest.mark.parametrize("name", ["representation", "neighbours"])
def test_a_described_sampler_is_a_chain(name):
    describe = DESCRIPTIONS[name]()
    made = method(describe)
    params = quick_jit(made.init)(jax.random.key(0)).params
    params = jax.tree.map(lambda a: a + 0.2 * jax.random.normal(jax.random.key(a.size), a.shape),
                          params)  # fmt: skip
    sampler = made.sampler(solver={"name": "ddim", "eta": 1.0}, steps=3)
    keys, label = jax.random.split(jax.random.key(1), 5), jnp.int32(1)
    chain = sampler.chain(params, label)
    assert chain.calls == sampler.calls == 3 + describe.calls
    plain = quick_jit(sampler.fn)(params, keys, jnp.broadcast_to(label, 5))
    alone = quick_jit(lambda k: chain.run(k))(keys)
    np.testing.assert_allclose(alone, plain, atol=1e-5)

    # Of branches from one noise each is told something of its own.
    def branched(keys):
        start = chain.start(keys)
        (_, one), (_, two) = (chain.step(k, start, 0) for k in (keys, branch(keys, 1)))
        again = chain.step(keys, chain.back(keys, chain.step(keys, start, 0), 1, 1), 1)
        return one, two, again[1], chain.estimate(keys, again, 2)

    *told, guess = quick_jit(branched)(keys)
    one, two, again = (each["description"] for each in told)
    np.testing.assert_array_equal(one, again)
    assert (one != two).any() and guess.shape == (5, 3)

    climb = {"name": "search.zero_order", "rounds": 2, "neighbours": 3, "radius": 0.9}
    higher = steered(sampler, {**climb, "reward": {"name": f"{__name__}.height"}})
    labels = jnp.full(5, 1, jnp.int32)
    assert higher.calls == 7 * sampler.calls
    found = quick_jit(higher.fn)(params, keys, labels)
    # The pivot competes, and is what the sampler itself draws.
    assert (found[:, 0] >= plain[:, 0] - 1e-5).all() and (found[:, 0] > plain[:, 0] + 1e-3).any()


def height():
    """A reward: the first coordinate."""
    return lambda x, labels: x[:, 0]


def test_labels_choose_the_query_where_they_are_asked_for():
    x = np.concatenate([POINTS - 20, POINTS + 20])
    labels = np.repeat([0, 1], 40)
    keys = jax.random.split(jax.random.key(5), 200)
    wanted = jnp.arange(200, dtype=jnp.int32) % 2
    by_label = neighbours(SPEC, encoder=flat(), database=(x, labels), labelled=True)
    found = np.asarray(by_label.draw(None, by_label.frozen, keys, wanted))
    assert found.shape == (200, 4, 3)
    np.testing.assert_array_equal(found[..., 0] > 0, np.repeat(np.asarray(wanted)[:, None], 4, 1))
    either = neighbours(SPEC, encoder=flat(), database=(x, labels))
    blind = np.asarray(either.draw(None, either.frozen, keys, wanted))
    # Half of them, whatever the label: four standard errors of 200.
    assert abs((blind[:, 0, 0] > 0).mean() - 0.5) < 4 * 0.5 / 200**0.5


def test_in_training_the_nearest_are_skipped():
    itself = neighbours(SPEC, encoder=flat(), database=(POINTS, None), count=2)
    others = neighbours(SPEC, encoder=flat(), database=(POINTS, None), count=2, skip=1)
    np.testing.assert_array_equal(itself.of(itself.frozen, POINTS)[:, 0], POINTS)
    np.testing.assert_array_equal(
        others.of(others.frozen, POINTS)[:, 0], itself.of(itself.frozen, POINTS)[:, 1]
    )


def test_another_database_is_an_option_of_the_sampler(tmp_path):
    made = method(DESCRIPTIONS["neighbours"]())
    params = quick_jit(made.init)(jax.random.key(0)).params
    params = jax.tree.map(lambda a: a + 0.1, params)
    np.savez(tmp_path / "other.npz", images=POINTS + 3, labels=np.zeros(40, np.int64))
    section = {
        "name": "neighbours.neighbours", "database": str(tmp_path / "other.npz"), "count": 3,
        "encoder": {"name": "tests.families.test_diffusion_descriptions.encoder_of_told"},
    }  # fmt: skip
    keys, labels = jax.random.split(jax.random.key(1), 8), jnp.zeros(8, jnp.int32)
    one, two = (
        quick_jit(made.sampler(solver="euler", steps=2, **changes).fn)(params, keys, labels)
        for changes in ({}, {"describe": section})
    )
    assert float(jnp.abs(one - two).max()) > 1e-3


def encoder_of_told():
    return told


def test_bad_options_are_told(tmp_path):
    for make, words in (
        (lambda: representation(SPEC, encoder=told, steps=0), "describe.steps"),
        (lambda: representation(SPEC, encoder=told, scale=0.0), "describe.scale"),
        (lambda: representation(SPEC, encoder=lambda x: x[:, 0]), "vectors"),
        (lambda: neighbours(SPEC, encoder=told, database="no.npz"), "an .npz file"),
        (lambda: neighbours(SPEC, encoder=told, database=(POINTS, None), count=41), "40 rows"),
        (lambda: neighbours(SPEC, encoder=told, database=(POINTS[:, :2], None)), "of shape"),
        (lambda: neighbours(SPEC, encoder=told, database=(POINTS, None), labelled=True), "labels"),
        (lambda: neighbours(SPEC, encoder=told, database=(POINTS, np.zeros(40, int)),
                            labelled=True), "every label"),
        (lambda: method(DESCRIPTIONS["neighbours"](), coherence=2), "coherence"),
        (lambda: method("representation.representation"), "encoder"),
        (lambda: method(None).sampler(describe=Description(told, lambda *_: None)), "told labels"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=words):
            make()
