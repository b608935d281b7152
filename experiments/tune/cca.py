"""Condition contrastive alignment: the optimum is a guided law, of one call."""

from __future__ import annotations

import functools

import numpy as np

from experiments.shared.check import Check, below, control
from experiments.shared.tabular import CLASSES, DATA, REFERENCE, tuned
from jaxgen.tune.contrast import cca

PAPER = "Toward Guidance-Free AR Visual Generation via Condition Contrastive Alignment"
ENTRY = "jaxgen.tune.contrast.cca"
BETA, WEIGHT = 0.5, 0.7


def optimum() -> np.ndarray:
    """(1 / beta) ln p(x | c) / (weight p(x | not c)), [classes, values]."""
    others = (DATA.sum(0) - DATA) / (CLASSES - 1)
    return np.log(DATA / (WEIGHT * others)) / BETA


def checks() -> list[Check]:
    """A table of free log-densities: its ratio to the reference, at the optimum or not."""
    check, exact = "largest error of the log-ratio", optimum()

    def error(logits: np.ndarray) -> float:
        return float(np.abs(logits - np.log(REFERENCE) - exact).max())

    wrap = functools.partial(cca, beta=BETA, label_dropout=0.0)
    found = tuned(functools.partial(wrap, weight=WEIGHT), normalised=False)
    results = [below(check, error(found), 0.3)]
    results.append(control(below(f"{check}, before", error(np.log(REFERENCE)), 0.3)))
    alone = tuned(functools.partial(wrap, weight=0.0), normalised=False)
    results.append(control(below(f"{check}, own labels alone", error(alone), 0.3)))
    return results
