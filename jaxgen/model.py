"""Model: a trained model and what one does with it: sample, classify, log-likelihood.

What is here knows a `Method` and nothing of its family.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.errors import invalid, unknown
from jaxgen.method import Sampler
from jaxgen.setup import Setup, sample_options
from jaxgen.training.log import progress
from jaxgen.training.sharding import batch_sharding, replicated

PyTree = Any


@dataclasses.dataclass
class Samples:
    """Generated images with how they were made.

    images: float32 [N, H, W, C], as the sampler left them. labels: int32 [N]. seconds excludes
    compilation. calls: network evaluations per image.
    """

    images: np.ndarray
    labels: np.ndarray
    seed: int
    ema: str
    options: dict[str, Any]
    calls: float
    steps: int
    seconds: float

    @property
    def images_per_second(self) -> float:
        """Throughput, compilation excluded."""
        return len(self.labels) / max(self.seconds, 1e-9)


class Model:
    """A trained model.

    `params` maps a name ("params", or an average's such as "half_life_50000") to parameters; `ema`
    is the name used where none is asked for.
    """

    def __init__(
        self, parts: Setup, params: Mapping[str, PyTree], *, images: int, step: int
    ) -> None:
        """params: by name; the first one that is not "params" becomes the default."""
        self.parts = parts
        self.params = dict(params)
        self.ema = next((n for n in parts.ema.names if n in self.params), "params")
        self.images_seen = images
        self.step = step
        self._programs: dict[str, tuple[Sampler, Callable[..., jax.Array]]] = {}

    def weights(self, ema: str | None) -> PyTree:
        """Parameters by name. Raises UsageError naming what there is."""
        name = ema or self.ema
        if name not in self.params:
            raise unknown("--ema", name, self.params)
        return self.params[name]

    def program(self, options: Mapping[str, Any]) -> tuple[Sampler, Callable[..., jax.Array]]:
        """The sampler of these options and its jitted function, compiled once per options."""
        key = json.dumps(options, sort_keys=True, default=str)
        if key not in self._programs:
            sampler = self.parts.method.sampler(**options)
            self._programs[key] = (sampler, jax.jit(sampler.fn))
        return self._programs[key]

    def sample(
        self,
        labels: Sequence[int] | np.ndarray,
        *,
        seed: int = 0,
        ema: str | None = None,
        weak: str | None = None,
        batch_size: int | None = None,
        check: Callable[[], None] = lambda: None,
        show: bool = False,
        **changes: Any,
    ) -> Samples:
        """One image per label; image i depends on (seed, i, labels[i]) and nothing else.

        ema: whose parameters. weak: the name of worse parameters for autoguidance. batch_size:
        images per call of the compiled program (the result does not depend on it). changes:
        keywords of the method's sampler (guidance, solver, steps, ...) instead of the config's.
        check: called between batches. Raises UsageError for labels or options out of range.
        """
        labels = np.asarray(labels)
        classes = self.parts.spec.num_classes
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or not len(labels):
            raise invalid("labels", labels.tolist(), "a list of one or more integers")
        wrong = labels[(labels < 0) | (labels > classes)]
        if len(wrong):
            raise invalid("labels", int(wrong[0]), f"0 to {classes - 1}, or {classes} for no label")
        labels = labels.astype(np.int32)
        options = sample_options(self.parts, changes)
        sampler, program = self.program(options)
        params = self.weights(ema)
        if weak is not None:
            params = {**params, "weak": self.weights(weak)["net"]}
        mesh = self.parts.mesh
        size = batch_size
        if size is None:
            size = min(self.parts.evaluate.batch_size, len(labels))
        if size < 1:
            raise invalid("--batch_size", size, "images >= 1")
        size = -(-size // mesh.size) * mesh.size
        sharding = batch_sharding(mesh)
        params = jax.device_put(params, replicated(mesh))
        root = jax.random.key(seed)
        make_keys = jax.jit(lambda ids: jax.vmap(lambda i: jax.random.fold_in(root, i))(ids))
        chunks = [np.arange(i, i + size) for i in range(0, len(labels), size)]

        def run(ids: np.ndarray) -> jax.Array:
            # The last chunk is padded by going on counting: one shape, one compilation.
            padded = np.resize(labels, max(len(labels), int(ids[-1]) + 1))[ids]
            keys = jax.device_put(make_keys(jnp.asarray(ids)), sharding)
            return program(params, keys, jax.device_put(padded, sharding))

        jax.block_until_ready(run(chunks[0])) if len(chunks) > 1 else None
        program_ready = time.monotonic()
        out = []
        for ids in _shown("sample", chunks, size, show):
            check()
            out.append(np.asarray(run(ids)))
        seconds = time.monotonic() - program_ready
        return Samples(
            images=np.concatenate(out)[: len(labels)],
            labels=labels,
            seed=seed,
            ema=ema or self.ema,
            options=options,
            calls=sampler.calls,
            steps=sampler.steps,
            seconds=seconds,
        )

    def log_prob(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        *,
        seed: int = 0,
        ema: str | None = None,
        **options: Any,
    ) -> np.ndarray:
        """log p(image | label) in nats [N] of images float32 [N, *shape]; the method's options."""
        if self.parts.method.log_prob is None:
            raise invalid("log_prob", "a method without a likelihood", "families that have one")
        fn = jax.jit(self.parts.method.log_prob(**options))
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(
            jnp.arange(len(images))
        )
        return np.asarray(fn(self.weights(ema), jnp.asarray(images), jnp.asarray(labels), keys))


def _shown(title: str, chunks: list[np.ndarray], size: int, show: bool) -> Iterator[np.ndarray]:
    if not show:
        yield from chunks
        return
    with progress(title, len(chunks) * size) as advance:
        for i, ids in enumerate(chunks):
            yield ids
            advance((i + 1) * size)


def balanced_labels(count: int, classes: int) -> np.ndarray:
    """`count` labels 0, 1, ..., C-1, 0, 1, ...: all classes equally often, give or take one."""
    return (np.arange(count) % classes).astype(np.int32)
