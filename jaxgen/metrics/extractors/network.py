"""A network as an extractor: fixed batches, compiled once, cut over this process's devices."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxgen.errors import invalid
from jaxgen.metrics.sets.quantise import quantise

PyTree = Any
DTYPES = ("float32", "bfloat16")
ROWS, WHOLE = PartitionSpec("data"), PartitionSpec()
"""How arguments lie: an array's rows cut over the devices, or all of it on each."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class NetworkExtractor:
    """What `features` needs, and nothing else: weights and two pure functions.

    name, digest: see `jaxgen.metrics.sets.side.Extractor`. prepare: images [B, H, W, 3] uint8 ->
    the network's input. apply: (params, input) -> outputs by name, each [B, d]; "features" is one.
    batch: images at a time, over all devices. devices: None for all of this process's.
    """

    name: str
    digest: str
    params: PyTree
    prepare: Callable[[jax.Array], jax.Array]
    apply: Callable[[PyTree, jax.Array], dict[str, jax.Array]]
    batch: int = 64
    devices: Sequence[jax.Device] | None = None

    def __post_init__(self) -> None:
        """Check the batch."""
        if self.batch < 1:
            raise invalid("batch", self.batch, "1 or more")

    def features(self, images: np.ndarray) -> np.ndarray:
        """Features float32 [N, d] of images [N, H, W, C]: see `outputs`."""
        return self.outputs(images, "features")["features"]

    def outputs(self, images: np.ndarray, *names: str) -> dict[str, np.ndarray]:
        """Several outputs of one pass, float32 [N, d] each.

        images [N, H, W, C], uint8 or floats in [-1, 1], which become bytes (`quantise`); one
        channel is repeated to three. An image's outputs do not depend on its batch, but for
        rounding. Raises UsageError for other shapes and for floats that are not finite.
        """
        images = np.asarray(images)
        if images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape[1:]:
            alpha = images.ndim == 4 and images.shape[-1] in (2, 4)
            fix = "Without their alpha: --channels 3." if alpha else None
            raise invalid("images", images.shape, "a shape (N, H, W, 1) or (N, H, W, 3)", fix)
        params, mesh, prepare, apply = self._compiled
        chunks: dict[str, list[np.ndarray]] = {name: [] for name in names}
        run = lambda chunk: apply(params, prepare(chunk))
        for size, arrays in batches(run, (quantise(images),), self.batch, mesh):
            for name in names:
                chunks[name].append(np.asarray(arrays[name], np.float32)[:size])
        return {name: np.concatenate(chunk) for name, chunk in chunks.items()}

    @functools.cached_property
    def _compiled(self) -> tuple[PyTree, Mesh, Callable[..., Any], Callable[..., Any]]:
        """Parameters on every device, the devices, and the two functions of a batch."""
        devices = jax.local_devices() if self.devices is None else self.devices
        mesh = Mesh(np.array(devices), ("data",))

        def colour(images: jax.Array) -> jax.Array:
            return self.prepare(jnp.broadcast_to(images, (*images.shape[:3], 3)))

        params = jax.device_put(self.params, NamedSharding(mesh, WHOLE))
        return params, mesh, compiled(colour, mesh, ROWS), compiled(self.apply, mesh, WHOLE, ROWS)


def compiled(fn: Callable[..., Any], mesh: Mesh, *specs: PartitionSpec) -> Callable[..., Any]:
    """fn of arguments that lie as `ROWS` or `WHOLE`, each device on its own rows."""
    return jax.jit(jax.shard_map(fn, mesh=mesh, in_specs=specs, out_specs=ROWS, check_vma=False))


def batches(
    fn: Callable[..., Any], arrays: Sequence[np.ndarray], batch: int, mesh: Mesh
) -> Iterator[tuple[int, Any]]:
    """(how many rows, fn of them) for arrays [N, ...] in parts of `batch`, filled up with zeros.

    One batch behind what the devices are given, which so have no pause. No rows at all are one
    part, for the shapes of nothing. `batch` is rounded up to the devices.
    """
    size, count = -(-batch // mesh.size) * mesh.size, len(arrays[0])
    place = functools.partial(jax.device_put, device=NamedSharding(mesh, ROWS))
    waiting = None
    for start in range(0, max(count, 1), size):
        chunks = [a[start : start + size] for a in arrays]
        rows = len(chunks[0])
        fill = [np.zeros((size - rows, *chunk.shape[1:]), chunk.dtype) for chunk in chunks]
        given = [np.concatenate(pair) for pair in zip(chunks, fill, strict=True)]
        outputs = fn(*map(place, given))
        if waiting is not None:
            yield waiting
        waiting = rows, outputs
    assert waiting is not None
    yield waiting


def applied(make: Callable[..., nn.Module], dtype: str) -> Callable[[PyTree, jax.Array], Any]:
    """(params, x) -> the outputs of make(dtype=dtype), where float32 products are float32's.

    Accelerators would round them. UsageError for a dtype that is not one of `DTYPES`.
    """
    module = make(dtype=checked(dtype))
    precision = "highest" if dtype == "float32" else "default"

    def apply(params: PyTree, x: jax.Array) -> Any:
        with jax.default_matmul_precision(precision):
            return module.apply({"params": params}, x)

    return apply


def checked(dtype: str) -> str:
    """The dtype; UsageError where it is not one of `DTYPES`."""
    if dtype not in DTYPES:
        raise invalid("dtype", dtype, ", ".join(DTYPES))
    return dtype


def described(digest: str, dtype: str) -> str:
    """A digest of weights with the dtype they are computed in, where it is not float32."""
    return digest if dtype == "float32" else f"{digest}, {dtype}"
