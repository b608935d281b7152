"""Columns beside image and label, unions of sources, and features computed beforehand."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxgen.data import batches, normalise, order, to_device
from jaxgen.data.arrays import arrays
from jaxgen.data.features import features, hashes
from jaxgen.data.union import union
from jaxgen.errors import UsageError
from jaxgen.mesh import Layout
from jaxgen.method import Spec, method_of, require_column, single
from jaxgen.run.setup import set_up, spec_of
from jaxgen.training.ema import Averages
from jaxgen.training.loop import empty_tally, jitted_step
from jaxgen.training.sharding import batch_sharding, make_mesh, state_sharding
from tests.config.test_config import make

SIZE = 24


def stored(size=SIZE, first=0, shape=(2, 3, 1)):
    """Arrays in which example i is told by i in each of them."""
    number = np.arange(first, first + size)
    image = number[:, None, None, None] * 3 + np.arange(3)[:, None]  # W differs: mirrors are seen
    image = np.broadcast_to(image, (size, *shape)).astype(np.uint8)
    return dict(
        images=image,
        labels=np.arange(size) % 3,
        group=np.arange(size, dtype=np.int64) % 2,
        feature=np.stack([number, -number], 1).astype(np.float64),
        mask=image[..., 0] % 2 == 0,
        pair=255 - image,
    )


@pytest.fixture
def file(tmp_path):
    np.savez(tmp_path / "data.npz", **stored())
    return str(tmp_path / "data.npz")


NAMES = ("group", "feature", "mask", "pair")


def take(source, count, **options):
    return list(itertools.islice(batches(source, seed=3, **options), count))


def test_a_batch_holds_the_columns_of_its_examples(file):
    source, held = arrays(file, columns=NAMES), stored()
    for batch in take(source, 5, batch_size=7):
        index = batch["image"][:, 0, 0, 0] // 3
        for name in NAMES:
            np.testing.assert_array_equal(batch[name], held[name][index])
    kinds = {name: batch[name].dtype.name for name in NAMES}
    assert kinds == dict(group="int32", feature="float32", mask="bool", pair="uint8")
    spec = spec_of(source)
    assert spec.columns["feature"].shape == (2,) and spec.columns["mask"].dtype == "bool"
    assert hash(spec) == hash(spec_of(arrays(file, columns=NAMES)))


def test_columns_that_lie_on_the_image_are_mirrored_with_it(file):
    held, seen = stored(), set()
    for batch in take(arrays(file, columns=NAMES), 8, batch_size=7, flip=True):
        for row in range(7):
            mirrored = batch["image"][row, 0, 0, 0] > batch["image"][row, 0, 2, 0]
            index = batch["image"][row, 0].min() // 3
            seen.add(bool(mirrored))
            for name in NAMES:
                wanted = held[name][index]
                if mirrored and name in ("mask", "pair"):
                    wanted = wanted[:, ::-1]
                np.testing.assert_array_equal(batch[name][row], wanted)
    assert seen == {True, False}


def test_the_device_has_columns_with_the_sharding_of_the_batch(file):
    mesh = jax.make_mesh((8,), ("data",))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    source = arrays(file, columns=NAMES)
    here = take(source, 1, batch_size=16)[0]
    batch = next(to_device(batches(source, batch_size=16, seed=3), sharding))
    for name in NAMES:
        assert batch[name].sharding.is_equivalent_to(sharding, batch[name].ndim)
        np.testing.assert_array_equal(normalise(batch)[name], here[name])


@pytest.mark.parametrize(("via", "accumulate"), [("jit", 2), ("shard_map", 1)])
def test_a_loss_of_a_column_has_the_gradient_of_the_whole_batch(file, via, accumulate):
    source = arrays(file, columns=("feature",))

    def loss(params, batch, key, extra):
        error = ((params["mean"] - batch["feature"]) ** 2).sum(-1).mean() / 2
        return error, ({}, extra)

    def fresh(key):
        return {"mean": jnp.ones(2)}, ()

    averages = Averages(half_life=(1,))
    training = single(loss, fresh, optax.sgd(0.5), averages, accumulate=accumulate)
    method = method_of(spec_of(source), training, separable=True)
    mesh = make_mesh(8, 1, 1)
    shardings = state_sharding(mesh, jax.eval_shape(method.init, jax.random.key(0)))
    state = jax.jit(method.init, out_shardings=shardings)(jax.random.key(0))
    batch = next(to_device(batches(source, batch_size=16, seed=3), batch_sharding(mesh)))
    wanted = 1 - 0.5 * (1 - np.asarray(batch["feature"]).mean(0))
    tally = empty_tally(method, jax.eval_shape(lambda: state), batch)
    step = jitted_step(method, Layout(mesh, via=via), shardings)
    state, _ = step(state, tally, batch, jax.random.key(0))
    np.testing.assert_allclose(state.params["mean"], wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "columns", "words"),
    [
        ({}, ("groups",), "groups.*Did you mean 'group'"),
        (dict(group=np.arange(5)), ("group",), r"group.*\(5,\).*\(24, ...\)"),
        (dict(group=np.array(["a"] * SIZE)), ("group",), "numbers or booleans"),
        (dict(group=np.full(SIZE, 2**40)), ("group",), "integers that int32 holds"),
        (dict(index=np.arange(SIZE)), ("index",), "none of image, label, index"),
    ],
)
def test_columns_that_are_none_are_refused(tmp_path, changes, columns, words):
    np.savez(tmp_path / "x.npz", **stored() | changes)
    with pytest.raises(UsageError, match=words):
        arrays(str(tmp_path / "x.npz"), columns=columns)


def test_a_column_that_the_data_lack_is_asked_for_by_name(file):
    spec = spec_of(arrays(file, columns=("group",)))
    assert require_column(spec, "group", "method.objective").dtype == "int32"
    with pytest.raises(UsageError, match=r"method.objective.*'feature'.*which have group"):
        require_column(spec, "feature", "method.objective")


def test_data_are_checked_against_the_columns_that_a_config_says(file):
    source = f"data.source={dict(name='arrays.arrays', path=file, columns=('group',))!r}"
    holds = dict(shape=(2, 3, 1), num_classes=3)
    group = dict(group=dict(shape=(), dtype="int32"))
    patch = "model=" + repr(dict(name="mlp.MLP", width=8, depth=1))
    parts = set_up(make(source, patch, f"data.holds={holds | dict(columns=group)!r}"))
    assert parts.spec.columns["group"].shape == ()
    with pytest.raises(UsageError, match="data.holds"):
        set_up(make(source, patch, f"data.holds={holds!r}"))


def named(tmp_path, name, size, classes, **changes):
    path = tmp_path / f"{name}.npz"
    np.savez(path, **stored(size, **changes))
    return dict(name="arrays.arrays", path=str(path), class_names=classes)


@pytest.fixture
def two(tmp_path):
    """Ten and six examples, whose classes have another order."""
    return (
        named(tmp_path, "one", 10, ("a", "b", "c")),
        named(tmp_path, "two", 6, ("c", "a", "b"), first=40),
    )


def test_a_union_has_its_proportions_in_every_block(two):
    source = union(two, weights=(3, 1))
    found = take(source, 30, batch_size=8)
    for batch in found:
        assert np.bincount(batch["group"]).tolist() == [6, 2]
        np.testing.assert_array_equal(batch["group"], batch["image"][:, 0, 0, 0] >= 120)
    # Each source's examples equally often: 180 of ten, 60 of six.
    seen = np.concatenate([b["image"][:, 0, 0, 0] for b in found])
    counts = np.unique(seen, return_counts=True)[1]
    assert counts.tolist() == [18] * 10 + [10] * 6
    # In another order in every block.
    assert len({tuple(b["group"]) for b in found}) > 10


def test_a_union_without_weights_sees_every_example_once_an_epoch(two):
    epochs = take(union(two), 3, batch_size=16)
    for batch in epochs:
        assert len(set(batch["image"][:, 0, 0, 0])) == 16
    assert not np.array_equal(epochs[0]["image"], epochs[1]["image"])


def test_a_union_matches_classes_by_name(two):
    source = union(two)
    names = [("a", "b", "c")[i % 3] for i in range(10)] + [("c", "a", "b")[i % 3] for i in range(6)]
    assert [source.class_names[y] for y in source.labels] == names


@pytest.mark.parametrize("weights", [(), (3, 1), (0.3, 0.7)])
def test_a_union_is_a_function_of_seed_and_step(two, weights):
    source = union(two, weights=weights)
    whole = take(source, 12, batch_size=6, flip=True)
    again = take(source, 5, batch_size=6, flip=True, start_step=7)
    parts = [take(source, 12, batch_size=6, flip=True, rows=np.arange(i, 6, 2)) for i in (0, 1)]
    for name in ("image", "label", "group"):
        for a, b in zip(whole[7:], again, strict=True):
            np.testing.assert_array_equal(a[name], b[name])
        for n, batch in enumerate(whole):
            for i in (0, 1):
                np.testing.assert_array_equal(batch[name][i::2], parts[i][n][name])


def test_sources_of_a_union_go_in_orders_of_their_own():
    assert order.apart(0, 0) != order.apart(0, 1) != order.apart(1, 1)


@pytest.mark.parametrize(
    ("second", "options", "words"),
    [
        (dict(class_names=("c", "a", "d")), {}, r"c, a, d.*a, b, c"),
        (dict(columns=("group",)), dict(group="set"), r"columns.*group.*columns.*\{\}"),
        (dict(columns=("group",)), {}, "source.group.*another name"),
        (dict(channels=3), {}, r"\(2, 3, 3\).*\(2, 3, 1\)"),
        ({}, dict(weights=(1,)), "2 numbers > 0"),
        ({}, dict(weights=(1, 0)), "2 numbers > 0"),
        ({}, dict(weights=(0.1234567, 1)), "whole numbers"),
    ],
)
def test_a_union_of_unlike_sources_is_refused(two, second, options, words):
    with pytest.raises(UsageError, match=re.compile(words, re.DOTALL)):
        union((two[0], two[1] | second), **options)
    with pytest.raises(UsageError, match="two or more"):
        union(two[:1])


def beside(tmp_path, file, **changes):
    source = arrays(file)
    held = dict(
        train=np.arange(SIZE * 2, dtype=np.float32).reshape(SIZE, 2),
        train_mirrored=-np.arange(SIZE * 2, dtype=np.float32).reshape(SIZE, 2),
        train_hashes=hashes(source, np.arange(SIZE)),
    )
    path = tmp_path / "features.npz"
    np.savez(path, **{k: v for k, v in (held | changes).items() if v is not None})
    return str(path)


def test_features_follow_their_examples_and_their_mirrors(tmp_path, file):
    of = dict(name="arrays.arrays", path=file, columns=("group",))
    source = features(of, beside(tmp_path, file))
    for flip in (False, True):
        for batch in take(source, 4, batch_size=8, flip=flip):
            index = batch["image"][:, 0].min((1, 2)) // 3
            sign = 1 - 2 * (batch["image"][:, 0, 0, 0] > batch["image"][:, 0, 2, 0])
            np.testing.assert_array_equal(batch["feature"][:, 0], 2 * index * sign)
            np.testing.assert_array_equal(batch["group"], index % 2)
    plain = features(of, beside(tmp_path, file, train_mirrored=None))
    with pytest.raises(UsageError, match="data.flip"):
        take(plain, 1, batch_size=8, flip=True)


def test_features_of_other_examples_are_refused(tmp_path, file, monkeypatch):
    of, path = dict(name="arrays.arrays", path=file), beside(tmp_path, file)
    for swap in ("images", "labels"):
        held = stored()
        held[swap][[6, 7]] = held[swap][[7, 6]]
        np.savez(file, **held)
        with pytest.raises(UsageError, match="the first at 6"):
            features(of, path)
    # Not all are looked at where that is not wanted.
    monkeypatch.setattr("jaxgen.data.features.PROBES", 2)
    assert len(features(of, path, verify=False)) == SIZE
    np.savez(file, **stored())
    np.savez(file.replace("data", "test"), **stored())
    with pytest.raises(UsageError, match="split: got 'test'; allowed: train"):
        features(of | dict(path=file.replace("data.npz", "{split}.npz")), path, split="test")
    with pytest.raises(UsageError, match="the source has not got"):
        features(of | dict(columns=("feature",)), path)
    np.savez(file, **stored(SIZE - 3))
    with pytest.raises(UsageError, match="features of 24 examples.*these 21"):
        features(of, path)


def test_a_spec_reads_its_columns_from_json():
    spec = Spec((2, 3, 1), 3, columns={"group": {"shape": [], "dtype": "int32"}})
    assert spec.columns["group"].shape == () and hash(spec)
