"""What is read of other people's files, and what is refused: nothing in them is ever run."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxgen.errors import UsageError
from jaxgen.pretrained import reading
from jaxgen.pretrained.layouts import layout_of
from jaxgen.run.imported import imported


class Harmful:
    """A pickle of it would write a file where it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def refusal(source, tmp_path):
    with pytest.raises(UsageError) as caught:
        imported(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    return str(caught.value)


@pytest.mark.parametrize("name", ["x.pkl", "x.pickle"])
def test_a_pickle_is_refused_with_the_safe_way(name, tmp_path):
    (tmp_path / name).write_bytes(pickle.dumps(Harmful(tmp_path / "harm")))
    message = refusal(tmp_path / name, tmp_path)
    assert "can run code" in message and "save_file" in message and name in message
    assert not (tmp_path / "harm").exists()


@pytest.mark.parity
def test_a_pytorch_file_with_more_than_arrays_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"ema": Harmful(tmp_path / "harm")}, tmp_path / "x.pt")
    message = refusal(tmp_path / "x.pt", tmp_path)
    assert "can run code" in message and "save_file" in message
    assert not (tmp_path / "harm").exists()


@pytest.mark.parity
@pytest.mark.parametrize("wrap", ["", "module.", "_orig_mod."])
def test_a_training_checkpoint_of_pytorch_gives_its_average(wrap, tmp_path):
    torch = pytest.importorskip("torch")
    held = {
        name: {f"{wrap}a.weight": torch.full((2,), value, dtype=torch.bfloat16), "n": 3}
        for name, value in (("model", 1.0), ("ema", 2.0))
    }
    torch.save({**held, "opt": {}, "steps": 7}, tmp_path / "x.pt")
    state = reading.opened(tmp_path / "x.pt")[""].state
    assert list(state) == ["a.weight"] and state["a.weight"].tolist() == [2.0, 2.0]


def test_without_pytorch_its_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(reading.importlib.util, "find_spec", lambda name: None)
    (tmp_path / "x.pth").write_bytes(b"0")
    message = refusal(tmp_path / "x.pth", tmp_path)
    assert "PyTorch to read this one" in message and "jaxgen[parity]" in message


def test_files_that_are_cut_short_or_of_another_kind_are_one_message(tmp_path):
    state = {"a": np.ones((3, 4), "float32")}
    save_file(state, tmp_path / "x.safetensors")
    whole = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-9])
    assert "a whole file of weights" in refusal(tmp_path / "cut.safetensors", tmp_path)
    (tmp_path / "x.h5").write_bytes(b"0")
    assert "ends in .safetensors" in refusal(tmp_path / "x.h5", tmp_path)
    assert "folder as diffusers writes it" in refusal(tmp_path / "none", tmp_path)
    assert "path of this machine" in refusal("gs://bucket/x", tmp_path)
    (tmp_path / "empty").mkdir()
    assert "a folder with weights" in refusal(tmp_path / "empty", tmp_path)


def test_a_folder_of_parts_is_read_and_leads_nowhere_else(tmp_path):
    folder = tmp_path / "net"
    folder.mkdir()
    for n in (0, 1):
        save_file({f"a{n}": np.full(2, n, "float32")}, folder / f"m-{n}.safetensors")
    index = {"weight_map": {f"a{n}": f"m-{n}.safetensors" for n in (0, 1)}}
    (folder / "m.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text('{"heads": 3}')
    found = reading.opened(folder)[""]
    assert sorted(found.state) == ["a0", "a1"] and found.about == {"heads": 3}
    save_file({"secret": np.zeros(1, "float32")}, tmp_path / "other.safetensors")
    index["weight_map"]["a0"] = "../other.safetensors"
    (folder / "m.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UsageError, match="other.safetensors"):
        reading.opened(folder)


def test_a_pipeline_without_one_of_its_parts_is_refused(tmp_path):
    index = {"transformer": ["diffusers", "X"], "vae": ["diffusers", "Y"], "text": [None, None]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    (tmp_path / "transformer").mkdir()
    assert "without vae" in refusal(tmp_path, tmp_path)


def test_an_unknown_layout_is_told_the_closest():
    with pytest.raises(UsageError, match="closest is 'dit'.*final_layer"):
        layout_of({"x_embedder.proj.weight": 0, "t_embedder.mlp.0.weight": 0})
    with pytest.raises(UsageError, match="2 weights such as a, b; allowed|got '2 weights"):
        layout_of({"a": 0, "b": 0})
