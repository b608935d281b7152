"""Options of a run that are no part of its programs: other values write other files.

Runs of a few steps. Each option has a witness, something that the run wrote, which must differ from
the base run's; options with different witnesses are changed in one run.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy

from jaxgen import api
from jaxgen import config as configs
from jaxgen.errors import UsageError
from jaxgen.metrics import Training
from jaxgen.metrics.extractors import classifier
from jaxgen.run.setup import SECTIONS, TOP
from tests import tiny
from tests.option_kit import options

BASE = [
    "model={'name': 'mlp.MLP', 'width': 8, 'depth': 1}",
    "data.batch_size=16",
    "train={'images': 96, 'log_every': 48, 'sample_every': 48, 'preview_per_label': 1}",
    "checkpoint={'every': 32, 'keep_last': 2, 'snapshot_every': 48}",
    "ema={'half_life': (500,), 'power_std': (0.1,)}",
    "sample={'solver': 'euler', 'steps': 2}",
    "evaluate={'at_end': True, 'samples': 80, 'guidance': (1.0,)}",
    "classify={'at_end': True, 'limit': 10, 'draws': 2}",
    "likelihood={'at_end': True, 'limit': 4}",
]
BRIEF = ["evaluate.at_end=False", "classify.at_end=False", "likelihood.at_end=False"]


def report(workdir: Path, *keys: Any) -> Any:
    text = json.loads((workdir / "report.json").read_text())["results"]
    return functools.reduce(lambda a, key: a[key], keys, text)


def parameters(workdir: Path) -> Any:
    """The last snapshot of an average, to the bit."""
    last = max((workdir / "ema_snapshots").glob("*.safetensors"))
    return {k: a.tobytes() for k, a in safetensors.numpy.load_file(last).items()}


def names(pattern: str) -> Callable[[Path], Any]:
    """The names of files, without what an event file says of its host."""
    return lambda workdir: sorted(str(p.relative_to(workdir)) for p in workdir.glob(pattern))


SAVED = names("checkpoints/[0-9]*")
PREVIEW = lambda workdir: sorted(len(p.read_bytes()) for p in workdir.glob("samples/0*.png"))
LINES = lambda workdir: len((workdir / "metrics.jsonl").read_text().splitlines())
RECEIPT = lambda workdir: report(workdir, "evaluate", "receipts", 0)
SAMPLES = lambda workdir: RECEIPT(workdir)["samples"]["sha256"]
BITS = lambda workdir: report(workdir, "likelihood", "bits_per_dim")
POSTERIOR = lambda workdir: report(workdir, "classify", "nll")

# What is changed in one run: option -> (value, witness).
RUNS: dict[str, dict[str, tuple[Any, Callable[[Path], Any]]]] = {
    "seed": {"seed": (4, parameters)},
    "flip": {"data.flip": (True, parameters)},
    "split": {"data.train": ("test", parameters)},
    "holdout": {"data.holdout": (0.2, parameters)},
    "longer": {"train.images": (112, SAVED)},
    "held": {"data.holdout": (0.25, parameters)},
    "one": {
        "data.test": ("train", BITS),
        "train.log_every": (16, LINES),
        "train.sample_every": (16, names("samples/0*.png")),
        "checkpoint.keep_last": (3, SAVED),
        "checkpoint.snapshot_every": (32, names("ema_snapshots/*")),
        "log.tensorboard": (True, lambda w: len(list(w.rglob("*tfevents*")))),
        "evaluate.samples": (70, lambda w: RECEIPT(w)["samples"]["count"]),
        "evaluate.seed": (1, lambda w: RECEIPT(w)["sampling"]["seed"]),
        "classify.draws": (3, lambda w: report(w, "classify", "calls_per_image")),
        "classify.limit": (12, lambda w: report(w, "classify", "images")),
    },
    "two": {
        "train.preview_per_label": (2, PREVIEW),
        "checkpoint.keep_every": (32, SAVED),
        "evaluate.guidance": ((2.0,), lambda w: RECEIPT(w)["guidance"]),
        "classify.seed": (1, POSTERIOR),
        "likelihood.draws": (2, BITS),
    },
    "three": {
        "checkpoint.keep_best": (3, SAVED),
        "evaluate.at_end": (False, lambda w: "evaluate" in report(w)),
        "classify.at_end": (False, lambda w: "classify" in report(w)),
        "likelihood.seed": (1, BITS),
    },
    "four": {
        "checkpoint.every": (16, SAVED),
        "evaluate.at_end": (False, lambda w: "evaluate" in report(w)),
        "likelihood.at_end": (False, lambda w: "likelihood" in report(w)),
    },
    "five": {"likelihood.limit": (5, lambda w: report(w, "likelihood", "images"))},
}
TRAINING_ALONE = ("seed", "flip", "split", "longer", "held")

REASONS = {
    "data.source": "names a callable",
    "data.batch_size": "tests/config/test_every_option.py",
    "data.workers": "who reads, not what: tests/data/test_data_pipeline.py",
    "data.prefetch": "when it is read, not what: tests/data/test_data_pipeline.py",
    "data.holdout_seed": "test_another_seed_holds_another_half_out",
    "data.tokenizer": "for codes: tests/run/test_tokenize.py",
    "data.holds": "is compared with the source: tests/run/test_record.py",
    "train.accumulate": "tests/config/test_every_option.py",
    "log.wandb": "asks a service",
    "evaluate.batch_size": "how many at once, not what: tests/scoring",
    "classify.batch_size": "how many at once, not what: tests/classify",
    "likelihood.batch_size": "how many at once, not what: tests/scoring",
}


def run(workdir: Path, *overrides: str) -> Path:
    config = tiny.get_config()
    configs.override(config, [*BASE, *overrides], TOP)
    api.train(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def brief(tmp_path_factory):
    return run(tmp_path_factory.mktemp("brief") / "run", *BRIEF)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "train_classifier", _brief(classifier.train_classifier))
        yield run(tmp_path_factory.mktemp("base") / "run")


def _brief(train: Callable[..., Any]) -> Callable[..., Any]:
    return lambda images, labels, classes, training: train(
        images[:64], labels[:64], classes, Training(epochs=1)
    )


def unseen(name: str, before: Path, workdir: Path, *more: str) -> list[str]:
    """Options of a run whose witness is the one of the run `before`."""
    changes = RUNS[name]
    overrides = [f"{option}={value!r}" for option, (value, _) in changes.items()]
    other = run(workdir, *more, *overrides)
    return [option for option, (_, seen) in changes.items() if seen(other) == seen(before)]


def test_the_witness_of_training_is_the_same_in_the_same_run(brief, tmp_path):
    assert parameters(run(tmp_path / "run", *BRIEF)) == parameters(brief)


def test_every_witness_is_the_same_in_the_same_run(base, tmp_path):
    again = run(tmp_path / "run")
    witnesses = [(o, seen) for changes in RUNS.values() for o, (_, seen) in changes.items()]
    assert [option for option, seen in witnesses if seen(again) != seen(base)] == []


@pytest.mark.parametrize("name", TRAINING_ALONE)
def test_another_value_trains_something_else(name, brief, tmp_path):
    assert unseen(name, brief, tmp_path / "run", *BRIEF) == []


@pytest.mark.parametrize("name", sorted(RUNS.keys() - set(TRAINING_ALONE)))
def test_another_value_writes_something_else(name, base, tmp_path):
    assert unseen(name, base, tmp_path / "run") == []


def test_another_seed_holds_another_half_out(tmp_path):
    first, second = (
        run(tmp_path / str(seed), *BRIEF, "data.holdout=0.25", f"data.holdout_seed={seed}")
        for seed in range(2)
    )
    assert parameters(first) != parameters(second)


def test_every_option_of_a_run_has_a_witness_or_a_reason():
    seen = {option for changes in RUNS.values() for option in changes} | REASONS.keys()
    sections = {k: cls for k, cls in SECTIONS.items() if k not in ("ema", "hosts")}
    every = {f"{section}.{o}" for section, cls in sections.items() for o in options(cls)}
    assert every | {"seed"} == seen, every ^ seen


@pytest.mark.parametrize(
    "change",
    [
        "seed=4",
        "data.batch_size=32",
        "data.flip=True",
        "data.train=test",
        "train.accumulate=2",
        "ema.half_life=(600,)",
        "model.width=16",
        "method.label_dropout=0.2",
        "optimizer.b2=0.9",
    ],
)
def test_what_decides_the_numbers_of_a_run_cannot_change_in_it(change, brief):
    with pytest.raises(UsageError, match=f"holds another run(.|\\n)*{change.partition('=')[0]}"):
        run(brief, *BRIEF, "train.images=128", change)
