"""Guided decoding: every sequence's probability by enumeration, and the class that it shows."""

from __future__ import annotations

import numpy as np

from experiments.shared.check import Check, above, below, control, mean_above, mean_below
from experiments.shared.tables import (
    CHAINS,
    EVERY,
    SHARES,
    Table,
    conditional,
    distance,
    distribution,
    drawn,
    marginal,
    of_sequence,
    table,
)

PAPER = "Guiding Image Captioning Models Toward More Specific Captions"
ENTRY = "jaxgen.families.autoregressive.guidance.cfg"
LABEL, WEIGHT = 0, 2.0
OTHER = CHAINS[:, ::-1]
"""Another language model: the same words in another order."""


def guided(cond: np.ndarray, uncond: np.ndarray) -> np.ndarray:
    """p(x | c)^w / p(x)^(w - 1), normalised."""
    weighted = cond**WEIGHT / uncond ** (WEIGHT - 1)
    return weighted / weighted.sum()


def posterior() -> np.ndarray:
    """p(LABEL | x) of EVERY."""
    joint = np.array(
        [[SHARES[c] * of_sequence(tuple(x), c) for c in (0, 1)] for x in EVERY.tolist()]
    )
    return joint[:, LABEL] / joint.sum(1)


def checks() -> list[Check]:
    """The laws at w = 0, 1 and 2, with another language model too; what w does to the class."""
    results = []
    params = {"net": table(), "lm": table(OTHER)}
    cases = {
        "w=1": (1.0, distribution(lambda b: conditional(b, LABEL))),
        "w=0": (0.0, distribution(marginal)),
        "w=2": (WEIGHT, distribution(lambda b: guided(conditional(b, LABEL), marginal(b)))),
        "w=2, another network": (
            [dict(name="cfg", weight=WEIGHT, uncond="lm")],
            distribution(lambda b: guided(conditional(b, LABEL), marginal(b, OTHER))),
        ),
    }
    draws = {}
    for name, (guidance, exact) in cases.items():
        draws[name] = drawn(params, LABEL, guidance=guidance, models={"lm": Table()})
        check = f"{name}: distance to its law, over that of exact draws"
        results.append(mean_below(check, distance(draws[name], exact), 1.2))
    for name in ("w=2", "w=2, another network"):
        check = f"{name}: distance to its law, without guidance"
        results.append(control(mean_below(check, distance(draws["w=1"], cases[name][1]), 1.2)))
    swapped = distance(draws["w=2"], cases["w=2, another network"][1])
    results.append(control(mean_below("the other network's law, by the model's own", swapped, 1.2)))

    share = posterior()
    rise = [share[draws[name]].mean(1) for name in ("w=0", "w=1", "w=2")]
    for name, low, high in (("0 to 1", *rise[:2]), ("1 to 2", *rise[1:])):
        results.append(mean_above(f"rise of p(label | x) from w = {name}", high - low, 0.03))
        results.append(control(mean_above(f"the same backwards, {name}", low - high, 0.03)))
    exact = [float(share @ cases[name][1]) for name in ("w=0", "w=1", "w=2")]
    results.append(above("the same by enumeration, least", min(np.diff(exact)), 0.03))
    results.append(below("sum of all sequences", abs(cases["w=2"][1].sum() - 1), 1e-12))
    return results
