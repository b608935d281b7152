"""A model's sampler as one program that needs JAX alone, and a script that reads it.

The program takes (seed uint32 [], index uint32 [b], labels int32 [b]) for any b and gives images
uint8 [b, H, W, C]: image `index` of a seed is the one that `jaxgen sample` makes in its place. It
is lowered for several platforms in one file, by XLA's own attention on all of them. The format is
`jax.export`'s, whose programs later versions of JAX run for at least six months.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from safetensors.numpy import save

from jaxgen import files
from jaxgen.data import to_host
from jaxgen.errors import invalid, unknown
from jaxgen.mesh import Layout, within
from jaxgen.run.model import Model
from jaxgen.run.setup import make_sampler, sample_options
from jaxgen.training.sharding import make_layout

PyTree = Any

PLATFORMS = ("cpu", "cuda", "tpu")
SUFFIX = ".jaxexport"
MOST_INSIDE = 1 << 30
"""Bytes of parameters that go inside a program where nothing is said; more go beside it."""

READER = '''"""Images by the program beside this script; needs `pip install jax flatbuffers` alone.

    python THIS_SCRIPT 0 1 1 0    # seed 0, labels 1, 1, 0 -> images.npy, uint8 [3, {shape}]
"""
import json, sys, pathlib
import numpy as np
from jax import export

CLASSES = {classes}
place = pathlib.Path(__file__).with_suffix("")
program = export.deserialize(bytearray(place.read_bytes()))
seed, *labels = map(int, sys.argv[1:])
assert labels and all(0 <= y <= len(CLASSES) for y in labels), f"labels: 0 to {{len(CLASSES)}}"
inputs = [np.uint32(seed), np.arange(len(labels), dtype=np.uint32), np.array(labels, np.int32)]
{read}images = np.asarray(program.call(*inputs))
np.save("images.npy", images)
print("images.npy", images.shape, [(CLASSES + ["no label"])[y] for y in labels])
'''
"""A script beside the program."""

BESIDE = """raw = place.with_name(place.name + ".safetensors").read_bytes()
size = int.from_bytes(raw[:8], "little")
parameters = {}  # a header in JSON, then the numbers
for name, v in json.loads(raw[8:8 + size]).items():
    kind = v["dtype"][0].lower() + str(int(v["dtype"][1:]) // 8)  # F32 is numpy's f4
    data = raw[8 + size + v["data_offsets"][0] : 8 + size + v["data_offsets"][1]]
    parameters[name] = np.frombuffer(data, kind).reshape(v["shape"])
inputs.insert(0, parameters)
"""
"""What the script does more where the parameters are in a file of their own."""


@dataclasses.dataclass(frozen=True)
class Program:
    """A sampler as a pure function of (params by dotted name, seed, index, labels)."""

    fn: Callable[..., jax.Array]
    params: Mapping[str, np.ndarray]
    shape: tuple[int, ...]


def export(
    model: Model,
    out: str | Path,
    *,
    ema: str | None = None,
    platforms: Sequence[str] = PLATFORMS,
    beside: bool | None = None,
    changes: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write the program and its reader; returns their paths.

    ema: whose parameters. beside: whether these lie in NAME.jaxexport.safetensors, so that the
    program is small (None: where they take more than a GiB). changes: options of the sampler that
    are not the config's. Raises UsageError for a model without a sampler and for platforms that
    are none.
    """
    path = files.local("--out", out)
    if path.suffix != SUFFIX:
        raise invalid("--out", str(out), f"a name that ends in {SUFFIX}")
    files.check("--out", path)
    for platform in platforms:
        if platform not in PLATFORMS:
            raise unknown("--platforms", platform, PLATFORMS)
    with plain():
        program = sampler_program(model, ema, changes or {})
        size = sum(a.nbytes for a in program.params.values())
        apart = size > MOST_INSIDE if beside is None else beside
        rows, *_ = jax_export.symbolic_shape("b")
        shapes: tuple[Any, ...] = (
            jax.ShapeDtypeStruct((), jnp.uint32),
            jax.ShapeDtypeStruct((rows,), jnp.uint32),
            jax.ShapeDtypeStruct((rows,), jnp.int32),
        )
        if apart:
            params = {k: jax.ShapeDtypeStruct(a.shape, a.dtype) for k, a in program.params.items()}
            fn, shapes = program.fn, (params, *shapes)
        else:
            fn = _holding(program)
        lowered = jax_export.export(jax.jit(fn), platforms=tuple(platforms))(*shapes)
        files.write(path, bytes(lowered.serialize()))
    written = [path]
    if apart:
        written.append(path.with_name(f"{path.name}.safetensors"))
        files.write(written[-1], save(dict(program.params)))
    script = path.with_name(f"{path.name}.py")  # no name that somebody's own file may have
    text = READER.format(
        shape=", ".join(map(str, program.shape)),
        classes=list(model.setup.spec.class_names),
        read=BESIDE if apart else "",
    )
    files.write(script, text)
    return [*written, script]


def sampler_program(model: Model, ema: str | None, changes: Mapping[str, Any]) -> Program:
    """A model's sampler, and its tokenizer's decoder where it has one, from seeds to bytes.

    Raises UsageError for what makes no images.
    """
    setup = model.setup
    if setup.method.sampler is None or setup.spec.target is not None:
        raise invalid("--workdir", "a model that makes no images", "one with a sampler of images")
    if "models" in changes:
        raise invalid("--sample.models", changes["models"], "one model: others cannot come along")
    layout = one_device()
    options = sample_options(setup, changes)
    sampler = make_sampler(setup, options)
    draw = within(layout, sampler.fn)
    trees = {"model": model.weights(ema, options.get("adapters"))}
    decode, shape = _decoder(model, layout)
    if decode is not None:
        assert model.tokenizer is not None
        trees["tokenizer"] = model.tokenizer.weights(None)
    flat = flax.traverse_util.flatten_dict(to_host(trees), sep=".")
    params = {k: np.asarray(v, order="C") for k, v in flat.items()}

    def fn(named: PyTree, seed: jax.Array, index: jax.Array, labels: jax.Array) -> jax.Array:
        found = flax.traverse_util.unflatten_dict(dict(named), sep=".")
        root = jax.random.key(seed)
        keys = jax.vmap(lambda i: jax.random.fold_in(root, i))(index)
        images = draw(found["model"], keys, labels)
        if decode is not None:
            images = decode(found["tokenizer"], images)
        return _bytes(images, labels)

    return Program(fn, params, shape)


def _holding(program: Program) -> Callable[..., jax.Array]:
    """The program with its parameters inside.

    Behind a barrier: what compilers compute ahead of constants is rounded otherwise.
    """

    def fn(*given: jax.Array) -> jax.Array:
        held = {name: jnp.asarray(value) for name, value in program.params.items()}
        return program.fn(jax.lax.optimization_barrier(held), *given)

    return fn


def _decoder(
    model: Model, layout: Layout
) -> tuple[Callable[[PyTree, jax.Array], jax.Array] | None, tuple[int, ...]]:
    """(from codes to images, the images' shape); None where samples are images already."""
    spec, coding = model.setup.spec, model.setup.coding
    if coding is None:
        return None, tuple(spec.shape)
    if model.tokenizer is None:
        raise invalid("--tokenizer", None, "the workdir of the tokenizer that decodes its samples")
    decode = model.tokenizer.setup.method.decode
    assert decode is not None
    known = within(layout, decode)

    def images(params: PyTree, codes: jax.Array) -> jax.Array:
        # `Coding.raw`, on the device.
        discrete = jnp.issubdtype(codes.dtype, jnp.integer)
        return known(params, codes if discrete else codes / coding.scale + coding.shift)

    return images, tuple(model.tokenizer.setup.spec.shape)


def _bytes(images: jax.Array, labels: jax.Array) -> jax.Array:
    """`metrics.sets.quantise` to the bit: bytes of float32 images [b, H, W, C] in [-1, 1]."""
    none = jnp.minimum(labels, 0).reshape(-1, 1, 1, 1)  # 0, which the compiler does not know

    def rounded(x: jax.Array) -> jax.Array:
        # Compilers contract a product and a sum that follows into one operation, without the
        # rounding between; not across integers.
        bits = jax.lax.bitcast_convert_type(x, jnp.int32)
        return jax.lax.bitcast_convert_type(bits + none, jnp.float32)

    scaled = rounded(127.5 * (rounded(images.astype(jnp.float32)) + 1.0))
    return jnp.clip(jnp.floor(scaled + 0.5), 0, 255).astype(jnp.uint8)


def one_device() -> Layout:
    """Of a CPU, whose programs have no kernel of one platform."""
    return make_layout(devices=jax.devices("cpu")[:1])


@contextlib.contextmanager
def plain() -> Iterator[Layout]:
    """What is traced within is for `one_device`."""
    layout = one_device()
    with jax.default_device(layout.mesh.devices.flat[0]):
        yield layout
