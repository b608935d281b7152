"""Other trained models that a method learns from (`networks` of a config): found, held, frozen."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jaxgen.errors import invalid
from jaxgen.method.learning import training_of
from jaxgen.method.protocol import Method, Spec

FUNCTIONS = {
    "sampler": ("a sampler", "a model that one can sample"),
    "label_error": ("likelihoods", "a model that classifies"),
}
"""What a method may lack: what that is called, and which models have it."""


def teacher_of(networks: Mapping[str, Any], name: str, option: str) -> Any:
    """The network of a name, which `option` needs. Raises UsageError with the line that lacks."""
    if name not in networks:
        given = f"{sorted(networks) or 'nothing'}, where {option} needs {name!r}"
        raise invalid("config.networks", given, f"a network called {name!r}",
                      f'E.g. --config.networks.{name}="runs/base".')  # fmt: skip
    return networks[name]


def having(networks: Mapping[str, Any], names: Iterable[str], what: str) -> Callable[[], None]:
    """What training checks first: that the methods of these networks have a function `what`.

    Not before, as to sample a student no other run is opened. Raises UsageError.
    """

    def check() -> None:
        for name in names:
            if getattr(networks[name].method, what) is None:
                given = f"a model without {FUNCTIONS[what][0]}"
                raise invalid(f"config.networks.{name}", given, FUNCTIONS[what][1])

    return check


def frozen_with(
    method: Method, spec: Spec, networks: Mapping[str, Any], *names: str
) -> dict[str, Any]:
    """The method's frozen arrays and those of the networks named, loaded to train only."""
    held = {name: functools.partial(networks[name].fitting, spec) for name in names}
    return {**training_of(method, "config.networks").frozen, **held}
