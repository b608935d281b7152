"""A GAN through the commands: trained, sampled, refused what it has not, started from."""

import json
from pathlib import Path

import jax
import ml_collections
import numpy as np
import pytest

from jaxgen.api import load, train
from jaxgen.cli import main
from jaxgen.errors import UsageError


def config(**changes):
    return ml_collections.ConfigDict(
        dict(
            seed=1,
            data=dict(source=dict(name="digits.digits"), batch_size=8),
            model=dict(
                generator=dict(name="gan.MLPGenerator", width=8, depth=1, batch_norm=True),
                discriminator=dict(name="gan.MLPDiscriminator", width=8, depth=1),
            ),
            method=dict(name="adversarial.adversarial", latent=dict(name="normal", size=4)),
            optimizer=dict(name="adam"),
            ema=dict(half_life=(100,)),
            train=dict(images=32, log_every=16),
            checkpoint=dict(),
            log=dict(tensorboard=False),
            sample=dict(truncation=2.0),
            evaluate=dict(at_end=False),
            **changes,
        )
    )


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gan") / "run"
    train(config(), folder)
    return folder


def test_samples_take_this_familys_options_and_no_others(workdir, tmp_path, capsys):
    out = tmp_path / "grid.npz"
    arguments = ["sample", "--workdir", str(workdir), "--labels", "0-3", "--out", str(out)]
    assert main([*arguments, "--sample.truncation=0.5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["network_calls"] == 1
    assert np.isfinite(np.load(out)["images"]).all()
    assert main([*arguments, "--guidance", "2"]) == 2
    message = capsys.readouterr().err
    assert "--guidance" in message and "truncation" in message and "standing" in message


@pytest.mark.parametrize("command", ["classify", "likelihood"])
def test_what_needs_a_likelihood_says_so(workdir, capsys, command):
    assert main([command, "--workdir", str(workdir)]) == 2
    message = capsys.readouterr().err
    assert "a method without a likelihood" in message and "Traceback" not in message


def test_another_run_starts_from_both_networks(workdir, tmp_path):
    slow = config()
    slow.optimizer.learning_rate = 1e-30
    slow.train.images = 8
    train(slow, tmp_path / "run", init_from=str(workdir))
    before, after = load(workdir), load(tmp_path / "run")
    for part, name in (("discriminator", "params"), ("generator", "half_life_100")):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
            before.params[name][part],
            after.params["params"][part],
        )
    other = config()
    other.model.generator.width = 9
    with pytest.raises(UsageError, match="parameters of the same shapes"):
        train(other, tmp_path / "other", init_from=str(workdir))
