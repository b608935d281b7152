"""What a workdir's config may call: jaxgen's own functions, and what the user names."""

import json
import shutil
import sys

import pytest

import jaxgen
from jaxgen import config as configs
from jaxgen.errors import UsageError
from jaxgen.run.setup import set_up
from tests import base_run
from tests.running import run_here

FOREIGN = {
    "model": {"name": "subprocess.getoutput", "cmd": "touch {place}"},
    "method": {"name": "os.system", "command": "touch {place}"},
    "wrap": [{"name": "evil_module.wrap"}],
    "optimizer": {"name": "evil_module.tx"},
    "sample": {"guidance": [{"name": "evil_module.guide"}]},
    "data": {"source": {"name": "evil_module.source"}},
}


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """A module whose import leaves a mark, and where the mark would be."""
    place = tmp_path / "mark"
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "evil_module.py").write_text(
        f"open({str(place)!r}, 'w').close()\n"
        "def source(split): raise AssertionError\n"
        "def wrap(method): return method\n"
    )
    monkeypatch.syspath_prepend(folder)
    yield place
    sys.modules.pop("evil_module", None)


@pytest.fixture
def workdir(tmp_path):
    return shutil.copytree(base_run.base(), tmp_path / "theirs")


def rewrite(workdir, evil, key, section):
    path = workdir / "config.json"
    config = json.loads(path.read_text())
    text = json.dumps(section).replace("{place}", str(evil))
    config[key] = (
        {**config[key], **json.loads(text)} if key in ("data", "sample") else json.loads(text)
    )
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("key", [k for k in FOREIGN if k not in ("data", "optimizer")])
@pytest.mark.parametrize("command", ["sample", "evaluate", "classify"])
def test_no_command_runs_what_a_loaded_config_names(key, command, workdir, evil):
    rewrite(workdir, evil, key, FOREIGN[key])
    code, out, err = run_here(command, "--workdir", str(workdir))
    assert code == 2 and len(err.strip().splitlines()) == 1, err
    assert "--trust" in err and f"config.{key}" in err.replace("sample.guidance", "config.sample")
    assert not evil.exists()


def test_a_source_is_asked_when_it_is_opened_and_refused_then(workdir, evil):
    rewrite(workdir, evil, "data", FOREIGN["data"])
    model = jaxgen.load(workdir)  # needs no data
    with pytest.raises(UsageError, match="--trust evil_module"):
        len(model.setup.source)
    assert not evil.exists()
    code, _, err = run_here("compare", str(workdir))
    assert code == 2 and not evil.exists(), err


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "jaxgen.launch.drive.drive",  # ours, and no part of a model
        "launch.drive.subprocess.run",
        "pathlib.Path",
        "data.folder.Path",  # what a module of ours imports is not ours
        "nn.dit.nn.Dense",
        "jaxgen.data.folder.np.load",
        "builtins.exec",
    ],
)
@pytest.mark.parametrize("room", ["source", "model", "method", "wrap", "solver"])
def test_only_functions_of_the_rooms_that_models_are_made_of(name, room):
    with configs.foreign(()), pytest.raises(UsageError, match="config.x.name"):
        configs.resolve(name, configs.ROOMS[room], "config.x")


def test_trust_is_by_module_and_for_one_command(workdir, evil):
    rewrite(workdir, evil, "wrap", FOREIGN["wrap"])
    arguments = ["sample", "--workdir", str(workdir), "--per_label", "1"]
    arguments += ["--out", str(workdir / "a.npz")]
    code, _, err = run_here(*arguments, "--trust", "evil")  # another module
    assert code == 2 and not evil.exists()
    code, _, err = run_here(*arguments, "--trust", "evil_module")
    assert code == 0 and evil.exists(), err
    assert run_here(*arguments)[0] == 2  # remembered nowhere
    model = jaxgen.load(workdir, trust=["evil_module"])
    assert model.setup.trusted == ("evil_module",)
    # What the model brings along is trusted as it is: other models, and its tokenizer.
    assert model._other(str(workdir)).setup.trusted == ("evil_module",)
    with pytest.raises(UsageError, match="--trust evil_module"):
        jaxgen.load(base_run.base())._other(str(workdir))


def test_ones_own_config_names_what_it_likes_and_own_teachers_are_loaded_as_others(evil, workdir):
    config = base_run.config()
    config.wrap = [dict(name="evil_module.wrap")]
    assert set_up(config).own == ("evil_module.wrap",)
    rewrite(workdir, evil, "wrap", FOREIGN["wrap"])
    config = base_run.config(f"networks.teacher={workdir}")
    with pytest.raises(UsageError, match="--trust evil_module"):
        set_up(config).networks["teacher"].params  # noqa: B018
