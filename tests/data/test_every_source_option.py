"""Every option of every source changes what is read, or is on a short list with the reason.

A source is opened twice, over the same files; its first examples, classes and notes must differ, or
one of the two is refused (`verify` does nothing but find what is spoilt before it is met).
"""

from __future__ import annotations

import hashlib
import importlib
import io
import itertools
import pkgutil
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxgen import config as configs
from jaxgen import data
from jaxgen.data import batches
from jaxgen.data.array_record import write_records
from jaxgen.data.codes import about, write_split
from jaxgen.data.digits import digits
from jaxgen.data.features import hashes
from jaxgen.data.source import Source, Target
from jaxgen.errors import UsageError
from tests.option_kit import options

ROOM = configs.ROOMS["source"]
NAMES = ("ant", "bee", "cow")
PARTS = ("train", "test")


def picture(n: int, colours: int = 4) -> bytes:
    """A PNG of 20 x 16 pixels, half of them transparent."""
    pixels = np.random.default_rng(n).integers(0, 256, (16, 20, colours), np.uint8)
    if colours == 4:
        pixels[..., 3] = np.where(np.arange(20) < 10, 0, 255)
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(file, "png")
    return file.getvalue()


def put_folder(root: Path) -> dict[str, Any]:
    """Splits of three classes; of "test" one file is spoilt."""
    for number, (part, name) in enumerate(itertools.product(PARTS, NAMES)):
        place = root / part / name
        place.mkdir(parents=True)
        for n in range(2):
            (place / f"{n}.png").write_bytes(picture(10 * number + n))
    (root / "test" / "ant" / "0.png").write_bytes(b"no picture")
    return dict(path=str(root), image_size=8)


def put_spoilt(root: Path) -> dict[str, Any]:
    """The same, asked for the spoilt half."""
    return put_folder(root) | dict(split="test")


def put_arrays(root: Path) -> dict[str, Any]:
    """Splits by key, floats from 0 to 1, two sets of images and of labels."""
    chance, held = np.random.default_rng(0), {}
    for key, part in itertools.product(("images", "other"), PARTS):
        held[f"{key}_{part}"] = chance.random((6, 4, 4, 1), np.float32)
    for key, part in itertools.product(("labels", "others"), PARTS):
        held[f"{key}_{part}"] = chance.permutation(np.arange(6) % 3)
        held[f"mask_{part}"] = np.ones((6, 4, 4, 1), np.float32)
    np.savez(root / "a.npz", **held)
    keys = dict(images_key="images_{split}", labels_key="labels_{split}")
    return dict(path=str(root / "a.npz"), range="0,1", **keys)


def put_idx(root: Path) -> dict[str, Any]:
    """Both halves, uncompressed."""
    chance = np.random.default_rng(0)
    for stem in ("train", "t10k"):
        images = chance.integers(0, 256, (6, 4, 4), np.uint8)
        labels = chance.permutation(np.arange(6, dtype=np.uint8) % 3)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            (root / f"{stem}-{kind}-ubyte").write_bytes(head + array.tobytes())
    return dict(path=str(root))


def put_latents(root: Path) -> dict[str, Any]:
    """A file for each split."""
    chance = np.random.default_rng(0)
    for part in PARTS:
        mean, std = (chance.random((6, 4, 4, 2), np.float32) for _ in range(2))
        np.savez(root / f"{part}.npz", labels=np.arange(6) % 3, mean=mean, std=std)
    return dict(path=str(root / "{split}.npz"), scale=0.5)


def put_codes(root: Path) -> dict[str, Any]:
    """As `jaxgen tokenize` writes them."""
    chance, counts = np.random.default_rng(0), {}
    for part in PARTS:
        tokens, labels = chance.integers(0, 8, (6, 2, 2)), np.arange(6) % 3
        counts[part] = write_split(root, part, "tokens", [(tokens.astype(np.int32), labels)])
    said = about(
        kind="tokens", shape=(2, 2), levels=8, flips=False, splits=counts, class_names=NAMES,
        tokenizer="runs/t", ema="half_life_1", digest="0", scale=1.0, shift=0.0,
    )  # fmt: skip
    (root / "codes.json").write_text(said)
    return dict(path=str(root))


def put_tars(root: Path) -> dict[str, Any]:
    """Two sorts of picture and of label beside one another."""
    for shard, part in enumerate(PARTS):
        with tarfile.open(root / f"{part}.tar", "w") as tar:
            for n in range(6):
                held = {
                    "png": picture(10 * shard + n), "seg.png": picture(90 + n),
                    "cls": str(n % 3).encode(), "kind": str((n + 1) % 3).encode(),
                }  # fmt: skip
                for ending, content in held.items():
                    info = tarfile.TarInfo(f"{n}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return dict(path=str(root / "{split}.tar"), image="png", image_size=8)


def put_records(root: Path) -> dict[str, Any]:
    """The features are called image and label."""
    for shard, part in enumerate(PARTS):
        rows = ((picture(10 * shard + n), n % 3) for n in range(6))
        write_records(root / f"{part}.array_record", rows, ())
    return dict(path=str(root / "{split}.array_record"), image_size=8)


def put_hf(root: Path) -> dict[str, Any]:
    """Two columns of pictures and two of labels."""
    datasets = pytest.importorskip("datasets")
    for shard, part in enumerate(PARTS):
        images = [[picture(50 * k + 10 * shard + n) for n in range(6)] for k in range(2)]
        labels = [[(n + k) % 3 for n in range(6)] for k in range(2)]
        names = ("image", "other", "label", "kind")
        rows = dict(zip(names, (*images, *labels), strict=True))
        made = datasets.Dataset.from_dict(rows)
        made.to_parquet(str(root / f"{part}-00000-of-00001.parquet"))
    return dict(path=str(root), image_size=8)


def put_features(root: Path) -> dict[str, Any]:
    """Features of the digits' halves, of which the last was computed from another picture."""
    held = {}
    for part in PARTS:
        source = digits(part)
        known = hashes(source, np.arange(len(source)))
        known[1] += part == "train"
        held |= {part: np.zeros((len(source), 2), np.float32), f"{part}_hashes": known}
    np.savez(root / "f.npz", **held)
    return dict(of="digits.digits", path=str(root / "f.npz"))


def put_scored(root: Path) -> dict[str, Any]:
    """Images with two columns of numbers, of both splits."""
    chance, held = np.random.default_rng(0), {}
    for part in PARTS:
        held[f"images_{part}"] = chance.integers(0, 256, (24, 4, 4, 1), np.uint8)
        held[f"labels_{part}"] = np.arange(24) % 3
        for name in ("score", "other"):
            held[f"{name}_{part}"] = chance.permutation(np.linspace(0, 1, 24)).astype(np.float32)
    np.savez(root / "a.npz", **held)
    keys = {f"{k}_key": f"{k}_{{split}}" for k in ("images", "labels")}
    columns = ("score_{split}", "other_{split}")
    of = dict(name="arrays.arrays", path=str(root / "a.npz"), columns=columns, **keys)
    return dict(of=of, column="score", edges=(0.5,))


def put_some(root: Path) -> dict[str, Any]:
    """The digits, as some of eleven classes."""
    return dict(of="digits.digits", classes=tuple("0123456789a"))


def put_union(root: Path) -> dict[str, Any]:
    """The digits twice."""
    return dict(sources=("digits.digits", "digits.digits"), weights=(1.0, 1.0))


def nothing(root: Path) -> dict[str, Any]:
    """A source that reads no files."""
    return {}


class Tried(NamedTuple):
    """put(folder) -> the options of a source over files in it; values: other ones to give.

    reasons: options that change nothing here, and who tries them.
    """

    source: str
    put: Callable[[Path], dict[str, Any]]
    values: Mapping[str, Any]
    reasons: Mapping[str, str] = {}


ELSEWHERE = {"path": "where the files are: another place, other files"}
COLOURS = dict(channels=1, background="black", image_size=6)
TWO = ("bee", "ant", "cow")
CASES = (
    Tried("folder.folder", put_folder, dict(split="test", channels=1, background="black",
        image_size=6, splits=False, class_names=TWO, one_class=True), ELSEWHERE),
    Tried("folder.folder", put_spoilt, dict(on_error="skip", verify=True)),
    Tried("arrays.arrays", put_arrays, dict(split="test", images_key="other_{split}", channels=3,
        labels_key="others_{split}", num_classes=4, class_names=TWO, range="-1,1",
        columns=("mask_{split}",)), ELSEWHERE),
    Tried("idx.idx", put_idx, dict(split="test", channels=3, class_names=TWO), ELSEWHERE),
    Tried("latents.latents", put_latents, dict(split="test", scale=1.0, shift=0.5, num_classes=4,
        class_names=TWO), ELSEWHERE),
    Tried("codes.codes", put_codes, dict(split="test"), ELSEWHERE),
    Tried("webdataset.webdataset", put_tars, COLOURS | dict(split="test", image="seg.png",
        label="kind", class_names=TWO), ELSEWHERE),
    Tried("array_record.array_record", put_records, COLOURS | dict(split="test", image="label",
        label=None, class_names=TWO), ELSEWHERE),
    Tried("hf.hf", put_hf, COLOURS | dict(split="test", image="other", label="kind",
        class_names=TWO), ELSEWHERE | dict(subset="of the hub alone", revision="of the hub alone")),
    Tried("features.features", put_features, dict(of="bars_and_stripes.bars_and_stripes",
        column="other", verify=True, split="test"), ELSEWHERE),
    Tried("binned.binned", put_scored, dict(of="digits.digits", column="other", edges=(0.4,),
        split="test")),
    Tried("among.among", put_some, dict(of=dict(name="digits.digits", channels=3), split="test",
        classes=tuple("a0123456789"))),
    Tried("union.union", put_union, dict(sources=("digits.digits",) * 3, weights=(3.0, 1.0),
        group="of", split="test")),
    Tried("digits.digits", nothing, dict(split="test", channels=3)),
    Tried("bars_and_stripes.bars_and_stripes", nothing, dict(size=4),
        dict(split="the law is one: all patterns, once")),
    Tried("hypergrid.hypergrid", nothing, dict(dims=3, height=9, r0=0.2, r1=0.6, r2=3.0),
        dict(split="a target has none")),
    Tried("hypergrid.additive", nothing, dict(dims=3, height=9, spread=2.0, seed=1),
        dict(split="a target has none")),
    Tried("sets.sets", nothing, dict(items=9, size=3, spread=2.0, seed=1),
        dict(split="a target has none")),
    Tried("bit_sequences.bit_sequences", nothing, dict(length=64, word=4, modes=7, beta=2.0,
        seed=1), dict(split="a target has none")),
)  # fmt: skip
UNSEEN = {
    "tfds.tfds": "a data set is prepared for tests/data/test_data_sources.py, which reads it so",
}


def seen(section: dict[str, Any]) -> Any:
    """What one finds there: how far it comes, and a digest of everything that is said and read."""
    try:
        source = configs.build(section, ROOM, "config.data.source")
    except UsageError as error:
        return "opening", str(error)
    about = (source.class_names, source.shape, source.levels)
    if isinstance(source, Target):
        return "target", about, rewards(source)
    said = (*about, dict(source.columns), source.notes, source.labels.tobytes(), source.coding)
    try:
        batch = next(iter(batches(source, batch_size=4, seed=0)))
    except UsageError as error:
        return "reading", said, str(error)
    held = {k: (np.asarray(a).shape, np.asarray(a).tobytes()) for k, a in sorted(batch.items())}
    return "read", said, hashlib.sha256(repr(held).encode()).hexdigest()


def rewards(target: Any) -> Any:
    """ln R of a few states that random actions lead to, and the shape of the graph."""
    count = 64
    states = jnp.broadcast_to(jnp.asarray(target.root()), (count, *target.state_shape))
    lengths = jnp.arange(count) % target.steps

    def step(states: Any, n: Any) -> Any:
        allowed = target.allowed(states).at[:, target.stop].set(False)
        one = jax.random.categorical(jax.random.key(n), jnp.where(allowed, 0.0, -jnp.inf))
        return target.step(states, jnp.where(allowed.any(-1) & (n < lengths), one, target.stop))

    states = jax.lax.fori_loop(0, target.steps - 1, lambda n, states: step(states, n), states)
    return target.steps, target.actions, np.asarray(target.log_reward(states)).tolist()


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.source}-{next(iter(case.values))}")
def test_another_value_is_read_otherwise(case, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    (tmp_path / "files").mkdir()
    section = {"name": case.source, **case.put(tmp_path / "files")}
    before = seen(section)
    assert seen(section) == before
    same = [o for o, value in case.values.items() if seen({**section, o: value}) == before]
    assert same == []


def test_every_source_and_all_of_its_options_are_tried():
    tried: dict[str, set[str]] = {}
    for case in CASES:
        tried.setdefault(case.source, set()).update(case.values, case.reasons)
    for name, names in tried.items():
        assert set(options(configs.resolve(name, ROOM, "source"))) == names, name
    every = set()
    for module in pkgutil.iter_modules(data.__path__):
        found = importlib.import_module(f"jaxgen.data.{module.name}")
        for name, function in vars(found).items():
            here = getattr(function, "__module__", "") == found.__name__
            made = getattr(function, "__annotations__", {}).get("return", "")
            kind = vars(found).get(made) if isinstance(made, str) else None
            if here and isinstance(kind, type) and issubclass(kind, (Source, Target)):
                every.add(f"{module.name}.{name}")
    made = {"holdout.some_of", "source.in_memory"}  # of sources and arrays, not of a config
    public = {name for name in every if not name.partition(".")[2].startswith("_")}
    assert public - made == tried.keys() | UNSEEN.keys()
