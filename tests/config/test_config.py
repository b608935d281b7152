"""Configs: the signature is the schema, and every mistake names the option and what is allowed."""

import shutil
import tomllib
from pathlib import Path

import ml_collections
import pytest

from jaxgen import config as configs
from jaxgen.errors import UsageError
from jaxgen.run.setup import TOP, set_up

DIGITS = "configs/digits.py"


def make(*overrides: str) -> ml_collections.ConfigDict:
    config = configs.load(DIGITS)
    configs.override(config, overrides, TOP)
    return config


def test_override_parses_literals_and_keeps_types():
    config = make("train.images=200_000", "sample.guidance=3", "data.flip=True")
    assert config.train.images == 200_000
    assert config.sample.guidance == 3
    assert config.data.flip is True


def test_one_word_swaps_a_part():
    config = make("method.path=cosine")
    assert config.method.path.to_dict() == {"name": "cosine"}
    set_up(config)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trian.images=5", ["config.trian", "train"]),
        ("train.image=5", ["config.train.image", "'images'"]),
        ("train.images=many", ["config.train.images", "many", "int"]),
        ("train.images=0", ["config.train.images", "0", ">= 1"]),
        ("model.widht=64", ["config.model.widht", "'width'"]),
        ("model.width=wide", ["config.model.width", "wide", "int"]),
        ("model.name=dit.DiTT", ["config.model.name", "dit.DiT"]),
        ("data.source.name=mnist.mnist", ["config.data.source.name", "digits.digits"]),
        ("data.source.name=idx.idx", ["config.data.source", "path"]),
        ("method.path=linaer", ["path", "linear"]),
        ("method.prediction=epsilon", ["prediction", "eps"]),
        ("method.label_dropout=1.5", ["label_dropout", "1.5"]),
        ("optimizer.name=adamx", ["config.optimizer.name", "adamw"]),
        ("optimizer.learning_rate=-1", ["learning_rate", "> 0"]),
        ("optimizer.schedule=exp", ["schedule", "cosine"]),
        ("ema.power_std=(0.9,)", ["power_std", "0.2887"]),
        ("sample.steps=0", ["steps", "0", "1"]),
        ("sample.solver=eulr", ["solver", "euler"]),
        ("sample.guidence=2", ["guidence", "'guidance'"]),
        ("mesh.data=3", ["config.mesh", "8 devices"]),
        ("data.batch_size=100", ["config.data.batch_size", "100", "multiple of 8"]),
        ("seed.x=1", ["config.seed"]),
    ],
)
def test_mistakes_name_the_option_and_what_is_allowed(override, words):
    with pytest.raises(UsageError) as error:
        set_up(make(override))
    for word in words:
        assert word in str(error.value), str(error.value)


@pytest.mark.parametrize(
    "text",
    ["", "def get_config(:\n", "import nothing_of_this_name\n", "x = 1\n"],
)
def test_unusable_config_files_are_usage_errors(tmp_path, text):
    path = tmp_path / "c.py"
    if text:
        path.write_text(text)
    with pytest.raises(UsageError, match="--config"):
        configs.load(str(path))


def test_json_round_trip_builds_the_same_run():
    config = make()
    again = configs.from_json(configs.to_json(config))
    assert not list(configs.differences(config, again))
    assert set_up(again).ema == set_up(config).ema


def test_differences_name_every_changed_leaf():
    changed = make("train.images=7", "model.qk_norm=True")
    found = dict((k, (a, b)) for k, a, b in configs.differences(make(), changed))
    assert found == {
        "train.images": (make().train.images, 7),
        "model.qk_norm": (None, True),
    }


def test_a_full_dotted_path_reaches_other_modules():
    assert configs.resolve("math.sqrt", "jaxgen.nn", "config.x")(9) == 3


def test_a_preset_is_checked_like_its_function():
    """`fl_gflownet` is a partial: the types of options are the function's."""
    given = ("spec", "model", "optimizer", "averages")
    preset = configs.resolve("gflownet.fl_gflownet", "jaxgen.families", "config.method")
    assert configs.check(preset, {"truncate": 3}, "config.method", given) == {"truncate": 3}
    with pytest.raises(UsageError, match="config.method.truncate: got 'three'; allowed: int"):
        configs.check(preset, {"truncate": "three"}, "config.method", given)


@pytest.mark.parametrize("name", configs.MOVED)
def test_a_name_of_older_configs_says_what_to_write_now(name):
    now, _, _ = configs.MOVED[name].partition(",")
    configs.resolve(now, "jaxgen.nn", "config.model")
    with pytest.raises(UsageError, match=f"config.model.name: got '{name}'; allowed: {now}, with"):
        configs.resolve(name, "jaxgen.nn", "config.model")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("dict(name='a', rank=2)", {"name": "a", "rank": 2}),
        ("[dict(name='a', of=dict(b=(1, 2)))]", [{"name": "a", "of": {"b": (1, 2)}}]),
        ("dict()", {}),
        ("dict(a)", "dict(a)"),
        ("dict(**{'a': 1})", "dict(**{'a': 1})"),
        ("list(a=1)", "list(a=1)"),
        ("dict(a=open('x'))", "dict(a=open('x'))"),
    ],
)
def test_a_value_on_the_command_line_may_be_written_as_in_a_config(text, value):
    assert configs.literal(text) == value


def test_configs_of_an_installed_package_are_found_where_there_are_none_here(tmp_path, monkeypatch):
    """Where `pyproject.toml` puts them; a file of that name here wins."""
    root = Path(__file__).parents[2]
    installed = tmp_path / "share" / "jaxgen" / "configs"
    shutil.copytree(root / "configs", installed, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(configs, "SHIPPED", installed.parent)
    monkeypatch.chdir(tmp_path)
    assert configs.load("configs/imagenet256_sit.py:B/4").model.size == "B/4"
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "digits.py").write_text("def get_config():\n    return dict(mine=1)\n")
    assert configs.load("configs/digits.py").mine == 1
    with pytest.raises(UsageError, match="--config"):
        configs.load("configs/nothing.py")
    text = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["data-files"]
    assert text == {"share/jaxgen/configs": ["configs/*.py"]}
