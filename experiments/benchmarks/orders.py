"""Orders of convergence of every solver, as a table: what theory says, and what is measured.

    python -m experiments.benchmarks.orders

In float64, between the times .85 and .15 of the linear path, on exact problems: see
`jaxgen.testing.convergence`. Calls are those of one more step.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxgen.families.diffusion import solvers
from jaxgen.families.diffusion.core.path import Path, linear
from jaxgen.families.diffusion.solvers import Solver
from jaxgen.testing import gaussian_denoiser
from jaxgen.testing.convergence import HIGH, LOW, strong_order, weak_order

VARIANTS = {
    "adams_bashforth": [dict(order=1), dict(order=2), dict(order=3), dict(order=4)],
    "adaptive": [dict(order=3), dict(order=5)],
    "ddim": [dict(), dict(eta=0.5), dict(eta=1.0)],
    "ddpm": [dict(variance="small"), dict(variance="large")],
    "edm": [dict(), dict(s_churn=4.0)],
    "euler_maruyama": [
        dict(),
        dict(power=0.0),
        dict(noise=0.3),
        *(dict(form=form) for form in ("sigma", "decreasing", "increasing_decreasing")),
    ],
    "flowturbo": [dict(), dict(heun=3), dict(refine=2)],
    "predictor_corrector": [dict(), dict(corrections=2)],
    "unipc": [
        dict(order=1), dict(order=2), dict(order=3),
        dict(order=2, corrector=False), dict(order=3, corrector=False),
    ],
}  # fmt: skip
"""Options beside the defaults; a solver that is not here is tested with its defaults."""


def variants() -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, options) of every solver, with its defaults alone where `VARIANTS` has none."""
    for name in solvers.__all__:
        if name != "Solver":
            for options in VARIANTS.get(name, [{}]):
                yield name, options


def make(name: str, options: Mapping[str, Any], path: Path, steps: int = 16) -> Solver:
    """A solver by its name; `steps` where it asks for them."""
    f = getattr(solvers, name)
    given = {"steps": steps} if "steps" in inspect.signature(f).parameters else {}
    return f(path, **given, **options)


def each(options: Mapping[str, Any]) -> bool:
    """Whether what a solver does depends on how many steps are left."""
    return "refine" in options


def row(name: str, options: Mapping[str, Any]) -> str:
    """A line of the table."""
    at_will = dict(rtol=1e9, atol=1e9) if name == "adaptive" else {}

    def build(path: Path, steps: int) -> Solver:
        # With any error allowed, an adaptive step is the grid's.
        return make(name, {**options, **at_will}, path, steps)

    solver = build(linear(), 16)
    measured = weak_order(build) if solver.stochastic else strong_order(build, each=each(options))
    theory = str(solver.order) if solver.order else "none"
    suffix = ", in law" if solver.stochastic else ""
    text = ", ".join(f"{k}={v!r}" for k, v in options.items())
    return f"| `{name}({text})` | {theory}{suffix} | {measured:.2f} | {calls(build)} |"


def calls(build: Any) -> str:
    """Network calls of one more step."""
    model = gaussian_denoiser(linear())
    few, many = (
        build(linear(), n).calls(model, np.asarray(jnp.linspace(HIGH, LOW, n + 1)))
        for n in (16, 32)
    )
    return "depends on the image" if np.isnan(few) else f"{(many - few) / 16:g}"


def main() -> None:
    """Print the table; --tiny: its first two rows."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--tiny", action="store_true", help="the first two rows")
    count = 2 if parser.parse_args().tiny else None
    print("| solver | theory | measured | calls a step |")
    print("|-|-|-:|-:|")
    for name, options in itertools.islice(variants(), count):
        print(row(name, options), flush=True)


if __name__ == "__main__":
    main()
