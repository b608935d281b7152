"""CFG++: a DDIM step that renoises with the unconditional noise is CFG at another weight."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from experiments.shared.check import Check, below, control
from experiments.shared.toys import SEEDS, of_all, of_class, of_point, samples
from jaxgen.families.diffusion import solvers
from jaxgen.families.diffusion.core import path as paths
from jaxgen.families.diffusion.core.denoiser import Denoiser
from jaxgen.families.diffusion.guidance.cfg import cfg
from jaxgen.families.diffusion.guidance.cfgpp import cfgpp

PAPER = "CFG++: Manifold-constrained Classifier Free Guidance for Diffusion Models"
ENTRY = "jaxgen.families.diffusion.guidance.cfgpp.cfgpp"
STEPS = ((0.9, 0.8), (0.6, 0.4), (0.3, 0.1))
SCALE = 0.6


def checks() -> list[Check]:
    """Its equivalence with CFG step by step, its identity, and where samples end."""
    results = []
    with jax.enable_x64(True):
        for name, path in (("cosine", paths.cosine()), ("linear", paths.linear())):
            gaps = {"cfgpp": 0.0, "cfg": 0.0}
            for seed in range(SEEDS):
                for t, s in STEPS:
                    gap = _gaps(path, t, s, seed)
                    gaps = {k: max(gaps[k], gap[k]) for k in gaps}
            check = f"step against DDIM of CFG at omega_t, {name} path"
            results.append(below(check, gaps["cfgpp"], 1e-12))
            results.append(control(below(check, gaps["cfg"], 1e-12)))

    cond, uncond = of_class(1), of_all()
    zero, free = samples(cfgpp(cfg(cond, uncond, 0.0))), samples(uncond)
    results.append(
        below("lambda=0 against the unconditional model", jnp.abs(zero - free).max(), 0.0)
    )

    # Point masses: x0 is bad + lambda (good - bad) at every step, so samples end between the two.
    good, bad = jnp.array([1.5, 0.5]), jnp.array([0.3, -0.9])
    end = bad + SCALE * (good - bad)
    out = samples(cfgpp(cfg(of_point(good), of_point(bad), SCALE)), steps=8, count=8)
    results.append(below("distance to bad + lambda (good - bad)", jnp.abs(out - end).max(), 1e-5))
    return results


def _gaps(path: paths.Path, t: float, s: float, seed: int) -> dict[str, float]:
    """Of CFG++'s step, and of CFG's at the same weight, from CFG's at the paper's omega_t."""
    cond, uncond = of_class(1, path), of_all(path)
    high, low = jnp.float64(t), jnp.float64(s)
    c1 = -path.alpha(low) * path.sigma(high) / path.alpha(high)
    omega = float(SCALE * c1 / (c1 + path.sigma(low)))
    x = jax.random.normal(jax.random.key(seed), (64, 2), jnp.float64)
    keys = jax.random.split(jax.random.key(seed + 100), 64)

    def step(denoiser: Denoiser) -> jax.Array:
        carry = ((), denoiser.init(x))
        return solvers.ddim(path).step(denoiser, x, high, low, carry, keys)[0]

    exact = step(cfg(cond, uncond, omega))
    pairs = {"cfgpp": cfgpp(cfg(cond, uncond, SCALE)), "cfg": cfg(cond, uncond, SCALE)}
    return {name: float(jnp.abs(step(d) - exact).max()) for name, d in pairs.items()}
