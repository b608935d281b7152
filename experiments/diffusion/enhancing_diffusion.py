"""The DDPM recipe piece by piece: eps loss with dropped labels, DDIM in 50 steps, eta, guidance."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from experiments.shared.check import Check, below, control, mean_below, mean_near
from experiments.shared.linear_fit import only
from experiments.shared.toys import MEANS, SEEDS, STDS, of_class, samples
from jaxgen.families.diffusion import solvers
from jaxgen.families.diffusion.core import grids, path
from jaxgen.families.diffusion.core.denoiser import Network
from jaxgen.families.diffusion.core.weighting import simple
from jaxgen.families.diffusion.guidance.cfg import cfg
from jaxgen.families.diffusion.terms.loss import denoising_loss
from jaxgen.testing import gaussian_denoiser, run_solver

PAPER = "Enhancing Diffusion Models for High-Quality Image Generation"
ENTRY = "jaxgen.families.diffusion.methods.denoising.denoising"
PATHS = {"linear schedule": path.vp_linear(), "cosine schedule": path.cosine()}
TIME, SIZE, DROPPED = 0.4, 20_000, 0.3


class Lines(nn.Module):
    """A line in x for each of two labels and for "no label"."""

    @nn.compact
    def __call__(self, x: jax.Array, noise: Any, labels: Any, *, train: bool = False) -> jax.Array:
        """x [B, 1], labels [B] -> [B, 1]."""
        slope, bias = (self.param(n, nn.initializers.zeros, (3,)) for n in ("slope", "bias"))
        return slope[labels, None] * x + bias[labels, None]


def checks() -> list[Check]:
    """Training in closed form, then sampling of Gaussians whose law is known."""
    results = []
    slopes = jax.vmap(_slopes)(jax.vmap(jax.random.key)(jnp.arange(SEEDS)))
    for row, name in enumerate(("label 0", "label 1", "no label")):
        error = jnp.abs(slopes[:, row] / _best(row) - 1)
        results.append(mean_below(f"slope of eps off by, {name}", error, 0.03))
    # Without dropped labels "no label" would have to be one of the classes.
    error = jnp.abs(slopes[:, 2] / _best(0) - 1)
    results.append(control(mean_below("slope of eps off by, label 0's for none", error, 0.03)))

    for name, schedule in PATHS.items():
        for steps in (50, 2):
            grid = grids.uniform(steps, schedule)
            x = samples(
                of_class(2, schedule), path=schedule, solver=solvers.ddim(schedule), grid=grid
            )
            deviation = (x - MEANS[2]).std((1, 2))
            check = f"deviation of DDIM's samples, {name}, {steps} steps"
            check = mean_near(check, deviation, STDS[2], 0.04)
            results.append(check if steps == 50 else control(check))
            if steps == 50:
                gap = jnp.abs(x.mean(1) - MEANS[2]).max(1)
                results.append(mean_below(f"mean of DDIM's samples off by, {name}", gap, 0.05))
    results += _noise(PATHS["linear schedule"])

    # Two Gaussians of one deviation: guided by w, a third one with a mean on their line.
    schedule, weight = PATHS["cosine schedule"], 3.0
    good, bad = (gaussian_denoiser(schedule, m, 0.4) for m in (0.6, -0.2))
    times, noise = grids.uniform(50, schedule), jax.random.normal(jax.random.key(1), (256, 2))
    guided = gaussian_denoiser(schedule, -0.2 + 0.8 * weight, 0.4)
    third = run_solver(solvers.ddim(schedule), guided, noise, times)
    check = "samples guided by 3, off by"
    for w in (weight, 1.0):
        x = run_solver(solvers.ddim(schedule), cfg(good, bad, w), noise, times)
        value = below(check, jnp.abs(x - third).max(), 1e-4)
        results.append(value if w == weight else control(value))
    return results


def _data(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x0 [SIZE, 1] of two classes, N(.8, .3^2) with share .25 and N(-.4, .6^2), and labels."""
    label_key, noise = jax.random.split(key)
    label = (jax.random.uniform(label_key, (SIZE,)) > 0.25).astype(jnp.int32)
    z = jax.random.normal(noise, (SIZE, 1))
    return jnp.where(label[:, None] == 0, 0.8 + 0.3 * z, -0.4 + 0.6 * z), label


def _best(row: int) -> float:
    """The slope of the best line for eps at TIME: sigma / (alpha^2 var + sigma^2)."""
    schedule = PATHS["cosine schedule"]
    alpha, sigma = (float(f(jnp.float32(TIME))) for f in (schedule.alpha, schedule.sigma))
    within, between = 0.25 * 0.3**2 + 0.75 * 0.6**2, 0.25 * 0.75 * 1.2**2
    return sigma / (alpha**2 * [0.3**2, 0.6**2, within + between][row] + sigma**2)


def _slopes(key: jax.Array) -> jax.Array:
    """The slopes [3] that minimise the library's own eps loss, by one step of Newton's method."""
    image, label = _data(key)
    model = Lines()
    loss = denoising_loss(Network(model, PATHS["cosine schedule"], "eps"), only(TIME), simple(),
                          num_classes=2, label_dropout=DROPPED)  # fmt: skip
    batch = {"image": image, "label": label, "index": jnp.arange(SIZE), "microbatch": jnp.int32(0)}
    start = model.init(key, image[:1], jnp.zeros(1), label[:1])["params"]
    flat, back = ravel_pytree(start)

    def value(theta: jax.Array) -> jax.Array:
        return loss({"net": back(theta)}, batch, key, {"times": ()})[0]

    step = jnp.linalg.solve(jax.hessian(value)(flat), jax.grad(value)(flat))
    return back(flat - step)["slope"]


def _noise(schedule: path.Path) -> list[Check]:
    """A step's noise at eta = 1 against DDPM's beta-tilde, from the cumulated alphas alone."""
    results, x = [], jnp.full((4000, 5), 0.3)
    late, early = (float(schedule.alpha(jnp.float32(t))) ** 2 for t in (0.5, 0.48))
    posterior = (1 - early) / (1 - late) * (1 - late / early)
    for eta in (1.0, 0.5):
        step = run_solver(
            solvers.ddim(schedule, eta=eta),
            gaussian_denoiser(schedule, 0.0, 0.0),
            x,
            jnp.array([0.5, 0.48]),
        )
        check = f"variance of a step over DDPM's, eta={eta:g}"
        check = mean_near(check, step.var(0) / posterior, 1.0, 0.05)
        results.append(check if eta == 1 else control(check))
    return results
