"""LPIPS against torch-fidelity's and the definition, on random and on the published weights."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jaxgen.errors import UsageError
from jaxgen.metrics.extractors import lpips, vgg
from tests.torch_fidelity_kit import torch_fidelity

PLACES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)


LPIPS = jax.jit(lpips.lpips)


def trunk_state(seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights under torchvision's names, with a part of the classifier."""
    rng = np.random.default_rng(seed)
    widths = [width for stage in vgg.WIDTHS for width in stage]
    state = {"classifier.6.bias": np.zeros(3, np.float32)}
    for place, before, width in zip(PLACES, [3, *widths], widths, strict=False):
        scale = np.float32((2 / (9 * before)) ** 0.5)
        state[f"features.{place}.weight"] = (
            rng.standard_normal((width, before, 3, 3), np.float32) * scale
        )
        state[f"features.{place}.bias"] = rng.normal(0, 0.2, width).astype(np.float32)
    return state


def linear_state(seed: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        f"lin{i}.model.1.weight": rng.exponential(0.2, (1, widths[-1], 1, 1)).astype(np.float32)
        for i, widths in enumerate(vgg.WIDTHS)
    }


@pytest.fixture(autouse=True)
def caches(monkeypatch, tmp_path):
    for variable in ("XDG_CACHE_HOME", "TORCH_HOME", "HF_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / variable))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("weights")
    paths = folder / "trunk.safetensors", folder / "linear.safetensors"
    for path, state in zip(paths, (trunk_state(), linear_state()), strict=True):
        safetensors.numpy.save_file(state, path)
    return paths


@pytest.fixture(scope="module")
def params():
    return {"vgg": vgg.convert(trunk_state()), "linear": lpips.convert(linear_state())}


def pairs(n: int, size: int = 16, channels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(size)
    a, b = rng.integers(0, 256, (2, n, size, size + 5, channels), np.uint8)
    # A part that is equal, and a pair that is.
    b[:, :4] = a[:, :4]
    b[-1] = a[-1]
    return a, b


def sequential(state):
    """torchvision's VGG16 up to the last map, of torch's own layers."""
    import torch

    layers = []
    for stage, widths in enumerate(vgg.WIDTHS):
        layers += [torch.nn.MaxPool2d(2)] if stage else []
        for width in widths:
            place = len(layers)
            before = state[f"features.{place}.weight"].shape[1]
            conv = torch.nn.Conv2d(before, width, 3, padding=1)
            with torch.no_grad():
                conv.weight.copy_(torch.tensor(state[f"features.{place}.weight"]))
                conv.bias.copy_(torch.tensor(state[f"features.{place}.bias"]))
            layers += [conv, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers)


@pytest.mark.parity
def test_lpips_is_torch_fidelitys(params, monkeypatch):
    torch = pytest.importorskip("torch")
    linear = {k: torch.tensor(v) for k, v in linear_state().items()}
    pretrained = types.SimpleNamespace(features=sequential(trunk_state()))
    # The one module of theirs that wants torchvision.
    loader = types.ModuleType("torch_fidelity.utils_torchvision")
    loader.torchvision_load_pretrained_vgg16 = lambda: pretrained
    monkeypatch.setitem(sys.modules, loader.__name__, loader)
    module = torch_fidelity("sample_similarity_lpips")
    monkeypatch.setattr(module, "load_state_dict_from_url", lambda *_, **__: linear)
    theirs = module.SampleSimilarityLPIPS("theirs")
    a, b = pairs(3, 33)
    with torch.no_grad():
        expected = theirs(*(torch.tensor(x.transpose(0, 3, 1, 2)) for x in (a, b))).numpy()
    scaled = [x / np.float32(127.5) - 1 for x in (a, b)]
    made = np.asarray(LPIPS(params, *scaled))
    np.testing.assert_allclose(made, expected, rtol=1e-4, atol=1e-6)
    assert abs(made[-1]) < 1e-10 and (made[:-1] > 1e-3).all()


@pytest.mark.parity
def test_the_maps_are_torchs(params):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(size=(2, 17, 20, 3)).astype(np.float32)
    net = sequential(trunk_state())
    h, wanted = torch.tensor(x.transpose(0, 3, 1, 2)), []
    with torch.no_grad():
        for place, layer in enumerate(net):
            h = layer(h)
            if place in (3, 8, 15, 22, 29):
                wanted.append(h.numpy().transpose(0, 2, 3, 1))
    made = jax.jit(lambda x: vgg.VGG16().apply({"params": params["vgg"]}, x))(x)
    for ours, theirs in zip(made, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())


def test_lpips_from_files(files, params):
    found = dataclasses.replace(lpips.load(*files, batch=4), devices=jax.devices()[:2])
    a, b = pairs(5)
    whole = found.distances(a, b)
    assert whole.shape == (5,) and abs(whole[-1]) < 1e-10 and (whole[:-1] > 1e-3).all()
    direct = LPIPS(params, *(x[:2] / np.float32(127.5) - 1 for x in (a, b)))
    np.testing.assert_allclose(whole[:2], direct, rtol=1e-4)
    np.testing.assert_allclose(found.distances(b, a), whole, rtol=1e-4, atol=1e-10)
    np.testing.assert_allclose(found.distances(a[1:4], b[1:4]), whole[1:4], rtol=1e-4)
    assert found.digest.count("unverified") == 2
    with pytest.raises(UsageError, match="one shape for both"):
        found.distances(a, b[:3])
    with pytest.raises(UsageError, match="sides of 16 or more"):
        found.distances(a[:, :9], b[:, :9])
    with pytest.raises(UsageError, match="dtype"):
        lpips.load(*files, dtype="int8")


def test_perceptual_maps_are_lpips_as_the_tokenizers_loss_takes_them(files, params):
    a, b = (jnp.asarray(x[:2] / np.float32(127.5) - 1) for x in pairs(3))
    maps = lpips.perceptual(*map(str, files))
    made = jax.jit(maps)(jnp.concatenate([a, b]))
    squares = [jnp.square(h[:2] - h[2:]).mean() for h in made]
    expected = LPIPS(params, a, b).mean()
    np.testing.assert_allclose(jnp.stack(squares).mean(), expected, rtol=1e-4)


def test_gradients_are_finite_where_maps_are_nought():
    x = jnp.array([[0.0, 0.0], [3.0, 4.0]])
    made, slope = jax.jvp(lpips.unit, (x,), (jnp.ones_like(x),))
    np.testing.assert_allclose(made, [[0, 0], [0.6, 0.8]], rtol=1e-6)
    # d(x / |x|) along (1, 1) at (3, 4), by hand: (1 - 0.6 * 1.4, 1 - 0.8 * 1.4) / 5.
    np.testing.assert_allclose(slope[1], [0.032, -0.024], rtol=1e-4)
    assert np.isfinite(jax.grad(lambda x: jnp.square(lpips.unit(x) - 1).sum())(x)).all()


@pytest.mark.parity
def test_the_published_weights_of_channels():
    pytest.importorskip("torch")
    if importlib.util.find_spec("lpips") is None:
        pytest.skip("lpips is not installed")
    found, digest = lpips.obtain(lpips.ORIGIN, lpips.convert, lpips.shapes())
    assert digest == lpips._SHA256
    assert all((weight >= 0).all() and weight.max() > 0.1 for weight in found.values())


def test_bad_weights_are_named(files, monkeypatch):
    bad = linear_state()
    bad["lin2.model.1.weight"][0, 5] = -0.5
    with pytest.raises(UsageError, match="lin2 with -0.5'; allowed: none below 0"):
        lpips.convert(bad)
    with pytest.raises(UsageError, match="no features.0.weight"):
        vgg.load(files[1])
    with pytest.raises(UsageError, match="curl -L .*vgg16-397923af.pth"):
        lpips.load(None, files[1])
    monkeypatch.setattr(lpips, "ORIGIN", dataclasses.replace(lpips.ORIGIN, package=None))
    with pytest.raises(UsageError, match="pip install --no-deps lpips"):
        lpips.load(files[0])


def test_size():
    # torchvision's VGG16 has 138,357,544 weights, of which its three dense layers have the rest.
    dense = sum((m + 1) * n for m, n in ((512 * 7 * 7, 4096), (4096, 4096), (4096, 1000)))
    sizes = (leaf.size for leaf in jax.tree.leaves(vgg.shapes()))
    assert sum(sizes) == 138_357_544 - dense
