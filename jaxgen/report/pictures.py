"""Grids of images, as arrays and PNG files."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jaxgen import files
from jaxgen.data.pixels import MODES, png
from jaxgen.data.pixels import text as keywords
from jaxgen.data.walk import CLASS
from jaxgen.errors import invalid
from jaxgen.method import Spec
from jaxgen.metrics.sets.quantise import quantise

_OURS = re.compile(r"\d{6,}(_.+)?_label\d+\.png")
MARGIN = "Margin"
"""The keyword under which a grid's file says how many pixels at its left are names."""
GREY = 160
"""Between the images of a grid: seen beside white ones and beside black ones."""
ABOUT = "About"
"""The keyword under which a picture's file holds what a page says of it, as JSON."""
FINAL, NEAREST = "final_", "nearest_"
"""How the files of a run's last grids begin, and of samples beside training images, before the
receipt's name."""
BESIDE = 8
"""Samples in a row beside the training images nearest to them."""
_LETTERS = 24
FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


def grid(images: np.ndarray, columns: int, *, scale: int | None = None, gap: int = 1) -> np.ndarray:
    """A picture [H', W', 3] uint8 of images [N, H, W, C] in [-1, 1], row by row.

    [H', W', 4] of images with alpha: of 2 channels (grey, alpha) or 4 (RGB, alpha). Lines `gap`
    wide are between them, and places that are left empty are white.
    scale: whole-number magnification (None: so that an image is at least 32 pixels wide).
    """
    pixels = quantise(np.asarray(images, np.float32))
    count, height, width, channels = pixels.shape
    if channels == 2:
        pixels = pixels[..., [0, 0, 0, 1]]
    elif channels not in (3, 4):
        # One channel is grey; latents and the like show their first.
        pixels = np.repeat(pixels[..., :1], 3, axis=-1)
    scale = scale or max(1, -(-32 // width))
    rows = -(-count // columns)
    cell_h, cell_w = height * scale, width * scale
    canvas = np.full(
        (rows * (cell_h + gap) + gap, columns * (cell_w + gap) + gap, pixels.shape[-1]),
        255,
        np.uint8,
    )
    canvas[..., :3][_lines(canvas.shape[0], cell_h, gap)] = GREY
    canvas[..., :3][:, _lines(canvas.shape[1], cell_w, gap)] = GREY
    for i, image in enumerate(pixels):
        top, left = gap + (i // columns) * (cell_h + gap), gap + (i % columns) * (cell_w + gap)
        big = image.repeat(scale, axis=0).repeat(scale, axis=1)
        canvas[top : top + cell_h, left : left + cell_w] = big
    return canvas


def _lines(size: int, cell: int, gap: int) -> np.ndarray:
    """Places along a side of a grid that lie between images."""
    return np.flatnonzero(np.arange(size) % (cell + gap) < gap)


def beside(above: np.ndarray, below: np.ndarray, columns: int) -> np.ndarray:
    """A grid in which each row of images uint8 [N, H, W, C] stands above a row of others."""
    rows = []
    for start in range(0, len(above), columns):
        rows += [above[start : start + columns], below[start : start + columns]]
    return grid(np.concatenate(rows) / 127.5 - 1, columns)


def told(about: Mapping[str, Any]) -> dict[str, str]:
    """What a picture's file says (`save_png`), so that `heard` gives `about` back."""
    return {ABOUT: json.dumps(about)}


def heard(path: str | Path) -> dict[str, Any]:
    """What was `told` with a picture; {} of any other file."""
    try:
        found = json.loads(keywords(path).get(ABOUT, "{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def cut(picture: np.ndarray, height: int, width: int, *, gap: int = 1) -> np.ndarray:
    """The images [N, height, width, 3 or 4] uint8 of a picture that `grid` made at its own scale.

    White cells at the end are places that were left empty. Raises UsageError for a picture that is
    no grid of images of this size.
    """
    scale = max(1, -(-32 // width))
    rows, cut_h = divmod(picture.shape[0] - gap, height * scale + gap)
    columns, cut_w = divmod(picture.shape[1] - gap, width * scale + gap)
    if cut_h or cut_w or not rows or not columns:
        raise invalid("picture", picture.shape, f"a grid of images {height} x {width}")
    cells = picture[gap:, gap:].reshape(
        rows, height * scale + gap, columns, width * scale + gap, picture.shape[2]
    )
    images = cells[:, : height * scale : scale, :, : width * scale : scale].swapaxes(1, 2)
    images = images.reshape(-1, height, width, picture.shape[2])
    full = np.flatnonzero((images < 255).any((1, 2, 3)))
    return images[: full[-1] + 1 if len(full) else 0]


def picture(spec: Spec, samples: np.ndarray, columns: int) -> np.ndarray:
    """Samples as a picture [H, W, 3] uint8: a grid of images, or what a target makes of its own."""
    if spec.target is not None:
        image: np.ndarray = spec.target.picture(samples, columns)
        return image
    return grid(samples, columns)


def save_png(path: str | Path, picture: np.ndarray, text: Mapping[str, str] | None = None) -> None:
    """Write a picture [H, W, 1 to 4] as PNG, making the folder. text: see `data.pixels.png`."""
    files.write(path, png(picture, text))


def named(
    picture: np.ndarray, names: Sequence[str], labels: np.ndarray, columns: int
) -> tuple[np.ndarray, dict[str, str]]:
    """A grid with the class of each row at its left, and what its file says (`bare` undoes it).

    picture: uint8 [H, W, 3 or 4], of images with `labels` [N], `columns` in a row. Where a row is
    of several classes the grid stays as it is.
    """
    text = caption(names, labels, columns)
    parts = [labels[i : i + columns].tolist() for i in range(0, len(labels), columns)]
    if any(len(set(part)) > 1 for part in parts):
        return picture, text
    rows = [" ".join(names[y].split()) if y < len(names) else "no label" for y, *_ in parts]
    height = picture.shape[0] // len(rows)
    font = ImageFont.truetype(FONT, max(8, min(13, height - 2)))
    shown = [row if len(row) <= _LETTERS else f"{row[: _LETTERS - 1]}…" for row in rows]
    boxes = [font.getbbox(row) for row in shown]
    margin = math.ceil(max(box[2] for box in boxes)) + 8
    canvas = Image.new("RGB", (margin, picture.shape[0]), "white")
    pen = ImageDraw.Draw(canvas)
    for i, row in enumerate(shown):
        pen.text((4, 1 + (i + 0.5) * height), row, fill="#1a1d21", font=font, anchor="lm")
    left = np.asarray(canvas)
    if picture.shape[2] == 4:
        left = np.concatenate([left, np.full_like(left[..., :1], 255)], -1)
    return np.concatenate([left, picture], 1), {**text, MARGIN: str(margin)}


def bare(picture: np.ndarray, text: Mapping[str, str]) -> np.ndarray:
    """A grid that was read from a file with `text`, without the names that `named` put there."""
    said = text.get(MARGIN, "0")
    return picture[:, int(said) if said.isdecimal() else 0 :]


def caption(names: Sequence[str], labels: np.ndarray, columns: int) -> dict[str, str]:
    """What a grid's file says of its rows: the class of each, or classes where they are mixed."""
    named = [names[y] if y < len(names) else "no label" for y in labels.tolist()]
    rows = [named[start : start + columns] for start in range(0, len(named), columns)]
    said = [row[0] if len(set(row)) == 1 else ", ".join(row) for row in rows]
    return {"Rows": "\n".join(said)}


def save_samples(
    path: Path, first: int, images: np.ndarray, labels: Sequence[int], names: Sequence[str]
) -> None:
    """Write images [n, H, W, C] in [-1, 1], C from 1 to 4, as PNGs called 000000_cat_label3.png.

    first: the number of the first; labels of all. The name of the class is left out of the file's
    where it is the label's number, and has dashes for what file names had better not hold. Each
    says the name of its class under the keyword
    `Class`, by which folders are trained on and scored (`data.walk`).
    """
    pixels = quantise(np.asarray(images, np.float32))
    if pixels.shape[-1] not in MODES:
        # Latents and the like show their first channel.
        pixels = pixels[..., :1]
    for i, image in enumerate(pixels, first):
        label = int(labels[i])
        name = names[label] if label < len(names) else None
        text = None if name is None else {CLASS: name}
        word = "" if name in (None, str(label)) else f"{_word(str(name))}_"
        save_png(path / f"{i:06d}_{word}label{label}.png", image, text)


def _word(name: str) -> str:
    """A class's name as a part of a file's: letters, digits, dots and dashes, forty at most."""
    return re.sub(r"[^\w.-]+", "-", name)[:40].strip("-.") or "class"


def check_folder(path: Path, replace: bool, option: str = "--out") -> None:
    """Refuse to write samples among files that are there already: all would be scored as one set.

    Raises UsageError for a folder with anything in it; with `replace`, for one with anything that
    is not samples of ours.
    """
    there = sorted(path.iterdir()) if path.is_dir() else []
    ours = earlier(path) if replace else []
    others = [f.name for f in there if f not in ours and not f.name.startswith(".")]
    if others:
        given = f"{path}, with {len(others)} files such as {others[0]}"
        fix = None if replace else "Samples that are there make place with --replace."
        raise invalid(option, given, "a new or an empty folder", fix)


def earlier(path: Path) -> list[Path]:
    """Samples that `save_samples` wrote to a folder."""
    return sorted(f for f in path.glob("*.png") if _OURS.fullmatch(f.name))
