"""DiffIER: with each iteration the model errs less, and less depends on the guidance weight."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from experiments.shared.check import Check, below, control, mean_above, mean_below, mean_near
from experiments.shared.toys import MEANS, PATH, SEEDS, STDS, estimate, of_all, of_class, points
from experiments.shared.toys import samples as drawn
from jaxgen.families.diffusion.core.denoiser import Denoiser
from jaxgen.families.diffusion.guidance.cfg import cfg
from jaxgen.families.diffusion.guidance.diffier import diffier, training_error

PAPER = "DiffIER: Optimizing Diffusion Models with Iterative Error Reduction"
ENTRY = "jaxgen.families.diffusion.guidance.diffier.diffier"
LABEL, WEIGHT, RATE, TIME = 2, 4.0, 0.5, 0.6


def checks() -> list[Check]:
    """No iteration, the error of each, where they lead in closed form, and the weight's effect."""
    cond, every = of_class(LABEL), of_all()
    plain = cfg(cond, every, WEIGHT)
    same = estimate(diffier(plain, iterations=0), TIME).x0 - estimate(plain, TIME).x0
    results = [below("change of x0 without iterations", jnp.abs(same).max(), 0.0)]

    # The error on noise that no iteration has seen, as a share of the one before: it goes as the
    # square of the way to the class's mean, .277, and a little is there at the mean, too.
    errors = jnp.stack([_errors(_after(k)) for k in range(5)])
    for k in range(1, 5):
        check = f"error after {k} over that after {k - 1}"
        results.append(mean_below(check, errors[k] / errors[k - 1], 0.3))
        results.append(control(mean_below(check, errors[k - 1] / errors[k - 1], 0.3)))

    # The class is N(m, v): an iteration leaves 1 - rate (sigma^2 / (alpha^2 v + sigma^2))^2 of the
    # way to m, in the mean over noise.
    alpha, sigma = PATH.alpha(jnp.float32(TIME)), PATH.sigma(jnp.float32(TIME))
    stays = 1 - RATE * (sigma**2 / (alpha**2 * STDS[LABEL] ** 2 + sigma**2)) ** 2
    distances = {k: _distances(_after(k)) for k in (0, 1, 3)}
    for k in (1, 3):
        check = f"way to the class's mean left after {k}"
        results.append(mean_near(check, distances[k] / distances[0], float(stays**k), 0.01))
        results.append(
            control(mean_near(check, distances[0] / distances[0], float(stays**k), 0.01))
        )

    # The mean of samples at w = 4 away from that at w = 1: .44 by CFG, .16 after two iterations.
    ends = {
        (w, k): drawn(diffier(cfg(cond, every, w), iterations=k, rate=RATE))
        for w in (1.0, WEIGHT)
        for k in (0, 2)
    }
    moved = {k: _length(ends[WEIGHT, k].mean(1) - ends[1.0, k].mean(1)) for k in (0, 2)}
    check = "effect of the weight on the mean, as a share of CFG's"
    results.append(mean_below(check, moved[2] / moved[0], 0.4))
    results.append(control(mean_below(check, moved[0] / moved[0], 0.4)))
    # It is not bought by samples that are all alike: the deviation is CFG's or nearly.
    spread = {k: ends[WEIGHT, k].std(1).mean(-1) for k in (0, 2)}
    results.append(mean_above("deviation at w = 4 over that of CFG", spread[2] / spread[0], 0.97))
    return results


def _length(x: jax.Array) -> jax.Array:
    return jnp.linalg.norm(x, axis=-1)


def _after(iterations: int) -> Denoiser:
    return diffier(cfg(of_class(LABEL), of_all(), WEIGHT), iterations=iterations, rate=RATE)


def _errors(denoiser: Denoiser) -> jax.Array:
    """[seeds] of the class's model at the estimate."""

    def error(seed: jax.Array) -> jax.Array:
        x0 = estimate(denoiser, TIME, seed).x0
        keys = jax.random.split(jax.random.key(100 + seed), len(x0))
        return training_error(of_class(LABEL), x0, jnp.float32(TIME), keys, 64).mean()

    return jax.jit(jax.vmap(error))(jnp.arange(SEEDS))


def _distances(denoiser: Denoiser) -> jax.Array:
    """[seeds] how far the mean of estimates is from the class's mean."""

    def distance(seed: jax.Array) -> jax.Array:
        keys, x = points(seed, 4096)
        x0 = denoiser(keys, x, jnp.float32(TIME), denoiser.init(x))[0].x0
        return _length(x0.mean(0) - MEANS[LABEL])

    return jax.jit(jax.vmap(distance))(jnp.arange(SEEDS))
