"""The pipeline: the global batch at step n is a function of (seed, n) alone.

Nothing needs to be saved to resume: start again at the step. Whatever the number of processes, each
takes its own rows of the same global batch. Batches, not images, are the elements of the
grain dataset: a batch is one fancy index into the source, which for small images is an order of
magnitude faster than assembling it image by image.
"""

from __future__ import annotations

import dataclasses
import math
import signal
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np
from absl import flags

from jaxgen.data import order
from jaxgen.data.source import Source, Target
from jaxgen.errors import invalid

Batch = dict[str, np.ndarray]
AT_ONCE = 512 * 2**20
"""Bytes of images that are held in memory where they could also be read again."""

# grain wants a length; this many batches never run out, and position arithmetic stays in int64.
_ENDLESS = 1 << 40


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batches:
    """Random access to one process's rows of every global batch; see `batches`."""

    source: Source
    batch_size: int
    seed: int
    rows: np.ndarray | None = None
    flip: bool = False

    def __call__(self, step: int) -> Batch:
        """The batch of `step`: image [b, H, W, C], label int32 [b], b = len(rows), and columns.

        Of a target (a source without examples): label alone, all 0.
        """
        rows = np.arange(self.batch_size) if self.rows is None else self.rows
        if isinstance(self.source, Target):
            return {"label": np.zeros(len(rows), np.int32)}
        positions = step * self.batch_size + rows
        source, seed = self.source, self.seed
        indices = source.visited(positions, seed=seed)
        images = source.draw(indices, positions=positions, seed=seed, flip=self.flip)
        batch = {"image": images, "label": source.labels[indices]}
        if source.columns:
            # The coins by which `draw` mirrors.
            mirrored = order.flips(seed, positions) if self.flip else np.zeros(len(rows), bool)
            batch |= {name: source.column(name, indices, mirrored) for name in source.columns}
        return batch


def batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    rows: np.ndarray | None = None,
    flip: bool = False,
    workers: int = 0,
    prefetch: int = 2,
) -> Iterator[Batch]:
    """Endless training batches from `start_step` on: image [b, H, W, C], label int32 [b].

    Position n * batch_size + i of the stream is row i of batch n. Every epoch is a new permutation
    of the whole source, and epochs follow one another without gap, also inside a batch. rows: which
    rows of each batch to read, rising (None: all; of many processes each reads its `local_rows`).
    flip: mirror half of the images, and the columns that lie on them. workers: worker processes
    (0: `prefetch` threads), each of which holds a copy of the source; a script that uses them must
    guard its entry by `if __name__ == "__main__"`. prefetch: batches made ahead, per worker.
    Neither changes what is seen. Images keep the source's dtype: `normalise` them inside jit.
    Raises UsageError at once for sizes that do not fit.
    """
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("seed", seed, 0),
        ("start_step", start_step, 0),
        ("workers", workers, 0),
        ("prefetch", prefetch, 0),
    ):
        if value < least:
            raise invalid(f"data.{name}", value, f"an integer >= {least}")
    if rows is not None and (
        not len(rows) or rows[0] < 0 or rows[-1] >= batch_size or (np.diff(rows) <= 0).any()
    ):
        raise invalid("data.rows", rows.tolist(), f"rising numbers from 0 to {batch_size - 1}")
    if flip and not source.flippable:
        raise invalid(
            "data.flip", flip, "False", "This source holds nothing of the mirrored images."
        )
    batch_at = Batches(
        source=source,
        batch_size=batch_size,
        seed=seed,
        rows=rows,
        flip=flip,
    )
    threads = 0 if workers else prefetch
    dataset = (
        grain.MapDataset.range(start_step, _ENDLESS)
        .map(batch_at)
        .to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads))
    )
    if workers:
        # grain sends absl flags to its workers and refuses where nobody has parsed them.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(workers, per_worker_buffer_size=max(prefetch, 1))
        dataset = dataset.mp_prefetch(options, worker_init_fn=_leave_interrupts_to_parent)
    return iter(dataset)


def _leave_interrupts_to_parent(worker: int, count: int) -> None:
    """Ctrl-C reaches every process of a terminal; the parent saves first and then ends us."""
    del worker, count
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def whole(source: Source, *, chunk: int = 1024) -> Batch:
    """A source as arrays in its own order: image [N, H, W, C], label int32 [N]."""
    images = np.empty((len(source), *source.shape), source.dtype)
    for start in range(0, len(source), chunk):
        stop = min(start + chunk, len(source))
        images[start:stop] = source.images(np.arange(start, stop))
    return {"image": images, "label": source.labels}


class Streamed:
    """Images [N, H, W, C] of a source that are read when they are asked for, and then forgotten.

    It is indexed as an array is, by slices and by arrays of places. convert: of what is read.
    """

    def __init__(
        self, source: Source, convert: Callable[[np.ndarray], np.ndarray] = lambda images: images
    ) -> None:
        """Nothing is read yet."""
        self._source, self._convert = source, convert
        self.shape = (len(source), *source.shape)
        self.dtype = convert(np.zeros((1, *source.shape), source.dtype)).dtype

    def __len__(self) -> int:
        """The number of images."""
        return self.shape[0]

    def __getitem__(self, places: Any) -> np.ndarray:
        """Images [n, H, W, C] at a slice or an int array of places."""
        return self._convert(self._source.images(np.arange(len(self))[places]))

    def converted(self, convert: Callable[[np.ndarray], np.ndarray]) -> Streamed:
        """The same images through a function of images [n, H, W, C]."""
        return Streamed(self._source, lambda images: convert(self._convert(images)))

    def chunks(self, size: int = 1024) -> Iterator[np.ndarray]:
        """The images in order, `size` at a time."""
        return (self[start : start + size] for start in range(0, len(self), size))


def at_hand(source: Source, *, limit: int = AT_ONCE) -> dict[str, Any]:
    """As `whole`, where the images take `limit` bytes at most; else `image` is `Streamed`."""
    streamed = Streamed(source)
    small = math.prod(streamed.shape) * streamed.dtype.itemsize <= limit
    return whole(source) if small else {"image": streamed, "label": source.labels}
