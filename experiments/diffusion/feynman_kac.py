"""Feynman-Kac correctors: powers, quotients and products of mixtures, against quadrature."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shared.check import Check, control, mean_near
from experiments.shared.toys import MEANS, SEEDS, STDS, WEIGHTS
from jaxgen.families.diffusion.core import grids
from jaxgen.families.diffusion.core import path as paths
from jaxgen.families.diffusion.core.denoiser import Denoiser
from jaxgen.steer.feynman_kac import Corrector, annealed, geometric, product
from jaxgen.testing import mixture_denoiser, mixture_log_prob

PAPER = "Feynman-Kac Correctors in Diffusion: Annealing, Guidance, and Product of Experts"
ENTRY = "jaxgen.steer.feynman_kac.power_product"

# Variance exploding, from where a mixture of width 1 is nearly N(0, 12^2), to 0.
PATH = paths.edm(0.03, 12.0)
GRID = grids.karras(300, PATH)
COUNT, NOISE = 2000, 3.0
Mixture = tuple[np.ndarray, np.ndarray, np.ndarray]
ALL: Mixture = (MEANS, STDS, WEIGHTS)
PART: Mixture = (MEANS[[0, 1]], STDS[[0, 1]], np.array([0.3, 0.7]))
FIRST: Mixture = (np.array([[-1.5, 0.0], [1.5, 0.3]]), np.array([0.4, 0.9]), np.array([0.5, 0.5]))
SECOND: Mixture = (np.array([[-1.0, 0.5], [1.2, -0.2]]), np.array([0.6, 0.9]), np.array([0.3, 0.7]))


def exact(mixtures: list[Mixture], powers: list[float]) -> tuple[float, float, float]:
    """(P(x_1 > 0), mean of x_1, ln of the integral) of a product of powers, by quadrature."""
    step = 0.02
    axis = np.arange(-6, 6, step) + step / 2
    where = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    log = np.zeros(len(where))
    for mixture, power in zip(mixtures, powers, strict=True):
        density = mixture_log_prob(PATH, jnp.asarray(where), jnp.float32(0), *mixture)
        log += power * np.asarray(density, np.float64)
    mass = np.exp(log) * step**2
    share = mass / mass.sum()
    x = where[:, 0]
    return float(share @ (x > 0)), float(share @ x), float(np.log(mass.sum()))


def reweighted(corrector: Corrector, weighted: bool) -> np.ndarray:
    """(P(x_1 > 0), mean of x_1, log-normaliser) [seeds, 3]; unweighted: as if all weighed 1."""
    rows = []
    run = jax.jit(corrector.fn)
    for seed in range(SEEDS):
        out = run(jax.random.split(jax.random.key(seed), COUNT if weighted else COUNT // 2))
        if not weighted:
            out = out._replace(log_weights=0 * out.log_weights)
        x = out.x[:, 0]
        rows.append([out.mean(x > 0), out.mean(x), out.log_normaliser])
    return np.asarray(rows)


def of(mixture: Mixture) -> Denoiser:
    """The exact denoiser of a mixture."""
    return mixture_denoiser(PATH, *mixture)


def checks() -> list[Check]:
    """Each law with weights; of the power, also what the scaled score alone gives."""
    cases: list[tuple[str, Callable[..., Corrector], list[Denoiser], list[float], list[Mixture]]]
    cases = [
        ("q^1.5", lambda d, **how: annealed(d, 1.5, GRID, (2,), noise=NOISE, **how),
         [of(FIRST)], [1.5], [FIRST]),
        ("q1^-1 q2^2", lambda d, e, **how: geometric(d, e, 2.0, GRID, (2,), noise=NOISE, **how),
         [of(ALL), of(PART)], [-1.0, 2.0], [ALL, PART]),
        ("q1 q2", lambda d, e, **how: product(d, e, GRID, (2,), noise=NOISE, **how),
         [of(FIRST), of(SECOND)], [1.0, 1.0], [FIRST, SECOND]),
    ]  # fmt: skip
    out = []
    for name, make, denoisers, powers, mixtures in cases:
        right, mean, log = exact(mixtures, powers)
        steered = reweighted(make(*denoisers), True)
        check, shown = f"{name}: P(x_1 > 0)", f"{name}: mean of x_1"
        out.append(mean_near(check, steered[:, 0], right, 0.04))
        out.append(mean_near(shown, steered[:, 1], mean, 0.1))
        # The weights' integral is of first order in the step: 300 steps leave up to 0.1 nat.
        out.append(mean_near(f"{name}: ln of its integral", steered[:, 2], log, 0.18))
        if len(denoisers) == 1:
            plain = reweighted(make(*denoisers, threshold=0), False)
            out.append(control(mean_near(check, plain[:, 0], right, 0.04)))
            out.append(control(mean_near(shown, plain[:, 1], mean, 0.1)))
    return out
