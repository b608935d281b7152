"""Images per second of every source through the training pipeline, with generated data.

    python -m experiments.benchmarks.data [--seconds 2] [--batch_size 256] [--workers 0,2] [--json]

Each row: open the source, take a first batch (not timed), then count the batches that one consumer
takes from `jaxgen.data.batches` in `--seconds`. "to_device" also puts each batch on the first
device. Data are generated in a temporary folder; TFDS data are prepared there, without TensorFlow.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from experiments.benchmarks import machine
from jaxgen.data import Source, batches, to_device
from jaxgen.data.arrays import arrays
from jaxgen.data.digits import digits
from jaxgen.data.folder import folder
from jaxgen.data.idx import idx
from jaxgen.data.latents import latents
from jaxgen.data.tfds import tfds


def sources(root: Path) -> dict[str, tuple[Source, bool]]:
    """Name -> (source, flip), over small generated data under `root`."""
    chance = np.random.default_rng(0)
    images = chance.integers(0, 256, (20_000, 28, 28), np.uint8)
    labels = (np.arange(20_000) % 10).astype(np.uint8)
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        header = struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape)
        (root / f"train-{name}-ubyte").write_bytes(header + array.tobytes())
    colour = chance.integers(0, 256, (10_000, 32, 32, 3), np.uint8)
    np.savez(root / "cifar.npz", images=colour, labels=labels[:10_000])
    (root / "moments").mkdir()
    moments = chance.normal(size=(2_000, 32, 32, 4)).astype(np.float16)
    for name in ("mean", "std", "flipped_mean", "flipped_std"):
        np.save(root / "moments" / f"{name}.npy", np.abs(moments) if "std" in name else moments)
    np.save(root / "moments" / "labels.npy", labels[:2_000])
    for number in range(64):
        small = Image.fromarray(chance.integers(0, 256, (16, 20, 3), np.uint8))
        file = root / "photos" / str(number % 4) / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        # ImageNet's mean size; smooth, so that decoding costs what it does for photographs.
        small.resize((500, 375), Image.Resampling.BICUBIC).save(file, quality=90)
    prepare_tfds(root / "tfds", images[:2_000], labels[:2_000])
    return {
        "digits 8x8x1": (digits(), False),
        "idx 28x28x1": (idx(str(root)), False),
        "arrays 32x32x3": (arrays(str(root / "cifar.npz")), False),
        "arrays 32x32x3 flips": (arrays(str(root / "cifar.npz")), True),
        "latents 32x32x4 flips": (latents(str(root / "moments"), scale=0.18215), True),
        "folder 500x375 jpeg to 64": (folder(str(root / "photos"), image_size=64), True),
        "tfds 28x28x1 png": (tfds("benchmark_tiny", data_dir=str(root / "tfds")), False),
    }


def prepare_tfds(root: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Write a TFDS data set "benchmark_tiny" of PNG images under `root`."""
    import tensorflow_datasets

    features = tensorflow_datasets.features

    class BenchmarkTiny(tensorflow_datasets.core.GeneratorBasedBuilder):
        VERSION = tensorflow_datasets.core.Version("1.0.0")

        def _info(self) -> Any:
            columns = {
                "image": features.Image(shape=(28, 28, 1), encoding_format="png"),
                "label": features.ClassLabel(num_classes=10),
            }
            return tensorflow_datasets.core.DatasetInfo(
                builder=self, features=features.FeaturesDict(columns)
            )

        def _split_generators(self, manager: Any) -> dict[str, Any]:
            del manager
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
            for number, (image, label) in enumerate(zip(images, labels, strict=True)):
                file = io.BytesIO()
                Image.fromarray(image).save(file, "png")
                file.seek(0)
                yield number, {"image": file, "label": int(label)}

    tensorflow_datasets.disable_progress_bar()
    logging.getLogger("absl").setLevel(logging.ERROR)
    BenchmarkTiny(data_dir=str(root), file_format="array_record").download_and_prepare()


def rate(make: Callable[[], Iterator[Any]], batch_size: int, seconds: float) -> float:
    """Images per second that one consumer takes from `make()` after its first batch."""
    iterator = make()
    jax.block_until_ready(next(iterator)["label"])
    count, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        jax.block_until_ready(next(iterator)["image"])
        count += batch_size
    close: Any = getattr(iterator, "close", None)
    if close is not None:
        close()
    return count / passed


def main() -> None:
    """Print a row per source and number of workers."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--workers", default="0", help="comma-separated numbers of processes")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="a few batches of each")
    options = parser.parse_args()
    if options.tiny:
        options.seconds, options.batch_size = 0.01, 8
    if not options.json:
        print(machine.line())
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    rows = []
    with tempfile.TemporaryDirectory() as root:
        for name, (source, flip) in sources(Path(root)).items():
            for workers in map(int, options.workers.split(",")):
                for kind in ("host", "to_device"):

                    def make(
                        source: Source = source,
                        flip: bool = flip,
                        workers: int = workers,
                        kind: str = kind,
                    ) -> Iterator[Any]:
                        stream = batches(
                            source,
                            batch_size=options.batch_size,
                            seed=0,
                            flip=flip,
                            workers=workers,
                        )
                        return stream if kind == "host" else to_device(stream, device)

                    speed = rate(make, options.batch_size, options.seconds)
                    row = {"source": name, "workers": workers, "to": kind, "images_per_s": speed}
                    rows.append(row)
                    if not options.json:
                        print(f"{name:28s} workers {workers} {kind:10s} {speed:12,.0f} images/s")
    if options.json:
        print(json.dumps({"machine": machine.machine(), "rows": rows}))


if __name__ == "__main__":
    main()
