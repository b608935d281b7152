"""Laws of a sampler: each image is a function of its own key and label."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.testing.naming import law

FINITE = "samples are finite, one for each key"
PLACE = "an image does not depend on its place in the batch"
REST = "an image does not depend on the rest of its batch"
KEYS = "different keys give different images"
LABELS = "different labels give different images"


def check_sampler(
    fn: Callable[[Any, jax.Array, jax.Array], jax.Array],
    params: Any,
    labels: jax.Array,
    *,
    seed: int = 0,
    labelled: bool = True,
    atol: float = 0.0,
) -> None:
    """A sampler's laws: each image depends on its key and label alone, whatever the batch.

    fn(params, keys[B], labels[B]) -> [B, ...]; labels [B], B >= 4 and even. Where they are not all
    one, they have to matter, unless the sampler is not labelled. atol: 0 asks for the same bits;
    float reductions of networks differ between batch shapes, so allow them rounding (1e-5 of
    samples of size 1).
    """
    size = labels.shape[0]
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(size))
    whole = np.asarray(fn(params, keys, labels))
    with law(FINITE):
        assert whole.shape[:1] == (size,), f"shape {whole.shape} from {size} keys"
        assert np.isfinite(whole).all(), "samples are not finite"
    with law(PLACE):
        back = np.asarray(fn(params, keys[::-1], labels[::-1]))[::-1]
        np.testing.assert_allclose(back, whole, rtol=0, atol=atol)
    with law(REST):
        half = size // 2
        halves = [fn(params, keys[:half], labels[:half]), fn(params, keys[half:], labels[half:])]
        np.testing.assert_allclose(np.concatenate(halves), whole, rtol=0, atol=atol)
    with law(KEYS):
        other = np.asarray(fn(params, keys[jnp.arange(size) - 1], labels))
        assert not np.allclose(whole, other), "different keys gave the same images"
    values = np.unique(np.asarray(labels))
    if labelled and len(values) > 1:
        with law(LABELS):
            changed = jnp.asarray(values[np.searchsorted(values, labels) - 1], labels.dtype)
            other = np.asarray(fn(params, keys, changed))
            assert not np.allclose(whole, other), "other labels gave the same images"
