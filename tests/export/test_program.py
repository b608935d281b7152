"""A sampler as a program that needs JAX alone."""

import ast
import dataclasses
import runpy
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as jax_export

from jaxgen.api import export, load
from jaxgen.errors import UsageError
from jaxgen.export.program import PLATFORMS, _bytes
from jaxgen.metrics.sets.quantise import quantise
from jaxgen.run.model import Model, of_state
from jaxgen.training.sharding import make_layout
from tests import base_run
from tests.every_family import built
from tests.nn_kit import quick_jit
from tests.running import run_here

LABELS = np.arange(300) % 11  # the null label too


@pytest.fixture(scope="module")
def model():
    """Of one device, as a program is."""
    return alone(load(base_run.base()))


def alone(model):
    layout = make_layout(devices=jax.devices()[:1])
    return Model(
        dataclasses.replace(model.setup, layout=layout),
        jax.device_get(model.params),
        images=0,
        step=0,
    )


def bytes_of(model, labels, **options):
    """What `jaxgen sample` writes, of the program's batch: products of others round otherwise."""
    return quantise(model.sample(labels, batch_size=len(labels), **options).images)


def called(path, labels, seed=0, **inputs):
    program = jax_export.deserialize(bytearray(Path(path).read_bytes()))
    index = np.arange(len(labels), dtype=np.uint32)
    return np.asarray(program.call(*inputs.values(), np.uint32(seed), index, np.int32(labels)))


def test_one_file_makes_the_images_of_the_command_line_on_every_platform(model, tmp_path):
    path = tmp_path / "digits.v1.jaxexport"
    code, _, err = run_here("export", "--workdir", base_run.base(), "--out", str(path))
    assert code == 0, err
    program = jax_export.deserialize(bytearray(path.read_bytes()))
    assert program.platforms == PLATFORMS
    for seed in (0, 7):
        found = called(path, LABELS, seed)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, bytes_of(model, LABELS, seed=seed))
    # An image is its seed's, its place's and its label's: of any batch, but for rounding.
    few, many = called(path, LABELS[:3]).astype(int), called(path, LABELS)[:3]
    assert np.abs(few - many).max() <= 1


@pytest.mark.parametrize("beside", [False, True])
def test_its_reader_imports_nothing_but_jax_and_numpy(beside, model, tmp_path, monkeypatch):
    path = tmp_path / "digits.v1.jaxexport"
    export(model, path, beside=beside, platforms=["cpu"])
    script = path.with_name(path.name + ".py")
    text = script.read_text()
    names = {
        (node.module if isinstance(node, ast.ImportFrom) else alias.name)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    assert names == {"json", "sys", "pathlib", "numpy", "jax"}
    assert (
        len(text.splitlines()) <= 26
        and path.with_name(path.name + ".safetensors").exists() == beside
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(script), "5", "3", "8", "10"])
    runpy.run_path(str(script))
    expected = bytes_of(model, [3, 8, 10], seed=5)
    np.testing.assert_array_equal(np.load("images.npy"), expected)
    if beside:
        assert path.stat().st_size < path.with_name(path.name + ".safetensors").stat().st_size
    monkeypatch.setattr(sys, "argv", [str(script), "5", "11"])
    with pytest.raises(AssertionError, match="0 to 10"):
        runpy.run_path(str(script))


def test_options_of_the_sampler_and_the_average_are_those_asked_for(model, tmp_path):
    changes = dict(guidance=3.0, steps=2)
    path = tmp_path / "a.jaxexport"
    export(model, path, ema="params", changes=changes, platforms=["cpu"])
    expected = bytes_of(model, LABELS, ema="params", **changes)
    np.testing.assert_array_equal(called(path, LABELS), expected)


@pytest.mark.parametrize("name", ["gan", "maskgit"])
def test_other_families_make_the_same(name, tmp_path):
    parts = built(name)
    model = alone(of_state(parts, quick_jit(parts.method.init)(jax.random.key(0))))
    path = tmp_path / "a.jaxexport"
    export(model, path, platforms=["cpu"])
    labels = LABELS[:64] % parts.spec.num_classes
    np.testing.assert_array_equal(called(path, labels), bytes_of(model, labels))


def test_bytes_are_those_of_files_to_the_bit():
    # Three million pixels: a compiler that contracts product and sum changes a few of them.
    a, b = (2 * jax.random.normal(jax.random.key(i), (1000, 30, 100, 1)) for i in (0, 1))
    labels = jnp.zeros(1000, jnp.int32)
    found = jax.jit(lambda a, b, labels: _bytes(a * b, labels))(a, b, labels)
    np.testing.assert_array_equal(found, quantise(np.asarray(jax.jit(lambda a, b: a * b)(a, b))))


def test_what_is_no_program_is_refused(model, tmp_path):
    path = tmp_path / "a.jaxexport"
    base = base_run.base()
    for options, message in (
        (dict(platforms=["gpu"]), "--platforms: got 'gpu'"),
        (dict(changes=dict(models={"weak": base})), "--sample.models"),
        (dict(changes=dict(scale=2)), "--scale"),
        (dict(ema="none"), "--ema"),
    ):
        with pytest.raises(UsageError, match=message):
            export(model, path, **options)
    parts = built("kl")
    tokenizer = of_state(parts, quick_jit(parts.method.init)(jax.random.key(0)))
    with pytest.raises(UsageError, match="a sampler of images"):
        export(tokenizer, path)
    assert not list(tmp_path.iterdir())
