"""MeanFlow: the mean velocity of Gaussian data is known, and one jump makes samples."""

from __future__ import annotations

from experiments.shared.check import Check
from experiments.shared.jump_fit import compared
from jaxgen.families.diffusion.methods.jumps import mean_flow

PAPER = "Mean Flows for One-step Generative Modeling"
ENTRY = "jaxgen.families.diffusion.methods.jumps.mean_flow"


def checks() -> list[Check]:
    """Its mean velocity and its samples, beside flow matching's."""
    return compared(mean_flow, [(1.0, 1.0), (0.8, 0.5)], power=0.0)
