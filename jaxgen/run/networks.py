"""`networks` of a config: trained models of other runs, by name, that a run uses and leaves alone.

    networks=dict(teacher="runs/base")
    networks=dict(teacher=dict(workdir="runs/base", ema="half_life_50000"))

Each is handed to the method's factory and to wraps that ask for `networks`, as an `Other`. What it
holds goes into the training's frozen arrays. It is loaded when first asked for, which training does
before all else and sampling not at all: a student is drawn from without its teacher.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from jaxgen.data import to_host
from jaxgen.data.classes import mismatch
from jaxgen.errors import UsageError, invalid
from jaxgen.method import Method, Spec

PyTree = Any
KEYS = ("workdir", "ema")


class Other:
    """A trained model of another run: its method and its parameters.

    `params` are groups as the method's functions take them, on the host. Raises UsageError, naming
    the option, where the run is not there or cannot be read.
    """

    def __init__(self, option: str, workdir: str, ema: str | None = None) -> None:
        """option: where the config names it."""
        self.option, self.workdir, self.ema = option, workdir, ema

    @functools.cached_property
    def _model(self) -> Any:
        from jaxgen.run.model import load

        try:
            return load(self.workdir)
        except UsageError as error:
            raise invalid(self.option, self.workdir, "a trained run", str(error)) from error

    @property
    def method(self) -> Method:
        """What it is."""
        return self._model.setup.method

    @property
    def spec(self) -> Spec:
        """What it was trained on."""
        return self._model.setup.spec

    @functools.cached_property
    def params(self) -> PyTree:
        """Its parameters, by the average that `ema` names (None: the default one)."""
        try:
            return to_host(self._model.weights(self.ema))
        except UsageError as error:
            raise invalid(f"{self.option}.ema", self.ema, "an average of that run",
                          str(error)) from error  # fmt: skip

    @functools.cached_property
    def digest(self) -> str:
        """sha256 of the parameters."""
        from jaxgen.run.model import digest

        return digest(self.params)

    def fitting(self, spec: Spec) -> PyTree:
        """`params`, of a model for the same examples and classes. Raises UsageError otherwise."""
        for what in ("shape", "num_classes", "levels", "tokens"):
            ours, theirs = getattr(spec, what), getattr(self.spec, what)
            if ours != theirs:
                given = f"{self.workdir}, trained with {what} {theirs}"
                raise invalid(self.option, given, f"{what} {ours}, as this run's data")
        names, ours = getattr(self.spec, "classes", ()), getattr(spec, "classes", ())
        if names and ours and names != ours:
            option = f"{self.option} {self.workdir}"
            raise mismatch(option, names, ours, "the classes of this run")
        return self.params


def opened(section: Any) -> dict[str, Other]:
    """`config.networks` as `Other`s by name. Raises UsageError for what is no section of one."""
    if section is None:
        return {}
    if not isinstance(section, Mapping) and not hasattr(section, "keys"):
        raise invalid("config.networks", section, "{name: workdir}")
    found = {}
    for name in section:
        option, value = f"config.networks.{name}", section[name]
        own = {"workdir": value} if isinstance(value, str) else value
        if not hasattr(own, "keys") or not {"workdir"} <= set(own.keys()) <= set(KEYS):
            allowed = "a workdir, or a section with workdir and, if wanted, ema"
            raise invalid(option, value, allowed)
        found[name] = Other(option, own["workdir"], own.get("ema"))
    return found


def digests(networks: Mapping[str, Other], before: Mapping[str, str]) -> dict[str, str]:
    """sha256 of each network's parameters, which a run records with its config.

    before: those that the run recorded when it began. Raises UsageError where a network is not
    there, cannot be read, or is not what it was.
    """
    found = {name: other.digest for name, other in networks.items()}
    for name, digest in found.items():
        if before.get(name, digest) != digest:
            raise invalid(
                networks[name].option,
                f"{networks[name].workdir}, whose parameters have changed",
                "the parameters that this run was trained with so far",
                "Put them back (another average: .ema), or use another --workdir.",
            )
    return found
