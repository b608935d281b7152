"""A small classifier trained on the training half: features and an opinion, always at hand.

It needs no download and knows nothing of any generator. Its scores compare runs on one data set;
they are not the published ones of an Inception network, and their names say so ("fd_classifier").
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.errors
import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors
import safetensors.numpy

from jaxgen import files
from jaxgen.data import normalise
from jaxgen.errors import invalid
from jaxgen.method import minimise

# Change it whenever the network or its training changes: cached classifiers are then retrained.
_RECIPE = "cnn-2"
# Measured on 2 cores that others used too (seconds of CPU, compilation included): digits 99.3 % of
# the test half in 17 s; Fashion-MNIST with flip 92.9 % of its test set in 278 s.
_ENOUGH = 36_000


class ConvNet(nn.Module):
    """A convolutional classifier of images of any size: [B, H, W, K] -> (features, logits).

    A stage is 3x3 convolution, layer norm over channels, gelu. Stages halve the image (the first
    one only from 16 pixels a side on) until at most 49 places are left; one more stage follows.
    """

    num_classes: int
    width: int = 32
    features: int = 64

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> tuple[jax.Array, jax.Array]:
        """Features float32 [B, features] (the last hidden layer) and logits [B, num_classes]."""
        width = self.width
        x = self.stage(x, width, 1 if min(x.shape[1:3]) < 16 else 2)
        while x.shape[1] * x.shape[2] > 49:
            width = min(2 * width, 256)
            x = self.stage(x, width, 2)
        x = self.stage(x, min(2 * width, 256), 1)
        x = x.reshape(x.shape[0], -1)
        features = nn.gelu(nn.Dense(self.features)(x))
        x = nn.Dropout(0.3, deterministic=not train)(features)
        return features, nn.Dense(self.num_classes)(x)

    def stage(self, x: jax.Array, width: int, stride: int) -> jax.Array:
        """[B, H, W, K] -> [B, H / stride, W / stride, width]."""
        return nn.gelu(nn.LayerNorm()(Convolution(width, stride)(x)))


class Convolution(nn.Module):
    """A 3x3 convolution with zero padding, as one matrix product over gathered patches.

    XLA's convolutions inside a loop on CPU are some twenty times slower than outside (211 against
    10 ms of CPU a training step of this network, jaxlib 0.10.2); matrix products are not.
    """

    width: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, K] -> [B, ceil(H / stride), ceil(W / stride), width]."""
        height, wide = x.shape[1:3]
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        shifted = [
            padded[:, i : i + height : self.stride, j : j + wide : self.stride]
            for i in range(3)
            for j in range(3)
        ]
        return nn.Dense(self.width, use_bias=False)(jnp.concatenate(shifted, -1))


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
    """A trained `ConvNet`. digest: sha256 of the training data and of all that shaped training."""

    params: Any
    num_classes: int
    shape: tuple[int, ...]
    digest: str
    name: str = "classifier"

    def features(self, images: np.ndarray) -> np.ndarray:
        """Last hidden layer float32 [N, 64] of images [N, H, W, C], uint8 or float in [-1, 1]."""
        return self._apply(images)[0]

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """p(label | image) float32 [N, num_classes]."""
        return self._apply(images)[1]

    def parts(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Both from one pass."""
        return dict(zip(("features", "probabilities"), self._apply(images), strict=True))

    def accuracy(self, images: np.ndarray, labels: np.ndarray) -> float:
        """The share of images whose most probable class is their label."""
        return float((self.probabilities(images).argmax(1) == labels).mean())

    def _apply(self, images: np.ndarray, batch: int = 256) -> tuple[np.ndarray, np.ndarray]:
        if images.shape[1:] != self.shape:
            raise invalid("images", images.shape, f"a shape (N, {', '.join(map(str, self.shape))})")
        outputs = []
        for start in range(0, len(images), batch):
            chunk = images[start : start + batch]
            # The last batch is filled up, so that only one shape is ever compiled.
            fill = np.zeros((batch - len(chunk), *chunk.shape[1:]), chunk.dtype)
            both = _predict(self.params, np.concatenate([chunk, fill]), self.num_classes)
            outputs.append([np.asarray(a)[: len(chunk)] for a in both])
        if not outputs:
            return np.zeros((0, ConvNet.features)), np.zeros((0, self.num_classes))
        features, probabilities = (np.concatenate(a) for a in zip(*outputs, strict=True))
        return features, probabilities


@functools.partial(jax.jit, static_argnames="num_classes")
def _predict(params: Any, images: jax.Array, num_classes: int) -> tuple[jax.Array, jax.Array]:
    images = normalise({"image": images})["image"]
    outputs: Any = ConvNet(num_classes).apply({"params": params}, images)
    return outputs[0], jax.nn.softmax(outputs[1])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """How a classifier is trained; everything is deterministic from `seed`.

    epochs: passes over the data (None: 10, or as many as it takes to see `_ENOUGH` images).
    shift: random shifts by up to this many pixels.
    flip: random mirroring, for data where it keeps the label. learning_rate: the peak of one
    cosine cycle of AdamW with warm-up.
    """

    seed: int = 0
    epochs: int | None = None
    batch_size: int = 64
    shift: int = 1
    flip: bool = False
    learning_rate: float = 3e-3

    def resolve(self, shape: tuple[int, ...]) -> Training:
        """The same with the defaults filled in for images of shape [N, H, W, C]."""
        count = shape[0]
        return dataclasses.replace(
            self,
            epochs=max(10, -(-_ENOUGH // count)) if self.epochs is None else self.epochs,
            batch_size=min(self.batch_size, count),
        )


def train_classifier(
    images: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    training: Training = Training(),  # noqa: B008 - frozen
) -> Classifier:
    """Train a classifier on images [N, H, W, C] (uint8 or float in [-1, 1]) and labels [N].

    The whole of training is one compiled scan on the default device, which holds the images.
    Raises UsageError for fewer than 2 images or labels of another number.
    """
    if len(images) < 2 or len(labels) != len(images):
        given = f"{len(images)} images and {len(labels)} labels"
        raise invalid("classifier", given, "at least 2 images, and a label for each")
    training = training.resolve(images.shape)
    key = jax.random.key(training.seed)
    params = _train(jnp.asarray(images), jnp.asarray(labels, jnp.int32), key, num_classes, training)
    return Classifier(
        params=jax.tree.map(np.asarray, params),
        num_classes=num_classes,
        shape=tuple(images.shape[1:]),
        digest=_digest(images, labels, num_classes, training),
    )


def _digest(images: np.ndarray, labels: np.ndarray, num_classes: int, training: Training) -> str:
    made_from = [
        _RECIPE,
        images.shape,
        str(images.dtype),
        num_classes,
        dataclasses.astuple(training),
    ]
    digest = hashlib.sha256(json.dumps(made_from).encode())
    digest.update(np.ascontiguousarray(images).tobytes())
    digest.update(np.ascontiguousarray(labels, np.int32).tobytes())
    return digest.hexdigest()


def augment(key: jax.Array, images: jax.Array, shift: int, flip: bool) -> jax.Array:
    """Images [B, H, W, C] shifted by up to `shift` pixels (edges repeated), mirrored if `flip`."""
    moves, coins = jax.random.split(key)
    padded = jnp.pad(images, ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode="edge")
    offsets = jax.random.randint(moves, (len(images), 2), 0, 2 * shift + 1)

    def cut(image: jax.Array, offset: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (offset[0], offset[1], 0), images.shape[1:])

    images = jax.vmap(cut)(padded, offsets)
    if flip:
        mirrored = jax.random.bernoulli(coins, shape=(len(images), 1, 1, 1))
        images = jnp.where(mirrored, images[:, :, ::-1], images)
    return images


@functools.partial(jax.jit, static_argnames=("num_classes", "training"))
def _train(
    images: jax.Array, labels: jax.Array, key: jax.Array, num_classes: int, training: Training
) -> Any:
    batch_size, epochs = training.batch_size, training.epochs
    assert epochs is not None, "an unresolved Training"
    network = ConvNet(num_classes)
    start, stream = jax.random.split(key)
    params = network.init(start, jnp.zeros((1, *images.shape[1:])))["params"]
    steps = len(images) // batch_size
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, training.learning_rate, epochs * steps // 10, epochs * steps
    )
    optimizer = optax.adamw(schedule, weight_decay=1e-2)

    def loss(params: Any, given: tuple[jax.Array, jax.Array]) -> jax.Array:
        chosen, key = given
        augmenting, dropping = jax.random.split(key)
        image = normalise({"image": images[chosen]})["image"]
        image = augment(augmenting, image, training.shift, training.flip)
        rngs = {"dropout": dropping}
        outputs: Any = network.apply({"params": params}, image, train=True, rngs=rngs)
        targets = optax.smooth_labels(jax.nn.one_hot(labels[chosen], num_classes), 0.05)
        return optax.softmax_cross_entropy(outputs[1], targets).mean()

    def epoch(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The examples of an epoch's steps in a new order, and the steps' keys."""
        ordering, stepping = jax.random.split(key)
        order = jax.random.permutation(ordering, len(images))[: steps * batch_size]
        return order.reshape(steps, batch_size), jax.random.split(stepping, steps)

    orders, keys = jax.lax.map(epoch, jax.random.split(stream, epochs))
    given = (orders.reshape(-1, batch_size), keys.reshape(-1))
    return minimise(loss, optimizer, params, given)[0]


def read(file: str | Path) -> tuple[Any, str | None]:
    """(params, digest) of a file that `cached` wrote.

    Raises what safetensors does, and SafetensorError where the arrays are not those written.
    """
    with safetensors.safe_open(file, framework="numpy") as stored:
        names = stored.keys()
        flat = {name: stored.get_tensor(name) for name in names}
        about = stored.metadata() or {}
    if about.get("sha256") not in (None, files.digest(flat)):
        raise safetensors.SafetensorError("its arrays are not those that were written")
    return flax.traverse_util.unflatten_dict(flat, sep="."), about.get("digest")


def opened(
    file: str | Path, option: str
) -> tuple[Callable[[Any, jax.Array], tuple[jax.Array, jax.Array]], Any]:
    """(fn(params, images [B, H, W, C] in [-1, 1]) -> (features, logits), params) of a file.

    file: what `cached` wrote. Raises UsageError naming `option` where there is no such file, or its
    images are of other sizes.
    """
    try:
        params = read(file)[0]
        network = ConvNet(params["Dense_1"]["bias"].shape[0])
    except (OSError, KeyError, safetensors.SafetensorError) as error:
        allowed = "a classifier.safetensors that `jaxgen evaluate` wrote"
        raise invalid(option, str(file), allowed) from error

    def apply(params: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        try:
            outputs: Any = network.apply({"params": params}, images)
        except (flax.errors.FlaxError, ValueError, TypeError) as error:
            shape = f"examples {images.dtype}{images.shape[1:]}"
            raise invalid(option, f"{file} for {shape}", "images as it was trained on") from error
        return outputs

    return apply, params


def cached(
    path: str | Path | None,
    images: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    training: Training = Training(),
) -> Classifier:
    """The classifier that `train_classifier` makes of the same arguments, kept in a safetensors
    file at `path`.

    path: None to keep it nowhere.

    A file whose digest (of the data, the options and the recipe) is the same is reused; any other,
    or one that cannot be read, is trained anew and replaced. The file appears whole or not at all.
    """
    if path is None:
        return train_classifier(images, labels, num_classes, training)
    file = Path(path)
    digest = _digest(images, labels, num_classes, training.resolve(images.shape))
    if file.is_file():
        try:
            params, stored = read(file)
            if stored == digest:
                return Classifier(params, num_classes, tuple(images.shape[1:]), digest)
        except (safetensors.SafetensorError, OSError) as error:
            warnings.warn(f"{file} cannot be read ({error}): training it anew", stacklevel=2)
    classifier = train_classifier(images, labels, num_classes, training)
    flat = flax.traverse_util.flatten_dict(classifier.params, sep=".")
    about = {"digest": digest, "recipe": _RECIPE, "sha256": files.digest(flat)}
    files.write(file, safetensors.numpy.save(flat, about))
    return classifier
