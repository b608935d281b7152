"""Pictures of a report that have to be made: guidance by label, trajectories, real images.

Each lies in `samples/NAME.png`, which says what its rows and columns are, so that a report that is
written again needs no model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from jaxgen.data import Source
from jaxgen.data.pixels import text
from jaxgen.errors import UsageError
from jaxgen.metrics.sets.quantise import quantise
from jaxgen.report.pictures import FINAL, bare, grid, heard, save_png, told
from jaxgen.run.model import Model

WEIGHTS = (0.0, 1.0, 1.5, 2.0, 3.0, 5.0)
"""Guidance that is shown, beside what the run samples and scores with."""
LABELS, EACH = 10, 4
"""Classes, and images of a class and weight, beneath the sliders."""
PATHS, MOMENTS = 4, 8
"""Samples whose way is shown, and at how many moments."""
WIDE = 96
"""Pixels to which larger images are reduced where there are many of them."""
NAMES = ("real", "guidance", "trajectory")


class Exhibit(NamedTuple):
    """A picture uint8 [H, W, 3 or 4], and what a page says of it (names of rows and columns)."""

    picture: np.ndarray
    about: dict[str, Any]


def exhibits(
    model: Model, check: Callable[[], None] = lambda: None
) -> tuple[dict[str, Exhibit], dict[str, str]]:
    """(pictures by name, name -> why there is none). check: called between them.

    All processes of a run have to call it together.
    """
    made: dict[str, Exhibit] = {}
    missing: dict[str, str] = {}
    for name, make in {"real": real, "guidance": guidance, "trajectory": trajectory}.items():
        check()
        found = make(model)
        if isinstance(found, str):
            missing[name] = found
        else:
            made[name] = found
    return made, missing


def save(workdir: Path, made: Mapping[str, Exhibit]) -> None:
    """Write them; one of before that could not be made again goes."""
    for name in NAMES:
        path = workdir / "samples" / f"{name}.png"
        if name in made:
            save_png(path, made[name].picture, told(made[name].about))
        else:
            path.unlink(missing_ok=True)


def read(workdir: Path) -> dict[str, Exhibit]:
    """What `save` wrote, final grids, and samples beside training images, by their files' names."""
    found = {}
    for path in sorted((workdir / "samples").glob("*.png")):
        about = heard(path)
        # Final grids of earlier versions say less of themselves.
        if about or path.name.startswith(FINAL):
            with Image.open(path) as picture:
                mode = "RGBA" if picture.mode in ("LA", "RGBA") else "RGB"
                shown = bare(np.asarray(picture.convert(mode)), text(path))
            found[path.stem] = Exhibit(shown, about or {"what": "samples"})
    return found


def chosen(classes: int, most: int) -> np.ndarray:
    """Labels: all, or `most` of them at even distances."""
    return np.linspace(0, classes - 1, min(classes, most)).round().astype(np.int32)


def real(model: Model) -> Exhibit | str:
    """Training images in the rows and columns of the final grids; or why there are none."""
    setup, spec = model.setup, model.setup.spec
    if spec.target is not None:
        return "No real images are shown: the model is trained by a reward."
    if setup.method.sampler is None:
        return "Real images stand above their reconstructions."
    source = _images(model)
    if isinstance(source, str):
        return source
    per = setup.train.preview_per_label
    names = list(source.class_names)
    rows, titles = [], []
    for label, name in enumerate(spec.class_names[:20]):
        # The tokenizer's data may have the classes in another order.
        own = names.index(name) if name in names else label
        places = np.flatnonzero(source.labels == own)
        if len(places):
            spread = places[np.linspace(0, len(places) - 1, per).round().astype(int)]
            rows.append(quantise(source.images(spread)) / 127.5 - 1)
            titles.append(name)
    if not rows:
        return "No real images are shown: none bears a label of the model's."
    return Exhibit(grid(_reduced(np.concatenate(rows)), per), {"rows": titles})


def _images(model: Model) -> Source | str:
    """The training images, of a second stage its tokenizer's; or why there are none."""
    try:
        if model.setup.coding is not None:
            if model.tokenizer is None:
                return "No real images are shown: the data are codes of an unknown tokenizer."
            return model.tokenizer.setup.source
        source = model.setup.source
    except UsageError as error:
        return f"No real images are shown, as the data cannot be opened: {error}"
    return source if len(source.shape) == 3 else "No real images are shown: the data are tokens."


def guidance(model: Model) -> Exhibit | str:
    """`EACH` images for some labels (rows) and weights (columns); or why there are none.

    All of a row's images start from the same `EACH` draws of noise.
    """
    setup, spec = model.setup, model.setup.spec
    if setup.method.sampler is None:
        return "No guidance is shown: a tokenizer draws no samples."
    if spec.num_classes < 2:
        return "No guidance is shown: there is one class."
    scales = [*setup.evaluate.guidance, setup.config.get("sample", {}).get("guidance")]
    used = [float(w) for w in scales if isinstance(w, (int, float)) and not isinstance(w, bool)]
    weights, labels = np.array(sorted({*WEIGHTS, *used})), chosen(spec.num_classes, LABELS)
    y, w, n = (a.ravel() for a in np.meshgrid(labels, weights, np.arange(EACH), indexing="ij"))
    try:
        images = model.by_weight(y, w, n, batch_size=setup.evaluate.batch_size)
    except UsageError:
        return "No guidance is shown: this model has no weight of guidance to move."
    picture = grid(_reduced(images), len(weights) * EACH)
    # Without the last line, every cell is as large as any.
    return Exhibit(
        picture[:-1, :-1],
        {
            "rows": [spec.class_names[label] for label in labels],
            "columns": [f"{weight:g}" for weight in weights],
            "first": f"{(used or [1.0])[-1]:g}",
            "each": EACH,
        },
    )


def trajectory(model: Model) -> Exhibit | str:
    """Samples on their way from noise, a row each; or why there are none.

    Above each row of what the sampler expects, one of what it holds, where that is an image.
    """
    setup, spec = model.setup, model.setup.spec
    if setup.method.sampler is None:
        return "No way from noise to an image is shown: a tokenizer draws no samples."
    labels = chosen(spec.num_classes, PATHS)
    try:
        found = model.trajectory(labels, frames=MOMENTS)
    except UsageError:
        return "No way from noise to an image is shown: this sampler does not go in such steps."
    names = [spec.class_names[label] for label in labels]
    both = [found.expected]
    if setup.coding is None:
        both.insert(0, found.states)
        names = [f"{name}: {what}" for name in names for what in ("so far", "expected")]
    rows = np.stack(both, 1).reshape(-1, *found.expected.shape[2:])
    picture = grid(_reduced(rows), len(found.steps))
    return Exhibit(picture, {"rows": names, "columns": [str(step) for step in found.steps]})


def _reduced(images: np.ndarray) -> np.ndarray:
    """Images [N, H, W, C], no wider than `WIDE`, by the mean over areas."""
    height, width = images.shape[1:3]
    if max(height, width) <= WIDE:
        return images
    scale = WIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    pixels = quantise(np.asarray(images, np.float32))
    planes = [
        np.stack(
            [
                np.asarray(Image.fromarray(image[..., c]).resize(size, Image.Resampling.BOX))
                for c in range(image.shape[-1])
            ],
            -1,
        )
        for image in pixels
    ]
    return np.stack(planes).astype(np.float32) / 127.5 - 1
