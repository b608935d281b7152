"""From a tokenizer to a second stage: codes on disk, what fits them, and the way back to images."""

import json
import shutil
from types import SimpleNamespace

import jax
import ml_collections
import numpy as np
import pytest

from jaxgen.api import evaluate, load, tokenize, train
from jaxgen.data import batches, whole
from jaxgen.data.codes import codes
from jaxgen.errors import UsageError
from jaxgen.metrics.sets.quantise import quantise
from jaxgen.run.setup import set_up
from tests.running import run_here

TINY = dict(
    seed=0,
    data=dict(source=dict(name="digits.digits"), batch_size=8),
    model=dict(
        name="autoencoder.AutoencoderKL", latent_channels=2, widths=(4, 8), blocks=1, groups=2
    ),
    method=dict(
        name="jaxgen.tokenizers.vqgan.vqgan", quantiser=dict(name="gaussian", kl_weight=0.01)
    ),
    optimizer=dict(name="adam", learning_rate=3e-3, warmup_images=0),
    ema=dict(half_life=(50,)),
    train=dict(images=400, log_every=200),
    log=dict(tensorboard=False),
    evaluate=dict(at_end=False),
)


def second_stage(path) -> dict:
    return dict(
        seed=0,
        data=dict(source=dict(name="codes.codes", path=str(path)), batch_size=8),
        model=dict(name="mlp.MLP", width=8, depth=1),
        method=dict(name="diffusion.denoising"),
        optimizer=dict(name="adam", learning_rate=1e-3, warmup_images=0),
        ema=dict(half_life=(50,)),
        train=dict(images=16, log_every=8, preview_per_label=1),
        log=dict(tensorboard=False),
        sample=dict(solver="euler", steps=2),
        evaluate=dict(at_end=False, samples=20),
        classify=dict(at_end=False),
    )


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """A trained tokenizer, its workdir and its codes."""
    workdir = tmp_path_factory.mktemp("kl")
    report = train(ml_collections.ConfigDict(TINY), workdir).report
    model = load(workdir)
    tokenize(model, workdir, workdir / "codes", flips=True)
    return report, model, workdir


def test_training_lowers_the_error_and_the_report_shows_reconstructions(stage):
    _, model, workdir = stage
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    rec = [r["reconstruction"] for r in rows if "reconstruction" in r]
    assert rec[-1] < 0.9 * rec[0]
    assert (workdir / "samples" / "final_reconstructions.png").is_file()
    with pytest.raises(UsageError, match="does not generate"):
        model.sample([0])
    with pytest.raises(UsageError, match="without a likelihood"):
        model.log_prob(np.zeros((1, 8, 8, 1)), np.zeros(1))


def test_codes_are_what_the_tokenizer_says(stage):
    _, model, workdir = stage
    source = codes(str(workdir / "codes"))
    assert source.shape == (4, 4, 2) and source.levels is None and not source.tokens
    images = model.setup.source
    np.testing.assert_array_equal(source.labels, images.labels)
    rows = np.array([5, 0, 900])
    moments = model.encode(images.images(rows))
    mean, std = np.split(moments, 2, axis=-1)
    np.testing.assert_allclose(source.coding.raw(source.images(rows)), mean, atol=1e-5)
    # In training: the mean plus noise of that deviation, the same at the same position.
    drawn = source.draw(rows, positions=np.arange(3), seed=1, flip=False)
    again = source.draw(rows, positions=np.arange(3), seed=1, flip=False)
    np.testing.assert_array_equal(drawn, again)
    eps = (source.coding.raw(drawn) - mean) / std
    assert 0.7 < eps.std() < 1.3 and np.abs(eps).max() < 5
    # Half of the draws are of the mirrored image.
    mirrored = model.encode(images.images(rows)[:, :, ::-1])[..., :2]
    flips = [
        source.draw(rows, positions=np.arange(3) + 3 * n, seed=1, flip=True) for n in range(40)
    ]
    nearer = [
        np.abs(source.coding.raw(f) - mirrored).sum() < np.abs(source.coding.raw(f) - mean).sum()
        for f in flips
    ]
    assert any(nearer) and not all(nearer)
    # The training half is scaled to mean 0 and variance 1.
    every = next(iter(batches(source, batch_size=901, seed=0)))["image"]
    assert abs(every.mean()) < 0.05 and abs(every.std() - 1) < 0.05


def test_a_second_stage_trains_and_its_samples_are_images(stage):
    _, model, workdir = stage
    trained = train(ml_collections.ConfigDict(second_stage(workdir / "codes")), workdir / "second")
    samples = trained.sample([3, 4])
    assert samples.images.shape == (2, 8, 8, 1) and samples.codes.shape == (2, 4, 4, 2)
    raw = trained.model.setup.source.coding.raw(samples.codes)
    np.testing.assert_allclose(samples.images, model.decode(raw), atol=1e-5)


def test_a_moved_second_stage_needs_its_tokenizer_to_decode_and_no_codes(stage, tmp_path):
    _, _, workdir = stage
    root = tmp_path / "before"
    shutil.copytree(workdir, root / "kl", ignore=shutil.ignore_patterns("second"))
    config = second_stage(root / "kl" / "codes")
    config["data"]["tokenizer"] = str(root / "kl")
    train(ml_collections.ConfigDict(config), root / "second")
    expected = load(root / "second").sample([3, 4])
    # Both together: found as far from one another as they were.
    (root / "kl" / "codes").rename(tmp_path / "gone")
    after = root.rename(tmp_path / "after")
    found = load(after / "second").sample([3, 4])
    np.testing.assert_array_equal(found.images, expected.images)
    # Alone: codes are there for the asking, images where the tokenizer is said.
    alone = (after / "second").rename(tmp_path / "alone")
    with pytest.raises(UsageError, match="--tokenizer DIR"):
        load(alone).sample([3, 4])
    np.testing.assert_array_equal(load(alone).sample([3, 4], decode=False).images, expected.codes)
    found = load(alone, tokenizer=after / "kl").sample([3, 4])
    np.testing.assert_array_equal(found.images, expected.images)
    out = tmp_path / "codes.npz"
    ask = ["sample", "--workdir", str(alone), "--labels", "3", "--codes", "--out"]
    assert run_here(*ask, str(out))[0] == 0 and set(np.load(out)) == {
        *("codes", "labels", "seed", "clip")
    }
    code, _, err = run_here(*ask, str(tmp_path / "codes.png"))
    assert code == 2 and "--out x.npz" in err
    # What the model is of, of given images: the codes that its source held.
    model = load(alone, tokenizer=after / "kl")
    image = quantise(model.tokenizer.setup.source.images(np.arange(2)))
    rows = codes(str(tmp_path / "gone")).images(np.arange(2))
    np.testing.assert_allclose(model.examples(image), rows, atol=0.1)
    with pytest.raises(UsageError, match="codes of"):
        about = json.loads((tmp_path / "gone" / "codes.json").read_text())
        (tmp_path / "gone" / "codes.json").write_text(json.dumps(about | dict(scale=2.0)))
        config["data"]["source"]["path"] = str(tmp_path / "gone")
        config["data"]["tokenizer"] = str(after / "kl")
        train(ml_collections.ConfigDict(config), alone)


def test_a_tokenizer_that_does_not_fit_is_refused(stage, tmp_path):
    _, model, workdir = stage
    folder = tmp_path / "codes"
    shutil.copytree(workdir / "codes", folder)
    about = json.loads((folder / "codes.json").read_text())
    config = ml_collections.ConfigDict(second_stage(folder))
    for change, words in (
        (dict(digest="0" * 64), "not those that made the codes"),
        (dict(tokenizer=str(tmp_path)), "config.json"),
    ):
        (folder / "codes.json").write_text(json.dumps(about | change))
        with pytest.raises(UsageError, match=words):
            train(config, tmp_path / "run")
        assert not (tmp_path / "run").exists()
    other = tmp_path / "other"
    changed = dict(TINY, model=dict(TINY["model"], latent_channels=3), train=dict(images=8))
    train(ml_collections.ConfigDict(changed), other)
    (folder / "codes.json").write_text(json.dumps(about | dict(tokenizer=str(other))))
    with pytest.raises(UsageError, match="codes \\(4, 4, 2\\)"):
        train(config, tmp_path / "run")


def test_codes_are_written_once_and_only_whole_ones_are_read(stage, tmp_path):
    _, model, workdir = stage
    before = (workdir / "codes" / "train.array_record").stat().st_mtime_ns
    tokenize(model, workdir, workdir / "codes", flips=True)
    assert (workdir / "codes" / "train.array_record").stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="this very tokenizer"):
        tokenize(model, workdir, workdir / "codes", flips=False)
    with pytest.raises(UsageError, match="jaxgen tokenize"):
        codes(str(tmp_path))
    folder = tmp_path / "codes"
    shutil.copytree(workdir / "codes", folder)
    with pytest.raises(UsageError, match="source.split"):
        codes(str(folder), split="validation")
    about = json.loads((folder / "codes.json").read_text())
    about["splits"]["train"] += 1
    (folder / "codes.json").write_text(json.dumps(about))
    with pytest.raises(UsageError, match="records"):
        codes(str(folder))
    (folder / "codes.json").write_text("{")
    with pytest.raises(UsageError, match="readable JSON"):
        codes(str(folder))


def test_a_model_that_is_no_tokenizer_is_refused(stage, tmp_path):
    _, _, workdir = stage
    model = load(workdir / "second")
    with pytest.raises(UsageError, match="tokenizer"):
        tokenize(model, workdir / "second", tmp_path / "codes")
    with pytest.raises(UsageError, match="no tokenizer"):
        model.encode(np.zeros((1, 4, 4, 2), np.float32))
    with pytest.raises(UsageError, match="no tokenizer"):
        model.decode(np.zeros((1, 4, 4, 2), np.float32))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(reconstruction="l3"), "'l1', 'l2'"),
        (dict(quantiser=dict(name="gaussian", kl_weight=-1.0)), "kl_weight >= 0"),
    ],
)
def test_bad_settings_are_refused(changes, words):
    config = ml_collections.ConfigDict(dict(TINY, method=dict(TINY["method"], **changes)))
    with pytest.raises(UsageError, match=words):
        set_up(config)


def test_the_kl_is_that_of_gaussians():
    # With a decoder that is not asked, the metric against scipy's formula for one image.
    parts = set_up(ml_collections.ConfigDict(TINY))
    state = jax.jit(parts.method.init)(jax.random.key(0))
    image = parts.source.images(np.arange(8))
    batch = {"image": image, "label": parts.source.labels[:8]}
    _, metrics = jax.jit(parts.method.update)(state, batch, jax.random.key(1))
    mean, std = np.split(np.asarray(parts.method.encode(state.params, image)), 2, axis=-1)
    nats = (0.5 * (mean**2 + std**2 - 1) - np.log(std)).sum((1, 2, 3)).mean()
    np.testing.assert_allclose(metrics["kl"], nats, rtol=1e-4)


def test_reconstructions_have_scores_of_their_own_names(stage, monkeypatch):
    _, model, workdir = stage
    asked = {}

    def distances(a, b):
        asked.update(a=a, b=b)
        return np.abs(a.astype(np.float32) - b).mean((1, 2, 3))

    # Images of 8 by 8 are too small for the network itself.
    fake = SimpleNamespace(name="lpips_vgg", digest="abc", distances=distances)
    monkeypatch.setattr("jaxgen.metrics.extractors.lpips.load", lambda weights: fake)
    (found,) = evaluate(model, workdir, features="lpips", intervals=0)["receipts"]
    scores = {s["name"]: s for s in found["scores"]}
    assert {"rfd_classifier", "rfd_classifier_matched", "psnr", "ssim", "mse"} <= set(scores)
    assert "fd_classifier" not in scores and "kid_classifier" in scores
    originals = whole(model.setup.test_source)["image"]
    np.testing.assert_array_equal(asked["b"], quantise(originals))
    np.testing.assert_array_equal(asked["a"], quantise(model.decode(model.encode(originals))))
    assert scores["lpips_vgg"]["value"] == pytest.approx(distances(**asked).mean(), rel=1e-6)
    assert scores["lpips_vgg"]["digest"] == "abc"
