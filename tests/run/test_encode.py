"""`jaxgen encode`: features of a frozen encoder, written once and read back as a column."""

import itertools
import json

import ml_collections
import numpy as np
import pytest

from jaxgen.data import batches
from jaxgen.data.features import features
from jaxgen.run.encode import encode
from jaxgen.run.setup import abstract_batch
from tests.config.test_config import make
from tests.running import TINY, run_here

DIGITS = dict(name="digits.digits")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("encode") / "flat.npz"
    code, said, err = run_here(
        *("encode", "--config", TINY, "--encoder", "flat", "--out", str(out), "--flips", "--json")
    )
    assert code == 0, err
    return out, json.loads(said)


def test_both_halves_are_encoded_and_their_mirrors(written):
    out, said = written
    counts = dict(train=901, train_mirrored=901, test=896, test_mirrored=896)
    assert said == dict(out=str(out), features=64, counts=counts)


def test_a_column_of_flat_features_is_the_image_of_the_batch(written):
    out, _ = written
    section = dict(name="features.features", of=DIGITS, path=str(out))
    parts = make_parts(section)
    assert parts.spec.columns["feature"].shape == (64,)
    assert len(parts.test_source) == 896
    stream = batches(parts.source, batch_size=parts.data.batch_size, seed=0, flip=True)
    for batch in itertools.islice(stream, 3):
        flat = batch["image"].reshape(len(batch["image"]), -1)
        np.testing.assert_array_equal(batch["feature"], flat)
    for name, known in abstract_batch(parts).items():
        if name != "image":  # bytes or floats: as the source has them
            assert (batch[name].shape, batch[name].dtype) == (known.shape, known.dtype)


def make_parts(section):
    from jaxgen.run.setup import set_up

    return set_up(make(f"data.source={section!r}"))


def pixels(power: int):
    """An encoder of one's own: four numbers of an image in [-1, 1]."""
    return lambda x: x[:, 3:5, 3:5, 0].reshape(len(x), 4) ** power


def grid():
    """What is no vector."""
    return lambda x: x


def nothing():
    """What is no number."""
    return lambda x: x.reshape(len(x), -1) * np.nan


def test_a_batch_that_does_not_divide_changes_nothing(tmp_path):
    encoder = dict(name="tests.run.test_encode.pixels", power=2)
    config = ml_collections.ConfigDict(dict(data=dict(source=DIGITS)))
    for size in (100, 4096):
        encode(config, encoder, tmp_path / f"{size}.npz", batch_size=size)
    few, many = (np.load(tmp_path / f"{size}.npz")["train"] for size in (100, 4096))
    np.testing.assert_array_equal(few, many)
    source = features(DIGITS, str(tmp_path / "100.npz"))
    np.testing.assert_allclose(
        source.images(np.arange(901))[:, 3:5, 3:5, 0].reshape(901, 4) ** 2, few
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--encoder", "flatt"], "Did you mean 'flat'"),
        (["--encoder", "flat", "--out", "x.npy"], "ends in .npz"),
        (["--encoder", "flat", "--workdir", "runs/x"], "one of the two"),
        (["--encoder", "flat", "--batch_size", "0"], "images >= 1"),
        (["--encoder", "tests.run.test_encode.grid"], "vectors [D]"),
        (["--encoder", "tests.run.test_encode.nothing"], "not finite"),
        (["--encoder", "flat", "--config.data.source.name=hypergrid.hypergrid"], "examples"),
    ],
)
def test_bad_requests_are_one_message(tmp_path, words, message):
    words = [*words] if "--out" in words else [*words, "--out", str(tmp_path / "x.npz")]
    code, out, err = run_here("encode", "--config", TINY, *words)
    assert code == 2 and not out and message in err, err
    assert not list(tmp_path.iterdir())


def test_a_half_that_is_not_there_is_said(tmp_path):
    np.savez(tmp_path / "x.npz", images=np.zeros((4, 4, 4, 1), np.uint8), labels=np.arange(4))
    source = dict(name="arrays.arrays", path=str(tmp_path / "x.npz"))
    config = ml_collections.ConfigDict(dict(data=dict(source=source)))
    assert encode(config, "flat", tmp_path / "f.npz")["counts"] == dict(train=4)
