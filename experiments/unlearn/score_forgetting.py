"""Score forgetting distillation: a one-call student that lacks one of its teacher's classes."""

from __future__ import annotations

import numpy as np

from experiments.shared.check import Check, below, control
from experiments.shared.student_fit import CLASSES, MEANS, STD, drawn

PAPER = (
    "Score Forgetting Distillation: A Swift, Data-Free Method for Machine Unlearning in Diffusion "
    "Models"
)
ENTRY = "jaxgen.distill.matching.matching"


def checks() -> list[Check]:
    """Class 0 becomes class 1; the others stay; nothing is left near where class 0 was."""
    results = []
    for forgets in (True, False):
        x = drawn(by="implicit", instead={"0": 1} if forgets else None)
        wanted = MEANS[[1, 1, 2, 3]]
        name = "" if forgets else ", nothing forgotten"
        own = [np.abs(x[c].mean(0) - wanted[c]).max() for c in range(CLASSES)]
        near = (np.linalg.norm(x[0] - MEANS[0], axis=1) < 3 * STD).mean()
        for check in (
            below(f"class 0 from class 1's mean{name}", own[0], 0.15),
            below(f"share of class 0 near its own mean{name}", near, 0.01),
        ):
            results.append(check if forgets else control(check))
        results.append(below(f"the other classes from their means{name}", max(own[1:]), 0.15))
        off = np.abs(x.std(1) / STD - 1).max()
        results.append(below(f"largest error of a deviation, relative{name}", off, 0.3))
    return results
