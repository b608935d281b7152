"""`configs/own_folder.py`: from a folder to pictures by one command, and what it chooses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxgen import config as configs
from jaxgen.cli import main
from jaxgen.data import survey
from jaxgen.errors import UsageError
from jaxgen.nn.flops import parameters
from jaxgen.nn.unet import UNet
from jaxgen.run.setup import set_up

CONFIG = "configs/own_folder.py:"
NAMES = ("red, light", "green", "blue")
NARROW = ["--config.model.width=16", "--config.model.depth=1", "--config.model.heads=2"]
BRIEF = [
    *("--config.train.images=32", "--config.train.sample_every=0", "--config.data.batch_size=16"),
    *("--config.sample.steps=2", "--config.log.tensorboard=False"),
]


def put(root: Path, count: int, size: int = 40, classes=NAMES, grey: bool = False) -> Path:
    """A folder of images [size, size + 8], each class of a colour of its own."""
    for y, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = np.random.default_rng(100 * y + i).integers(0, 90, (size, size + 8, 3))
            pixels[..., y % 3] += 160
            image = Image.fromarray(pixels.astype(np.uint8))
            (image.convert("L") if grey else image).save(root / name / f"{i}.png")
    return root


def said(capsys) -> str:
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of the one command, of a folder whose name has what a grammar could trip over."""
    root = put(tmp_path_factory.mktemp("own") / "my: images, 2,32", 4)
    workdir = root.parent / "run"
    argument = f"{CONFIG}{root},32,cpu"
    train = ["train", "--config", argument, "--workdir", str(workdir)]
    assert main([*train, *NARROW, *BRIEF]) == 0
    return workdir


def test_one_command_goes_from_a_folder_to_pictures(run, tmp_path, capsys):
    saved = json.loads((run / "config.json").read_text())
    assert saved["data"]["source"]["path"].endswith("my: images, 2,32")
    assert saved["recorded"]["spec"]["classes"] == ["blue", "green", "red, light"]
    assert saved["data"]["flip"] and saved["data"]["source"]["image_size"] == 32
    final = Image.open(run / "samples" / "final_guidance_1.png")
    assert final.text["Rows"].splitlines() == ["blue", "green", "red, light"]
    out = tmp_path / "grid.png"
    sample = ["sample", "--workdir", str(run), "--labels", "green:2", "--out", str(out)]
    assert main(sample) == 0 and Image.open(out).text["Rows"] == "green"


def test_the_same_command_again_resumes(run, capsys):
    root = json.loads((run / "config.json").read_text())["data"]["source"]["path"]
    train = ["train", "--config", f"{CONFIG}{root},32,cpu", "--workdir", str(run)]
    assert main([*train, *NARROW, *BRIEF, "--config.train.images=48"]) == 0
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["images"] == 48


def narrow(config):
    """The same with a network that is quickly traced."""
    if config.model.name == "unet.UNet":
        config.model.update(channels=8, multipliers=(1, 1), blocks=1, attention_sizes=())
    return config


def load(argument: str, capsys):
    config = configs.load(f"{CONFIG}{argument}")
    return config, said(capsys)


@pytest.mark.parametrize(
    ("make", "words", "size", "channels", "advice"),
    [
        (dict(count=2, size=70), "", 64, 3, "6 images of 3 classes, median 78x70: 64 px, UNet"),
        (dict(count=2, size=70), ",128", 128, 3, "smaller than 128 px and will be enlarged"),
        (dict(count=2, size=300), "", 64, 3, "large enough for 256 px"),
        (dict(count=2, size=300), ",32", 32, 3, "jaxgen data --out DIR keeps them at 32 px"),
        (dict(count=2, size=300), ",256,cpu", 256, 3, "256 px, DiT, batch 64"),
        (dict(count=2, size=20), "", 32, 3, "will be enlarged"),
        (dict(count=2, grey=True), "", 32, 1, "grey: 32 px, UNet, batch 128, 200,000 images"),
        (dict(count=3, classes=("",)), "", 32, 3, "3 images of one class (no sub-folders)"),
        (dict(count=170), "", 32, 3, "22% of every class is held out"),
        (dict(count=700, classes=("a", "b")), "", 32, 3, "10% of every class is held out"),
        (dict(count=2), "", 32, 3, "fewer than 500 images: no scores at the end"),
    ],
)
def test_size_network_batch_and_budget_follow_from_the_data(
    make, words, size, channels, advice, tmp_path, capsys
):
    config, told = load(f"{put(tmp_path, **make)}{words}", capsys)
    assert told.startswith("ADVICE") and advice in told
    setup = set_up(narrow(config))
    assert setup.spec.shape == (size, size, channels)
    assert setup.data.flip == (channels == 3) and f"batch {setup.data.batch_size}," in told
    one = setup.spec.num_classes == 1
    scored = "held out" in advice
    assert setup.evaluate.at_end == scored and (not scored or setup.holdout["test"] >= 100)
    # Guidance has an unconditional side only where labels are dropped.
    dropped = config.method.label_dropout, config.sample.guidance
    assert dropped == ((0.0, 1.0) if one else (0.1, 1.5))


def test_a_file_that_is_no_image_is_named_before_training_and_left_out_on_request(tmp_path, capsys):
    (put(tmp_path, 2) / "green" / "bad.png").write_bytes(b"no image")
    config, told = load(f"{tmp_path}", capsys)
    assert "1 of those looked at" in told and "--config.data.source.on_error=skip" in told
    with pytest.raises(UsageError, match="1 of 7 images.*bad.png"):
        set_up(narrow(config))
    configs.override(config, ["data.source.on_error=skip"])
    assert len(set_up(narrow(config)).source) == 6


def test_halves_of_a_folder_are_its_own(tmp_path, capsys):
    put(tmp_path / "train", 3)
    put(tmp_path / "val", 1, classes=NAMES[:2])
    config, told = load(f"{tmp_path}", capsys)
    setup = set_up(config)
    assert (len(setup.source), len(setup.test_source), setup.data.holdout) == (9, 2, 0.0)
    assert "held out" not in told


def test_more_images_take_a_wider_network_and_a_larger_budget(tmp_path, capsys, monkeypatch):
    put(tmp_path, 1, size=64)
    sizes = []
    for images in (400, 8_000):
        monkeypatch.setattr(survey.Survey, "images", property(lambda self, n=images: n))
        config, _ = load(f"{tmp_path}", capsys)
        keywords = {k: v for k, v in config.model.items() if k != "name"}
        network = UNet(num_classes=3, out_channels=3, **keywords)
        sizes.append((parameters(network, (64, 64, 3)) / 1e6, config.train.images))
    assert [n for _, n in sizes] == [200_000, 800_000]
    np.testing.assert_allclose([size for size, _ in sizes], [10.1, 40.2], atol=0.1)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("", "--config: got 'own_folder.py:'; allowed: own_folder.py:PATH"),
        ("none", "--config own_folder.py:PATH: got 'none'; allowed: an existing folder"),
        ("{root},48", "a size that is listed"),
        ("{root},64,tiny", "existing folder"),
        ("{root},64,latents", "no size"),
        ("{root},latents", "a folder that `jaxgen tokenize` wrote"),
        ("{root},64,32", "existing folder"),
        (",64", "own_folder.py:PATH"),
    ],
)
def test_what_is_no_folder_and_no_word_of_the_grammar_is_refused(argument, message, tmp_path):
    put(tmp_path, 1)
    with pytest.raises(UsageError, match=message):
        configs.load(CONFIG + argument.format(root=tmp_path))


def test_a_folder_whose_name_ends_as_an_option_is_the_folder(tmp_path, capsys):
    root = put(tmp_path / "a,64", 2)
    assert load(f"{root}", capsys)[0].data.source.image_size == 32
    assert load(f"{root},64", capsys)[0].data.source.image_size == 64


def test_a_tokenizer_then_its_codes_then_a_model_of_them(tmp_path, capsys):
    root = put(tmp_path / "images", 8)
    kl, codes, own = (str(tmp_path / name) for name in ("kl", "kl/codes", "own"))
    thin = ["--config.model.widths=(8,8,8,8)", "--config.model.groups=4"]
    train = ["train", "--config", f"{CONFIG}{root},32,tokenizer", "--workdir", kl]
    assert main([*train, *thin, *[b for b in BRIEF if "sample.steps" not in b]]) == 0
    assert main(["tokenize", "--workdir", kl, "--out", codes, "--flips"]) == 0
    told = said(capsys)
    assert "held out" in told
    mirrored = load(f"{codes},latents", capsys)[0].data.flip
    assert mirrored
    train = ["train", "--config", f"{CONFIG}{codes},latents", "--workdir", own]
    assert main([*train, *NARROW, *BRIEF]) == 0
    assert "latents 4x4x4 of 3 classes: DiT-S/2" in said(capsys)
    out = str(tmp_path / "grid.npz")
    assert main(["sample", "--workdir", own, "--per_label", "1", "--out", out]) == 0
    assert np.load(out)["images"].shape == (3, 32, 32, 3)
