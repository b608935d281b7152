"""Every recipe of docs/extending.md goes on bit for bit after kill -9, through the command line."""

import signal

import pytest

from tests.base_run import base
from tests.every_family import FAMILIES
from tests.running import assert_same_bits, raw_state, run, start, wait_for

RECIPES = ["repa", "guided", "progressive", "lora", "uvit", "jem", "forget"]
SHORT = [
    "data.batch_size=32",
    "train.images=6400",
    "train.sample_every=0",
    "checkpoint.every=640",
    "evaluate.at_end=False",
    "classify.at_end=False",
    "log.tensorboard=False",
]


@pytest.mark.parametrize("name", RECIPES)
def test_a_killed_recipe_resumes_bit_for_bit(name, tmp_path):
    config, narrow = FAMILIES[name]
    changes = [c.replace("BASE", repr(base())) for c in narrow] + SHORT
    command = ["train", "--config", config, *(f"--config.{c}" for c in changes)]

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    code, _, err = run(*command, "--workdir", str(whole))
    assert code == 0, err
    process = start(*command, "--workdir", str(killed))
    wait_for(lambda: list((killed / "checkpoints").glob("40*")), process=process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    process.communicate()
    code, _, err = run(*command, "--workdir", str(killed))
    assert code == 0 and "Resuming at step" in err, err
    step, state = raw_state(killed)
    assert step == 200
    assert_same_bits(state, raw_state(whole)[1])
