"""EDM and EDM2 imported: the forward pass and the steps of their own code."""

from __future__ import annotations

import numpy as np
import pytest

from tests.nn_kit import quick_jit
from tests.pretrained.kit import close, model, nchw, nhwc, official, written

EULER = "sample.solver=euler"  # half of what Heun's method takes to compile
LABELS = np.array([0, 4, 2])
SMALL = dict(channels=32, multipliers=(1, 2), blocks=1, attend=(4,), side=8, classes=5)


def one_hot(labels, classes):
    return np.eye(classes + 1, dtype="float32")[labels][:, :classes]


def euler(denoise, x, steps):
    """Euler's steps on EDM's levels; x at the first of them."""
    ramp = np.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), steps)
    levels = np.append(ramp**7, 0.0)
    for now, then in zip(levels, levels[1:], strict=False):
        x = x + (then - now) * (x - denoise(x, now)) / now
    return x


def preconditioned(network):
    """EDM's D of its F (Karras et al. 2022, eq. 7), for arrays [B, H, W, C]."""

    def denoise(x, level):
        total = level**2 + 0.25
        said = network((x / total**0.5).astype("float32"), np.log(level) / 4)
        return 0.25 / total * x + level * 0.5 / total**0.5 * said

    return denoise


@pytest.mark.parity
@pytest.mark.parametrize("fir", [False, True], ids=["ddpmpp", "ncsnpp"])
def test_edm_samples_as_it_did(fir, tmp_path):
    """One call to 1e-5, ten of Euler's steps to 1e-3."""
    torch, theirs = pytest.importorskip("torch"), official()
    net = theirs.SongUNet(augment=3, fir=fir, **SMALL)
    state = theirs.weights(net.names())
    held = {f"model.{name}": a for name, a in state.items()}
    held["model.enc.4x4_down.conv0.resample_filter"] = np.ones((1, 1, 2, 2), "float32")
    file = written(tmp_path / "edm.safetensors", held)
    ours = model(file, tmp_path / "edm", "sample.steps=10", EULER)
    assert type(ours.setup.modules).__name__ == ("NCSNpp" if fir else "UNet")

    def network(x, number, labels=LABELS):
        numbers = torch.full((len(x),), float(number))
        told = torch.tensor(one_hot(labels, 5)), torch.zeros(len(x), 3)
        return nhwc(net(state, nchw(x), numbers, *told))

    x = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype("float32")
    apply = quick_jit(ours.setup.modules.apply)
    labels = np.array([0, 3, 5])
    params = {"params": ours.weights(None)["net"]}
    close(apply(params, x, np.full(3, 0.3, "float32"), labels), network(x, 0.3, labels), 1e-5)
    if fir:  # as the other from here on
        return
    path = ours.trajectory(LABELS, frames=2)
    close(path.states[:, -1], euler(preconditioned(network), path.states[:, 0], 10), 1e-3)


@pytest.mark.parity
def test_edm2_samples_as_it_did(tmp_path):
    """One call to 1e-5, four of Euler's steps to 1e-3; heads of four channels."""
    torch, theirs = pytest.importorskip("torch"), official()
    sizes = dict(SMALL, channels=8)
    net = theirs.EDM2Net(head=4, **sizes)
    state = theirs.weights(net.names(), scale=1.0)
    held = {f"unet.{name}": a for name, a in state.items()}
    held |= {"logvar_fourier.freqs": np.ones(4, "float32"), "logvar_linear.weight": np.ones(4)}
    file = written(tmp_path / "edm2.safetensors", held)
    ours = model(file, tmp_path / "edm2", "model.head_channels=4", "sample.steps=4", EULER)

    def network(x, number, labels=LABELS):
        numbers = torch.full((len(x),), float(number))
        return nhwc(net(state, nchw(x), numbers, torch.tensor(one_hot(labels, 5))))

    x = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype("float32")
    apply = quick_jit(ours.setup.modules.apply)
    labels = np.array([0, 3, 5])
    params = {"params": ours.weights(None)["net"]}
    close(apply(params, x, np.full(3, 0.3, "float32"), labels), network(x, 0.3, labels), 1e-5)
    path = ours.trajectory(LABELS, frames=2)
    close(path.states[:, -1], euler(preconditioned(network), path.states[:, 0], 4), 1e-3)
