"""A student is drawn from without the runs and the rewards that it was trained by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import pytest

from jaxgen import config as configs
from jaxgen.errors import UsageError
from jaxgen.run.setup import set_up
from tests.config.test_every_option import CASES, loaded

DRAWS_WITH = {"near": "samples are compared with what its networks hold likely"}
"""Cases whose sampler asks the networks themselves."""
TOLD = [name for name, (_, lines) in CASES.items() if any("networks" in line for line in lines)]


def without_files(section: Any) -> Any:
    """A section whose files (of rewards) are gone."""
    if not isinstance(section, Mapping):
        return section
    return {k: "gone.npy" if k == "file" else without_files(v) for k, v in section.items()}


def test_the_cases_are_found() -> None:
    """The law below is of every wrap with a teacher."""
    assert {"guided", "matching", "forget", "grpo", "dpo", "pool"} <= set(TOLD)


@pytest.mark.parametrize("name", TOLD)
def test_is_drawn_without_its_networks(name: str) -> None:
    """Method, state and sampler are built where no run or reward is left; training says so."""
    config = loaded(name)
    spec = set_up(config).spec
    for network in config.networks:
        config.networks[network] = "gone"
    config.wrap = tuple(without_files(wrap) for wrap in configs.to_dict(config)["wrap"])
    if name in DRAWS_WITH:
        with pytest.raises(UsageError, match="config.networks"):
            set_up(config, spec=spec)
        return
    method = set_up(config, spec=spec).method
    jax.eval_shape(method.init, jax.random.key(0))
    assert method.sampler is not None
    method.sampler()
    with pytest.raises(UsageError, match="got .gone|trained run"):
        print(method.frozen)
