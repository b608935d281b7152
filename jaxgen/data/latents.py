"""Precomputed autoencoder moments, sampled on the fly: the data of latent diffusion."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxgen.data import order
from jaxgen.data.arrays import fill_split, read_npz
from jaxgen.data.source import Coding, Source, check_labels
from jaxgen.errors import invalid
from jaxgen.files import local

# The range in which the usual KL autoencoders clip their log-variance.
_LOGVAR_RANGE = (-30.0, 20.0)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class LatentSource(Source):
    """Gaussian posteriors of latents on disk; each visit of an image draws its latent afresh.

    Only the path travels to worker processes: each opens (and maps) the files itself.
    """

    path: str
    scale: float
    shift: float
    has_flips: bool

    @property
    def flippable(self) -> bool:
        """Whether the moments of the mirrored images are stored: latents cannot be mirrored."""
        return self.has_flips

    @property
    def coding(self) -> Coding:
        """The scale and the shift; whose latents they are, the files do not say."""
        return Coding(scale=self.scale, shift=self.shift)

    def images(self, indices: np.ndarray) -> np.ndarray:
        """Means, scaled: float32 [n, H, W, C], the same at every call."""
        mean, _ = self._moments(indices, "")
        return (mean - self.shift) * self.scale

    def draw(
        self, indices: np.ndarray, *, positions: np.ndarray, seed: int, flip: bool
    ) -> np.ndarray:
        """(mean + std * eps - shift) * scale, float32 [n, H, W, C]; eps from (seed, position).

        flip: a fair coin from (seed, position) takes the moments of the mirrored image instead.
        """
        mean, std = self._moments(indices, "")
        if flip:
            coins = order.flips(seed, positions)
            if coins.any():
                mean[coins], std[coins] = self._moments(indices[coins], "flipped_")
        eps = order.noise(seed, positions, self.shape)
        return (mean + std * eps - self.shift) * self.scale

    def _moments(self, indices: np.ndarray, prefix: str) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation float32 [n, H, W, C], fresh arrays."""
        stored = _open(self.path)

        def take(name: str) -> np.ndarray:
            return stored[prefix + name][indices].astype(np.float32)

        if prefix + "std" in stored:
            return take("mean"), take("std")
        return take("mean"), np.exp(0.5 * np.clip(take("logvar"), *_LOGVAR_RANGE))


def latents(
    path: str,
    scale: float,
    split: str = "train",
    shift: float = 0.0,
    num_classes: int | None = None,
    class_names: tuple[str, ...] = (),
) -> LatentSource:
    """Moments of an autoencoder's posterior: latents are (mean + std * eps - shift) * scale.

    path: an .npz file, or a folder of .npy files (which are memory-mapped, so they may be larger
    than memory), with `labels` [N], `mean` and `std` or `logvar` [N, H, W, C] (any float dtype),
    and, for training with flips, the same of the mirrored images: `flipped_mean` and `flipped_std`
    or `flipped_logvar`. `{split}` in the path stands for the split. scale: the autoencoder's
    (0.18215 for Stable Diffusion's). Raises UsageError for what is missing or of another shape.
    """
    fill_split(split, path)
    path = str(local("source.path", path.replace("{split}", split)))
    stored = _open(path)
    for name in ("labels", "mean"):
        if name not in stored:
            raise invalid(f"source.path {path}", sorted(stored), f"arrays that include {name}")
    has_flips = any(name.startswith("flipped_") for name in stored)
    shape = stored["mean"].shape
    if len(shape) != 4 or 0 in shape:
        raise invalid("source.mean", shape, "a shape [N, H, W, C]")
    for prefix in ("", "flipped_") if has_flips else ("",):
        spread = next((n for n in ("std", "logvar") if prefix + n in stored), None)
        if spread is None or prefix + "mean" not in stored:
            raise invalid(
                f"source.path {path}", sorted(stored), f"{prefix}mean and {prefix}std or logvar"
            )
        for name in (prefix + "mean", prefix + spread):
            array = stored[name]
            if array.shape != shape or not np.issubdtype(array.dtype, np.floating):
                raise invalid(f"source.{name}", f"{array.dtype} {array.shape}", f"floats {shape}")
    labels, names = check_labels(stored["labels"], class_names, num_classes)
    if len(labels) != shape[0]:
        raise invalid("source.labels", labels.shape, f"one label a latent: ({shape[0]},)")
    return LatentSource(
        labels=labels,
        shape=shape[1:],
        class_names=names,
        levels=None,
        path=path,
        scale=scale,
        shift=shift,
        has_flips=has_flips,
    )


@functools.lru_cache(maxsize=4)
def _open(path: str) -> Mapping[str, np.ndarray]:
    """The arrays of an .npz file, or of a folder of .npy files as memory maps."""
    if not Path(path).is_dir():
        if not Path(path).is_file():
            raise invalid("source.path", path, "an existing .npz file or folder of .npy files")
        return read_npz(Path(path))
    try:
        return {
            f.stem: np.load(f, mmap_mode="r", allow_pickle=False)
            for f in sorted(Path(path).glob("*.npy"))
        }
    except (ValueError, EOFError) as error:
        raise invalid("source.path", path, "a folder of whole .npy files", str(error)) from error
