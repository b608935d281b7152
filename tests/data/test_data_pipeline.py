"""Laws of the pipeline: what is seen at step n is a function of (seed, n) alone."""

from __future__ import annotations

import itertools
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jaxgen
from jaxgen.data import batches, normalise, order, to_device, whole
from jaxgen.data.digits import digits
from jaxgen.data.source import in_memory
from jaxgen.errors import UsageError

ROOT = pathlib.Path(jaxgen.__file__).parents[1]
ENVIRONMENT = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}


def counting(size, classes=3):
    """A source whose image i is full of the number i."""
    images = np.broadcast_to(np.arange(size, dtype=np.uint8)[:, None, None, None], (size, 2, 3, 1))
    return in_memory(np.ascontiguousarray(images), np.arange(size) % classes)


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def seen(parts):
    return np.concatenate([b["image"][:, 0, 0, 0] for b in parts])


def assert_same(left, right):
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])
        np.testing.assert_array_equal(a["label"], b["label"])


@pytest.mark.parametrize("start", [1, 7, 40])
def test_resuming_from_a_step_equals_the_uninterrupted_stream(start):
    source = digits()
    full = take(batches(source, batch_size=64, seed=3, flip=True), start + 5)
    resumed = take(batches(source, batch_size=64, seed=3, flip=True, start_step=start), 5)
    assert_same(full[start:], resumed)


@pytest.mark.parametrize("whose", ["contiguous", "strided"])
@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_global_batch_of_one(count, whose):
    source = digits()
    options = dict(batch_size=32, seed=5, flip=True, start_step=26)
    alone = take(batches(source, **options), 4)
    rows = np.arange(32).reshape(count, -1)
    rows = rows if whose == "contiguous" else np.arange(32).reshape(-1, count).T
    parts = [take(batches(source, **options, rows=own), 4) for own in rows]
    back = np.argsort(rows.reshape(-1))
    joined = [
        {k: np.concatenate([part[n][k] for part in parts])[back] for k in ("image", "label")}
        for n in range(4)
    ]
    assert_same(alone, joined)


@pytest.mark.parametrize("batch_size", [1, 4, 10, 13, 37])
def test_every_epoch_is_a_new_permutation_also_across_batch_borders(batch_size):
    source, size, epochs = counting(13), 13, 6
    steps = -(-size * epochs // batch_size)
    stream = seen(take(batches(source, batch_size=batch_size, seed=0), steps))[: size * epochs]
    rows = stream.reshape(epochs, size)
    np.testing.assert_array_equal(np.sort(rows, axis=1), np.tile(np.arange(size), (epochs, 1)))
    assert len({tuple(r) for r in rows}) == epochs


def test_batch_size_cuts_the_stream_and_does_not_change_it():
    source = counting(13)
    small = seen(take(batches(source, batch_size=3, seed=1), 20))
    large = seen(take(batches(source, batch_size=20, seed=1), 3))
    np.testing.assert_array_equal(small, large)


def test_seeds_give_different_orders_and_labels_stay_with_their_images():
    source = counting(200)
    first, second = (take(batches(source, batch_size=200, seed=s), 1)[0] for s in (0, 1))
    assert (first["image"] != second["image"]).any()
    np.testing.assert_array_equal(first["label"], first["image"][:, 0, 0, 0] % 3)
    assert first["label"].dtype == np.int32


def test_the_first_position_of_the_order_is_uniform():
    firsts = [order.permutation(seed, 0, 5)[0] for seed in range(2000)]
    counts = np.bincount(firsts, minlength=5)
    # Five standard deviations of a binomial(2000, 1/5).
    assert np.abs(counts - 400).max() < 5 * np.sqrt(2000 * 0.2 * 0.8)


def test_flips_are_fair_independent_of_the_batch_and_exact_mirrors():
    source = in_memory(np.arange(6, dtype=np.uint8).reshape(1, 2, 3, 1), np.zeros(1, int))
    stream = np.concatenate(
        [b["image"] for b in take(batches(source, batch_size=100, seed=2, flip=True), 50)]
    )
    mirrored = (stream == source.array[:, :, ::-1]).all(axis=(1, 2, 3))
    straight = (stream == source.array).all(axis=(1, 2, 3))
    assert (mirrored ^ straight).all()
    assert abs(mirrored.mean() - 0.5) < 5 * 0.5 / np.sqrt(5000)
    other = np.concatenate(
        [b["image"] for b in take(batches(source, batch_size=25, seed=2, flip=True), 200)]
    )
    np.testing.assert_array_equal(stream, other)


def test_prefetch_threads_do_not_change_the_stream():
    source = digits()
    plain, threaded = (
        take(batches(source, batch_size=32, seed=0, flip=True, prefetch=n), 40) for n in (0, 4)
    )
    assert_same(plain, threaded)


def test_worker_processes_give_the_same_stream(tmp_path):
    # A fresh interpreter, so that nobody has parsed absl's flags, as in a user's script.
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent(
            """
            import itertools
            import numpy as np
            from jaxgen.data import batches
            from jaxgen.data.digits import digits

            if __name__ == "__main__":
                options = dict(batch_size=48, seed=1, flip=True, start_step=3)
                plain = batches(digits(), **options)
                working = batches(digits(), **options, workers=2)
                for a, b in itertools.islice(zip(plain, working), 25):
                    assert np.array_equal(a["image"], b["image"])
                    assert np.array_equal(a["label"], b["label"])
                working.close()
                print("equal")
            """
        )
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=ENVIRONMENT, timeout=120
    )
    assert done.returncode == 0 and "equal" in done.stdout, done.stderr


def test_workers_leave_ctrl_c_to_their_parent():
    from jaxgen.data.pipeline import _leave_interrupts_to_parent

    before = signal.getsignal(signal.SIGINT)
    try:
        _leave_interrupts_to_parent(0, 1)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_to_device_keeps_the_order_and_normalises_inside_jit(prefetch):
    mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    source = counting(30)
    host = take(batches(source, batch_size=8, seed=0), 6)
    step = jax.jit(normalise)
    with jax.transfer_guard("disallow"):
        device = take(to_device(iter(host), sharding, prefetch=prefetch), 6)
        images = [step(b)["image"] for b in device]
    for a, b, image in zip(host, device, images, strict=True):
        assert b["image"].dtype == np.uint8 and b["image"].sharding == sharding
        np.testing.assert_array_equal(a["label"], np.asarray(b["label"]))
        np.testing.assert_allclose(image, a["image"] / 127.5 - 1, atol=1e-6)


def test_to_device_keeps_prefetch_batches_in_flight_and_closes_its_iterator():
    made = []

    def produce():
        try:
            for n in itertools.count():
                made.append(n)
                yield {"image": np.full((2, 1, 1, 1), n, np.uint8)}
        finally:
            made.append("closed")

    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    stream = to_device(produce(), sharding, prefetch=2)
    assert int(next(stream)["image"][0, 0, 0, 0]) == 0
    assert made == [0, 1, 2]
    stream.close()
    assert made[-1] == "closed"


def test_normalise_maps_bytes_to_the_interval_and_passes_floats():
    bytes_ = normalise({"image": np.array([0, 255], np.uint8)})["image"]
    np.testing.assert_array_equal(bytes_, [-1.0, 1.0])
    floats = normalise({"image": np.array([-0.25, 7.0], np.float32), "label": 3})
    np.testing.assert_array_equal(floats["image"], [-0.25, 7.0])
    assert floats["label"] == 3


def test_sharded_batches_and_a_batch_that_does_not_divide():
    code = """
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 4)
from jax.sharding import NamedSharding, PartitionSpec
from jaxgen.data import to_device
from jaxgen.errors import UsageError
mesh = jax.make_mesh((4,), ("data",))
sharding = NamedSharding(mesh, PartitionSpec("data"))
batch = {"image": np.arange(8, dtype=np.uint8).reshape(8, 1, 1, 1), "label": np.arange(8)}
out = next(to_device(iter([batch]), sharding))
assert len(out["image"].addressable_shards) == 4
assert np.array_equal(np.asarray(out["label"]), np.arange(8))
try:
    next(to_device(iter([{"label": np.arange(6)}]), sharding))
except UsageError as error:
    assert "data.batch_size: got 6" in str(error) and "4 devices" in str(error), error
    print("refused")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, timeout=120
    )
    assert "refused" in done.stdout, done.stderr


def test_whole_is_the_source_in_its_own_order():
    source = counting(29)
    data = whole(source, chunk=10)
    np.testing.assert_array_equal(data["image"], source.array)
    np.testing.assert_array_equal(data["label"], source.labels)


def test_batches_pickle_and_unpickle_to_the_same_batch():
    from jaxgen.data import Batches

    batch_at = Batches(source=digits(), batch_size=16, seed=0, flip=True)
    assert_same([batch_at(5)], [pickle.loads(pickle.dumps(batch_at))(5)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(batch_size=0), "data.batch_size: got 0"),
        (dict(batch_size=4, seed=-1), "data.seed: got -1"),
        (dict(batch_size=4, start_step=-1), "data.start_step"),
        (dict(batch_size=4, workers=-1), "data.workers"),
        (dict(batch_size=4, prefetch=-1), "data.prefetch"),
        (dict(batch_size=4, rows=np.array([2, 4])), r"data.rows: got \[2, 4\]"),
        (dict(batch_size=4, rows=np.array([1, 0])), r"data.rows: got \[1, 0\]"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_at_once(options, message):
    with pytest.raises(UsageError, match=message):
        batches(counting(9), **{"seed": 0, **options})
