"""Multi-student distillation: small one-call students, each of a class, against one of all."""

from __future__ import annotations

import numpy as np

from experiments.shared.check import Check, below, control
from experiments.shared.student_fit import CLASSES, MEANS, STD, drawn
from jaxgen.nn.mlp import MLP
from jaxgen.nn.routed import Routed

PAPER = "Multi-student Diffusion Distillation for Better One-step Generators"
ENTRY = "jaxgen.nn.routed.Routed"
SMALL = dict(width=2, depth=1)


def checks() -> list[Check]:
    """Students of two hidden units find their class; one for all cannot tell four apart."""
    results = []
    for several in (True, False):
        of = dict(name="mlp.MLP", **SMALL)
        groups = tuple((c,) for c in range(CLASSES))
        network = Routed(of, groups, CLASSES, 2) if several else MLP(CLASSES, 2, **SMALL)
        x = drawn(updates=700, network=network, label_dropout=0.0)
        off = np.abs(x.mean(1) - MEANS).max() / STD
        check = below(f"largest error of a class's mean, of its deviation {STD}", off, 1.0)
        results.append(check if several else control(check))
    return results
