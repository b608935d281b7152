"""AsCAN: strings of blocks, a convolutional block by a loop."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.errors import UsageError
from jaxgen.nn.ascan import AsCAN, Conv, runs
from tests.nn_kit import abstract, check_on_mesh, inputs, live_variables, quick_jit, random_like

IMAGE = (4, 6, 2)
NET = AsCAN(5, 2, width=8, mlp_ratio=2.0, stages=("C", "T", "CT"), head_channels=4, remat="none")


def test_a_string_is_runs_of_blocks():
    assert runs("CCT") == [("C", 2), ("T", 1)]
    assert runs("TCT") == [("T", 1), ("C", 1), ("T", 1)]
    net = NET.clone(stages=("CCC", "CCT", "CTT"))
    stacks = {k: v for k, v in abstract(net, IMAGE)["params"].items() if k.startswith("stage")}
    depths = {k: jax.tree.leaves(v)[0].shape[0] for k, v in stacks.items()}
    assert depths == {
        "stage_0_0_C_blocks": 3,
        "stage_1_0_C_blocks": 2,
        "stage_1_1_T_blocks": 1,
        "stage_2_0_C_blocks": 1,
        "stage_2_1_T_blocks": 2,
    }
    assert all(("qkv" in v) == ("_T_" in k) for k, v in stacks.items())


def normal(x):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-6)


def by_hand(p, x, c):
    """The block on images [2, 3, 4, 4], pixel by pixel."""
    dense = lambda name, h: h @ p[name]["kernel"] + p[name]["bias"]
    shift, scale, gate = np.split(dense("modulation", c)[:, None, None], 3, axis=-1)
    h = normal(x) * (1 + scale) + shift
    out = np.zeros((2, 3, 4, 8)) + p["expand"]["bias"]
    for i in range(3):
        for j in range(4):
            for di in (-1, 0, 1):
                for dj in (-1, 0, 1):
                    if 0 <= i + di < 3 and 0 <= j + dj < 4:
                        weight = p["expand"]["kernel"][di + 1, dj + 1]
                        out[:, i, j] += h[:, i + di, j + dj] @ weight
    return x + gate * dense("contract", np.asarray(jax.nn.gelu(out, approximate=True)))


def test_a_convolutional_block_is_its_formula():
    x, c = (jax.random.normal(jax.random.key(n), s) for n, s in ((0, (2, 3, 4, 4)), (1, (2, 4))))
    block, flat = Conv(4, 2.0, 0.0, False, jnp.float32, (3, 4), "direct"), x.reshape(-1, 4)
    params = random_like(jax.eval_shape(block.init, jax.random.key(2), flat, c, None), 0.5)
    found = quick_jit(block.apply)(params, flat, c, None)
    want = by_hand(jax.tree.map(np.asarray, params["params"]), np.asarray(x), np.asarray(c))
    np.testing.assert_allclose(found.reshape(x.shape), want, rtol=1e-4, atol=1e-4)


@functools.cache
def variables():
    return live_variables(NET, IMAGE)


def test_taps_count_blocks_across_stages():
    taps = (1, 2, 3, 4)
    tapped = quick_jit(functools.partial(NET.apply, taps=taps))(variables(), *inputs(IMAGE))[1]
    shapes = [(3, 24, 8), (3, 6, 16), (3, 24, 16), (3, 24, 16)]
    assert [tapped[k].shape for k in taps] == shapes


def test_it_is_the_same_on_a_mesh():
    check_on_mesh(NET, IMAGE, (1, 2, 2, 2))


def test_what_does_not_fit_is_a_usage_error():
    for fields, match in (
        (dict(stages=("CX",)), "model.stages"),
        (dict(stages=("C", "C")), "model stages"),
        (dict(width=10), "model.width"),
    ):
        with pytest.raises(UsageError, match=match):
            jax.eval_shape(NET.clone(**fields).init, jax.random.key(0), *inputs(IMAGE))
