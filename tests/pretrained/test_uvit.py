"""U-ViT imported: the forward pass and the samples of its own code."""

from __future__ import annotations

import numpy as np
import pytest

from jaxgen.api import import_checkpoint
from jaxgen.errors import UsageError
from tests.nn_kit import quick_jit
from tests.pretrained.kit import close, model, nchw, nhwc, official, written

SIZES = dict(half=1, width=32, patch=2, classes=5)
LABELS = np.array([0, 4, 2])


def state_of(channels, last):
    theirs = official()
    shapes = theirs.uvit_shapes(channels=channels, places=16, last=last, **SIZES)
    return theirs.weights(shapes, scale=0.2)


def network(state, x, t, labels):
    torch = pytest.importorskip("torch")
    t, labels = torch.as_tensor(np.asarray(t, "float32")), torch.as_tensor(labels)
    return official().uvit(state, nchw(x), t, labels, half=1, heads=2, patch=2)


@pytest.mark.parity
@pytest.mark.parametrize("channels, last", [(4, False), (3, True)], ids=["latents", "pixels"])
def test_uvit_samples_as_it_did(channels, last, tmp_path):
    """One call to 1e-5; ten of DDIM's steps at its levels, guided by 0.4 of its own."""
    state = state_of(channels, last)
    changes = ("model.heads=2", "sample.steps=10", "sample.solver=ddim")
    ours = model(written(tmp_path / "u.safetensors", state), tmp_path / "u", *changes)
    net = ours.setup.modules
    x = np.random.default_rng(0).normal(size=(3, 8, 8, channels)).astype("float32")
    given = np.array([0.0, 20.0, 400.0] if channels == 4 else [0.1, 0.02, 0.7], "float32")
    told = given + 1 if channels == 4 else 999 * given
    got = quick_jit(net.apply)({"params": ours.weights(None)["net"]}, x, given, np.array([0, 3, 5]))
    close(got, nhwc(network(state, x, told, np.array([0, 3, 5]))), 1e-5)
    if channels == 3:
        assert net.conv and ours.setup.method.label_error is not None
        return
    path = ours.trajectory(LABELS, frames=2)
    x = path.states[:, 0]
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    bar = np.append(1, np.cumprod(1 - betas))
    for n in range(1000, 0, -100):  # the number of a level, from 1
        cond, uncond = (
            nhwc(network(state, x, np.full(3, n), labels)) for labels in (LABELS, np.full(3, 5))
        )
        eps = cond + 0.4 * (cond - uncond)
        x0 = (x - np.sqrt(1 - bar[n]) * eps) / np.sqrt(bar[n])
        x = np.sqrt(bar[n - 100]) * x0 + np.sqrt(1 - bar[n - 100]) * eps
        x = x.astype("float32")
    close(path.states[:, -1], x, 1e-3)


@pytest.mark.parity
def test_networks_of_other_parts_are_refused_by_name(tmp_path):
    state = state_of(4, False)
    extra = {**state, "time_embed.0.weight": state["norm.weight"]}
    file = written(tmp_path / "u.safetensors", extra)
    with pytest.raises(UsageError, match="left over: time_embed.0.weight"):
        import_checkpoint(file, tmp_path / "u", overrides=("model.heads=2",))
    del state["label_emb.weight"]
    file = written(tmp_path / "v.safetensors", state)
    with pytest.raises(UsageError, match="missing: label_emb.weight"):
        import_checkpoint(file, tmp_path / "u", overrides=("model.heads=2",))
