"""From the host to the devices: prefetching transfer, and scaling inside jit."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.errors import invalid


def normalise(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """A batch with images as float32: uint8 becomes x / 127.5 - 1 in [-1, 1], floats pass.

    int32 tokens pass too, and so does a batch without images (of a target). Call it inside jit:
    images then travel to the device as bytes.
    """
    image = batch.get("image")
    if image is None or image.dtype == jnp.int32:
        return dict(batch)
    if image.dtype == jnp.uint8:
        image = image.astype(jnp.float32) / 127.5 - 1.0
    return {**batch, "image": image.astype(jnp.float32)}


def to_device(
    iterator: Iterator[Mapping[str, np.ndarray]],
    sharding: jax.sharding.Sharding,
    *,
    prefetch: int = 2,
) -> Iterator[dict[str, jax.Array]]:
    """Global device arrays from each process's part of the batches, `prefetch` of them in flight.

    sharding: splits the leading axis, over as many devices as divide the batch; the processes'
    parts lie in the order of their index. Raises UsageError for a batch that does not divide.
    The iterator is closed with this one.
    """
    processes = 1 if sharding.is_fully_addressable else jax.process_count()

    def put(array: np.ndarray) -> jax.Array:
        shape = (array.shape[0] * processes, *array.shape[1:])
        try:
            sharding.shard_shape(shape)
        except ValueError as error:
            devices = sharding.num_devices
            raise invalid("data.batch_size", shape[0], f"a multiple of {devices} devices") from (
                error
            )
        return jax.make_array_from_process_local_data(sharding, array, shape)

    def put_all(batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        return {name: put(array) for name, array in batch.items()}

    flight: collections.deque[dict[str, jax.Array]] = collections.deque()
    try:
        for batch in iterator:
            flight.append(put_all(batch))
            if len(flight) > prefetch:
                yield flight.popleft()
        yield from flight
    finally:
        close: Any = getattr(iterator, "close", None)
        if close is not None:
            close()
