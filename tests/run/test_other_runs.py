"""Other runs in a config: where training starts from, and models that it uses and leaves alone."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from jaxgen import files
from jaxgen.api import train
from jaxgen.errors import UsageError
from jaxgen.run import record
from jaxgen.run.model import load
from jaxgen.run.networks import KEYS, opened
from jaxgen.run.setup import set_up
from jaxgen.run.start import StartOptions, initial
from jaxgen.training.weights import dump, fingerprint
from tests.base_run import base, config, write

FROZEN = "optimizer=" + repr(dict(name="sgd", learning_rate=1e-30))
FORGET = "wrap=" + repr([dict(name="unlearn.forget", classes=(3,))])


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_run_starts_from_another_and_only_once(tmp_path):
    """By a section; the second time the checkpoint is read, whatever became of the other run."""
    other = shutil.copytree(base(), tmp_path / "base")
    workdir = tmp_path / "run"
    begin = f"start={dict(workdir=str(other))!r}"
    train(config(FROZEN, begin), workdir)
    same(load(workdir).params["params"], load(other).params["half_life_500"])
    said = record.recorded(workdir)["start"]
    assert said["from"].startswith(str(other)) and len(said["digest"]) == 64
    shutil.rmtree(other)
    train(config(FROZEN, begin, "train.images=192"), workdir)
    assert record.recorded(workdir)["start"] == said


def test_what_the_other_run_lacks_is_fresh_and_said(tmp_path, capsys):
    wider = config(FROZEN, f"start={dict(workdir=base(), skip=('kernel',))!r}", "model.depth=1")
    wider.model.width = 24
    train(wider, tmp_path / "run")
    err = capsys.readouterr().err
    assert "Initialised anew: " in err and "kernel" in err
    found, theirs = (load(w).params["params"]["net"] for w in (tmp_path / "run", base()))
    same(found["labels"], theirs["labels"])
    assert (found["out"]["kernel"] != theirs["out"]["kernel"]).any()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["start=/nowhere"], r"--workdir.*/nowhere"),
        (["start={'file': '/nowhere.safetensors'}"], r"config\.start\.file.*/nowhere"),
        (["start={}"], r"config\.start.*a workdir or a file"),
        (["start={'workdir': BASE, 'skip': ('(',)}"], r"config\.start\.skip.*regular expression"),
        (["start={'workdir': BASE, 'ema': 'half'}"], "half_life_500"),
        (["start=BASE", "model.width=32"], r"net\.\S+: \(\S+, 24\) there, \(\S+, 32\) here"),
        (["networks={'teacher': '/nowhere'}"], r"config\.networks\.teacher.*/nowhere"),
        (["networks={'teacher': {'workdir': BASE, 'emma': 1}}"], r"config\.networks\.teacher"),
        (["networks={'teacher': {'workdir': BASE, 'ema': 'half'}}"], r"networks\.teacher\.ema"),
        (["networks=3"], r"config\.networks"),
        ([FORGET], r"config\.networks.*called 'teacher'"),
        (["wrap=[{'name': 'tune.lroa'}]"], r"wrap\[0\].*Did you mean 'tune\.lora"),
        (["wrap=[{'name': 'tune.lora', 'rnak': 3}]"], r"wrap\[0\]\.rnak.*rank"),
        (["wrap=[{'name': 'tune.lora', 'match': 'nothing'}]"], r"net\.\S+kernel"),
        (["method.contrast=0.1"], r"method\.terms=\[dict\(name='contrast'"),
    ],
)
def test_bad_input_is_one_message_before_anything_is_written(tmp_path, overrides, words):
    with pytest.raises(UsageError, match=words):
        train(config(*(o.replace("BASE", repr(base())) if "{" in o else o.replace("BASE", base())
                       for o in overrides)), tmp_path / "run")  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_other_examples_or_classes_is_refused(tmp_path):
    stripes = dict(name="bars_and_stripes.bars_and_stripes", size=8)
    other = write(tmp_path / "other", f"data.source={stripes!r}")
    with pytest.raises(UsageError, match=r"config\.networks\.teacher.*num_classes"):
        train(config(FORGET, f"networks.teacher={other}"), tmp_path / "run")


def test_a_teacher_that_changed_or_is_gone_is_one_message_on_resume(tmp_path):
    teacher = write(tmp_path / "teacher", seed=1)
    told = (FORGET, f"networks.teacher={teacher}")
    workdir = tmp_path / "run"
    train(config(*told), workdir)
    assert set(record.recorded(workdir)["networks"]) == {"teacher"}
    # Elsewhere it is the same teacher.
    moved = tmp_path / "moved"
    shutil.move(teacher, moved)
    with pytest.raises(UsageError, match=r"config\.networks\.teacher.*teacher"):
        train(config(*told, "train.images=192"), workdir)
    told = (FORGET, f"networks.teacher={moved}")
    train(config(*told, "train.images=192"), workdir)
    write(teacher, seed=2)
    told = (FORGET, f"networks.teacher={teacher}")
    with pytest.raises(UsageError, match=r"config\.networks\.teacher.*have changed"):
        train(config(*told, "train.images=256"), workdir)
    # A student is drawn from without its teacher.
    shutil.rmtree(moved)
    shutil.rmtree(teacher)
    assert np.isfinite(load(workdir).sample([3, 4]).images).all()


def test_the_command_line_says_it_in_one_line(tmp_path, capsys):
    from jaxgen.cli import main

    base_ = ["train", "--config", "tests/tiny.py", "--workdir", str(tmp_path / "run")]
    assert main([*base_, "--config.start=/nowhere"]) == 2
    out = capsys.readouterr()
    assert "/nowhere" in out.err and "Traceback" not in out.err
    assert json.dumps(out.out) == '""'


def test_every_option_of_start_and_of_a_network_takes_other_parameters(tmp_path):
    two = "ema.half_life=(500, 900)"
    other = str(write(tmp_path / "other", two, seed=1))
    averaged = load(other).weights("half_life_900")
    files.write(tmp_path / "net.safetensors", dump(jax.device_get({"net": averaged["net"]}), {}))
    method = set_up(config()).method

    def first(**section):
        begin, _ = initial(method, StartOptions(**section))
        return fingerprint(begin(method.init(jax.random.key(0))).params)

    sections = dict(
        workdir=dict(workdir=other),
        file=dict(file=str(tmp_path / "net.safetensors")),
        ema=dict(workdir=other, ema="half_life_900"),
        skip=dict(workdir=other, skip=("kernel",)),
    )
    # Of parents: tests/run/test_growth.py.
    names = {f.name for f in dataclasses.fields(StartOptions)}
    assert sections.keys() == names - {"parents"}
    found = {name: first(**section) for name, section in sections.items()}
    assert found["file"] == found["ema"]
    assert len({first(workdir=base()), *found.values()}) == 4
    assert set(KEYS) == {"workdir", "ema"}
    ways = [base(), other, dict(workdir=other, ema="half_life_900")]
    assert len({opened({"teacher": way})["teacher"].digest for way in ways}) == 3
