"""Kernels, interpreted, against the formula in float64: values and derivatives of first and second
order. Memory that a kernel did not write is NaN, and so is what lies past the end of an array."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.errors import UsageError
from jaxgen.ops import (
    BlockCausal,
    Causal,
    Full,
    Prefix,
    attention,
    fused_attention,
    gpu,
    interpreted,
)
from jaxgen.ops.cudnn import Cudnn
from jaxgen.ops.derivatives import apply
from jaxgen.ops.heads import Heads
from jaxgen.ops.kernel import Settings
from jaxgen.ops.masks import Place
from jaxgen.ops.tpu import flash, fused, single
from tests.exact_attention import error

TOLERANCE = {"float32": 1e-6, "bfloat16": 1e-2}
SEED = 7
KERNELS = ("single", "flash", "gpu")
# mask, dtype, (B, H, G, N, M, D, E), bias, place. Most lengths are ragged: see `small_blocks`.
CASES = {
    "full": (Full(), "float32", (2, 2, 2, 32, 48, 64, 64), None, dict(keys=99)),
    "causal": (Causal(), "bfloat16", (1, 4, 2, 37, 37, 72, 72), None, dict(row=1)),
    "prefix": (Prefix(5), "float32", (1, 2, 1, 37, 41, 80, 72), (1, 2, 1, 41), {}),
    "blocks": (
        BlockCausal(6), "bfloat16", (1, 2, 2, 21, 50, 96, 96), (1, 1, 21, 50),
        dict(row=20, column=3, keys=44),
    ),
    "empty": (
        Causal(), "float32", (1, 1, 1, 150, 20, 128, 64), None, dict(column=7, keys=18),
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """So that short sequences have several blocks."""
    monkeypatch.setattr(flash, "BLOCK", 32)
    monkeypatch.setattr(gpu, "BLOCK", 16)
    monkeypatch.setattr(single, "CHUNK", 1)
    monkeypatch.setattr(fused, "CHUNK", 1)


def quick(fn):
    """Compiled with little care, since compiling is what takes the time here."""
    return jax.jit(fn, compiler_options={"xla_backend_optimization_level": 0})


def everything(fn, xs, ts, g):
    """(value, gradients) and their derivatives along ts."""

    def both(xs):
        value, back = jax.vjp(fn, *xs)
        return value, *back(g.astype(value.dtype))

    return quick(lambda: jax.jvp(both, (tuple(xs),), (tuple(ts),)))()


def compare(fn, exact, xs, out, dtype, how="quick", seed=0):
    """Fn of xs rounded to dtype against `exact` of the same numbers in float64."""
    rng = np.random.default_rng(seed)
    given = [jnp.asarray(x, x.dtype if x.dtype == np.float32 else dtype) for x in xs]
    ts = [jnp.asarray(rng.normal(size=x.shape), x.dtype) for x in given]
    g = jnp.asarray(rng.normal(size=out), dtype)
    with interpreted(how):
        found = everything(fn, given, ts, g)
    rounded = [np.asarray(x, np.float64) for x in (*given, *ts, g)]
    with jax.enable_x64(True):
        wide = [jnp.asarray(x, jnp.float64) for x in rounded]
        want = everything(exact, wide[: len(xs)], wide[len(xs) : -1], wide[-1])
    names = ["value", *(f"gradient {i}" for i in range(len(xs)))]
    for order, (mine, right) in enumerate(zip(found, want, strict=True)):
        for name, a, b in zip(names, mine, right, strict=True):
            assert a.shape == b.shape and error(a, b) < TOLERANCE[dtype] * (1 + order), (
                name,
                order,
            )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_of_heads(kernel, case, monkeypatch):
    mask, dtype, (b, h, groups, n, m, d, e), bias, place = CASES[case]
    monkeypatch.setattr(single, "KEYS", 1024 if kernel == "single" else 0)
    rng = np.random.default_rng(SEED + len(case))
    shapes = (b, h, n, d), (b, groups, m, d), (b, groups, m, e)
    xs = [rng.normal(size=shape) for shape in shapes]
    if bias is not None:
        xs.append(rng.normal(size=bias).astype(np.float32))

    def fn(name):
        def run(q, k, v, bias=None):
            options = dict(mask=mask, bias=bias, implementation=name, **place)
            return attention(q, k, v, scale=d**-0.5, **options)

        return run

    name = "pallas_gpu" if kernel == "gpu" else "pallas_tpu"
    how = "memory" if case == "full" else "quick"
    compare(fn(name), fn("reference"), xs, (b, h, n, e), dtype, how)


# mask, dtype, (B, H, G, N, D), norm, rope.
FUSED = {
    "plain": (Full(), "float32", (2, 2, 2, 32, 72), False, False),
    "norm": (Causal(), "bfloat16", (1, 4, 2, 37, 64), True, False),
    "rope": (BlockCausal(6), "float32", (1, 2, 1, 21, 80), False, True),
    "both": (Prefix(5), "float32", (1, 2, 2, 37, 96), True, True),
    "wide": (Full(), "bfloat16", (1, 1, 1, 40, 128), True, True),
}


def parts(heads, groups, norm, rope, mask, name, qkv, *rest):
    """`fused_attention` with what is there."""
    scales = dict(zip(("q_scale", "k_scale"), rest, strict=False)) if norm else {}
    return fused_attention(
        qkv, heads=heads, groups=groups, scale=0.125, mask=mask, implementation=name,
        angles=rest[-1] if rope else None, **scales,
    )  # fmt: skip


@pytest.mark.parametrize("case", FUSED)
def test_fused(case):
    mask, dtype, (b, h, groups, n, d), norm, rope = FUSED[case]
    rng = np.random.default_rng(SEED)
    xs = [rng.normal(size=(b, n, (h + 2 * groups) * d))]
    if norm:
        xs += [(1 + 0.3 * rng.normal(size=d)).astype(np.float32) for _ in range(2)]
    if rope:
        xs.append(rng.normal(size=(n, d // 2)).astype(np.float32))

    def fn(name):
        return lambda *xs: parts(h, groups, norm, rope, mask, name, *xs)

    compare(
        fn("pallas_tpu"), by_definition(h, groups, d, norm, rope, mask), xs, (b, n, h * d), dtype
    )


def by_definition(h, groups, d, norm, rope, mask):
    """Attention of a projection written out column by column."""
    each = h // groups

    def fn(qkv, *rest):
        head = lambda number: qkv[..., number * d : (number + 1) * d]
        q = jnp.stack([head(i // each * (each + 2) + i % each) for i in range(h)], 1)
        k, v = (
            jnp.stack([head(g * (each + 2) + each + j) for g in range(groups)], 1) for j in (0, 1)
        )
        if norm:
            unit = lambda x, w: x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * w
            q, k = unit(q, rest[0]), unit(k, rest[1])
        if rope:
            turn = jnp.exp(1j * rest[-1])
            half = d // 2

            def rotated(x):
                z = (x[..., :half] + 1j * x[..., half:]) * turn
                return jnp.concatenate([z.real, z.imag], -1)

            q, k = rotated(q), rotated(k)
        out = attention(q, k, v, scale=0.125, mask=mask, implementation="reference")
        return jnp.concatenate([out[:, i] for i in range(h)], -1)

    return fn


@pytest.mark.parametrize("kernel", [*KERNELS, "fused"])
def test_scores_too_large_for_an_exponential(kernel, monkeypatch):
    """All scores 200 higher are the same attention; exp(200) is not a float32."""
    monkeypatch.setattr(single, "KEYS", 1024 if kernel == "single" else 0)
    qkv = np.random.default_rng(SEED).normal(size=(1, 36, 2, 3, 64))
    qkv[..., :2, 0] = 40.0
    xs = [jnp.asarray(x, jnp.float32) for x in qkv.transpose(3, 0, 2, 1, 4)]

    def run(name, *xs):
        return attention(*xs, scale=0.125, mask=Causal(), implementation=name).sum(1)

    def run_fused(name, *xs):
        tokens = jnp.stack(xs).transpose(1, 3, 2, 0, 4).reshape(1, 36, -1)
        out = fused_attention(tokens, heads=2, scale=0.125, mask=Causal(), implementation=name)
        return out.reshape(1, 36, 2, 64).sum(2)

    name = "pallas_gpu" if kernel == "gpu" else "pallas_tpu"
    fn = run_fused if kernel == "fused" else run
    both = lambda fn, name: quick(
        jax.value_and_grad(lambda *xs: jnp.sin(fn(name, *xs)).sum(), (0, 1, 2))
    )
    with interpreted():
        value, grads = both(fn, name)(*xs)
    want, right = both(run, "reference")(*xs)
    assert error(value, want) < 1e-4
    for a, b in zip(grads, right, strict=True):
        assert error(a, b) < 1e-3


@pytest.mark.parametrize("name", ["xla", "xla_narrow", "reference"])
def test_the_fused_form_is_its_parts_on_every_platform(name):
    rng = np.random.default_rng(3)
    xs = [rng.normal(size=(2, 12, 8 * 16)), *rng.normal(size=(2, 16)).astype(np.float32)]
    xs.append(rng.normal(size=(12, 8)).astype(np.float32))
    fn = lambda *xs: parts(4, 2, True, True, Causal(), name, *xs)
    compare(fn, by_definition(4, 2, 16, True, True, Causal()), xs, (2, 12, 64), "float32")


def test_gradients_of_forward_derivatives():
    """Reverse over forward, which MeanFlow trains through."""
    rng = np.random.default_rng(5)
    q, k, v, t = (jnp.asarray(rng.normal(size=(1, 2, 24, 64)), jnp.float32) for _ in range(4))

    def loss(name, q, k, v):
        fn = lambda q: attention(q, k, v, scale=0.125, mask=Causal(), implementation=name)
        out, change = jax.jvp(fn, (q,), (t,))
        return (out * change).sum()

    with interpreted():
        found = quick(lambda *a: jax.grad(loss, (1, 2, 3))("pallas_tpu", *a))(q, k, v)
    for a, b in zip(found, jax.grad(loss, (1, 2, 3))("reference", q, k, v), strict=True):
        assert error(a, b) < 2e-6


@pytest.mark.parametrize(
    ("size", "dtype", "mask"),
    [
        (64, "bfloat16", Causal()),
        (72, "bfloat16", Full()),
        (80, "float32", Prefix(5)),
        (96, "bfloat16", BlockCausal(12)),
        (128, "float32", Causal()),
    ],
)
def test_gpu_kernels_become_triton(size, dtype, mask):
    """Lowered for CUDA, which needs no GPU: forward, and both backward kernels."""
    op = Heads("gpu", Settings(0.125, mask, masked=True), "")
    q, k = (jax.ShapeDtypeStruct((2, h, 300, size), dtype) for h in (4, 2))
    bias = jax.ShapeDtypeStruct((1, 4, 300, 300), "float32")

    def fn(*xs):
        return jax.vjp(lambda *xs: apply(op, xs, (Place().array(300),)), *xs)[1](xs[0])[:3]

    text = jax.jit(fn).trace(q, k, k, bias).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("gpu$xla.gpu.triton") == 3


@pytest.mark.parametrize("causal", [False, True])
def test_the_librarys_own_pullback_is_kept(causal):
    """Of `dot_product_attention`, here by XLA instead of cuDNN, which needs a GPU."""
    rng = np.random.default_rng(6)
    xs = [rng.normal(size=(2, h, 12, 16)) for h in (4, 2, 2)]
    mask = Causal() if causal else None
    exact = lambda *xs: attention(*xs, scale=0.25, mask=mask, implementation="reference")
    op = Cudnn(0.25, causal, library="xla")
    compare(lambda *xs: apply(op, xs), exact, xs, (2, 4, 12, 16), "float32")


@pytest.mark.parametrize("name", ["pallas_tpu", "pallas_gpu"])
def test_vmap_scan_remat_and_shard_map(name):
    """A kernel within everything that training puts around it, gradients and all."""
    rng = np.random.default_rng(8)
    q, k, v = (jnp.asarray(rng.normal(size=(2, 1, 2, 20, 16)), jnp.float32) for _ in range(3))
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:2]), ("data",))
    spec = jax.sharding.PartitionSpec("data")

    def loss(name, q, k, v):
        one = lambda q, k, v: attention(q, k, v, scale=0.25, mask=Causal(), implementation=name)

        def layers(q, k, v):
            block = lambda h, _: (jax.checkpoint(jax.vmap(one))(h, k, v), None)
            return jax.lax.scan(block, q, None, length=2)[0]

        cut = jax.shard_map(
            layers, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec, check_vma=False
        )
        return jnp.sin(cut(q, k, v)).sum()

    with interpreted():
        found = quick(lambda *a: jax.grad(loss, (1, 2, 3))(name, *a))(q, k, v)
    for a, b in zip(found, jax.grad(loss, (1, 2, 3))("reference", q, k, v), strict=True):
        assert error(a, b) < 2e-6


def test_wrong_input():
    q = jnp.ones((1, 2, 8, 16))
    with pytest.raises(UsageError, match=r"got 'pallas_tpu'.*runs on tpu"):
        attention(q, q, q, scale=1.0, implementation="pallas_tpu")
    with pytest.raises(UsageError, match=r"got 'cudnn'.*runs on gpu"):
        attention(q, q, q, scale=1.0, implementation="cudnn")
    with interpreted(), pytest.raises(UsageError, match="float16 or bfloat16"):
        attention(q, q, q, scale=1.0, implementation="cudnn")
    with interpreted():
        with pytest.raises(UsageError, match="dtypes"):
            attention(q, q.astype(jnp.bfloat16), q, scale=1.0, implementation="pallas_tpu")
        with pytest.raises(UsageError, match=".an array.; allowed: structure"):
            mask = jnp.ones((8, 8), bool)
            attention(q, q, q, scale=1.0, mask=mask, implementation="pallas_gpu")
        with pytest.raises(UsageError, match="MiB on the chip"):
            fused_attention(
                jnp.ones((1, 4096, 3 * 1152)), heads=16, scale=1.0, implementation="pallas_tpu"
            )
    tokens = jnp.ones((1, 8, 96))
    for options, message in (
        (dict(heads=5), r"qkv"),
        (dict(heads=2, q_scale=jnp.ones(16)), "both or neither"),
        (dict(heads=2, angles=jnp.ones((8, 16))), "angles"),
        (dict(heads=2, implementation="triton"), "pallas_tpu"),
    ):
        with pytest.raises(UsageError, match=message):
            fused_attention(tokens, scale=1.0, **options)
