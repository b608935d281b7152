"""Resizers against the programs whose pixels they must reproduce."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxgen.errors import UsageError
from jaxgen.metrics.extractors.resize import pil_bicubic, tf1_bilinear
from tests.torch_fidelity_kit import torch_fidelity

# Growing, shrinking, odd, one side only, the same size, one pixel.
SIZES = [
    ((32, 32), (299, 299)),
    ((8, 8), (31, 17)),
    ((67, 45), (23, 29)),
    ((64, 20), (64, 41)),
    ((310, 333), (299, 299)),
    ((9, 1500), (9, 299)),
    ((9, 9), (9, 9)),
    ((1, 5), (7, 2)),
]
# Measured: 6e-5 of 255.
ALLOWED = 5e-4
RESIZERS = [tf1_bilinear, pil_bicubic]


def images(size, dtype=np.uint8) -> np.ndarray:
    # Every other image of extremes, whose cubic overshoots.
    made = np.random.default_rng(sum(size)).integers(0, 256, (2, *size, 3))
    made[1] = np.where(made[1] > 127, 255, 0)
    return made.astype(dtype)


@pytest.mark.parity
@pytest.mark.parametrize(("source", "target"), SIZES, ids=str)
def test_tf1_bilinear_is_torch_fidelitys(source, target):
    theirs = torch_fidelity("interpolate_compat_tensorflow")
    import torch

    x = images(source)
    expected = theirs.interpolate_bilinear_2d_like_tensorflow1x(
        torch.tensor(x.transpose(0, 3, 1, 2)).float(), size=target, align_corners=False
    )
    made = tf1_bilinear(x, target)
    assert made.dtype == jnp.float32
    np.testing.assert_allclose(made, expected.numpy().transpose(0, 2, 3, 1), atol=ALLOWED)


@pytest.mark.parametrize(("source", "target"), SIZES, ids=str)
def test_pil_bicubic_is_pillows_in_floats(source, target):
    x = images(source)
    expected = np.empty((2, *target, 3), np.float32)
    for i in np.ndindex(2, 3):
        plane = Image.fromarray(x[i[0], :, :, i[1]].astype(np.float32))
        assert plane.mode == "F"
        expected[i[0], :, :, i[1]] = plane.resize(target[::-1], Image.Resampling.BICUBIC)
    made = pil_bicubic(x, target)
    assert made.dtype == jnp.float32
    np.testing.assert_allclose(made, expected.clip(0, 255), atol=ALLOWED)


def test_bilinear_by_hand():
    # Two pixels to four without centres: 0, halfway, 1, and the edge repeated.
    row = np.array([10.0, 30.0]).reshape(1, 1, 2, 1)
    np.testing.assert_allclose(tf1_bilinear(row, (1, 4)).ravel(), [10, 20, 30, 30])
    # Shrinking takes single pixels.
    column = np.arange(6.0).reshape(1, 6, 1, 1)
    np.testing.assert_allclose(tf1_bilinear(column, (2, 1)).ravel(), [0, 3])


@pytest.mark.parametrize("resize", RESIZERS)
def test_laws(resize):
    flat = np.full((1, 13, 9, 1), 200, np.uint8)
    np.testing.assert_allclose(resize(flat, (31, 4)), 200, atol=ALLOWED)
    x = images((12, 10))
    np.testing.assert_allclose(resize(x, (12, 10)), x, atol=ALLOWED)
    # Bytes and the same numbers as floats; any batch; under jit.
    whole = resize(x, (5, 21))
    np.testing.assert_array_equal(whole, resize(x.astype(np.float32), (5, 21)))
    np.testing.assert_allclose(whole[1:], resize(x[1:], (5, 21)), atol=1e-4)
    np.testing.assert_allclose(whole, jax.jit(lambda x: resize(x, (5, 21)))(x), atol=1e-4)


def test_cubic_clips_what_overshoots():
    edge = np.zeros((1, 4, 4, 1), np.uint8)
    edge[:, :, 2:] = 255
    made = np.asarray(pil_bicubic(edge, (4, 16)))
    assert made.min() == 0 and made.max() == 255


@pytest.mark.parametrize("resize", RESIZERS)
@pytest.mark.parametrize(
    ("shape", "size"), [((4, 4, 3), (8, 8)), ((1, 0, 4, 3), (8, 8)), ((1, 4, 4, 3), (0, 8))]
)
def test_shapes_are_checked(resize, shape, size):
    with pytest.raises(UsageError, match="got"):
        resize(np.zeros(shape, np.uint8), size)
