"""Other trained models that a method learns from (`networks` of a config): found, held, frozen."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from jaxgen.errors import invalid
from jaxgen.method.learning import training_of
from jaxgen.method.protocol import Method, Spec


def teacher_of(networks: Mapping[str, Any], name: str, option: str) -> Any:
    """The network of a name, which `option` needs. Raises UsageError with the line that lacks."""
    if name not in networks:
        given = f"{sorted(networks) or 'nothing'}, where {option} needs {name!r}"
        raise invalid("config.networks", given, f"a network called {name!r}",
                      f'E.g. --config.networks.{name}="runs/base".')  # fmt: skip
    return networks[name]


def frozen_with(
    method: Method, spec: Spec, networks: Mapping[str, Any], *names: str
) -> dict[str, Any]:
    """The method's frozen arrays and those of the networks named, loaded to train only."""
    held = {name: functools.partial(networks[name].fitting, spec) for name in names}
    return {**training_of(method, "config.networks").frozen, **held}
