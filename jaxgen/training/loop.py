"""The training loop: one for every method.

It knows a method's `init` and `update` and nothing else. In the loop there is no host transfer
(`jax.transfer_guard` says so): batches arrive on the device ahead of time, keys are folded from the
step inside the program, metrics are summed on the device and fetched once a period.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import __version__
from jaxgen.data import batches, normalise, to_device
from jaxgen.errors import Failure
from jaxgen.method import Method, TrainState
from jaxgen.training.checkpoint import Checkpoints, write_atomic
from jaxgen.training.interrupt import Interrupts
from jaxgen.training.log import Log, progress, say

PyTree = Any
LARGEST = np.iinfo(np.int32).max


class Diverged(Failure):
    """A metric stopped being finite; the last good checkpoint is intact."""


def make_step(method: Method) -> Callable[..., tuple[TrainState, PyTree]]:
    """step(state, tally, batch, root key) -> (state, tally): one update, metrics summed on device.

    The step's key is fold_in(root, state.step): a function of (seed, step) alone. tally holds, per
    metric, the sum and the first step at which it was not finite.
    """

    def step(
        state: TrainState, tally: PyTree, batch: dict[str, jax.Array], root: jax.Array
    ) -> tuple[TrainState, PyTree]:
        key = jax.random.fold_in(root, state.step)
        state, metrics = method.update(state, normalise(batch), key)
        add = {
            k: (
                tally[k][0] + v.astype(jnp.float32),
                jnp.where(jnp.isfinite(v), tally[k][1], jnp.minimum(tally[k][1], state.step)),
            )
            for k, v in metrics.items()
        }
        return state, add

    return step


def empty_tally(method: Method, state: PyTree, batch: PyTree) -> PyTree:
    """A tally with nothing in it, for the metrics that `update` returns."""
    _, metrics = jax.eval_shape(
        lambda s, b: method.update(s, normalise(b), jax.random.key(0)), state, batch
    )
    return {k: (np.zeros((), np.float32), np.asarray(LARGEST, np.int32)) for k in metrics}


def read_tally(tally: PyTree, steps: int) -> dict[str, float]:
    """Means over `steps` updates. Raises Diverged if a metric was not finite at some step."""
    host = jax.device_get(tally)
    bad = {k: int(v[1]) for k, v in host.items() if v[1] != LARGEST}
    if bad:
        name = min(bad, key=lambda k: (bad[k], k != "loss"))
        raise Diverged(
            f"metric {name!r} is not finite at step {bad[name]}. The checkpoints saved before are "
            "intact. A lower config.optimizer.learning_rate or config.optimizer.clip_norm=1.0 "
            "often helps."
        )
    return {k: float(v[0]) / max(steps, 1) for k, v in host.items()}


def fit(
    parts: Any,
    workdir: Path,
    *,
    initial: Callable[[TrainState], TrainState] | None = None,
    preview: Callable[[TrainState, int], np.ndarray] | None = None,
    flops_per_image: float = 0.0,
    peak_flops: float | None = None,
    interrupts: Interrupts,
) -> tuple[TrainState, dict[str, float]]:
    """Train from the workdir's newest whole checkpoint, or from scratch, to `config.train.images`.

    parts: a `jaxgen.setup.Setup`. initial: changes the fresh state (`--init_from`). preview(state,
    step) -> picture, written to `samples/`. flops_per_image: useful floating-point operations of
    one training image (3 x forward, 2 per multiply-add). Returns (state, timings in seconds).
    """
    from jaxgen.training.sharding import batch_sharding, replicated, state_sharding

    method, mesh = parts.method, parts.mesh
    root = jax.device_put(jax.random.key(parts.config.get("seed", 0)), replicated(mesh))
    begin = time.monotonic()
    abstract = jax.eval_shape(method.init, jax.random.key(0))
    shardings = state_sharding(mesh, abstract)
    size, total = parts.data.batch_size, parts.steps
    save_every = parts.every(parts.checkpoint.every)
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(
            Checkpoints(
                workdir,
                keep_last=parts.checkpoint.keep_last,
                keep_best=parts.checkpoint.keep_best,
                keep_every=parts.every(parts.checkpoint.keep_every) or None,
                say=say,
            )
        )
        restored = checkpoints.restore(abstract, shardings)
        if restored is None:
            first = 0
            state = jax.jit(method.init, out_shardings=shardings)(jax.random.fold_in(root, LARGEST))
            if initial is not None:
                state = jax.device_put(initial(state), shardings)
        else:
            first, state, _ = restored
            say(f"Resuming at step {first} of {total} ({first * size} images).")
        log = Log(
            workdir,
            step=first,
            tensorboard=parts.log.tensorboard,
            wandb=parts.log.wandb,
            config=parts.config,
        )
        stack.callback(log.close)
        if first >= total:
            return state, {"compile": 0.0, "train": 0.0, "images_per_second": 0.0}
        stream = to_device(
            batches(
                parts.source,
                batch_size=size,
                seed=parts.config.get("seed", 0),
                start_step=first,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
                flip=parts.data.flip,
                workers=parts.data.workers,
                prefetch=parts.data.prefetch,
            ),
            batch_sharding(mesh),
            prefetch=parts.data.prefetch,
        )
        batch = next(stream)
        clean = jax.device_put(empty_tally(method, abstract, batch), replicated(mesh))
        step = jax.jit(
            make_step(method),
            donate_argnums=(0,),
            out_shardings=(shardings, replicated(mesh)),
        )
        clock = time.monotonic()
        compiled = step.lower(state, clean, batch, root).compile()
        timings = {"setup": clock - begin, "compile": time.monotonic() - clock}

        def meta(done: int, means: dict[str, float]) -> dict[str, Any]:
            return {
                "step": done,
                "images": done * size,
                "batch_size": size,
                "loss": means.get("loss", float("inf")),
                "jaxgen": __version__,
                "jax": jax.__version__,
            }

        def flush(done: int) -> dict[str, float]:
            """Means since the last flush, into the log; checks that they are finite."""
            nonlocal tally, counted, busy, window
            means = read_tally(tally, counted)
            elapsed = time.monotonic() - window
            busy += elapsed
            if counted:
                rate = counted * size / elapsed
                means |= {
                    "images": float(done * size),
                    "images_per_second": rate,
                    "step_seconds": elapsed / counted,
                }
                if flops_per_image:
                    means["model_tflops"] = flops_per_image * rate / 1e12
                if flops_per_image and peak_flops:
                    means["mfu"] = flops_per_image * rate / (peak_flops * mesh.size)
                log.scalars(done, means)
            tally, counted, window = clean, 0, time.monotonic()
            return means

        log_every, sample_every = (
            parts.every(parts.train.log_every),
            parts.every(parts.train.sample_every),
        )
        snap_every = parts.every(parts.checkpoint.snapshot_every)
        tally, counted, busy, window = clean, 0, 0.0, time.monotonic()
        means: dict[str, float] = {}
        with progress("train", total, first) as advance:
            for done in range(first + 1, total + 1):
                with jax.transfer_guard("disallow"):
                    state, tally = compiled(state, tally, batch, root)
                counted += 1
                last = done == total or interrupts.number is not None
                if not last:
                    batch = next(stream)
                if (log_every and done % log_every == 0) or last:
                    means = flush(done) or means
                    advance(
                        done, f"loss {means['loss']:.4f}  {means['images_per_second']:.0f} img/s"
                    )
                elif not log_every and done % 50 == 0:
                    advance(done)
                if (save_every and done % save_every == 0) or last:
                    means = {**means, **(flush(done) if counted else {})}
                    checkpoints.save(done, state, meta(done, means), wait=last)
                if snap_every and done % snap_every == 0:
                    save_snapshots(workdir, parts.ema, state, done * size)
                if preview is not None and sample_every and done % sample_every == 0 and not last:
                    flush(done)
                    picture = preview(state, done)
                    log.image(done, "samples", picture)
                    window = time.monotonic()
                interrupts.check()
        timings |= {
            "train": busy,
            "images_per_second": (total - first) * size / max(busy, 1e-9),
            "final_loss": means.get("loss", float("nan")),
        }
        return state, timings


def save_snapshots(workdir: Path, averages: Any, state: TrainState, images: int) -> None:
    """Write each power-function average to `ema_snapshots/<name>_<images>.safetensors`, whole."""
    from jaxgen.training.ema import power_name
    from jaxgen.training.weights import dump

    for std in averages.power_std:
        name = power_name(std)
        path = workdir / "ema_snapshots" / f"{name}_{images:012d}.safetensors"
        write_atomic(path, dump(state.ema[name], {"std": str(std), "images": str(images)}))
