"""DiMR: the norm by hand, branches that reach the output, three of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.errors import UsageError
from jaxgen.nn.dimr import DiMR, TimeNorm
from tests.nn_kit import abstract, check_on_mesh, inputs, quick_jit, random_like

IMAGE = (8, 12, 2)
NET = DiMR(5, 2, depths=(1, 1), widths=(8, 4), heads=2, kernel=3, remat="none")


def test_the_norm_is_the_papers_formula():
    x, t = jax.random.normal(jax.random.key(0), (2, 3, 4)), jnp.array([0.2, 0.9])
    layer = TimeNorm()
    params = random_like(jax.eval_shape(layer.init, jax.random.key(1), x, t), 1.0)
    p = {k: np.asarray(v) for k, v in params["params"].items()}
    found = quick_jit(layer.apply)(params, x, t)
    for b in range(2):
        s = 1 / (1 + np.exp(-(p["weight"] * t[b] + p["bias"])))
        scale, shift = (s * p[n][0] + (1 - s) * p[n][1] for n in ("scales", "shifts"))
        centred = x[b] - x[b].mean(-1, keepdims=True)
        want = centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * scale + shift
        np.testing.assert_allclose(found[b], want, rtol=1e-5, atol=1e-5)


def test_each_branch_has_patches_half_as_large():
    net = NET.clone(depths=(1, 1, 1), widths=(8, 4, 4), patch=1)
    params = abstract(net, IMAGE)["params"]
    sizes = [params[f"patch_{n}"]["kernel"].shape[0] for n in range(3)]
    assert sizes == [16 * 2, 4 * 2, 2]
    assert "qkv" in params["branch_0_blocks"] and "spatial" in params["branch_2_blocks"]


@pytest.mark.parametrize("mesh", [(2, 2, 2, 1), (2, 1, 1, 4)], ids=str)
def test_it_is_the_same_on_a_mesh(mesh):
    check_on_mesh(NET, IMAGE, mesh)


def test_what_does_not_fit_is_a_usage_error():
    for fields, match in (
        (dict(depths=(1,)), "model.depths"),
        (dict(depths=(1, 0)), "model.depths"),
        (dict(widths=(6, 4)), "model.widths"),
        (dict(kernel=2), "model.kernel"),
        (dict(patch=3), "image size"),
    ):
        with pytest.raises(UsageError, match=match):
            jax.eval_shape(NET.clone(**fields).init, jax.random.key(0), *inputs(IMAGE))
