"""Near access-free samples: bounds on what one network alone has memorised, and exact laws."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shared.check import Check, below, control, near
from experiments.shared.tabular import REFERENCE, SPEC, Trained, table
from jaxgen.families.autoregressive.guidance import Source, alone, near_access
from jaxgen.method import with_frozen
from jaxgen.unlearn.near_access import near_access as limited

PAPER = "Provable Copyright Protection for Generative Models"
ENTRY = "jaxgen.families.autoregressive.guidance.near_access"
P, Q = np.array([0.7, 0.2, 0.1]), np.array([0.1, 0.3, 0.6])
PLANTED, COUNT, LIMIT, TRIES = 4, 30_000, 1.0, 3


def agreed(divergence: Literal["max", "kl"]) -> np.ndarray:
    """The law that two networks' logits give."""
    guide = near_access(alone(Source()), other="other", divergence=divergence)
    logits = {Source(): jnp.log(P)[None] + 3.0, Source("other"): jnp.log(Q)[None] - 1.0}
    return np.asarray(jax.nn.softmax(guide.rule(logits, (), jnp.int32(0)))[0], np.float64)


def memorised() -> np.ndarray:
    """The reference with one value that the model has far too often, [classes, values]."""
    p = 0.5 * REFERENCE
    p[:, PLANTED] += 0.5
    return p


def drawn(k: float) -> tuple[np.ndarray, np.ndarray]:
    """Shares of values for class 0 of the limited sampler, and what they are exactly."""
    base = table(1e-2)
    safe = Trained(base)
    method = limited(base, spec=SPEC, networks={"safe": safe}, k=k, tries=TRIES)
    own: Any = {"net": {"logits": jnp.log(jnp.asarray(memorised(), jnp.float32))}}
    assert method.sampler is not None
    keys, labels = jax.random.split(jax.random.key(1), COUNT), jnp.zeros(COUNT, jnp.int32)
    x = np.asarray(method.sampler().fn(with_frozen(method, own), keys, labels))[:, 0]
    p, q = memorised()[0], REFERENCE[0]
    passes = p * (np.log(p / q) <= k)
    fails = 1 - passes.sum()
    exact = passes * sum(fails**n for n in range(TRIES)) + fails**TRIES * q
    return np.bincount(x, minlength=len(p)) / COUNT, exact


def checks() -> list[Check]:
    """Normalisers and bounds of both mixtures by hand, then the law of rejection."""
    tv, hellinger = np.abs(P - Q).sum() / 2, 1 - np.sqrt(P * Q).sum()
    least, mean = agreed("max"), agreed("kl")
    results = [near("1 - TV", 1 - tv, 0.4, 1e-9)]
    results.append(near("normaliser of the minimum", (np.minimum(P, Q) / least).mean(), 0.4, 1e-6))
    worst = np.log(least / np.minimum(P, Q)).max()
    results.append(below("largest ln of it over either network", worst, -np.log(1 - tv) + 1e-6))
    results.append(
        control(below("the same of one network alone", np.log(P / Q).max(), -np.log(1 - tv)))
    )
    normaliser = (np.sqrt(P * Q) / mean).mean()
    results.append(near("normaliser of the geometric mean", normaliser, 1 - hellinger, 1e-6))
    # Three standard errors of a share of COUNT draws, at most.
    bound = 3 * 0.5 / COUNT**0.5
    for k, name in ((LIMIT, ""), (1e9, ", no limit")):
        found, exact = drawn(k)
        if not name:
            results.append(below("shares off the exact law", np.abs(found - exact).max(), bound))
        over = np.log(found[PLANTED] / REFERENCE[0, PLANTED])
        check = below(f"ln of the planted value over the safe model{name}", over, LIMIT)
        results.append(control(check) if name else check)
    return results
