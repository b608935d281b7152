"""What every solver and every guidance draws in the plane, where the right answer is known.

    python -m experiments.studies.gallery --out docs

`gallery_solvers.png`: an asymmetric mixture with its exact score, 8 steps of each solver from the
same noise. `gallery_guidance.png`: one component of it guided against the whole mixture, 16 steps
of Heun, with the guidance written above each panel. Grey: the density of the mixture.
"""

from __future__ import annotations

import argparse
import inspect
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments.benchmarks.orders import make, variants
from jaxgen.families.diffusion import solvers
from jaxgen.families.diffusion.core import grids, path
from jaxgen.families.diffusion.core.denoiser import Denoiser
from jaxgen.families.diffusion.guidance.adaptive import adaptive_guidance
from jaxgen.families.diffusion.guidance.apg import apg
from jaxgen.families.diffusion.guidance.autoguidance import autoguidance
from jaxgen.families.diffusion.guidance.cfg import cfg
from jaxgen.families.diffusion.guidance.cfg_zero import cfg_zero, zero_init
from jaxgen.families.diffusion.guidance.cfgpp import cfgpp
from jaxgen.families.diffusion.guidance.classifier import classifier
from jaxgen.families.diffusion.guidance.composition import mixture, product
from jaxgen.families.diffusion.guidance.diffier import diffier
from jaxgen.families.diffusion.guidance.dynamic_cfg import dynamic_cfg
from jaxgen.families.diffusion.guidance.elucd import elucd
from jaxgen.families.diffusion.guidance.event import above, equals
from jaxgen.families.diffusion.guidance.gfcg import gfcg
from jaxgen.families.diffusion.guidance.interval import limit
from jaxgen.families.diffusion.guidance.multi import sine, spatext
from jaxgen.families.diffusion.guidance.rescale import rescale
from jaxgen.families.diffusion.guidance.semantic import sdg
from jaxgen.families.diffusion.guidance.stitch import stitch
from jaxgen.families.diffusion.guidance.threshold import dynamic, static
from jaxgen.families.diffusion.guidance.universal import backward, universal
from jaxgen.testing import ASYMMETRIC, mixture_denoiser, mixture_log_prob, run_solver

WAY = path.linear()
MEANS, STDS, WEIGHTS = map(jnp.asarray, ASYMMETRIC)
SIZE, STEPS, FINE = 500, 8, 16
GRID = grids.uniform(FINE, WAY)


def part(*components: int, wider: float = 1.0) -> Denoiser:
    """The exact denoiser of some of the mixture's components, with deviations `wider` times."""
    chosen = jnp.asarray(components)
    weights = WEIGHTS[chosen] / WEIGHTS[chosen].sum()
    return mixture_denoiser(WAY, MEANS[chosen], wider * STDS[chosen], weights)


ONE, ALL, WEAK = part(0), part(0, 1, 2), part(0, wider=1.6)
LABELS = jnp.zeros(SIZE, jnp.int32)


def logits(x: jax.Array, t: jax.Array) -> jax.Array:
    """ln p(component, x) of the data at x, [B, 3]: an exact classifier of clean points."""
    of = lambda k: mixture_log_prob(WAY, x, jnp.float32(0), MEANS[k], STDS[k], WEIGHTS[k])
    return jnp.stack([of(jnp.array([k])) for k in range(3)], -1)


def by_noise(x: jax.Array, t: jax.Array) -> jax.Array:
    """ln p(first component | x_t), [B]."""
    of = lambda k: mixture_log_prob(WAY, x, t, MEANS[k], STDS[k], WEIGHTS[k])
    return of(jnp.array([0])) - of(jnp.array([0, 1, 2]))


def by_label(labels: jax.Array) -> Denoiser:
    """The exact denoiser of each example's own component."""
    means, stds = MEANS[labels], STDS[labels]

    def call(keys: jax.Array, x: jax.Array, t: jax.Array, memory: Any) -> Any:
        own = lambda x, m, s: mixture_denoiser(WAY, m[None], s[None], jnp.ones(1))(
            None, x[None], t, ()
        )[0]
        p = jax.vmap(own)(x, means, stds)
        return jax.tree.map(lambda a: a[:, 0], p), memory

    return Denoiser(call, path=WAY)


def clean(x: jax.Array, t: jax.Array) -> jax.Array:
    """ln p(first component | x) of clean points."""
    return jax.nn.log_softmax(logits(x, t))[:, 0]


def height(x: jax.Array) -> jax.Array:
    """The second coordinate, for events."""
    return x[:, 1]


GUIDANCE: Mapping[str, Callable[[], Denoiser]] = {
    "no guidance": lambda: ONE,
    "cfg(one, all, 3)": lambda: cfg(ONE, ALL, 3.0),
    "autoguidance(one, weak, 2)": lambda: autoguidance(ONE, WEAK, 2.0),
    "limit(cfg 3, 0.2, 0.8)": lambda: limit(cfg(ONE, ALL, 3.0), 0.2, 0.8),
    "apg(cfg 5)": lambda: apg(cfg(ONE, ALL, 5.0), momentum=-0.5, radius=2.0),
    "cfgpp(cfg 0.6)": lambda: cfgpp(cfg(ONE, ALL, 0.6)),
    "cfg_zero(cfg 3)": lambda: cfg_zero(cfg(ONE, ALL, 3.0)),
    "zero_init(cfg 3)": lambda: zero_init(cfg(ONE, ALL, 3.0), above=0.95),
    "rescale(cfg 5)": lambda: rescale(cfg(ONE, ALL, 5.0), share=0.7),
    "adaptive_guidance(cfg 3)": lambda: adaptive_guidance(cfg(ONE, ALL, 3.0)),
    "diffier(cfg 4)": lambda: diffier(cfg(ONE, ALL, 4.0), iterations=2),
    "dynamic_cfg(1 or 3)": lambda: dynamic_cfg(cfg(ONE, ALL), clean, weights=(1.0, 3.0)),
    "classifier(all)": lambda: classifier(ALL, WAY, by_noise),
    "elucd(all)": lambda: elucd(ALL, LABELS, logits),
    "gfcg(one, 2)": lambda: gfcg(ONE, LABELS, by_label, logits, weight=2.0),
    "sdg(all, 0.5)": lambda: sdg(ALL, WAY, by_noise, weight=0.5),
    "universal(all, 0.5)": lambda: universal(ALL, clean, weight=0.5),
    "backward(all)": lambda: backward(ALL, clean, steps=3),
    "equals(height, 0.5)": lambda: equals(ALL, height, 0.5, noise=0.1),
    "above(height, 0.5)": lambda: above(ALL, height, 0.5),
    "spatext(all, [one, two])": lambda: spatext(ALL, [ONE, part(1)], weights=(2.0, 0.5)),
    "sine(one, all, weak)": lambda: sine(ONE, ALL, WEAK, weight=2.0, share=0.7, above=0.4),
    "product(one and two, two and three)": lambda: product(part(0, 1), part(1, 2), 1.0),
    "product(all, one, -0.5)": lambda: product(ALL, ONE, -0.5),
    "mixture([one, two], 0.3, 0.7)": lambda: mixture(
        [ONE, part(1)], [density(0), density(1)], [0.3, 0.7]
    ),
    "stitch(weak, then cfg 3)": lambda: stitch([(WEAK, 0.4), (cfg(ONE, ALL, 3.0), 0.6)], GRID),
    "static threshold(cfg 3)": lambda: static(cfg(ONE, ALL, 3.0), WAY),
    "dynamic threshold(cfg 3)": lambda: dynamic(cfg(ONE, ALL, 3.0), WAY),
}
"""What stands above a panel, and the denoiser."""


def density(component: int) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """ln p_t of one component."""
    k = jnp.array([component])
    return lambda x, t: mixture_log_prob(WAY, x, t, MEANS[k], STDS[k], jnp.ones(1))


def solver_panels(names: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Points [SIZE, 2] of every variant of every solver, by what it is called."""
    noise = jax.random.normal(jax.random.key(0), (SIZE, 2))
    found = {}
    for name, options in variants():
        text = ", ".join(f"{k}={v!r}" for k, v in options.items())
        if names and name not in names:
            continue
        solver, grid = make(name, options, WAY, STEPS), grids.uniform(STEPS, WAY)
        points = run_solver(solver, ALL, noise, grid, jax.random.key(1))
        found[f"{name}({text})"] = np.asarray(points)
    return found


def guidance_panels(names: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Points [SIZE, 2] of every guidance, by what it is called."""
    noise = jax.random.normal(jax.random.key(0), (SIZE, 2))
    return {
        name: np.asarray(run_solver(solvers.heun(WAY), build(), noise, GRID, jax.random.key(1)))
        for name, build in GUIDANCE.items()
        if not names or name in names
    }


def picture(panels: Mapping[str, np.ndarray], columns: int = 7) -> plt.Figure:
    """A panel each: points over the contours of the mixture's density."""
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(1.9 * columns, 2.05 * rows), squeeze=False)
    ticks = np.linspace(-3, 3, 80)
    mesh = np.stack(np.meshgrid(ticks, ticks), -1).reshape(-1, 2)
    law = mixture_log_prob(WAY, jnp.asarray(mesh), jnp.float32(0), MEANS, STDS, WEIGHTS)
    density = np.exp(np.asarray(law) / 3).reshape(80, 80)  # the wide component too
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, (name, points) in zip(axes.flat, panels.items(), strict=False):
        ax.contourf(ticks, ticks, density, levels=6, cmap="Greys", alpha=0.5)
        ax.scatter(*points.T, s=1.5, color="tab:blue")
        ax.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
        ax.set_title("\n".join(textwrap.wrap(name.replace("(", " ("), 28)), fontsize=7)
    figure.tight_layout()
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw both pictures."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=inspect.cleandoc(__doc__).split("\n\n")[0])
    parser.add_argument("--out", default="docs", help="folder of the pictures")
    parser.add_argument("--tiny", action="store_true", help="one panel of each")
    args = parser.parse_args(arguments)
    for kind, panels, first in (
        ("solvers", solver_panels, "euler"),
        ("guidance", guidance_panels, "cfg(one, all, 3)"),
    ):
        start = time.monotonic()
        found = panels([first] if args.tiny else [])
        file = Path(args.out) / f"gallery_{kind}.png"
        picture(found).savefig(file, dpi=90)
        print(f"{file}: {len(found)} panels, {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
