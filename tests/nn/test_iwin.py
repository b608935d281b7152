"""Iwin: windows and back, what a block links."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.errors import UsageError
from jaxgen.mesh import Layout, using
from jaxgen.nn.iwin import Iwin, interleaved, together
from jaxgen.training.sharding import make_mesh
from tests.nn_kit import check_on_mesh, inputs, live_variables, quick_jit

IMAGE = (8, 12, 2)
NET = Iwin(5, 2, depth=1, width=16, heads=2, patch=2, window=2, remat="none")


def test_a_window_is_of_distant_patches_and_goes_back():
    numbers = jnp.arange(24.0).reshape(1, 24, 1)
    windows = interleaved(numbers, (4, 6), 2)
    assert windows.shape == (6, 4, 1)
    # Rows 2 apart, columns 3 apart.
    np.testing.assert_array_equal(windows[1, :, 0], [1, 4, 13, 16])
    np.testing.assert_array_equal(together(windows, (4, 6), 2), numbers)


def test_without_its_convolution_a_patch_learns_of_its_own_window_alone():
    net = NET.clone(num_classes=1, out_channels=2)
    params = live_variables(net, IMAGE)["params"]
    params["blocks"]["depthwise"] = jax.tree.map(jnp.zeros_like, params["blocks"]["depthwise"])
    x = inputs(IMAGE, 1)[0]

    def tokens(x):
        """After the block, [24]."""
        told = x, jnp.full(1, 0.5), jnp.zeros(1, jnp.int32)
        return net.apply({"params": params}, *told, taps=(1,))[1][1][0].sum(-1)

    slopes = np.abs(quick_jit(jax.jacobian(tokens))(x)[:, 0])
    # Of each patch's elements, by rows and columns of patches.
    links = slopes.reshape(4, 6, 4, 2, 6, 2, 2).max((3, 5, 6)) > 0
    row, column, other_row, other_column = np.indices(links.shape)
    same = (row % 2 == other_row % 2) & (column % 3 == other_column % 3)
    np.testing.assert_array_equal(links, same)


def test_it_is_the_same_on_a_mesh():
    check_on_mesh(NET, IMAGE, (2, 2, 2, 1))


def test_what_does_not_fit_is_a_usage_error():
    for fields, match in (
        (dict(window=4), "model.window: got 4; allowed: a divisor of 4 and 6"),
        (dict(window=0), "model.window"),
        (dict(kernel=2), "model.kernel"),
        (dict(rope=True), "model.rope"),
    ):
        with pytest.raises(UsageError, match=match):
            jax.eval_shape(NET.clone(**fields).init, jax.random.key(0), *inputs(IMAGE))
    with using(Layout(make_mesh(1, 1, 1, 8))), pytest.raises(UsageError, match="mesh.sequence"):
        jax.eval_shape(NET.apply, live_variables(NET, IMAGE), *inputs(IMAGE, 4))
