"""Training of the same GFlowNet on the CPU: jaxgen against torchgfn, in one run.

    python -m experiments.benchmarks.gflownet [--rounds 5] [--threads 1] [--json]

Trajectory balance on a hypergrid, uniform P_B, the same network (two hidden layers of 256 ReLU
units), batch, Adam, and rates; on-policy. Each round times both sides once, in an order that
alternates; a ratio is the median over rounds of torchgfn's seconds a step over jaxgen's in the same
round. "wall" is what a user waits; "cpu" is the process's own processor time, which another load on
the machine disturbs less. The process is bound to `--threads` processors. torchgfn computes the
log-probabilities again in the loss or keeps those of the rollout: both are timed, and the faster
one is compared. Before anything is timed both train on the same grid and ln Z is compared.

Needs `pip install torchgfn`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

PROCESSORS = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
SIZES = {"2x8": (2, 8), "2x16": (2, 16), "4x8": (4, 8)}


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sizes", default="2x8,2x16,4x8")
    parser.add_argument("--batches", default="16,64", help="trajectories a step")
    parser.add_argument("--steps", type=int, default=40, help="steps a timing of torchgfn")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="one small case, once")
    found = parser.parse_args()
    if found.tiny:
        found.rounds, found.sizes, found.batches, found.steps = 1, "2x8", "4", 2
    return found


ARGUMENTS = parse() if __name__ == "__main__" else argparse.Namespace(threads=0)
if ARGUMENTS.threads and PROCESSORS:
    # Before JAX and PyTorch start their thread pools, which take their size from this.
    os.sched_setaffinity(0, PROCESSORS[: ARGUMENTS.threads])

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import optax  # noqa: E402

from experiments.benchmarks import machine  # noqa: E402
from jaxgen.data.hypergrid import hypergrid  # noqa: E402
from jaxgen.families.gflownet import gflownet  # noqa: E402
from jaxgen.method import Spec  # noqa: E402
from jaxgen.nn.policy import Policy  # noqa: E402
from jaxgen.training.ema import Averages  # noqa: E402
from jaxgen.training.loop import empty_tally, make_step  # noqa: E402

RATE, LOG_Z_RATE = 1e-3, 100.0


def ours(dims: int, height: int, batch: int) -> tuple[Callable[[int], None], Callable[[], float]]:
    """(run so many steps, ln Z so far): the step that `jaxgen train` compiles, one call each."""
    grid = hypergrid(dims=dims, height=height)
    spec = Spec(shape=grid.shape, num_classes=1, levels=height, tokens=True, target=grid)
    method = gflownet(
        spec, Policy(), optax.adam(RATE), Averages(half_life=(1000,)), log_z_rate=LOG_Z_RATE
    )
    state = jax.jit(method.init)(jax.random.key(0))
    data = {"label": jnp.zeros(batch, jnp.int32)}
    tally = empty_tally(method, state, data)
    root = jax.random.key(1)
    step = jax.jit(make_step(method), donate_argnums=(0,))
    held: dict[str, Any] = {"state": state, "tally": tally}

    def run(steps: int) -> None:
        for _ in range(steps):
            held["state"], held["tally"] = step(held["state"], held["tally"], data, root)
        jax.block_until_ready(held["state"])

    return run, lambda: LOG_Z_RATE * float(held["state"].params["log_z"])


def theirs(
    dims: int, height: int, batch: int, again: bool
) -> tuple[Callable[[int], None], Callable[[], float]]:
    """The same of torchgfn. again: log-probabilities are computed again in the loss."""
    import torch
    from gfn.estimators import DiscretePolicyEstimator
    from gfn.gflownet import TBGFlowNet
    from gfn.gym import HyperGrid
    from gfn.preprocessors import KHotPreprocessor
    from gfn.utils.modules import MLP, DiscreteUniform

    torch.manual_seed(0)
    env = HyperGrid(
        ndim=dims,
        height=height,
        reward_fn_str="original",
        reward_fn_kwargs=dict(R0=0.1, R1=0.5, R2=2.0),
        validate_modes=False,
    )
    preprocessor = KHotPreprocessor(height, dims)
    net = MLP(preprocessor.output_dim, env.n_actions, hidden_dim=256, n_hidden_layers=2)
    policy = DiscretePolicyEstimator(net, env.n_actions, preprocessor=preprocessor)
    uniform = DiscretePolicyEstimator(
        DiscreteUniform(env.n_actions - 1),
        env.n_actions,
        preprocessor=preprocessor,
        is_backward=True,
    )
    model = TBGFlowNet(pf=policy, pb=uniform, init_logZ=0.0)
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE)
    optimizer.add_param_group({"params": [model.logZ], "lr": RATE * LOG_Z_RATE})

    def run(steps: int) -> None:
        for _ in range(steps):
            walks = model.sample_trajectories(env, n=batch, save_logprobs=not again)
            optimizer.zero_grad()
            loss = model.loss_from_trajectories(env, walks, recalculate_all_logprobs=again)
            loss.backward()
            optimizer.step()

    return run, lambda: float(model.logZ.detach())


def timed(run: Callable[[int], None], steps: int) -> tuple[float, float]:
    """Seconds a step: on the clock, and of the processor."""
    wall, cpu = time.perf_counter(), time.process_time()
    run(steps)
    return (time.perf_counter() - wall) / steps, (time.process_time() - cpu) / steps


def compare(dims: int, height: int, batch: int, rounds: int, steps: int) -> dict[str, Any]:
    """Steps a second of both sides, and the median ratio."""
    sides = {
        "jaxgen": ours(dims, height, batch),
        "torchgfn_again": theirs(dims, height, batch, True),
        "torchgfn_kept": theirs(dims, height, batch, False),
    }
    many = {"jaxgen": 10 * steps, "torchgfn_again": steps, "torchgfn_kept": steps}
    for name, (run, _) in sides.items():
        run(max(2, many[name] // 10))
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for turn in range(rounds):
        order = list(sides) if turn % 2 == 0 else list(sides)[::-1]
        for name in order:
            seconds[name].append(timed(sides[name][0], many[name]))
    timings: dict[str, Any] = {}
    for i, kind in enumerate(("wall", "cpu")):
        times = {name: [v[i] for v in values] for name, values in seconds.items()}
        for name, values in times.items():
            timings[f"{name}_steps_per_{kind}_second"] = 1 / statistics.median(values)
        mine, again, kept = times.values()
        ratios = [min(b, c) / a for a, b, c in zip(mine, again, kept, strict=True)]
        timings[f"ratio_{kind}"], timings[f"ratios_{kind}"] = statistics.median(ratios), ratios
    return timings


def agree(steps: int = 600) -> dict[str, float]:
    """ln Z of a 2 x 6 grid after the same number of steps by both sides, and the true one."""
    estimates = {"true": float(hypergrid(dims=2, height=6).log_z or 0.0)}
    for name, (run, log_z) in (
        ("jaxgen", ours(2, 6, 16)),
        ("torchgfn", theirs(2, 6, 16, False)),
    ):
        run(steps)
        estimates[name] = log_z()
    return estimates


def main() -> None:
    """Print a line a case, or one JSON object."""
    args = ARGUMENTS
    print(machine.line())
    steps = 20 if args.tiny else 600
    check = agree(steps)
    print(f"ln Z of a 2 x 6 grid after {steps} steps: {check}", flush=True)
    rows = []
    for size in args.sizes.split(","):
        for batch in map(int, args.batches.split(",")):
            timings = compare(*SIZES[size], batch, args.rounds, args.steps)
            rows.append({"size": size, "batch": batch, **timings})
            for kind in ("wall", "cpu"):
                mine, again, kept = (
                    timings[f"{name}_steps_per_{kind}_second"]
                    for name in ("jaxgen", "torchgfn_again", "torchgfn_kept")
                )
                print(
                    f"{size} batch {batch}, {kind}: jaxgen {mine:.1f} steps/s, torchgfn "
                    f"{again:.1f} (again) and {kept:.1f} (kept): "
                    f"{timings[f'ratio_{kind}']:.1f} times",
                    flush=True,
                )
    if args.json:
        print(json.dumps({"machine": machine.machine(), "ln_z": check, "rows": rows}))


if __name__ == "__main__":
    main()
