"""DiffuseVAE: a Gaussian's guess, refined by both formulations with exact denoisers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shared.check import Check, control, mean_near
from experiments.shared.quick import quick_jit
from jaxgen.families.diffusion import solvers
from jaxgen.families.diffusion.core import grids
from jaxgen.families.diffusion.core.denoiser import Denoiser
from jaxgen.families.diffusion.core.path import vp_linear
from jaxgen.families.diffusion.core.prediction import Prediction
from jaxgen.families.diffusion.methods.guess import Refiner, beside, moved, noised, refined
from jaxgen.method import fold, normal
from jaxgen.testing import gaussian_denoiser

PAPER = (
    "DiffuseVAE: Efficient, Controllable and High-Fidelity Generation from Low-Dimensional Latents"
)
ENTRY = "jaxgen.families.diffusion.methods.guess.refined"
PATH, SEEDS, COUNT, STEPS = vp_linear(), 5, 2000, 64
MEAN = jnp.array([1.0, -0.5])
LOADING, REST = jnp.array([0.9, 0.6]), 0.3
"""Data x0 = MEAN + LOADING z + REST e, z one number: a probabilistic PCA, so the VAE's exact
decoder is MEAN + LOADING z, and x0 given it is N(guess, REST^2 I)."""


def reconstruct(keys: jax.Array) -> jax.Array:
    """The decoder at z from its prior, [B, 2]."""
    return MEAN + LOADING * normal(keys, (1,))


def alone(guess: jax.Array) -> Denoiser:
    """The exact denoiser of x0 given its guess, at alpha x0 + sigma eps."""
    return gaussian_denoiser(PATH, guess, REST)


def concatenated(both: jax.Array, t: jax.Array) -> Prediction:
    """The same as a function of [x_t, guess]."""
    x, guess = jnp.split(both, 2, axis=-1)
    return alone(guess)(None, x, t)[0]


def wrong(both: jax.Array, t: jax.Array) -> Prediction:
    """`concatenated` with the next image's guess."""
    return concatenated(jnp.concatenate([both[:, :2], jnp.roll(both[:, 2:], 1, 0)], -1), t)


def on_guess(guess: jax.Array) -> Denoiser:
    """The exact denoiser of x0 at formulation 2's x_t, which has the guess in it."""
    return Denoiser(lambda keys, x, t, memory: alone(guess)(keys, x - guess, t, memory), path=PATH)


def moments(refiner: Refiner) -> dict[str, np.ndarray]:
    """Moments of samples, [SEEDS] each."""
    keys = jnp.concatenate([jax.random.split(jax.random.key(s), COUNT) for s in range(SEEDS)])
    grid = grids.uniform(STEPS, PATH)
    run = quick_jit(lambda k: refined(solvers.heun(PATH), refiner, reconstruct, PATH, grid, k))
    x, guess = (np.asarray(a, np.float64).reshape(SEEDS, COUNT, 2) for a in run(keys))
    cov = np.stack([np.cov(a.T) for a in x])
    return {
        "mean of the first": x[..., 0].mean(1),
        "mean of the second": x[..., 1].mean(1),
        "variance of the first": cov[:, 0, 0],
        "covariance": cov[:, 0, 1],
        "distance to the guess, squared": ((x - guess) ** 2).mean((1, 2)),
    }


EXACT = {
    "mean of the first": 1.0,
    "mean of the second": -0.5,
    "variance of the first": 0.9**2 + REST**2,
    "covariance": 0.9 * 0.6,
    "distance to the guess, squared": REST**2,
}
BOUND = {name: 0.06 for name in EXACT} | {"distance to the guess, squared": 0.01}


def weight_of_guess(seed: int, t: float, is_moved: bool) -> float:
    """The guess's coefficient in the least-squares line of eps on (x_t, guess, 1)."""
    keys = jax.random.split(jax.random.key(seed), 20_000)
    guess = reconstruct(fold(keys, 5))
    x0, eps = guess + REST * normal(fold(keys, 6), (2,)), normal(fold(keys, 7), (2,))
    x = noised(PATH, x0, guess, eps, jnp.float32(t), moved=is_moved)
    columns = np.stack([x[:, 0], guess[:, 0], np.ones(len(x))], 1).astype(np.float64)
    return float(np.linalg.lstsq(columns, np.asarray(eps[:, 0], np.float64), rcond=None)[0][1])


def checks() -> list[Check]:
    """Moments of both formulations' samples; controls run each without its guess."""
    results = []
    without = {
        # From N(0, I) in x_t itself, where formulation 2's process is not.
        "2": ("from N(0, I)", moved(on_guess), on_guess),
        # Told another image's guess.
        "1": ("another's guess", beside(concatenated, PATH), beside(wrong, PATH)),
    }
    for number, (how, refiner, broken) in without.items():
        right, off = moments(refiner), moments(broken)
        for name, value in EXACT.items():
            check = f"formulation {number}: {name}"
            results.append(mean_near(check, right[name], value, BOUND[name]))
            if number == "2" or "distance" in name:
                results.append(control(mean_near(f"{check}, {how}", off[name], value, BOUND[name])))

    # What the training pairs ask of a network: eps of x_t, g is normal and known.
    t = jnp.float32(0.4)
    alpha, sigma = float(PATH.alpha(t)), float(PATH.sigma(t))
    scale = sigma / ((alpha * REST) ** 2 + sigma**2)
    slopes = {m: [weight_of_guess(s, 0.4, m) for s in range(SEEDS)] for m in (True, False)}
    check = "the guess's weight in the best eps at t=0.4, formulation"
    results.append(mean_near(f"{check} 2", slopes[True], -scale * (1 + alpha), 0.02))
    results.append(mean_near(f"{check} 1", slopes[False], -scale * alpha, 0.02))
    results.append(control(mean_near(f"{check} 2, not moved", slopes[False], -scale * (1 + alpha),
                                   0.02)))  # fmt: skip
    return results
