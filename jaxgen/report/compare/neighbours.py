"""Sample grids of a run, and the training images that are nearest to their samples."""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxgen import config as configs
from jaxgen.data import Source, Target
from jaxgen.data.pixels import UndecodableError, decoded, text
from jaxgen.errors import UsageError, invalid
from jaxgen.metrics.neighbours import smallest
from jaxgen.metrics.scores.memorisation import flat
from jaxgen.metrics.sets.quantise import quantise
from jaxgen.report.pictures import bare, beside, cut
from jaxgen.run.data import halves as opened
from jaxgen.run.record import saved_config
from jaxgen.run.setup import DataOptions

# Training images searched at most, as entries of float64: 2 GiB, read a part at a time.
ENTRIES = 1 << 28
CHUNK = 1 << 22


class Neighbours(NamedTuple):
    """Samples above the training images nearest to them.

    picture: uint8 [H, W, 3]. distance: median Euclidean distance, pixels in [-1, 1]; fresh: the
    same of as many test images. searched, images: training images looked at, and in all.
    """

    picture: np.ndarray
    distance: float
    fresh: float
    searched: int
    images: int


def grid_of(workdir: Path, guidance: float | None) -> Path | None:
    """The run's grid at a guidance scale, else its final one, else the newest; None without any."""
    folder = workdir / "samples"
    names = ["final_samples", "final_reconstructions"]
    if guidance is not None:
        names.insert(0, f"final_guidance_{guidance:g}")
    for name in names:
        if (folder / f"{name}.png").is_file():
            return folder / f"{name}.png"
    previews = sorted(p for p in folder.glob("*.png") if p.stem.isdigit())
    return previews[-1] if previews else None


def pixels(data: bytes, name: str) -> np.ndarray:
    """A grid's PNG file as uint8 [H, W, 3 or 4], without names at its left.

    Raises UsageError, naming the file, if it is broken.
    """
    try:
        picture = decoded(data)
        mode = "RGBA" if picture.mode in ("LA", "RGBA") else "RGB"
        return bare(np.asarray(picture.convert(mode)), text(io.BytesIO(data)))
    except UndecodableError as error:
        raise invalid(name, "a file that cannot be read as one", "a PNG file") from error


def nearest_training(workdir: Path, picture: np.ndarray, *, columns: int = 8) -> Neighbours:
    """The samples of a grid, evenly chosen, and the training image nearest to each, in pixels.

    Raises UsageError where the run's data hold no images or cannot be opened, or the picture is
    not a grid of such images.
    """
    train, test = halves(workdir)
    height, width, channels = train.shape
    samples = cut(picture, height, width)
    if not len(samples):
        raise invalid("picture", "a grid without images", "a grid of samples")
    columns = min(columns, len(samples))
    count = columns * min(2, len(samples) // columns)
    samples = samples[np.linspace(0, len(samples) - 1, count).astype(int)]
    # A grid shows one channel as three equal ones.
    shown = {2: [0, 3], 3: [0, 1, 2], 4: [0, 1, 2, 3]}.get(channels, [0])
    if shown[-1] >= samples.shape[-1]:
        raise invalid("picture", samples.shape[1:], f"a grid of images {train.shape}")
    samples = samples[..., shown]
    most = min(len(train), max(1, ENTRIES // (height * width * channels)))
    fresh = quantise(test.images(np.arange(min(count, len(test)))))
    where, distances = search(np.concatenate([samples, fresh]), train, most)
    near = quantise(train.images(where[:count]))
    return Neighbours(
        beside(samples, near, columns),
        float(np.median(distances[:count])),
        float(np.median(distances[count:])),
        most,
        len(train),
    )


def search(images: np.ndarray, train: Source, most: int) -> tuple[np.ndarray, np.ndarray]:
    """(place [n], distance [n]) of the nearest among `most` images of `train`, for uint8 [n, ...].

    Fewer than all are drawn with seed 0. Never more than `CHUNK` numbers of them are in memory.
    """
    chosen = np.arange(len(train))
    if most < len(train):
        chosen = np.sort(np.random.default_rng(0).choice(len(train), most, replace=False))
    points = flat(images)
    place, squared = np.zeros(len(points), int), np.full(len(points), np.inf)
    step = max(1, CHUNK // points.shape[1])
    for start in range(0, most, step):
        rows = chosen[start : start + step]
        others = flat(quantise(train.images(rows)))
        value, first = (a[:, 0] for a in smallest(points, others, 1))
        place = np.where(value < squared, rows[first], place)
        squared = np.minimum(value, squared)
    return place, np.sqrt(squared)


def halves(workdir: Path) -> tuple[Source, Source]:
    """A run's training and test images; of a second stage, those of its tokenizer."""
    config = saved_config(workdir)
    if "data" not in config:
        raise invalid("config.data", "nothing", "a section")
    data = DataOptions(**configs.check(DataOptions, dict(config.data), "config.data"))
    try:
        with configs.foreign(configs.trusted()):  # a workdir may be somebody else's
            train, test, _ = opened(data, test=True)
    except (OSError, ValueError) as error:
        raise UsageError(f"{workdir}: its data cannot be opened: {error}") from error
    recorded = None if train.coding is None else train.coding.tokenizer
    tokenizer = data.tokenizer or recorded
    if tokenizer is not None:
        return halves(Path(tokenizer))
    if test is None or isinstance(train, Target) or len(train.shape) != 3:
        raise invalid(str(workdir), "a run without images", "a run on images")
    return train, test
