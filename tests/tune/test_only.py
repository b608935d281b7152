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
    both = wraps(("tune.lora", dict(rank=2)), ("tune.only", dict(match=r"\bbias$")))
    for number, (wrap, groups) in enumerate(
        [(wraps(("tune.only", dict(match=r"\bbias$"))), {"net", "only"}),
         (both, {"net", "lora", "only"})]
    ):  # fmt: skip
        train(config(wrap, f"start={base()}"), tmp_path / str(number))
        model = load(tmp_path / str(number))
        start, own = load(base()).params["half_life_500"]["net"], model.params["half_life_500"]
        assert set(own) == groups
        jax.tree.map(np.testing.assert_array_equal, own["net"], start)
        moved = jax.tree_util.tree_leaves_with_path(own["only"])
        assert moved and all("bias" in jax.tree_util.keystr(p) for p, _ in moved)
        assert any(np.abs(a).max() > 0 for _, a in moved)
        plain = model.setup.method.plain(model.weights(None))["net"]
        differ = jax.tree.map(lambda a, b: bool((a != b).any()), plain, start)
        for path, different in jax.tree_util.tree_leaves_with_path(differ):
            name = jax.tree_util.keystr(path)
            wanted = "bias" in name or (number == 1 and "kernel" in name)
            assert different == wanted or not different, name
        assert any(d for p, d in jax.tree_util.tree_leaves_with_path(differ))
        assert (number == 1) == any(
            d for p, d in jax.tree_util.tree_leaves_with_path(differ)
            if "kernel" in jax.tree_util.keystr(p)
        )  # fmt: skip
    # Added to the model that it began at, it is the run itself.
    found = load(base()).sample([1], adapters=str(tmp_path / "0")).images
    np.testing.assert_allclose(found, load(tmp_path / "0").sample([1]).images, atol=1e-5)


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
