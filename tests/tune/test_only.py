"""Training what a pattern matches, and nothing else."""

import jax
import numpy as np
import pytest

from jaxgen.api import train
from jaxgen.errors import UsageError
from jaxgen.run.model import load
from jaxgen.run.setup import set_up
from tests.base_run import base, config


def wraps(*sections):
    return "wrap=" + repr([dict(name=name, **options) for name, options in sections])


def test_it_moves_what_is_named_and_keeps_the_rest(tmp_path):
    """Beside LoRA: kernels by a few columns, biases as a whole, and nothing else."""
    both = wraps(("tune.lora", dict(rank=2)), ("tune.only", dict(match=r"\bbias$")))
    train(config(both, f"start={base()}"), tmp_path / "run")
    model = load(tmp_path / "run")
    start, own = load(base()).params["half_life_500"]["net"], model.params["half_life_500"]
    assert set(own) == {"net", "lora", "only"}
    jax.tree.map(np.testing.assert_array_equal, own["net"], start)
    plain = model.setup.method.plain(model.weights(None))["net"]
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(plain), jax.tree.leaves(start), strict=True
    ):
        kind = jax.tree_util.keystr(path, simple=True, separator=".").rpartition(".")[2]
        assert (a != b).any() == (kind in ("kernel", "bias")), path
    # Added to the model that it began at, it is the run itself.
    found = load(base()).sample([1], adapters=str(tmp_path / "run")).images
    np.testing.assert_allclose(found, model.sample([1]).images, atol=1e-5 * np.abs(found).max())


def test_alone_it_trains_nothing_else():
    method = set_up(config(wraps(("tune.only", dict(match=r"\bbias$"))))).method
    assert method.training.learners["net"].trains == ("only",)
    assert method.training.averaged == ("only",)


@pytest.mark.parametrize(
    ("wrap", "words"),
    [
        (wraps(("tune.only", dict(match="nothing"))), r"tune\.only\.match.*net\.\S+kernel"),
        (wraps(*2 * [("tune.only", dict(match="bias"))]), r"tune\.only twice"),
    ],
)
def test_bad_input_is_named(wrap, words):
    with pytest.raises(UsageError, match=words):
        set_up(config(wrap))
