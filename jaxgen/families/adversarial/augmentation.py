"""What is done to images before the discriminator sees them, real and fake alike; and when.

Zhao et al. 2020, "Differentiable Augmentation for Data-Efficient GAN Training": the generator's
gradient passes through it, so that it learns the images themselves and not their augmentations
(Karras et al. 2020 on when that holds: each must be undone in distribution).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid, unknown

Step = Callable[[jax.Array, jax.Array], jax.Array]
"""(image [H, W, C], key) -> image."""


@dataclasses.dataclass(frozen=True)
class Controller:
    """How often: a probability p, in the state, that follows how sure the discriminator is.

    After each step p moves by the share of `images` that it saw, up where the mean sign of the real
    images' logits is above `target`, down where it is below (Karras et al. 2020, section 3.1, where
    p looks at four batches at a time). first: p at the start.
    """

    target: float
    images: int
    first: float

    def __post_init__(self) -> None:
        """Raises UsageError for values out of range."""
        if not (-1 < self.target < 1 and self.images > 0 and 0 <= self.first <= 1):
            allowed = "-1 < target < 1, images > 0, 0 <= first <= 1"
            raise invalid("method.augmentation", dataclasses.asdict(self), allowed)

    def start(self) -> dict[str, jax.Array]:
        """The state: p, and the images seen when it was last looked at."""
        return {"p": jnp.float32(self.first), "seen": jnp.float32(0)}

    def follow(self, state: dict[str, jax.Array], metrics: Mapping[str, jax.Array]) -> Any:
        """The state after a step, from its `d_sign` and `seen`."""
        moved = (metrics["seen"] - state["seen"]) / self.images
        p = state["p"] + jnp.sign(metrics["d_sign"] - self.target) * moved
        return {"p": jnp.clip(p, 0, 1), "seen": metrics["seen"]}


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """fn(x[B, H, W, C], keys[B], p) -> x, each image by its own key; p for what has a controller.

    apply: None leaves images as they are. pseudo: with probability p a fake image is shown in the
    place of a real one.
    """

    apply: Callable[[jax.Array, jax.Array, Any], jax.Array] | None
    controller: Controller | None = None
    pseudo: bool = False

    def __call__(self, x: jax.Array, keys: jax.Array, p: jax.Array | None = None) -> jax.Array:
        """Images as they are shown."""
        return x if self.apply is None else self.apply(x, keys, p)


def differentiable(
    policy: tuple[str, ...] = ("brightness", "translation", "cutout"),
    *,
    shift: float = 0.125,
    hole: float = 0.5,
    brightness: float = 0.5,
    contrast: float = 0.5,
    saturation: float = 1.0,
    fill: float = 0.0,
) -> Augmentation:
    """The policy's steps in order, on every image (DiffAugment).

    policy: of `POLICIES`. shift: translations up to this share of the side, whole pixels. hole: the
    side of the square that is cut out, as a share. brightness: the width of the added constant.
    contrast, saturation: the most by which deviations from the image's mean, and from the pixel's,
    grow or shrink, as a share. fill: what comes in from outside and into the hole.
    """
    steps = _steps(policy, shift, hole, brightness, contrast, saturation, fill)

    def augment(x: jax.Array, key: jax.Array) -> jax.Array:
        for step, k in zip(steps, jax.random.split(key, len(steps)), strict=True):
            x = step(x, k)
        return x

    return Augmentation(lambda x, keys, p: jax.vmap(augment)(x, keys))


def adaptive(
    policy: tuple[str, ...] = ("flip", "translation", "brightness", "contrast"),
    *,
    target: float = 0.6,
    images: int = 500_000,
    first: float = 0.0,
    shift: float = 0.125,
    hole: float = 0.5,
    brightness: float = 0.5,
    contrast: float = 0.5,
    saturation: float = 1.0,
    fill: float = 0.0,
) -> Augmentation:
    """Each step of the policy with probability p, which a controller moves (ADA, Karras et al.).

    target, images, first: the controller's (`Controller`); the rest as `differentiable`'s.
    """
    steps = _steps(policy, shift, hole, brightness, contrast, saturation, fill)

    def augment(x: jax.Array, key: jax.Array, p: jax.Array) -> jax.Array:
        for step, k in zip(steps, jax.random.split(key, len(steps)), strict=True):
            chance, own = jax.random.split(k)
            x = jnp.where(jax.random.uniform(chance) < p, step(x, own), x)
        return x

    return Augmentation(jax.vmap(augment, (0, 0, None)), Controller(target, images, first))


def pseudo(*, target: float = 0.6, images: int = 500_000, first: float = 0.0) -> Augmentation:
    """With probability p a fake image passes for a real one (APA, Jiang et al. 2021).

    The controller is ADA's (`Controller`). Images themselves are shown as they are.
    """
    return Augmentation(None, Controller(target, images, first), pseudo=True)


POLICIES = ("brightness", "contrast", "cutout", "flip", "rotation", "saturation", "translation")


def _steps(
    policy: tuple[str, ...],
    shift: float,
    hole: float,
    brightness: float,
    contrast: float,
    saturation: float,
    fill: float,
) -> list[Step]:
    """The policy's steps. Raises UsageError for unknown names and amounts out of range."""
    for name in policy:
        if name not in POLICIES:
            raise unknown("method.augmentation.policy", name, POLICIES)
    if not policy:
        raise invalid("method.augmentation.policy", policy, ", ".join(POLICIES))
    amounts = (brightness, contrast, saturation)
    if not (0 <= shift <= 1 and 0 < hole < 1 and min(amounts) >= 0 and max(amounts[1:]) <= 1):
        raise invalid(
            "method.augmentation",
            dict(shift=shift, hole=hole, brightness=brightness, contrast=contrast)
            | dict(saturation=saturation),
            "0 <= shift <= 1, 0 < hole < 1, brightness >= 0, 0 <= contrast, saturation <= 1",
        )

    def scaled(x: jax.Array, key: jax.Array, axes: Any, most: float) -> jax.Array:
        mean = x.mean(axes, keepdims=True)
        return mean + (x - mean) * jax.random.uniform(key, minval=1 - most, maxval=1 + most)

    made: dict[str, Step] = {
        "brightness": lambda x, key: x + brightness * (jax.random.uniform(key) - 0.5),
        "contrast": lambda x, key: scaled(x, key, None, contrast),
        "cutout": lambda x, key: _cut_out(x, key, hole, fill),
        "flip": lambda x, key: jnp.where(jax.random.bernoulli(key), x[:, ::-1], x),
        "rotation": _quarter_turns,
        "saturation": lambda x, key: scaled(x, key, -1, saturation),
        "translation": lambda x, key: _translate(x, key, shift, fill),
    }
    return [made[name] for name in policy]


def _quarter_turns(x: jax.Array, key: jax.Array) -> jax.Array:
    if x.shape[0] != x.shape[1]:
        raise invalid("method.augmentation.policy", f"rotation of {x.shape}", "square images")
    turned = [lambda x, n=n: jnp.rot90(x, n) for n in range(4)]
    return jax.lax.switch(jax.random.randint(key, (), 0, 4), turned, x)


def _translate(x: jax.Array, key: jax.Array, share: float, fill: float) -> jax.Array:
    height, width, channels = x.shape
    most = jnp.array([int(height * share + 0.5), int(width * share + 0.5)])
    rows, columns = int(height * share + 0.5), int(width * share + 0.5)
    padded = jnp.pad(x, ((rows, rows), (columns, columns), (0, 0)), constant_values=fill)
    start = jax.random.randint(key, (2,), 0, 2 * most + 1)
    return jax.lax.dynamic_slice(padded, (start[0], start[1], 0), (height, width, channels))


def _cut_out(x: jax.Array, key: jax.Array, share: float, fill: float) -> jax.Array:
    sizes = [max(int(n * share + 0.5), 1) for n in x.shape[:2]]
    inside = []
    for k, n, size in zip(jax.random.split(key), x.shape[:2], sizes, strict=True):
        # The hole may hang over an edge, by half its side at most.
        first = jax.random.randint(k, (), 0, n + 1 - size % 2) - size // 2
        place = jnp.arange(n)
        inside.append((place >= first) & (place < first + size))
    hole = inside[0][:, None, None] & inside[1][None, :, None]
    return jnp.where(hole, fill, x)
