"""From the host to the devices: prefetching transfer, and scaling inside jit."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

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


def local_rows(sharding: jax.sharding.Sharding, batch_size: int) -> np.ndarray:
    """Which rows of a batch lie on this process's devices: int64 [n], rising.

    Where a row lies on several processes' devices (a mesh whose `tensor` axis is wider than a
    process), each of them has it.
    """
    parts = [
        np.arange(*index[0].indices(batch_size))
        for index in sharding.addressable_devices_indices_map((batch_size,)).values()
        if index is not None
    ]
    return np.unique(np.concatenate(parts))


def to_global(rows: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    """An array that every process has whole, as one global array; typed keys too."""
    if sharding.is_fully_addressable:
        return jax.device_put(rows, sharding)
    if isinstance(rows, jax.Array) and not rows.is_fully_addressable:
        return jax.jit(lambda a: a, out_shardings=sharding)(rows)
    if isinstance(rows, jax.Array) and jnp.issubdtype(rows.dtype, jax.dtypes.prng_key):
        data = to_global(np.asarray(jax.random.key_data(rows)), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(rows))
    whole = np.asarray(rows)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index or ()])


def to_host(tree: Any) -> Any:
    """A pytree of arrays as NumPy arrays, whole on every process; all must call it."""

    def fetch(array: Any) -> np.ndarray:
        if not isinstance(array, jax.Array) or array.is_fully_addressable:
            return np.asarray(array)
        if array.is_fully_replicated:
            return np.asarray(array.addressable_data(0))
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))

    return jax.tree.map(fetch, tree)


def to_device(
    iterator: Iterator[Mapping[str, np.ndarray]],
    sharding: jax.sharding.Sharding,
    *,
    prefetch: int = 2,
    batch_size: int = 0,
) -> Iterator[dict[str, jax.Array]]:
    """Global device arrays from each process's part of the batches, `prefetch` of them in flight.

    sharding: splits the leading axis, over as many devices as divide the batch. Where it has
    devices of other processes, each process's batches hold its `local_rows`, and batch_size says
    how many rows there are in all. Raises UsageError for a batch that does not divide. The iterator
    is closed with this one.
    """
    local = sharding.is_fully_addressable

    def put(array: np.ndarray) -> jax.Array:
        shape = (len(array) if local else batch_size, *array.shape[1:])
        try:
            sharding.shard_shape(shape)
        except ValueError as error:
            devices = sharding.num_devices
            raise invalid("data.batch_size", shape[0], f"a multiple of {devices} devices") from (
                error
            )
        if local:
            return jax.device_put(array, sharding)
        rows = local_rows(sharding, batch_size)

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            start, stop, _ = index[0].indices(batch_size)
            here = int(np.searchsorted(rows, start))
            return array[here : here + stop - start]

        return jax.make_array_from_callback(shape, sharding, part)

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
