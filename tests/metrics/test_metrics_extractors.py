"""Extractors by name: their weights found and checked, their features free of batch and device."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import pickle
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

from jaxgen.errors import UsageError
from jaxgen.metrics import feature_scores
from jaxgen.metrics.extractors import clip, dinov2, inception, load, vgg, vit, weights
from jaxgen.metrics.extractors.network import NetworkExtractor, applied
from jaxgen.metrics.sets.reading import of_bytes
from jaxgen.metrics.sets.side import side

WIDTH, DEPTH, NAME = 16, 2, "dinov2_vitb14"


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    """Empty caches, and a DINOv2 that is tiny."""
    for variable in ("XDG_CACHE_HOME", "TORCH_HOME", "HF_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setitem(dinov2.SIZES, NAME, dict(width=WIDTH, depth=DEPTH, heads=2))
    return tmp_path


def state(seed: int = 0) -> dict[str, np.ndarray]:
    """A state dict as transformers names it, of the tiny network."""
    shapes = {
        "embeddings.cls_token": (1, 1, WIDTH),
        "embeddings.position_embeddings": (1, 26, WIDTH),
        "embeddings.patch_embeddings.projection.weight": (WIDTH, 3, 14, 14),
        "embeddings.patch_embeddings.projection.bias": (WIDTH,),
        "layernorm.weight": (WIDTH,),
        "layernorm.bias": (WIDTH,),
    }
    linear = {f"attention.attention.{n}": (WIDTH, WIDTH) for n in ("query", "key", "value")}
    linear["attention.output.dense"] = (WIDTH, WIDTH)
    linear |= {"mlp.fc1": (4 * WIDTH, WIDTH), "mlp.fc2": (WIDTH, 4 * WIDTH)}
    for i in range(DEPTH):
        top = f"encoder.layer.{i}."
        for name, shape in linear.items():
            shapes |= {f"{top}{name}.weight": shape, f"{top}{name}.bias": shape[:1]}
        for n in (1, 2):
            shapes |= {f"{top}norm{n}.{kind}": (WIDTH,) for kind in ("weight", "bias")}
            shapes[f"{top}layer_scale{n}.lambda1"] = (WIDTH,)
    rng = np.random.default_rng(seed)
    return {k: rng.normal(0, 0.3, v).astype(np.float32) for k, v in shapes.items()}


@pytest.fixture
def file(home):
    path = home / "random.safetensors"
    safetensors.numpy.save_file(state(), path)
    return path


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (11, 9, 12, 3), np.uint8)


def converted(home):
    return sorted((home / "XDG_CACHE_HOME/jaxgen/extractors").glob("*.safetensors"))


def test_features_do_not_depend_on_batch_or_devices(file, images):
    network = load(NAME, file, batch=8)
    assert jax.device_count() == 8
    whole = network.features(images)
    assert whole.shape == (11, WIDTH) and whole.dtype == np.float32
    assert np.linalg.matrix_rank(whole) > 5
    one = dataclasses.replace(network, devices=jax.devices()[:1], batch=4)
    np.testing.assert_allclose(one.features(images), whole, atol=2e-5)
    for part in (slice(0, 1), slice(3, 8), slice(8, 11)):
        np.testing.assert_allclose(network.features(images[part]), whole[part], atol=2e-5)
    # Full batches, the last one and none at all are one program.
    assert network.features(images[:0]).shape == (0, WIDTH)
    assert network._compiled[3]._cache_size() == 1


def test_the_network_sees_what_it_should(file, images):
    from PIL import Image

    network = load(NAME, file, batch=8)
    made = network.features(images[:2])
    resized = np.empty((2, 224, 224, 3), np.float32)
    for n, channel in np.ndindex(2, 3):
        plane = Image.fromarray(images[n, :, :, channel].astype(np.float32))
        resized[n, :, :, channel] = plane.resize((224, 224), Image.Resampling.BICUBIC)
    x = (resized.clip(0, 255) / 255 - np.array(dinov2.MEAN)) / np.array(dinov2.STD)
    module = dinov2.module(WIDTH, DEPTH, 2)
    expected = module.apply({"params": dinov2.convert(state(), heads=2)}, x.astype(np.float32))
    np.testing.assert_allclose(made, expected, atol=1e-4)
    grey = images[:2, :, :, :1]
    np.testing.assert_array_equal(network.features(grey), network.features(grey.repeat(3, -1)))
    floats = (images[:2] / 127.5 - 1).astype(np.float32)
    np.testing.assert_array_equal(network.features(floats), made)


def test_images_are_checked(file, images):
    network = load(NAME, file)
    for bad in (images[0], images[..., :2], images[:, :0]):
        with pytest.raises(UsageError, match=r"images: got \("):
            network.features(bad)
    with pytest.raises(UsageError, match="not finite"):
        network.features(np.full((1, 4, 4, 3), np.nan))


def test_dtype_and_batch(file, images):
    exact, rounded = load(NAME, file, batch=8), load(NAME, file, dtype="bfloat16", batch=8)
    assert rounded.digest == f"{exact.digest}, bfloat16"
    a, b = (n.features(images) for n in (exact, rounded))
    assert 1e-4 < np.abs(a - b).max() < 0.2 and b.dtype == np.float32
    with pytest.raises(UsageError, match=r"dtype: got 'float8'.*float32, bfloat16"):
        load(NAME, file, dtype="float8")
    with pytest.raises(UsageError, match="batch: got 0"):
        load(NAME, file, batch=0)


@pytest.mark.parametrize("name", ["inception", NAME, "clip", "vgg"])
def test_products_of_float32_are_asked_for_in_full(name):
    # An accelerator would take fewer bits unless told so; a CPU never does, so the program is read.
    makes = {
        "inception": (inception.InceptionV3, inception.shapes(), 299),
        NAME: (dinov2_module, vit.shapes(dinov2_module(), 28), 28),
        "clip": (clip_module, vit.shapes(clip_module(), 28), 28),
        "vgg": (vgg.VGG16, vgg.shapes(), 32),
    }
    make, params, size = makes[name]
    images = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    program = str(jax.make_jaxpr(applied(make, "float32"))(params, images))
    products = program.count("dot_general[") + program.count("conv_general_dilated[")
    assert products >= 1 and program.count("precision=(Precision.HIGHEST") == products
    assert "Precision.HIGHEST" not in str(jax.make_jaxpr(applied(make, "bfloat16"))(params, images))


dinov2_module = functools.partial(dinov2.module, WIDTH, DEPTH, 2)
clip_module = functools.partial(clip.module, WIDTH, DEPTH, 2, 8)


def test_a_file_is_converted_once_and_its_digest_kept(file, home, images, monkeypatch):
    first = load(NAME, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert first.digest == f"{digest}, unverified"
    (kept,) = converted(home)
    # From here on nothing may be converted again.
    monkeypatch.setattr(vit, "layers", None)
    again = load(NAME, file)
    jax.tree.map(np.testing.assert_array_equal, again.params, first.params)
    file.unlink()
    # Both as a file of one's own and as the only one of that name in the cache.
    for given in (kept, None):
        found = load(NAME, given)
        assert found.digest == first.digest
        jax.tree.map(np.testing.assert_array_equal, found.params, first.params)
    shutil.copy(kept, kept.with_name(f"{NAME}-other.safetensors"))
    with pytest.raises(UsageError, match="-other.safetensors"):
        load(NAME)
    with pytest.raises(UsageError, match="b14, layout 1'; allowed: those of dinov2_vitl14,"):
        load("dinov2_vitl14", kept)


def test_a_flipped_bit_of_a_converted_file_is_noticed(file, home):
    first = load(NAME, file)
    (kept,) = converted(home)
    data = bytearray(kept.read_bytes())
    data[-5] ^= 1
    kept.write_bytes(data)
    with pytest.raises(UsageError, match="have changed since"):
        load(NAME, kept)
    # Where the original is at hand it is converted again.
    with pytest.warns(UserWarning, match="have changed since"):
        again = load(NAME, file)
    jax.tree.map(np.testing.assert_array_equal, again.params, first.params)
    assert load(NAME, kept).digest == first.digest


def test_a_cache_that_cannot_be_written_is_no_obstacle(file, home):
    (home / "XDG_CACHE_HOME").write_text("a file, not a folder")
    with pytest.warns(UserWarning, match="cannot be written"):
        load(NAME, file)


def test_weights_in_hugging_faces_cache_are_found_and_verified(file, home):
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    repository = home / "HF_HOME/hub/models--facebook--dinov2-base"
    blob, snapshot = repository / "blobs" / digest, repository / "snapshots" / "abc"
    for folder in (blob.parent, snapshot, repository / "refs"):
        folder.mkdir(parents=True)
    shutil.copy(file, blob)
    (repository / "refs/main").write_text("abc")
    (snapshot / "model.safetensors").symlink_to(os.path.relpath(blob, snapshot))
    assert load(NAME).digest == digest
    data = blob.read_bytes()
    blob.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(UsageError, match="cut short or altered"):
        load(NAME)


@pytest.mark.parity
def test_weights_in_pytorch_hubs_cache_are_found(file, home, images):
    torch = pytest.importorskip("torch")
    folder = home / "TORCH_HOME/hub/checkpoints"
    folder.mkdir(parents=True)
    torch.save({k: torch.tensor(v) for k, v in state().items()}, folder / f"{NAME}_pretrain.pth")
    found = load(NAME)
    jax.tree.map(np.testing.assert_array_equal, found.params, load(NAME, file).params)
    assert found.digest.endswith(", unverified")


@pytest.mark.parametrize("name", ["inception", "dinov2_vitl14", "clip_vitl14_336"])
def test_missing_weights_name_what_fetches_them(name):
    with pytest.raises(UsageError) as found:
        load(name)
    assert f"none found for '{name}'" in str(found.value)
    assert "curl -L" in str(found.value) or "hf download" in str(found.value)
    assert "classifier" in str(found.value)
    with pytest.raises(UsageError, match="got 'nowhere.pth'"):
        load(name, "nowhere.pth")


def test_files_of_something_else_are_refused(file, home):
    def refused(match, **arrays):
        path = home / "other.safetensors"
        changed = {k: v for k, v in (state() | arrays).items() if v is not None}
        safetensors.numpy.save_file(changed, path)
        with pytest.raises(UsageError, match=match):
            load(NAME, path)

    refused("no layernorm.bias", **{"layernorm.bias": None})
    refused(
        r"norm_after.bias is \(3,\)'; allowed: \(16,\)",
        **{"layernorm.bias": np.zeros(3, np.float32)},
    )
    with pytest.raises(UsageError, match="no fc.weight"):
        load("inception", file)
    assert converted(home) == []


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_truncated_files_are_refused(suffix, file, home):
    data = file.read_bytes()
    if suffix == ".pth":
        torch = pytest.importorskip("torch")
        torch.save({k: torch.tensor(v) for k, v in state().items()}, home / "whole.pth")
        data = (home / "whole.pth").read_bytes()
    cut = home / f"cut{suffix}"
    for length in (0, 7, len(data) // 2, len(data) - 1):
        cut.write_bytes(data[:length])
        with pytest.raises(UsageError, match="a whole file of weights"):
            load(NAME, cut)


class Harmful:
    """A pickle of this would make a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_no_code_in_a_file_is_run(home):
    torch = pytest.importorskip("torch")
    trace = home / "trace"
    pickle.loads(pickle.dumps(Harmful(trace)))
    assert trace.is_dir()
    trace.rmdir()
    torch.save({"x": Harmful(trace)}, home / "harmful.pth")
    (home / "plain.pth").write_bytes(pickle.dumps({"x": Harmful(trace)}, protocol=2))
    for name in ("harmful.pth", "plain.pth"):
        with pytest.raises(UsageError, match="can run code"):
            load(NAME, home / name)
    assert not trace.exists()
    torch.save({"state": {"x": torch.zeros(1)}}, home / "nested.pth")
    with pytest.raises(UsageError, match="one state dict"):
        load(NAME, home / "nested.pth")


def test_a_name_that_says_its_digest_is_held_to_it(file, home):
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    origin = weights.Origin(name="x", fetch=(), digests={"known.safetensors": digest})
    cases = {"known.safetensors": True, "other.safetensors": True, f"x-{digest[:8]}.pth": True}
    for name, known in cases.items():
        path = shutil.copy(file, home / name)
        assert weights._digest(path, origin) == digest, (name, known)
    bad = shutil.copy(file, home / "inception-2015-12-05-6726825d.pth")
    with pytest.raises(UsageError, match="sha256 6726825d"):
        weights._digest(bad, origin)
    (home / "known.safetensors").write_bytes(b"another")
    with pytest.raises(UsageError, match=f"allowed: sha256 {digest}"):
        weights._digest(home / "known.safetensors", origin)


def brightness(images):
    return images.mean((1, 2))


def wrong(images):
    return images


def test_ones_own_function(images, monkeypatch):
    found = load(f"{__name__}:brightness", batch=4)
    assert found.name == "brightness" and len(found.digest) == 64
    np.testing.assert_allclose(found.features(images), images.mean((1, 2)), rtol=1e-6)
    with pytest.raises(UsageError, match=r"features of shape \(4, d\)"):
        load(f"{__name__}:wrong", batch=4).features(images)
    with pytest.raises(UsageError, match="has no such function"):
        load(f"{__name__}:missing")
    with pytest.raises(UsageError, match="module:function"):
        load("no_such_module:f")
    with pytest.raises(UsageError, match="weights: got 'x.pth'"):
        load(f"{__name__}:brightness", "x.pth")


def test_names_are_checked():
    with pytest.raises(UsageError, match="Did you mean 'inception'"):
        load("incepton")
    with pytest.raises(UsageError, match="dtype: got 'bfloat16'"):
        load("identity", dtype="bfloat16")


def test_scores_carry_the_name_and_the_digest(file):
    rng = np.random.default_rng(0)
    sets = [rng.integers(0, 256, (40, 3, 4, 3), np.uint8) for _ in range(3)]
    made = [of_bytes(images, np.arange(40) % 2, "images") for images in sets]
    for extractor in (load("identity"), load(NAME, file, batch=40)):
        sides = [side(data, extractor, data.name) for data in made]
        scores = feature_scores(extractor, *sides, scores=["fid"], intervals=0)
        entry = json.loads(json.dumps(scores[f"fd_{extractor.name}"]))
        assert entry["digest"] == extractor.digest and np.isfinite(entry["value"])
    assert "unverified" in entry["digest"]


def test_clips_unit_embeddings_have_length_one(monkeypatch, images):
    tiny = dict(width=WIDTH, depth=1, heads=2, projection=8)
    monkeypatch.setattr(clip, "LARGE", tiny)
    monkeypatch.setattr(clip, "SIZE", 28)
    module = clip.module(**tiny)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: rng.normal(0, 0.3, a.shape), vit.shapes(module, 28))
    monkeypatch.setattr(clip, "obtain", lambda *_: (params, "abc"))
    plain, unit = load("clip_vitl14_336", batch=8), load("clip_vitl14_336_unit", batch=8)
    assert (plain.name, unit.name) == ("clip_vitl14_336", "clip_vitl14_336_unit")
    found = plain.features(images)
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    assert (np.abs(lengths - 1) > 0.01).all()
    np.testing.assert_allclose(unit.features(images), found / lengths, atol=1e-5)
    assert isinstance(unit, NetworkExtractor)
