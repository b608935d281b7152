"""ADM imported: the forward pass of its own code, in both orders of attention."""

from __future__ import annotations

import numpy as np
import pytest

from jaxgen.api import import_checkpoint
from jaxgen.errors import UsageError
from jaxgen.pretrained.layout import Found
from jaxgen.pretrained.layouts import LAYOUTS
from tests.nn_kit import quick_jit
from tests.pretrained.kit import close, model, nchw, nhwc, official, written

SIZES = dict(channels=64, multipliers=(1, 2), blocks=1, attend=(1,), classes=5, head=64)
CHANGES = ("data.holds.shape=(8,8,3)", "model.attention_sizes=(4,)", "sample.steps=4")
LABELS = np.array([0, 4, 2])


@pytest.mark.parity
@pytest.mark.parametrize("name", ["adm", "adm_new_order"])
def test_adm_is_told_the_index_and_equals_the_papers(name, tmp_path):
    """One call to 1e-5, with two heads; its levels are those of DDPM, or cosine."""
    torch, theirs = pytest.importorskip("torch"), official()
    net = theirs.GuidedUNet(new_order=name == "adm_new_order", **SIZES)
    state = theirs.weights(net.names(), scale=0.08)
    file = written(tmp_path / "adm.safetensors", state)
    ours = model(file, tmp_path / "adm", *CHANGES, layout=name)
    x = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype("float32")
    t = np.array([0.0, 20.0, 400.0], "float32")
    want = nhwc(net(state, nchw(x), torch.tensor(t), torch.tensor(LABELS)))
    apply = quick_jit(ours.setup.modules.clone(out_channels=6).apply)
    close(apply({"params": ours.weights(None)["net"]}, x, t, LABELS), want, 1e-5)
    assert ours.setup.config.method.path.betas == ("linear" if name == "adm" else "cosine")
    assert ours.setup.config.method.learned_variance


@pytest.mark.parity
def test_what_its_weights_do_not_tell_is_asked(tmp_path):
    theirs = official()
    net = theirs.GuidedUNet(new_order=False, **SIZES)
    file = written(tmp_path / "adm.safetensors", theirs.weights(net.names()))
    with pytest.raises(UsageError, match="--layout adm or --layout adm_new_order"):
        import_checkpoint(file, tmp_path / "x")
    with pytest.raises(UsageError, match="config.data.holds.shape: got None"):
        import_checkpoint(file, tmp_path / "x", layout="adm", overrides=CHANGES[1:])
    with pytest.raises(UsageError, match="config.model.attention_sizes: got None"):
        import_checkpoint(file, tmp_path / "x", layout="adm", overrides=CHANGES[:1])


@pytest.mark.parity
def test_published_sizes_are_known_by_their_shapes():
    """Of 64x64 and 256x256; that of 128x128 is refused. By shapes alone."""
    theirs = official()

    def state(multipliers, blocks, attend):
        sizes = dict(SIZES, multipliers=multipliers, blocks=blocks, attend=attend, channels=64)
        net = theirs.GuidedUNet(new_order=False, **sizes)
        net.recording, found = True, {}

        def record(w, name, shape):
            found[name] = np.lib.stride_tricks.as_strided(
                np.zeros(1, "float32"), shape, (0,) * len(shape)
            )
            return theirs.torch.zeros(shape)

        net.get = record
        x = theirs.torch.zeros(1, 3, 2 ** len(multipliers), 2 ** len(multipliers))
        net({}, x, theirs.torch.zeros(1), theirs.torch.zeros(1, dtype=theirs.torch.int64))
        return Found(found)

    config = LAYOUTS["adm_new_order"].config(state((1, 2, 3, 4), 3, (1, 2, 3)))
    assert config["model"]["attention_sizes"] == (32, 16, 8) and config["model"]["blocks"] == 3
    assert config["data"]["holds"]["shape"] == (64, 64, 3)
    with pytest.raises(UsageError, match="ADM's of 64x64 or 256x256"):
        LAYOUTS["adm"].config(state((1, 1, 2, 3, 4), 1, (2,)))
