"""Forward-looking GFlowNets: energies of partial states, learning from incomplete trajectories."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.shared.check import Check, below, control
from jaxgen.data.hypergrid import Hypergrid, additive
from jaxgen.families.gflownet import fl_gflownet, gflownet
from jaxgen.method import Method, Spec
from jaxgen.nn.policy import Policy
from jaxgen.training.ema import Averages

PAPER = "Better Training of GFlowNets with Local Credit and Incomplete Trajectories"
ENTRY = "jaxgen.families.gflownet.fl_gflownet"
STEPS, TRAJECTORIES, PART = 1000, 16, 3


def checks() -> list[Check]:
    """L1 distance of the exact terminating distribution from exp(-E) / Z on an 8 x 8 grid."""
    grid = additive(dims=2, height=8, spread=0.7, seed=1)
    untrained = distance(grid, fl_gflownet, 0)
    truncated: dict[str, Any] = dict(truncate=PART)
    local = distance(grid, fl_gflownet, STEPS, loss="detailed_balance", **truncated)
    results = [
        control(below("L1 untrained (uniform policy)", untrained, 0.05)),
        below("L1, FL-DB", distance(grid, fl_gflownet, STEPS), 0.05),
        below(f"L1, FL-DB on parts of {PART} transitions", local, 0.05),
        below(
            f"L1, FL-SubTB on parts of {PART} transitions",
            distance(grid, fl_gflownet, STEPS, loss="subtrajectory_balance", **truncated),
            0.05,
        ),
        # The control: without whole trajectories TB has next to no loss.
        control(
            below(
                "L1, TB on the same parts",
                distance(grid, gflownet, STEPS, epsilon=0.0, **truncated),
                0.05,
            )
        ),
    ]
    return results


def distance(grid: Hypergrid, family: Any, steps: int, **options: Any) -> float:
    """sum |p - exp(-E) / Z| after training on `steps` batches of trajectories."""
    spec = Spec(shape=grid.shape, num_classes=1, levels=grid.levels, tokens=True, target=grid)
    schedule = optax.cosine_decay_schedule(3e-3, max(steps, 1))
    settings = {"epsilon": 0.1, **options}
    averages = Averages(half_life=(100,))
    model = Policy(width=128, depth=2)
    method: Method = family(spec, model, optax.adam(schedule), averages, **settings)
    batch = {"label": jnp.zeros(TRAJECTORIES, jnp.int32)}

    @jax.jit
    def train() -> Any:
        def body(state: Any, i: jax.Array) -> Any:
            return method.update(state, batch, jax.random.fold_in(jax.random.key(1), i))[0], None

        return jax.lax.scan(body, method.init(jax.random.key(0)), jnp.arange(steps))[0].params

    assert method.scores is not None
    return 2 * float(np.asarray(method.scores(train(), jax.random.key(2))["total_variation"]))
