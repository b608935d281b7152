"""Shortcut models: a jump learns what two halves of it do, down to flow matching."""

from __future__ import annotations

from experiments.shared.check import Check
from experiments.shared.jump_fit import compared
from jaxgen.families.diffusion.methods.jumps import shortcut

PAPER = "One Step Diffusion via Shortcut Models"
ENTRY = "jaxgen.families.diffusion.methods.jumps.shortcut"


def checks() -> list[Check]:
    """Its mean velocity and its samples, beside flow matching's."""
    return compared(shortcut, [(1.0, 1.0), (0.75, 0.25)])
