"""`models` of a sampler's options: other workdirs' models that guide one, or are stitched to it.

A section is a workdir, or dict(workdir=, ema=, guidance=); its key is the name by which guidance
asks for it: "weak" for autoguidance by a smaller network, any for `stitch.early`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxgen.data.classes import mismatch
from jaxgen.errors import invalid
from jaxgen.method import denoiser_factory
from jaxgen.run.setup import Setup

PyTree = Any

OPTION = "sample.models"
KEYS = ("workdir", "ema", "guidance")


def sections(models: Any) -> dict[str, dict[str, Any]]:
    """`models` with each value as a section. Raises UsageError for what is none."""
    if not isinstance(models, Mapping) or not models:
        raise invalid(OPTION, models, "{name: workdir}, or {name: {'workdir': ..., 'ema': ...}}")
    found = {}
    for name, section in models.items():
        own = {"workdir": section} if isinstance(section, str) else section
        if not isinstance(own, Mapping) or not {"workdir"} <= set(own) <= set(KEYS):
            allowed = f"a workdir, or a section with workdir and, if wanted, {', '.join(KEYS[1:])}"
            raise invalid(f"{OPTION}.{name}", section, allowed)
        found[name] = dict(own)
    return found


def branch(
    setup: Setup, other: Setup, name: str, section: Mapping[str, Any], options: Mapping[str, Any]
) -> Callable[[PyTree, Any], Any]:
    """(params, labels) -> the denoiser of `other`, whose parameters are params["models"][name].

    options: those of the sampler that it comes into; guidance of its own (none unless the section
    says so) is on the same times. Raises UsageError where the two do not denoise the same examples
    along the same path.
    """
    option, workdir = f"{OPTION}.{name}", section["workdir"]
    times = {key: options[key] for key in ("steps", "grid") if key in options}
    _check_alike(setup, other, option, workdir)
    denoiser = _denoiser(other, guidance=section.get("guidance", 1.0), **times)
    assert denoiser is not None
    known = denoiser
    return lambda params, labels: known(params and params["models"][name], labels)


def _denoiser(setup: Setup, **options: Any) -> Callable[[PyTree, Any], Any] | None:
    """(params, labels) -> what a sampler of these options asks, None where there is none such."""
    of = denoiser_factory(setup.method)
    return None if of is None else of(**options)


def _check_alike(setup: Setup, other: Setup, option: str, workdir: str) -> None:
    """Raise where two models cannot denoise each other's states."""
    worlds = []
    for each, whose in ((setup, "this model"), (other, workdir)):
        denoiser = _denoiser(each, guidance=1.0)
        if denoiser is None:
            allowed = f"diffusion models that are told labels, and {whose} is none"
            raise invalid(option, workdir, allowed)
        path, times = denoiser(None, None).path, jnp.linspace(0.1, 0.9, 5)
        worlds.append(
            {
                "examples of shape": tuple(each.spec.shape),
                "classes": each.spec.num_classes,
                "codes of tokenizer": each.coding and each.coding.digest,
                "noise levels at t = .1, .3, .5, .7, .9": np.round(path.ratio(times), 4).tolist(),
                "scales there": np.round(path.alpha(times), 4).tolist(),
            }
        )
    names, theirs = setup.spec.classes, other.spec.classes
    if names and theirs and len(names) == len(theirs) and names != theirs:
        raise mismatch(f"{option} {workdir}", theirs, names, "the classes here")
    for what, ours in worlds[0].items():
        if worlds[1][what] != ours:
            raise invalid(option, f"{workdir}, {what} {worlds[1][what]}", f"{ours}, as here")
