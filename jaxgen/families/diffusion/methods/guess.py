"""DiffuseVAE: a diffusion that starts from another model's guess of the image and refines it.

Pandey et al. (2022). A guess g (there, a VAE's reconstruction or sample) is drawn first; the
diffusion then samples x0 given g. Formulation 1 is told g beside x_t, and noise stays N(0, I).
Formulation 2 also moves the whole forward process onto it: q(x_t | x0, g) = N(alpha x0 + g,
sigma^2 I), so that it starts from N(g, I).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.families.diffusion.core.denoiser import Denoiser, Memory
from jaxgen.families.diffusion.core.path import Path
from jaxgen.families.diffusion.core.prediction import Prediction
from jaxgen.families.diffusion.core.sampler import integrate, prior
from jaxgen.families.diffusion.solvers.base import Solver
from jaxgen.method import fold

Reconstruct = Callable[[jax.Array], jax.Array]
"""keys [B] -> guesses [B, ...]: z from its prior (or a distribution fitted to the codes), then
decoded."""

Refiner = Callable[[jax.Array], Denoiser]
"""guesses [B, ...] -> the denoiser of x_t given them; x_t has the guess in it in formulation 2."""

GUESS = 2
"""What a sample's key is folded with for its guess; `integrate` has 0 and 1."""


def beside(denoise: Callable[[jax.Array, jax.Array], Prediction], path: Path) -> Refiner:
    """Formulation 1's refiner: denoise([x_t, g] [B, ..., 2 C], t) -> Prediction of C channels."""

    def refiner(guess: jax.Array) -> Denoiser:
        def call(
            keys: jax.Array, x: jax.Array, t: jax.Array, memory: Memory
        ) -> tuple[Prediction, Memory]:
            return denoise(jnp.concatenate([x, guess], axis=-1), t), memory

        return Denoiser(call, path=path)

    return refiner


def noised(
    path: Path, x0: jax.Array, guess: jax.Array, eps: jax.Array, t: jax.Array, *, moved: bool = True
) -> jax.Array:
    """x_t to train a refiner on, [B, ...]: alpha x0 + sigma eps, plus the guess where it is moved.

    x0, guess, eps [B, ...], t [] or [B]. What is predicted from it is as ever x0 or eps, or any
    other of `prediction.KINDS` (a velocity is then that of x_t - guess).
    """
    x = path.mix(x0, eps, t)
    return x + guess if moved else x


def moved(refiner: Refiner) -> Refiner:
    """A refiner of formulation 2 as one that solvers can use: in the coordinate y_t = x_t - g.

    There the path is the usual one, alpha x0 + sigma eps from N(0, I) to x0, and the denoiser sees
    y_t + g. So every solver and every guidance holds for it as it is.
    """

    def shifted(guess: jax.Array) -> Denoiser:
        denoiser = refiner(guess)

        def call(
            keys: jax.Array, y: jax.Array, t: jax.Array, memory: Memory
        ) -> tuple[Prediction, Memory]:
            return denoiser(keys, y + guess, t, memory)

        return Denoiser(
            call, init=lambda y: denoiser.init(y + guess), calls=denoiser.calls, path=denoiser.path
        )

    return shifted


def refined(
    solver: Solver,
    refiner: Refiner,
    reconstruct: Reconstruct,
    path: Path,
    grid: jax.Array,
    keys: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """(samples, their guesses) for keys [B], [B, ...] each; `moved(refiner)` for formulation 2.

    A sample depends on its own key alone, and its guess is drawn from another key than its noise.
    """
    guess = reconstruct(fold(keys, GUESS))
    x = prior(path, keys, guess.shape[1:])
    samples: Any = integrate(solver, refiner(guess), x, grid, keys)
    return samples, guess
