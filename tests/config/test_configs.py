"""Every shipped config builds at full size, and takes a step on tiny data with a narrow network."""

from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from jaxgen import config as configs
from jaxgen.data import batches
from jaxgen.method import Method
from jaxgen.nn.flops import parameters
from jaxgen.run.setup import TOP, set_up
from jaxgen.training.loop import empty_tally, make_step, read_tally

CONFIGS = sorted(Path("configs").glob("*.py"))
CLASSES = 3
OTHER = "data.holds=None"


def arrays(folder: Path, shape: tuple[int, ...]) -> str:
    """An npz file of a few random images of each class."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4 * CLASSES, *shape), np.uint8)
    np.savez(folder / "data.npz", images=images, labels=np.arange(4 * CLASSES) % CLASSES)
    return str(folder / "data.npz")


def tiny_source(name: str, folder: Path) -> list[str]:
    """Overrides that put a small source, made here, in place of the data set."""
    rng = np.random.default_rng(0)
    source = "data.source="
    if name.startswith("digits") or name in ("gan", "hypergrid"):
        return []
    if name == "fashion_mnist":
        path = arrays(folder, (28, 28, 1))
        return [source + repr(dict(name="arrays.arrays", path=path))]
    if name == "own_folder":
        return []
    if name == "cifar10_edm":
        path = arrays(folder, (32, 32, 3))
        return [source + repr(dict(name="arrays.arrays", path=path)), "data.workers=0", OTHER]
    if name == "imagenet64_edm2":
        for label in range(CLASSES):
            (folder / "train" / f"n{label}").mkdir(parents=True)
            for i in range(4):
                pixels = rng.integers(0, 256, (80, 70, 3), np.uint8)
                Image.fromarray(pixels).save(folder / "train" / f"n{label}" / f"{i}.png")
        return [f"data.source.path={folder}", "data.workers=0", OTHER]
    moments = rng.normal(size=(4, 4 * CLASSES, 32, 32, 4)).astype(np.float16)
    np.savez(
        folder / "latents.npz",
        labels=np.arange(4 * CLASSES) % CLASSES,
        mean=moments[0],
        logvar=moments[1],
        flipped_mean=moments[2],
        flipped_logvar=moments[3],
    )
    return [f"data.source.path={folder}/latents.npz", "data.workers=0", OTHER]


def argument(name: str, folder: Path) -> str:
    """What comes after the colon, of a config that needs something there: a folder of images."""
    if name != "own_folder":
        return ""
    for label in range(CLASSES):
        (folder / f"class {label}").mkdir()
        for i in range(4):
            pixels = np.random.default_rng(i).integers(0, 256, (40, 36, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"class {label}" / f"{i}.png")
    return f":{folder},32,cpu"


NARROW = {
    "own_folder": ["model.width=16", "model.depth=1"],
    "digits": ["model.width=16", "model.depth=1"],
    "digits_uvit": ["model.width=16", "model.depth=3"],
    "digits_vqgan": ["model.widths=(8,16)"],
    "digits_glow": ["model.steps=1", "model.hidden=8"],
    "digits_tarflow": ["model.flows=1", "model.layers=1"],
    "digits_llamagen": ["model.width=16", "model.depth=1"],
    "digits_pixelcnn": ["model.width=16", "model.depth=1"],
    "fashion_mnist": ["model.width=16", "model.depth=1"],
    "cifar10_edm": ["model.channels=16", "model.blocks=1"],
    "imagenet64_edm2": [
        "model=" + repr(dict(name="edm2.EDM2", channels=32, blocks=1, head_channels=32))
    ],
    "imagenet256_dit": [
        "model=" + repr(dict(name="dit.DiT", patch=4, width=32, depth=2, heads=2, time_scale=1.0))
    ],
    "imagenet256_sit": ["model=" + repr(dict(name="dit.SiT", patch=4, width=32, depth=2, heads=2))],
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_config_takes_a_step(path, tmp_path):
    config = configs.load(f"{path}{argument(path.stem, tmp_path)}")
    # A warm-up in images would make the first step's rate too small to see.
    narrow = NARROW.get(path.stem, [])
    overrides = [*tiny_source(path.stem, tmp_path), *narrow, "data.batch_size=8"]
    configs.override(config, overrides, TOP)
    every = config.optimizer.values() if "name" not in config.optimizer else [config.optimizer]
    for section in every:
        with section.unlocked():
            section.warmup_images = 0
    parts = set_up(config)
    method: Method = parts.method
    state = jax.jit(method.init)(jax.random.key(0))
    before = jax.device_get(state.params)
    batch = next(iter(batches(parts.source, batch_size=8, seed=0, flip=parts.data.flip)))
    step = jax.jit(make_step(method))
    state, tally = step(state, empty_tally(method, state, batch), batch, jax.random.key(1))
    assert abs(read_tally(tally, 1)["loss"]) < 1e4
    changed = [
        bool((np.asarray(a) != b).any())
        for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(before), strict=True)
    ]
    assert any(changed) and int(state.step) == 1


@pytest.mark.parametrize(
    ("config", "millions"),
    [
        ("configs/cifar10_edm.py:ddpmpp", 55.7),
        ("configs/cifar10_edm.py:ncsnpp", 56.2),
        ("configs/imagenet64_edm2.py:S", 280),
        ("configs/imagenet256_dit.py:S/2", 33),
        ("configs/imagenet256_dit.py:XL/2", 675),
        ("configs/imagenet256_sit.py:B/4", 130),
    ],
)
def test_config_builds_at_full_size(config, millions, tmp_path):
    # The papers' counts, to the rounding they give; ours has the tiny source's number of classes,
    # so the label table is left out of the comparison (1 % is more than it).
    path, _, _ = config.partition(":")
    loaded = configs.load(config)
    configs.override(loaded, tiny_source(Path(path).stem, tmp_path), TOP)
    parts = set_up(loaded)
    module = parts.modules.clone(num_classes=1000) if "imagenet" in path else parts.modules
    found = parameters(module, parts.spec.shape) / 1e6
    np.testing.assert_allclose(found, millions, rtol=0.02)
