"""Two models as far inside and outside of the data get opposite precision and recall."""

from __future__ import annotations

import numpy as np

from experiments.shared.check import Check, control, mean_above, mean_near
from jaxgen.metrics.scores.asymmetry import symmetric_precision, symmetric_recall
from jaxgen.metrics.scores.manifold import manifold, precision, recall

PAPER = (
    "Emergent Asymmetry of Precision and Recall for Measuring Fidelity and Diversity of "
    "Generative Models in High Dimensions"
)
ENTRY = "jaxgen.metrics.scores.asymmetry.symmetric_precision"
COUNT, K, SEEDS = 800, 5, 5


def scores(dimension: int, seed: int, inside: float, outside: float) -> dict[str, np.ndarray]:
    """Each score of a sphere within and one around the unit sphere: [2]."""
    chance = np.random.default_rng(seed)
    results: dict[str, list[float]] = {}
    data = manifold(_sphere(chance, dimension), k=K)
    for radius in (inside, outside):
        model = manifold(radius * _sphere(chance, dimension), k=K)
        for name, value in (
            ("precision", precision(data, model.points)),
            ("recall", recall(model, data.points)),
            ("symmetric precision", symmetric_precision(data, model)),
            ("symmetric recall", symmetric_recall(data, model)),
        ):
            results.setdefault(name, []).append(value)
    return {name: np.array(values) for name, values in results.items()}


def checks() -> list[Check]:
    """Radius 0.9 against 1.1 on 64 dimensions, where they should score alike; then on 2."""
    runs = [scores(64, seed, 0.9, 1.1) for seed in range(SEEDS)]
    gaps = {name: np.array([run[name] @ [1, -1] for run in runs]) for name in runs[0]}
    results = []
    # Seen: precision 1.00 and .56, recall .48 and 1.00; symmetric ones -.11 and -.06 apart, with
    # standard errors of .02 at most.
    for name, sign in (("precision", 1), ("recall", -1)):
        results.append(
            mean_above(f"{name} of the favoured side minus the other", sign * gaps[name], 0.3)
        )
        check = f"gap of {name} between both radii, the other set's balls asked too"
        results.append(mean_near(check, gaps[f"symmetric {name}"], 0.0, 0.2))
        results.append(control(mean_near(check, gaps[name], 0.0, 0.2)))
    # The scores still tell a far sphere from a near one.
    far = [scores(64, seed, 0.6, 1.5) for seed in range(SEEDS)]
    for name in ("symmetric precision", "symmetric recall"):
        drop = [near[name] - away[name] for near, away in zip(runs, far, strict=True)]
        results.append(mean_above(f"{name} at radius 0.9 minus at 0.6", np.array(drop)[:, 0], 0.1))
    # On a plane there is little of it: neighbours are near, and both models miss the circle wholly.
    plane = [scores(2, seed, 0.9, 1.1)["precision"] @ [1, -1] for seed in range(SEEDS)]
    results.append(mean_near("gap of precision on 2 dimensions", plane, 0.0, 0.02))
    return results


def _sphere(chance: np.random.Generator, dimension: int) -> np.ndarray:
    drawn = chance.normal(size=(COUNT, dimension))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
