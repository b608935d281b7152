"""What a wrap costs beside plain training of the same model: operations, memory, images a second.

    python -m experiments.benchmarks.wraps --workdir runs/digits [--rounds 5]

Of each update, as compiled for a batch of 128: floating-point operations of matrix products and
convolutions counted in its program, bytes of its state and of what it needs besides (XLA's own
count of temporary and of other arguments), and images a second, every wrap in turn in each round.
All are ratios to plain training; times are processor time, median over rounds.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks.cpu_dit import alternate
from experiments.studies.further import BATCH, begun, setup_of
from experiments.studies.trained import Row, Subject, subject, table
from jaxgen.data import normalise
from jaxgen.method import update_with
from jaxgen.run.setup import Setup, train_flops

FEW = dict(solver="heun", steps=5)
DRAWN = dict(solver="ancestral.ddpm", steps=10)
PLAIN = dict(steps=5, guidance=1.0)
INK = dict(reward="experiments.studies.tuning.ink")
FORGET = dict(name="unlearn.forget", classes=(3,))
WAYS: dict[str, dict[str, Any] | None] = {
    "plain training": None,
    "tune.lora, rank 4": dict(name="tune.lora", rank=4),
    "tune.only, biases": dict(name="tune.only", match=r"\bbias$"),
    "distill.guidance.guided": dict(name="distill.guidance.guided"),
    "distill.guidance.progressive": dict(name="distill.guidance.progressive"),
    "distill.consistency": dict(name="distill.consistency", steps=50),
    "distill.matching": dict(name="distill.matching"),
    "distill.matching, implicit": dict(name="distill.matching", by="implicit"),
    "tune.contrast.cca": dict(name="tune.contrast.cca"),
    "tune.contrast.ddo, 9 calls a sample": dict(name="tune.contrast.ddo", sample=FEW),
    "tune.preference.dpo, 9 calls": dict(name="tune.preference.dpo", sample=FEW) | INK,
    "tune.grpo, 10 calls": dict(name="tune.grpo.grpo", sample=DRAWN) | INK,
    "tune.weighted": dict(name="tune.weighted.weighted") | INK,
    "tune.tokens, 9 calls": dict(name="tune.tokens", classes=(3,), sample=PLAIN) | INK,
    "unlearn.forget, relabel": FORGET | dict(substitute=0),
    "unlearn.forget, guidance, 9 calls": FORGET | dict(target="guidance", sample=FEW),
    "unlearn.redact": dict(name="unlearn.redact", classes=(3,), reference=0),
}  # fmt: skip
"""name -> the wrap."""


def prepared(
    it: Subject, workdir: str, wrap: dict[str, Any] | None
) -> tuple[Row, Callable[[], Any]]:
    """(operations and bytes of an update, a call that does one)."""
    told = {}
    if wrap is not None and wrap["name"].startswith("distill.guidance"):
        told = dict(model__conditions=(("w", "number"),))
    wraps = [] if wrap is None else [wrap]
    setup = setup_of(it, workdir, wraps, rate=1e-4, images=1000, **told)
    method, frozen = setup.method, setup.method.frozen
    data = {"image": jnp.asarray(it.train["image"][:BATCH])}
    batch = normalise(data | {"label": jnp.asarray(it.train["label"][:BATCH])})
    key, state = jax.random.key(0), begun(setup, 0)

    def update(state: Any, frozen: Any) -> Any:
        return update_with(method, state, batch, key, frozen)[0]

    made = jax.jit(update, donate_argnums=0).lower(state, frozen).compile()
    memory = made.memory_analysis()
    size = lambda tree: sum(a.nbytes for a in jax.tree.leaves(tree))
    held = [state]

    def once() -> None:
        held[0] = jax.block_until_ready(made(held[0], frozen))

    row = dict(operations=counted(setup), state=size(state), frozen=size(frozen))
    return row | dict(temporary=memory.temp_size_in_bytes), once


def counted(setup: Setup) -> float:
    """Operations on an example, from the program of the update, whatever the method says."""
    method = dataclasses.replace(setup.method, train_flops=None)
    return train_flops(dataclasses.replace(setup, method=method))


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--workdir", required=True, help="of a trained diffusion model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=5, help="updates a round")
    parser.add_argument("--tiny", action="store_true", help="two wraps, once")
    given = parser.parse_args()
    names = list(WAYS)[: 2 if given.tiny else None]
    it = subject(given.workdir)
    made = {name: prepared(it, given.workdir, WAYS[name]) for name in names}
    rounds, repeat = (1, 1) if given.tiny else (given.rounds, given.repeat)
    times = alternate({name: once for name, (_, once) in made.items()}, rounds, repeat)
    plain = names[0]
    base, lines = made[plain][0], []
    for name, (row, _) in made.items():
        ratios = [a / b for a, b in zip(times[plain].cpu, times[name].cpu, strict=True)]
        lines.append({
            "update": name,
            "operations": f"{row['operations'] / base['operations']:.2f}",
            "images/s": f"{statistics.median(ratios):.2f}",
            "state, MB": f"{row['state'] / 1e6:.1f}",
            "frozen, MB": f"{row['frozen'] / 1e6:.1f}",
            "temporary, MB": f"{row['temporary'] / 1e6:.0f}",
        })  # fmt: skip
    print(table(lines))


if __name__ == "__main__":
    main()
