"""PAK-UCB (Hu, Leung & Farnia 2025): the best generator for each prompt, learnt prompt by prompt.

Each generator is an arm with a ridge regression of its own, from a context (a prompt's embedding, a
label's) to the score of what it made. Every round asks the arm with the largest prediction plus
`eta` widths of its posterior. `kernel_ridge` is exact, and a round costs O(n^2) after n; of
`fourier_ridge` a round costs the same however long it goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxgen.errors import invalid

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]
# (seed, context [p]) -> the score of one sample; no seed is given twice.
Scored = Callable[[int, np.ndarray], float]


class Regressor(NamedTuple):
    """A regression that learns one example at a time.

    init: () -> state. add: (state, context [p], score) -> state. predict: (state, context [p]) ->
    (mean, width), the width in units of the mean's uncertainty for noise of variance 1.
    """

    init: Callable[[], Any]
    add: Callable[[Any, np.ndarray, float], Any]
    predict: Callable[[Any, np.ndarray], tuple[float, float]]


class Choices(NamedTuple):
    """arms int [T], scores [T], and the arms' regressions at the end (`Regressor` states)."""

    arms: np.ndarray
    scores: np.ndarray
    states: list[Any]


def choose(
    generators: Sequence[Scored],
    contexts: np.ndarray,
    regressor: Regressor,
    *,
    eta: float | None = None,
    delta: float = 0.05,
    seed: int = 0,
) -> Choices:
    """One generator for each context [T, p] in turn, by an upper confidence bound of its score.

    generators: functions (seed, context) -> score in about [-1, 1]. The first rounds ask each once.
    eta: how many widths optimism is worth (None: the paper's sqrt(2 ln(2 T G / delta))). Raises
    UsageError for contexts that are not [T, p], T >= G, and scores that are not finite.
    """
    contexts = np.asarray(contexts, np.float64)
    arms = len(generators)
    if arms < 1:
        raise invalid("generators", f"{arms} of them", "1 or more")
    if contexts.ndim != 2 or len(contexts) < arms or not np.isfinite(contexts).all():
        raise invalid("contexts", contexts.shape, f"finite numbers [T, p] with T >= {arms}")
    if not 0 < delta < 1:
        raise invalid("delta", delta, "0 to 1, both excluded")
    if eta is None:
        eta = float(np.sqrt(2 * np.log(2 * len(contexts) * arms / delta)))
    states = [regressor.init() for _ in generators]
    chosen, scores = np.empty(len(contexts), int), np.empty(len(contexts))
    for place, context in enumerate(contexts):
        arm = place
        if place >= arms:
            predictions = [regressor.predict(state, context) for state in states]
            arm = int(np.argmax([mean + eta * width for mean, width in predictions]))
        score = float(generators[arm](seed * len(contexts) + place, context))
        if not np.isfinite(score):
            raise invalid(f"generators[{arm}]", f"a score of {score}", "finite scores")
        states[arm] = regressor.add(states[arm], context, score)
        chosen[place], scores[place] = arm, score
    return Choices(chosen, scores, states)


def gaussian_kernel(length: float) -> Kernel:
    """k(x, y) = exp(-|x - y|^2 / (2 length^2)): x [n, p], y [m, p] -> [n, m]."""
    if not length > 0:
        raise invalid("length", length, "> 0")

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        apart = x[:, None] - y[None]
        return np.exp(-(apart**2).sum(-1) / (2 * length**2))

    return kernel


class KernelState(NamedTuple):
    """contexts [n, p], scores [n], inverse [n, n] of K + alpha."""

    contexts: np.ndarray
    scores: np.ndarray
    inverse: np.ndarray


def kernel_ridge(dimension: int, kernel: Kernel, alpha: float = 1.0) -> Regressor:
    """Kernel ridge regression of contexts [dimension]: as the paper has it.

    mean = k^T (K + alpha)^-1 s, width = sqrt((k(x, x) - k^T (K + alpha)^-1 k) / alpha). The inverse
    grows by a row and a column (the inverse of a partitioned matrix).
    """
    _check_ridge(dimension, alpha)

    def init() -> KernelState:
        return KernelState(np.empty((0, dimension)), np.empty(0), np.empty((0, 0)))

    def add(state: KernelState, context: np.ndarray, score: float) -> KernelState:
        x = context[None]
        column = kernel(state.contexts, x)[:, 0]
        solved = state.inverse @ column
        rest = float(kernel(x, x)[0, 0]) + alpha - column @ solved
        inverse = np.block(
            [
                [state.inverse + np.outer(solved, solved) / rest, -solved[:, None] / rest],
                [-solved[None] / rest, np.full((1, 1), 1 / rest)],
            ]
        )
        return KernelState(
            np.concatenate([state.contexts, x]), np.append(state.scores, score), inverse
        )

    def predict(state: KernelState, context: np.ndarray) -> tuple[float, float]:
        x = context[None]
        column = kernel(state.contexts, x)[:, 0]
        solved = state.inverse @ column
        left = float(kernel(x, x)[0, 0]) - column @ solved
        return float(solved @ state.scores), float(np.sqrt(max(left, 0.0) / alpha))

    return Regressor(init, add, predict)


class FourierState(NamedTuple):
    """inverse [m, m] of the sum of phi phi^T, plus alpha; total [m]: the sum of phi s."""

    inverse: np.ndarray
    total: np.ndarray


def fourier_ridge(
    dimension: int, features: int, length: float, alpha: float = 1.0, *, seed: int = 0
) -> Regressor:
    """Ridge regression on random Fourier features of the Gaussian kernel (RFF-UCB).

    phi(x) = [cos w_i x, sin w_i x] sqrt(2 / features), w_i ~ N(0, 1 / length^2) (Rahimi & Recht
    2007, the form whose phi(x).phi(x) is 1). mean = phi^T A^-1 b, width = sqrt(phi^T A^-1 phi),
    with A^-1 kept by Sherman and Morrison's rank-one formula. features: an even number.
    """
    _check_ridge(dimension, alpha)
    if features < 2 or features % 2:
        raise invalid("features", features, "an even number >= 2")
    if not length > 0:
        raise invalid("length", length, "> 0")
    waves = np.random.default_rng(seed).normal(0, 1 / length, (features // 2, dimension))

    def phi(context: np.ndarray) -> np.ndarray:
        angles = waves @ context
        return np.concatenate([np.cos(angles), np.sin(angles)]) * np.sqrt(2 / features)

    def init() -> FourierState:
        return FourierState(np.eye(features) / alpha, np.zeros(features))

    def add(state: FourierState, context: np.ndarray, score: float) -> FourierState:
        x = phi(context)
        solved = state.inverse @ x
        inverse = state.inverse - np.outer(solved, solved) / (1 + x @ solved)
        return FourierState(inverse, state.total + score * x)

    def predict(state: FourierState, context: np.ndarray) -> tuple[float, float]:
        x = phi(context)
        solved = state.inverse @ x
        return float(solved @ state.total), float(np.sqrt(max(x @ solved, 0.0)))

    return Regressor(init, add, predict)


def _check_ridge(dimension: int, alpha: float) -> None:
    if dimension < 1:
        raise invalid("dimension", dimension, ">= 1")
    if not alpha > 0:
        raise invalid("alpha", alpha, "> 0")
