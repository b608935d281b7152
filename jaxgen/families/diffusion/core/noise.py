"""Laws of the noise: a Gaussian, or one of heavier tails (PFGM++)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax

from jaxgen.errors import invalid
from jaxgen.families.diffusion.core.pfgmpp import kernel_noise
from jaxgen.method import normal


@dataclasses.dataclass(frozen=True)
class Noise:
    """draw(keys [B], shape) -> eps [B, *shape], each from its own key.

    gaussian: whether it is N(0, I), without which there is no likelihood and no noising anew.
    """

    draw: Callable[[jax.Array, tuple[int, ...]], jax.Array]
    gaussian: bool = False


def gaussian() -> Noise:
    """N(0, I)."""
    return GAUSSIAN


def pfgmpp(extra_dims: float) -> Noise:
    """The kernel of PFGM++ with D = extra_dims (Xu et al. 2023); N(0, I) as D grows.

    Sample with a deterministic solver. Raises UsageError: extra_dims <= 0.
    """
    if not extra_dims > 0:
        raise invalid("method.noise.extra_dims", extra_dims, "extra_dims > 0")
    return Noise(lambda keys, shape: kernel_noise(keys, shape, extra_dims))


GAUSSIAN = Noise(normal, gaussian=True)
