"""GeDi: posteriors of two known Markov chains steer their mixture, by enumeration."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shared.check import Check, below, control, mean_above, mean_below
from experiments.shared.tables import (
    EVERY,
    LENGTH,
    SHARES,
    conditional,
    distance,
    distribution,
    drawn,
    marginal,
    of_sequence,
    table,
)
from jaxgen.families.autoregressive.guidance import Source, alone, gedi

PAPER = "GeDi: Generative Discriminator Guided Sequence Generation"
ENTRY = "jaxgen.families.autoregressive.guidance.gedi"
LABEL, ANTI = 0, 1
BOUND = 1.5
"""Exact draws have 1 in the mean; few sequences pass the filter, so that its seeds spread by .3."""
BASE = dict(name="cfg", weight=0.0)
"""The language model that is guided: the mixture of both classes."""


def posterior(
    before: tuple[int, ...], *, alpha: float = 1.0, by_length: bool = False
) -> np.ndarray:
    """p(LABEL | before and the next element), [V], equal shares unless they are in the chains'."""
    scale = alpha / (len(before) + 1) if by_length else alpha
    joint = [
        share * (of_sequence(before, c) * conditional(before, c)) ** scale
        for c, share in ((LABEL, SHARES[LABEL]), (ANTI, SHARES[ANTI]))
    ]
    return np.asarray(joint[0] / (joint[0] + joint[1]))


def steered(
    before: tuple[int, ...], weight: float, mass: float = 1.0, sure: float = 1.0, **options: Any
) -> np.ndarray:
    """p(next) p(LABEL | ., next)^weight, then the filter, by sorting."""
    share = posterior(before, **options)
    weighted = marginal(before) * share**weight
    weighted /= weighted.sum()
    if mass < 1:
        order = np.argsort(-share)
        count = 1 + int((np.cumsum(weighted[order]) < mass - 1e-6).sum())
        weighted = np.where(np.isin(np.arange(3), order[:count]) | (share > sure), weighted, 0)
    return weighted / weighted.sum()


def checks() -> list[Check]:
    """The posterior against Bayes' rule, then the law of sequences in four settings."""
    results = [*posteriors()]
    exact = distribution(lambda b: conditional(b, LABEL))
    plain: dict[str, Any] = dict(
        name="gedi", anti=ANTI, by_length=False, prior=float(SHARES[LABEL])
    )
    settings: dict[str, tuple[dict[str, Any], np.ndarray]] = {
        "weight 0": (plain | dict(weight=0.0), distribution(marginal)),
        "weight 1: the class itself": (plain, exact),
        "weight 3, by length": (
            plain | dict(weight=3.0, by_length=True, alpha=2.0),
            distribution(lambda b: steered(b, 3.0, alpha=2.0, by_length=True)),
        ),
        "filtered": (
            plain | dict(weight=2.0, mass=0.8, sure=0.7),
            distribution(lambda b: steered(b, 2.0, 0.8, 0.7)),
        ),
    }
    params, draws = {"net": table()}, {}
    for name, (section, want) in settings.items():
        draws[name] = drawn(params, LABEL, guidance=[BASE, section])
        check = f"{name}: distance to its law, over that of exact draws"
        results.append(mean_below(check, distance(draws[name], want), BOUND))
        if name != "weight 0":
            without = distance(draws["weight 0"], want)
            results.append(control(mean_below(f"{name}: without it", without, BOUND)))
    # The class that a sequence shows, by Bayes' rule.
    joint = np.array(
        [[SHARES[c] * of_sequence(tuple(x), c) for c in (0, 1)] for x in EVERY.tolist()]
    )
    share = joint[:, LABEL] / joint.sum(1)
    rise = share[draws["weight 3, by length"]].mean(1)
    results.append(mean_above("mean p(label | x) at weight 3", rise, 0.6))
    base = share[draws["weight 0"]].mean(1)
    results.append(control(mean_above("mean p(label | x) at weight 0", base, 0.6)))
    return results


def posteriors() -> list[Check]:
    """What a step adds to the logits, for every beginning, is ln p(label | x) by Bayes' rule."""
    given, anti, base = Source(), Source("net", ANTI), Source("net", "null")
    results, check = [], "mixture times posterior against the class, all beginnings"
    for prior, wrap in ((float(SHARES[LABEL]), lambda c: c), (0.5, control)):
        guide = gedi(alone(base), anti=ANTI, by_length=False, prior=prior)
        gap, memory = 0.0, guide.start(len(EVERY))
        for n in range(LENGTH):
            starts = [tuple(x[:n]) for x in EVERY.tolist()]
            exact = np.array([conditional(b, LABEL) for b in starts])
            logits = {
                given: _log(exact),
                anti: _log([conditional(b, ANTI) for b in starts]),
                base: _log([marginal(b) for b in starts]),
            }
            posterior = jax.nn.softmax(guide.rule(logits, memory, jnp.int32(n)))
            gap = max(gap, float(np.abs(np.asarray(posterior) - exact).max()))
            memory = guide.after(logits, memory, jnp.asarray(EVERY[:, n]))
        results.append(wrap(below(f"{check}, prior {prior:g}", gap, 1e-5)))
    return results


def _log(p: Any) -> jax.Array:
    return jnp.log(jnp.asarray(p, jnp.float32))
