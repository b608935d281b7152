"""GSDM: masks of graphs, kinds of variables."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jaxgen.errors import UsageError
from jaxgen.mesh import Layout, using
from jaxgen.nn.dit import DiT
from jaxgen.nn.gsdm import GSDM, adjacency
from jaxgen.training.sharding import make_mesh
from tests.nn_kit import check_on_mesh, inputs, live_variables, quick_jit

IMAGE = (5, 1, 2)
EDGES = ((0, 1), (1, 2), (2, 3), (3, 4))
FIELDS = dict(num_classes=5, out_channels=2, depth=2, width=16, heads=2, patch=1, remat="none")
NET = GSDM(**FIELDS, edges=EDGES)


def test_neighbours_and_oneself():
    want = np.eye(3, dtype=bool)
    want[0, 2] = want[2, 0] = True
    np.testing.assert_array_equal(adjacency(3, ((2, 0),)), want)


def test_with_all_edges_it_is_a_dit_but_for_positions():
    every = tuple((a, b) for a in range(5) for b in range(a))
    dit, net = DiT(**FIELDS), GSDM(**FIELDS, edges=every)
    params, args = live_variables(dit, IMAGE)["params"], inputs(IMAGE)
    table = dit._positions(5, 1)
    given = {**params, "kinds": {"embedding": table}}
    found = quick_jit(net.apply)({"params": given}, *args)
    want = quick_jit(dit.apply)({"params": params}, *args)
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4)


def test_it_is_the_same_on_a_mesh():
    check_on_mesh(NET, IMAGE, (2, 2, 2, 1))


def test_what_does_not_fit_is_a_usage_error():
    for fields, match in (
        (dict(edges=((0, 5),)), r"model.edges: got \(0, 5\); allowed: pairs of 0 to 4"),
        (dict(kinds=(0, 1)), "model.kinds"),
        (dict(kinds=(0, 0, 0, 0, -1)), "model.kinds"),
        (dict(rope=True), "model.rope"),
    ):
        with pytest.raises(UsageError, match=match):
            jax.eval_shape(NET.clone(**fields).init, jax.random.key(0), *inputs(IMAGE))
    with using(Layout(make_mesh(1, 1, 1, 8))), pytest.raises(UsageError, match="mesh.sequence"):
        jax.eval_shape(NET.apply, live_variables(NET, IMAGE), *inputs(IMAGE, 4))
