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
from jaxgen.metrics.quantise import quantise

PyTree = Any
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Network:
    """What `features` needs, and nothing else: weights and two pure functions.

    name, digest: see `jaxgen.metrics.evaluate.Extractor`. prepare: images [B, H, W, 3] uint8 -> the
    network's input. apply: (params, input) -> outputs by name, each [B, d]; "features" is one.
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
            raise invalid("images", images.shape, "a shape (N, H, W, 1) or (N, H, W, 3)")
        parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
        for size, found in self._batches(quantise(images)):
            for name in names:
                parts[name].append(np.asarray(found[name], np.float32)[:size])
        return {name: np.concatenate(part) for name, part in parts.items()}

    def _batches(self, images: np.ndarray) -> Iterator[tuple[int, dict[str, jax.Array]]]:
        """(how many images, their outputs), one batch behind what the devices are given."""
        params, cut, prepare, apply = self._compiled
        batch = -(-self.batch // cut.mesh.size) * cut.mesh.size
        waiting = None
        # No images go through one batch too, for the shapes of nothing.
        for start in range(0, max(len(images), 1), batch):
            part = images[start : start + batch]
            fill = np.zeros((batch - len(part), *part.shape[1:]), np.uint8)
            given = jax.device_put(np.concatenate([part, fill]), cut)
            found = apply(params, prepare(given))
            if waiting is not None:
                yield waiting
            waiting = len(part), found
        assert waiting is not None
        yield waiting

    @functools.cached_property
    def _compiled(self) -> tuple[PyTree, NamedSharding, Callable[..., Any], Callable[..., Any]]:
        """Parameters on every device, how batches lie, and the two functions of a batch."""
        devices = jax.local_devices() if self.devices is None else self.devices
        mesh = Mesh(np.array(devices), ("data",))
        rows, everywhere = PartitionSpec("data"), PartitionSpec()

        def colour(images: jax.Array) -> jax.Array:
            return self.prepare(jnp.broadcast_to(images, (*images.shape[:3], 3)))

        prepare = jax.shard_map(colour, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)
        apply = jax.shard_map(
            self.apply, mesh=mesh, in_specs=(everywhere, rows), out_specs=rows, check_vma=False
        )
        params = jax.device_put(self.params, NamedSharding(mesh, everywhere))
        return params, NamedSharding(mesh, rows), jax.jit(prepare), jax.jit(apply)


def applied(module: nn.Module, dtype: str) -> Callable[[PyTree, jax.Array], Any]:
    """(params, x) -> the module's outputs, where float32 products are float32's.

    Accelerators would round them. UsageError for a dtype that is not one of `DTYPES`.
    """
    if dtype not in DTYPES:
        raise invalid("dtype", dtype, ", ".join(DTYPES))
    precision = "highest" if dtype == "float32" else "default"

    def apply(params: PyTree, x: jax.Array) -> Any:
        with jax.default_matmul_precision(precision):
            return module.apply({"params": params}, x)

    return apply


def described(digest: str, dtype: str) -> str:
    """A digest of weights with the dtype they are computed in, where it is not float32."""
    return digest if dtype == "float32" else f"{digest}, {dtype}"
