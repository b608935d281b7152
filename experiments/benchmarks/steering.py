"""Reward against network calls, for every way of steering: one task whose answers are known.

    python -m experiments.benchmarks.steering --out docs

A mixture of three Gaussians in the plane, the reward -|x - goal|^2 / 2, a sampler of eight steps
whose law is exactly the data's. What best-of-N reaches and what exp(STRENGTH reward) makes of the
law then follow from the data alone. Searches want the highest reward; samplers the tilted law, so
that more reward than its mean is as wrong as less. Writes steering.png and steering.json and prints
the table.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shared.toys import MEANS, PATH, STDS, WEIGHTS, of_all, of_draws
from jaxgen.families.diffusion import solvers
from jaxgen.families.diffusion.core import grids
from jaxgen.families.diffusion.core import path as paths
from jaxgen.families.diffusion.core.sampler import as_chain
from jaxgen.method import fold
from jaxgen.method.chain import Chain
from jaxgen.steer.feynman_kac import product
from jaxgen.steer.paths import over_paths
from jaxgen.steer.resample import take
from jaxgen.steer.search import best_of, zero_order
from jaxgen.steer.svdd import svdd
from jaxgen.steer.tree import tree_sampling, tree_search
from jaxgen.testing import gaussian_denoiser

GOAL, STRENGTH = np.array([1.9, 1.7]), 2.0
STEPS, MOST, IMAGES = 8, 64, 500
"""Steps of a sample, the largest N of best-of-N, and images for each point."""
SEARCHES = ("best-of-N", "zero-order search", "search over paths", "tree search")


class Point(NamedTuple):
    """Mean reward and its standard error over the images, at a number of calls for each."""

    method: str
    calls: float
    reward: float
    error: float


def reward(x: jax.Array) -> jax.Array:
    """ln N(GOAL, I) up to a constant, so that exp(STRENGTH reward) is a Gaussian's density."""
    return -0.5 * ((x - GOAL) ** 2).sum(-1)


def exact_best(counts: np.ndarray, draws: int = 400_000) -> np.ndarray:
    """The mean of the highest reward of each N samples of the data, from `draws` of them."""
    generator = np.random.default_rng(0)
    which = generator.choice(3, draws, p=WEIGHTS)
    x = MEANS[which] + STDS[which, None] * generator.normal(size=(draws, 2))
    ordered = np.sort(np.asarray(-0.5 * ((x - GOAL) ** 2).sum(1)))
    rank = np.arange(draws + 1) / draws
    return np.array([ordered @ np.diff(rank**n) for n in counts])


def tilted_mean() -> float:
    """The mean reward under p(x) exp(STRENGTH reward(x)), a mixture of Gaussians again."""
    variance = STDS**2
    apart = ((MEANS - GOAL) ** 2).sum(1)
    share = WEIGHTS / (1 + STRENGTH * variance) * np.exp(
        -0.5 * apart / (variance + 1 / STRENGTH)
    )  # fmt: skip
    left = variance / (1 + STRENGTH * variance)
    rewards = -0.5 * (apart / (1 + STRENGTH * variance) ** 2 + 2 * left)
    return float(share @ rewards / share.sum())


def chain() -> Chain:
    """Eight ancestral steps whose law is the data's; its estimate is the mean of x0."""
    solver, grid = solvers.ddim(PATH, 1.0), grids.uniform(STEPS, PATH)
    exact = as_chain(solver, of_draws(), grid, (2,), PATH)
    mean = as_chain(solver, of_all(), grid, (2,), PATH)
    return dataclasses.replace(exact, estimate=mean.estimate)


def _curve(method: str, calls: Any, trace: Any) -> Iterator[Point]:
    """Points of a trace [n, B] of the best reward after each of `calls` [n]."""
    for at, row in zip(calls, np.asarray(trace), strict=True):
        yield _point(method, at, row)


def _point(method: str, calls: float, rewards: Any) -> Point:
    values = np.asarray(rewards, np.float64)
    return Point(
        method, float(calls), float(values.mean()), float(values.std() / len(values) ** 0.5)
    )


def searches(keys: jax.Array) -> Iterator[Point]:
    """What the searches reach."""
    steps, powers = chain(), 2 ** np.arange(int(np.log2(MOST)) + 1)
    trace = jax.jit(best_of(steps, reward, count=MOST).traced)(keys)[2]
    yield from _curve("best-of-N", STEPS * powers, trace[powers - 1])

    # The ancestral steps forget the noise; the flow's law is nearly the data's.
    flow = as_chain(solvers.euler(PATH), of_all(), grids.uniform(STEPS, PATH), (2,), PATH)
    local = zero_order(flow, reward, rounds=MOST // 4, neighbours=4, radius=0.4)
    trace = jax.jit(local.traced)(keys)[2]
    yield from _curve("zero-order search", STEPS * powers, trace[powers - 1])

    for width, branches in ((1, 1), (1, 2), (1, 4), (2, 4), (4, 4), (4, 6)):
        how = over_paths(steps, reward, width=width, branches=branches, start=4, stride=1, back=1)
        yield _point("search over paths", how.calls, jax.jit(how.traced)(keys)[1])

    # A tree of a smaller budget is the beginning of a larger one.
    leaves = jax.jit(tree_search(steps, reward, budget=STEPS * MOST).grow)(keys)
    trace = np.maximum.accumulate(np.asarray(leaves.reward), axis=1).T
    yield from _curve("tree search", STEPS * powers, trace[STEPS * powers - 1])


def samplers(keys: jax.Array) -> Iterator[Point]:
    """The reward of samples that are meant to have the tilted law."""
    steps = chain()
    for budget in (1, 4, 16, 64):
        tree = tree_sampling(steps, reward, budget=STEPS * budget, strength=STRENGTH)
        yield _point("tree sampling", tree.calls, reward(jax.jit(tree.fn)(keys)))
    for proposals in (1, 2, 4, 8, 16, 32):
        how = svdd(steps, reward, proposals=proposals, alpha=1 / STRENGTH)
        yield _point("SVDD", how.calls, reward(jax.jit(how.fn)(keys)))
    for particles in (1, 2, 4, 8):
        yield _feynman_kac(keys, particles)


def _feynman_kac(keys: jax.Array, particles: int) -> Point:
    """A sample from a set of its own, in 32 steps; a particle's two scores are two calls."""
    path = paths.edm(0.03, 12.0)
    tilt = gaussian_denoiser(path, jnp.asarray(GOAL), STRENGTH**-0.5)
    corrector = product(of_all(path), tilt, grids.karras(4 * STEPS, path), (2,), path=path)

    def sample(key: jax.Array) -> jax.Array:
        out = corrector(jax.random.split(key, particles))
        chosen = jax.random.categorical(jax.random.fold_in(key, 9), out.log_weights)
        return take(out.x, chosen)

    x = jax.jit(jax.vmap(sample))(fold(keys, 3))
    return _point("Feynman-Kac", particles * corrector.calls, reward(x))


def calls_for(points: list[Point], method: str, wanted: float) -> float:
    """Calls after which a method's mean reward is `wanted`, between its points; inf: never."""
    rows = sorted((p.calls, p.reward) for p in points if p.method == method)
    calls, rewards = np.array(rows).T
    if rewards.max() < wanted:
        return float("inf")
    after = int((rewards >= wanted).argmax())
    if after == 0:
        return float(calls[0])
    low, high = after - 1, after
    share = (wanted - rewards[low]) / (rewards[high] - rewards[low])
    return float(np.exp(np.log(calls[low]) + share * np.log(calls[high] / calls[low])))


def markdown(points: list[Point]) -> str:
    """The table, and the calls that the searches need for what best-of-N has at the end."""
    lines = ["| method | calls | reward | standard error |", "|-|-:|-:|-:|"]
    lines += [f"| {p.method} | {p.calls:g} | {p.reward:.3f} | {p.error:.3f} |" for p in points]
    wanted = max(p.reward for p in points if p.method == "best-of-N")
    lines.append(f"\nCalls for best-of-{MOST}'s reward, {wanted:.3f}:")
    lines += [f"    {m}: {calls_for(points, m, wanted):.0f}" for m in SEARCHES]
    lines.append(f"Mean reward under the tilted law: {tilted_mean():.3f}")
    return "\n".join(lines)


def draw(points: list[Point], file: Path) -> None:
    """Two panels: what searches reach, and what samplers have beside what they should."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    counts = 2 ** np.arange(int(np.log2(MOST)) + 1)
    panels[0].plot(STEPS * counts, exact_best(counts), "k--", lw=1, label="best-of-N, exact")
    panels[1].axhline(tilted_mean(), color="k", ls="--", lw=1, label="the tilted law's mean, exact")
    for method in dict.fromkeys(p.method for p in points):
        rows = [p for p in points if p.method == method]
        axis = panels[0 if method in SEARCHES else 1]
        axis.errorbar(
            [p.calls for p in rows], [p.reward for p in rows], [2 * p.error for p in rows],
            marker=".", lw=1.2, label=method,
        )  # fmt: skip
    titles = ("Search: the highest reward", f"Sampling: p exp({STRENGTH:g} reward)")
    for axis, title in zip(panels, titles, strict=True):
        axis.set(title=title, xscale="log", xlabel="network calls for an image")
        axis.legend(fontsize=8, loc="lower right")
        axis.grid(alpha=0.3)
    panels[0].set_ylabel("mean reward")
    figure.savefig(file, dpi=110)


def main() -> None:
    """Run it all, print the table, write the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=IMAGES, help="images for each point")
    parser.add_argument("--tiny", action="store_true", help="two images for each point")
    args = parser.parse_args()
    if args.tiny:
        args.images = 2
    args.out.mkdir(parents=True, exist_ok=True)
    keys = jax.random.split(jax.random.key(0), args.images)
    points: list[Point] = []
    studies: tuple[Callable[[jax.Array], Iterator[Point]], ...] = (searches, samplers)
    for study in studies:
        points += study(keys)
    rows = [p._asdict() for p in points]
    (args.out / "steering.json").write_text(json.dumps(rows, indent=2) + "\n")
    draw(points, args.out / "steering.png")
    print(markdown(points))


if __name__ == "__main__":
    main()
