"""Optimizers and schedules from a config's `optimizer` section, with warm-up in images."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax import Array
from optax.contrib import MuonDimensionNumbers

from jaxgen.errors import invalid
from jaxgen.nn.placement import STACKED

ScheduleName = Literal["constant", "cosine", "linear", "inverse_sqrt"]
OptimizerName = Literal["adamw", "adam", "muon", "sgd"]
SEVERAL = re.compile(rf"{STACKED.pattern}|\bstudents\.")
"""Parameters of layers or networks side by side, whose leading axes number them."""
MUON_RMS = 0.2
"""Of muon's steps over the learning rate, as those of Adam are about (Liu et al. 2025)."""


def schedule(
    name: ScheduleName,
    *,
    learning_rate: float,
    warmup_images: int,
    decay_images: int | None,
    final_fraction: float,
    images: int,
    batch_size: int,
) -> Callable[[Array], Array]:
    """Learning rate as a function of the number of updates done.

    All lengths are in images seen, so that they mean the same at any batch size. Linear warm-up
    over `warmup_images`, then: constant; cosine or linear from `learning_rate` to `final_fraction`
    of it at `images` seen; or inverse_sqrt, `learning_rate / sqrt(max(seen / decay_images, 1))`
    (EDM2, Karras et al. 2024, eq. 67), which needs `decay_images`.
    """
    if name == "inverse_sqrt" and not decay_images:
        raise invalid("config.optimizer.decay_images", decay_images, "images > 0 (inverse_sqrt)")

    def rate(count: Array) -> Array:
        seen = jnp.asarray(count, jnp.float32) * batch_size
        warm = jnp.minimum((seen + batch_size) / max(warmup_images, batch_size), 1.0)
        progress = jnp.clip((seen - warmup_images) / max(images - warmup_images, 1), 0.0, 1.0)
        shapes: dict[str, Callable[[], Array | float]] = {
            "constant": lambda: 1.0,
            "cosine": lambda: (
                final_fraction + (1 - final_fraction) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
            ),
            "linear": lambda: 1 - (1 - final_fraction) * progress,
            "inverse_sqrt": lambda: 1 / jnp.sqrt(jnp.maximum(seen / (decay_images or 1), 1.0)),
        }
        return learning_rate * warm * shapes[name]()

    return rate


def optimizer(
    name: OptimizerName = "adamw",
    *,
    learning_rate: float = 1e-4,
    schedule: ScheduleName = "constant",
    warmup_images: int = 0,
    decay_images: int | None = None,
    final_fraction: float = 0.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    clip_norm: float | None = None,
    images: int,
    batch_size: int,
) -> optax.GradientTransformation:
    """The optax optimizer of a config: global-norm clipping, then the named optimizer.

    weight_decay is decoupled and only `adamw` and `muon` have it; momentum is `sgd`'s alone. muon
    orthogonalises the steps of kernels, each layer's its own, at the size that Adam's have (Liu et
    al., "Muon is Scalable for LLM Training", 2025); all else is Adam's, with Nesterov's momentum.
    `images` and `batch_size` come from the run. Raises UsageError for values out of range.
    """
    if learning_rate <= 0:
        raise invalid("config.optimizer.learning_rate", learning_rate, "a number > 0")
    if weight_decay and name in ("adam", "sgd"):
        raise invalid(
            "config.optimizer.weight_decay", weight_decay, f"0 for {name}", "Use name='adamw'."
        )
    rate = _schedule(
        schedule,
        learning_rate=learning_rate,
        warmup_images=warmup_images,
        decay_images=decay_images,
        final_fraction=final_fraction,
        images=images,
        batch_size=batch_size,
    )
    core = {
        "adamw": lambda: optax.adamw(rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay),
        "adam": lambda: optax.adam(rate, b1=b1, b2=b2, eps=eps),
        "muon": lambda: optax.contrib.muon(
            rate,
            adam_b1=b1,
            adam_b2=b2,
            eps=eps,
            weight_decay=weight_decay,
            muon_weight_dimension_numbers=matrices,
            consistent_rms=MUON_RMS,
        ),  # fmt: skip
        "sgd": lambda: optax.sgd(rate, momentum=momentum),
    }[name]()
    if clip_norm is None:
        return core
    if clip_norm <= 0:
        raise invalid("config.optimizer.clip_norm", clip_norm, "a number > 0, or None")
    return optax.chain(optax.clip_by_global_norm(clip_norm), core)


def matrices(params: Any) -> Any:
    """Which axes of each parameter are a matrix's rows and columns; None: it is no kernel.

    A convolution's rows are all its axes but the last.
    """

    def numbers(path: Any, a: Any) -> MuonDimensionNumbers | None:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if a.ndim < 2 or not re.search(r"\bkernel$", name):
            return None
        rows = (a.ndim - 2,) if SEVERAL.search(name) else tuple(range(a.ndim - 1))
        return MuonDimensionNumbers(rows, (a.ndim - 1,))

    return jax.tree_util.tree_map_with_path(numbers, params)


_schedule = schedule
