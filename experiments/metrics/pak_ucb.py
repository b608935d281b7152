"""PAK-UCB: of two generators each is better for some prompts; the choice follows the prompt."""

from __future__ import annotations

import numpy as np

from experiments.shared.check import Check, control, mean_above, mean_below, mean_near
from jaxgen.selection.pak_ucb import (
    Choices,
    Regressor,
    choose,
    fourier_ridge,
    gaussian_kernel,
    kernel_ridge,
)

PAPER = (
    "PAK-UCB Contextual Bandit: An Online Learning Approach to Prompt-Aware Selection of "
    "Generative Models and LLMs"
)
ENTRY = "jaxgen.selection.pak_ucb.choose"
ROUNDS, SEEDS, NOISE, LENGTH, ETA = 300, 6, 0.1, 0.7, 0.3


def mean_score(arm: int, x: np.ndarray) -> np.ndarray:
    """Mean score of each arm at contexts [..., 2]; they cross on a slanted curve."""
    if arm == 0:
        return 0.6 * np.tanh(2 * x[..., 0] + 0.8 * x[..., 1])
    return 0.2 - 0.4 * np.sin(1.5 * x[..., 0] - 0.4)


def checks() -> list[Check]:
    """Regret, choices at new contexts, and features that approach the kernel."""
    results = []
    exact = kernel_ridge(2, gaussian_kernel(LENGTH), alpha=0.1)
    fourier = [fourier_ridge(2, 128, LENGTH, alpha=0.1, seed=s) for s in range(SEEDS)]
    blind = kernel_ridge(2, lambda x, y: np.ones((len(x), len(y))), alpha=0.1)
    runs = {
        "PAK-UCB": [_run(exact, s) for s in range(SEEDS)],
        "RFF-UCB": [_run(fourier[s], s) for s in range(SEEDS)],
    }
    agnostic = [_run(blind, s) for s in range(SEEDS)]
    regressors = {"PAK-UCB": [exact] * SEEDS, "RFF-UCB": fourier}

    for name, each in runs.items():
        # Sublinear regret: a round costs ever less. Blind, it costs what it cost at first.
        check = f"{name}: regret a round in the last third"
        results.append(mean_below(check, [_regret(c, s, 2) for s, c in enumerate(each)], 0.01))
        late = [_regret(c, s, 2) for s, c in enumerate(agnostic)]
        results.append(control(mean_below(check, late, 0.01)))
        check = f"{name}: share of right choices in the second half"
        results.append(mean_above(check, [_right(c, s) for s, c in enumerate(each)], 0.9))
        results.append(
            control(mean_above(check, [_right(c, s) for s, c in enumerate(agnostic)], 0.9))
        )
        check = f"{name}: root mean square error of the better arm's prediction"
        errors = [_error(c, r) for c, r in zip(each, regressors[name], strict=True)]
        results.append(mean_below(check, errors, 0.08))
        blind_errors = [_error(c, blind) for c in agnostic]
        results.append(control(mean_below(check, blind_errors, 0.08)))

    # Linear regret without the prompt.
    check = "prompt-agnostic: regret of the last third over that of the first"
    ratios = [_regret(c, s, 2) / _regret(c, s, 0) for s, c in enumerate(agnostic)]
    results.append(mean_near(check, ratios, 1.0, 0.4))
    ours = [_regret(c, s, 2) / _regret(c, s, 0) for s, c in enumerate(runs["RFF-UCB"])]
    results.append(control(mean_near(check, ours, 1.0, 0.4)))

    # The features' kernel is an average over waves, so its error falls as 1 / sqrt(features).
    slopes = [_slope(s) for s in range(24)]
    check = "order of the features' predictions in their number"
    results.append(mean_near(check, slopes, -0.5, 0.15))
    results.append(
        control(mean_near(check, [_slope(s, 0.5 * LENGTH) for s in range(24)], -0.5, 0.15))
    )
    return results


def _contexts(seed: int) -> np.ndarray:
    return np.random.default_rng([seed, 1]).uniform(-1, 1, (ROUNDS, 2))


def _generator(arm: int):
    def score(seed: int, context: np.ndarray) -> float:
        return float(mean_score(arm, context) + NOISE * np.random.default_rng([seed, arm]).normal())

    return score


def _run(regressor: Regressor, seed: int) -> Choices:
    generators = [_generator(arm) for arm in (0, 1)]
    return choose(generators, _contexts(seed), regressor, eta=ETA, seed=seed)


def _means(seed: int) -> np.ndarray:
    return np.stack([mean_score(arm, _contexts(seed)) for arm in (0, 1)], 1)


def _regret(choices: Choices, seed: int, third: int) -> float:
    """Mean regret a round in a third of the rounds: 0, 1 or 2."""
    means = _means(seed)
    regret = means.max(1) - means[np.arange(ROUNDS), choices.arms]
    return float(np.split(regret, 3)[third].mean())


def _right(choices: Choices, seed: int) -> float:
    """Share of the second half's rounds that asked the better arm."""
    return float((choices.arms == _means(seed).argmax(1))[ROUNDS // 2 :].mean())


def _error(choices: Choices, regressor: Regressor) -> float:
    """Of the prediction at new contexts, for the arm that is better there."""
    new = np.random.default_rng(9).uniform(-1, 1, (100, 2))
    best = np.stack([mean_score(arm, new) for arm in (0, 1)], 1).argmax(1)
    off = [
        regressor.predict(choices.states[arm], x)[0] - mean_score(arm, x)
        for arm, x in zip(best, new, strict=True)
    ]
    return float(np.sqrt(np.mean(np.square(off))))


def _slope(seed: int, length: float = LENGTH) -> float:
    """d ln error / d ln features of the predictions against the exact kernel's."""
    rng = np.random.default_rng([seed, 2])
    x = rng.uniform(-1, 1, (60, 2))
    y = mean_score(0, x) + NOISE * rng.normal(size=60)
    new = rng.uniform(-1, 1, (40, 2))
    exact = kernel_ridge(2, gaussian_kernel(LENGTH), alpha=0.5)
    right = _predictions(exact, x, y, new)
    sizes = (32, 512)
    errors = [
        np.sqrt(
            np.mean(
                (_predictions(fourier_ridge(2, n, length, 0.5, seed=seed), x, y, new) - right) ** 2
            )
        )
        for n in sizes
    ]
    return float(np.log(errors[1] / errors[0]) / np.log(sizes[1] / sizes[0]))


def _predictions(regressor: Regressor, x: np.ndarray, y: np.ndarray, new: np.ndarray) -> np.ndarray:
    state = regressor.init()
    for context, score in zip(x, y, strict=True):
        state = regressor.add(state, context, float(score))
    return np.array([regressor.predict(state, context)[0] for context in new])
