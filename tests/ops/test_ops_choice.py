"""Which implementation "auto" means: by platform, by what was measured, by what is possible."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from jaxgen.ops import Causal, attention, choice, fused_attention
from jaxgen.ops.attention import IMPLEMENTATIONS

Q = jax.ShapeDtypeStruct((2, 4, 200, 72), jnp.bfloat16)


def of(mask=None, q=Q, cudnn=True):
    return choice.of_heads(q, q, mask, cudnn=cudnn)


@pytest.fixture
def on(monkeypatch):
    """As on a device, alone, with a table of measurements."""

    def set_up(platform, kind, table, alone=True):
        monkeypatch.setattr(choice, "device", lambda: (platform, kind))
        monkeypatch.setattr(choice, "alone", lambda: alone)
        monkeypatch.setattr(choice, "measured", lambda: {kind: table})

    return set_up


def test_on_this_cpu_auto_is_xla_to_the_bit():
    q, k, v = (jax.random.normal(jax.random.key(i), (1, 2, 9, 8)) for i in range(3))
    pair = [attention(q, k, v, scale=0.3, implementation=n) for n in ("auto", "xla")]
    np.testing.assert_array_equal(*pair)
    qkv = jax.random.normal(jax.random.key(3), (2, 9, 48))
    pair = [fused_attention(qkv, heads=2, scale=0.3, implementation=n) for n in ("auto", "xla")]
    np.testing.assert_array_equal(*pair)


def test_what_was_measured_is_chosen(on):
    key = "heads bfloat16 256x256 of 72 Full"
    for name in ("cudnn", "pallas_gpu", "xla", "xla_narrow"):
        on("gpu", "H100", {key: name})
        assert of() == name
        assert of(Causal()) == "xla"  # another class, not measured
    on("gpu", "H100", {key: "cudnn"})
    assert of(cudnn=False) == "xla"
    on("tpu", "TPU v5 lite", {key: "xla"})
    assert of() == "xla" and of(Causal()) == "pallas_tpu"


def test_kernels_are_for_their_platform_and_for_one_device_each(on):
    on("tpu", "TPU v5 lite", {})
    assert of() == "pallas_tpu"
    assert of(jnp.ones((200, 200), bool)) == "xla"
    assert of(q=jax.ShapeDtypeStruct(Q.shape, jnp.float16)) == "xla"
    on("tpu", "TPU v5 lite", {}, alone=False)
    assert of() == "xla"
    on("cpu", "cpu", {})
    assert of() == "xla"
    on("gpu", "A100", {})
    assert of() == "xla"


def test_a_kernel_is_alone_where_a_mesh_is_manual():
    mesh = Mesh(np.asarray(jax.devices()).reshape(4, 2), ("data", "fsdp"))
    found = {}

    def note(name):
        def fn(x):
            found[name] = choice.alone(), choice.device()
            return x

        return fn

    spec = PartitionSpec(("data", "fsdp"))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        jax.eval_shape(note("automatic"), Q)
        whole = jax.shard_map(note("manual"), in_specs=spec, out_specs=spec, check_vma=False)
        jax.eval_shape(whole, jax.ShapeDtypeStruct((8,), jnp.float32))
        half = PartitionSpec("data")
        part = jax.shard_map(
            note("half"), in_specs=half, out_specs=half, axis_names={"data"}, check_vma=False
        )
        jax.eval_shape(jax.jit(part), jax.ShapeDtypeStruct((8,), jnp.float32))
    assert found == {
        "automatic": (False, ("cpu", "cpu")),
        "manual": (True, ("cpu", "cpu")),
        "half": (False, ("cpu", "cpu")),
    }
    assert not choice.alone()  # this process has eight devices and no mesh says which are meant


def test_the_table_names_implementations():
    for kind, table in json.loads(Path("jaxgen/ops/measured.json").read_text()).items():
        for key, name in table.items():
            assert name in IMPLEMENTATIONS and name != "auto", (kind, key)
