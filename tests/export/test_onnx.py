"""A denoiser as an ONNX graph, run by onnxruntime."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.api import export, load
from jaxgen.errors import UsageError
from jaxgen.method import denoiser_factory
from jaxgen.run.model import of_state
from jaxgen.run.setup import sample_options
from tests import base_run
from tests.every_family import built
from tests.nn_kit import quick_jit

T = np.array([0.05, 0.4, 0.7, 0.95], np.float32)
LABELS = np.array([0, 1, 9, 10], np.int32)


def run(path, x):
    session = pytest.importorskip("onnxruntime").InferenceSession(str(path))
    return session.run(["x0", "eps", "velocity"], {"x": x, "t": T, "labels": LABELS})


@pytest.mark.parity
@pytest.mark.parametrize("name", ["mlp", "diffusion"])  # a DiT: its stack is a loop
def test_the_graph_says_what_the_guided_denoiser_says(name, tmp_path):
    pytest.importorskip("jax2onnx")
    if name == "mlp":
        model = load(base_run.base())
    else:
        parts = built(name)
        state = quick_jit(parts.method.init)(jax.random.key(0))
        live = jax.tree.map(lambda a: a + 0.1, state.params)  # an untrained one says 0
        model = of_state(parts, state.replace(params=live, ema=dict.fromkeys(state.ema, live)))
    path, changes = tmp_path / "a.onnx", {"guidance": 2.5}
    export(model, path, batch=4, changes=changes)
    x = np.random.default_rng(0).standard_normal((4, 8, 8, 1)).astype(np.float32)
    make = denoiser_factory(model.setup.method)
    denoiser = make(**sample_options(model.setup, changes))(model.weights(None), jnp.array(LABELS))
    said, _ = denoiser(jnp.zeros(4), jnp.array(x), jnp.array(T), denoiser.init(x))
    found = run(path, x)
    # dx/dt of x = alpha x0 + sigma eps, by differences: on this path they are exact.
    alpha, sigma = (
        (f(T + 0.01) - f(T - 0.01)) / 0.02 for f in (denoiser.path.alpha, denoiser.path.sigma)
    )
    slope = alpha[:, None, None, None] * said.x0 + sigma[:, None, None, None] * said.eps
    for output, wanted in zip(found, (said.x0, said.eps, slope), strict=True):
        # Two runtimes' sums of some hundred products.
        np.testing.assert_allclose(output, wanted, atol=2e-4 * float(jnp.abs(wanted).max()))
    # The guidance is in it: another says something else.
    export(model, tmp_path / "b.onnx", batch=4, changes={"guidance": 1.0})
    assert np.abs(run(tmp_path / "b.onnx", x)[0] - np.asarray(said.x0)).max() > 1e-3


def test_what_onnx_does_not_carry_is_said(tmp_path, monkeypatch):
    pytest.importorskip("jax2onnx")
    base, path = base_run.base(), tmp_path / "a.onnx"
    parts = built("gan")
    gan = of_state(parts, quick_jit(parts.method.init)(jax.random.key(0)))
    for model, options, message in (
        (gan, {}, "a diffusion model that is told labels"),
        (load(base), {"batch": 0}, "--batch_size"),
        (load(base), {"platforms": ["cpu"]}, "--platforms"),
        (load(base), {"changes": {"guidance": [{"name": "cads.cads"}]}}, "--out|guidance"),
    ):
        with pytest.raises(UsageError, match=message):
            export(model, path, **options)
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(UsageError, match="jaxgen.onnx"):
        export(load(base), path)
    assert not path.exists()
