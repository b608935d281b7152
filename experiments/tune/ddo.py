"""Direct discriminative optimization: from any model of full support to the data's law."""

from __future__ import annotations

import functools

import numpy as np

from experiments.shared.check import Check, below, control
from experiments.shared.tabular import DATA, REFERENCE, distance, tuned
from jaxgen.tune.contrast import ddo

PAPER = (
    "Direct Discriminative Optimization: Your Likelihood-Based Visual Generative Model is Secretly "
    "a GAN Discriminator"
)
ENTRY = "jaxgen.tune.contrast.ddo"


def checks() -> list[Check]:
    """A table's total variation from the data: before, after, and without the copy's samples."""
    check = "total variation from the data"
    results = [control(below(f"{check}, before", distance(np.log(REFERENCE), DATA), 0.02))]
    wrap = functools.partial(ddo, beta=1.0, label_dropout=0.0)
    whole = tuned(functools.partial(wrap, weight=1.0), normalised=True)
    results.append(below(check, distance(whole, DATA), 0.02))
    alone = tuned(functools.partial(wrap, weight=0.0), normalised=True)
    results.append(
        control(below(f"{check}, without samples of the copy", distance(alone, DATA), 0.02))
    )
    return results
