"""Any prepared TFDS image-classification data set, by `as_data_source`: no TensorFlow at run time.

The data must lie in a random-access format (array_record or parquet). `tensorflow_datasets` is
imported when a source is opened, not before.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from PIL import Image

from jaxgen.data.folder import centre_crop
from jaxgen.data.source import Source, check_labels, to_channels
from jaxgen.errors import UsageError, invalid, unknown
from jaxgen.files import local

_FORM = {"file_format": "array_record"}


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class TfdsSource(Source):
    """A TFDS data source (random access, picklable). resize: whether to resize and crop."""

    records: Any
    image_key: str
    resize: bool

    @property
    def dtype(self) -> np.dtype:
        """Bytes."""
        return np.dtype(np.uint8)

    def images(self, indices: np.ndarray) -> np.ndarray:
        """Images uint8 [n, H, W, C] at `indices` [n]; UsageError for a record that fails."""
        found = np.empty((len(indices), *self.shape), np.uint8)
        examples = self.records.__getitems__([int(i) for i in indices])
        for row, index, example in zip(found, indices, examples, strict=True):
            image = example[self.image_key]
            if self.resize:
                flat = image[..., 0] if image.shape[-1] == 1 else image
                cropped = np.asarray(centre_crop(Image.fromarray(flat), self.shape[0]))
                image = cropped.reshape(*self.shape[:2], image.shape[-1])
            elif image.shape[:2] != self.shape[:2]:
                raise invalid("source.image_size", None, "a size", f"Example {index} differs.")
            row[...] = to_channels(image, self.shape[2])
        return found


def tfds(
    dataset: str,
    split: str = "train",
    data_dir: str | None = None,
    image_key: str = "image",
    label_key: str = "label",
    image_size: int | None = None,
    channels: int | None = None,
    download: bool = False,
) -> TfdsSource:
    """A prepared TFDS data set as uint8 [N, H, W, channels], decoded when asked for.

    dataset: "mnist", "imagenet2012:5.1.0", "some_dataset/config". split: TFDS's own, slices
    such as "train[:90%]" included. data_dir: where it was prepared (TFDS's default if None).
    image_size: pixels a side, resized and cropped as `folder` does; None keeps the images, which
    must then be of one size. download: what is not prepared is downloaded and prepared, as
    array_record, if there is a network; a few data sets need TensorFlow to be prepared. Raises
    UsageError for a data set that is unknown, not prepared, or not in a random-access format, and
    for keys it does not have.
    """
    import tensorflow_datasets

    data_dir = None if data_dir is None else str(local("source.data_dir", data_dir))
    how = (
        "Where there is a network, source.download=True does so. Or once, by hand: "
        f'tfds.builder({dataset!r}, data_dir=..., file_format="array_record")'
        ".download_and_prepare()"
    )
    try:
        builder = tensorflow_datasets.builder(dataset, data_dir=data_dir)
        if download and not builder.is_prepared():
            builder = tensorflow_datasets.builder(dataset, data_dir=data_dir, **_FORM)
            _prepare(builder)
    except tensorflow_datasets.core.registered.DatasetNotFoundError as error:
        where = data_dir or "TFDS's default data_dir"
        raise invalid("source.dataset", dataset, f"a TFDS name, or one prepared in {where}") from (
            error
        )
    if not builder.is_prepared():
        raise invalid("source.dataset", dataset, f"a data set prepared in {builder.data_path}", how)
    features = builder.info.features
    for option, key in (("source.image_key", image_key), ("source.label_key", label_key)):
        keyed = isinstance(features, tensorflow_datasets.features.FeaturesDict)
        if not keyed or key not in features:
            raise unknown(option, key, features.keys() if keyed else ())
    if not isinstance(features[image_key], tensorflow_datasets.features.Image):
        raise invalid("source.image_key", image_key, "an Image feature")
    if not isinstance(features[label_key], tensorflow_datasets.features.ClassLabel):
        raise invalid("source.label_key", label_key, "a ClassLabel feature")
    skip = tensorflow_datasets.decode.SkipDecoding()
    try:
        records = builder.as_data_source(split)
        encoded = builder.as_data_source(split, decoders={image_key: skip})
    except (ValueError, NotImplementedError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise invalid("source.split", split, ", ".join(builder.info.splits) or how, reason) from (
            error
        )
    # Labels alone: the images stay undecoded.
    labels = np.array([encoded[i][label_key] for i in range(len(encoded))], np.int64)
    labels, names = check_labels(labels, features[label_key].names or ())
    height, width, have = features[image_key].shape
    if image_size is None and (height is None or width is None):
        raise invalid(
            "source.image_size",
            None,
            "a number of pixels",
            f"The images of {dataset} vary in size.",
        )
    if image_size is not None:
        height = width = image_size
    shape = (height, width, channels or have or 3)
    if features[image_key].np_dtype != np.uint8:
        raise invalid("source.image_key", image_key, "an Image feature of uint8")
    to_channels(np.zeros((1, 1, have or 3), np.uint8), channels)  # refuses what it cannot do
    return TfdsSource(
        labels=labels,
        shape=shape,
        class_names=names,
        records=records,
        image_key=image_key,
        resize=image_size is not None,
    )


def _prepare(builder: Any) -> None:
    """Download and prepare. Raises UsageError where that fails, whatever fails."""
    try:
        builder.download_and_prepare()
    except Exception as error:  # of the network, the disk, or a package that preparing needs
        said = " ".join(str(error).split())[:300]
        raise UsageError(
            f"source.download: {builder.name} could not be prepared in {builder.data_path}: "
            f"{type(error).__name__}: {said}"
        ) from error
