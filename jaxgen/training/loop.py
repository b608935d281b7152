"""The training loop: one for every method.

It knows a method's `init` and `update` and nothing else. In the loop there is no host transfer
(`jax.transfer_guard` says so): batches arrive on the device ahead of time, keys are folded from the
step inside the program, metrics are summed on the device and fetched once a period.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jaxgen import __version__
from jaxgen.data import batches, local_rows, normalise, to_device, to_global
from jaxgen.errors import Failure, invalid
from jaxgen.mesh import BATCH, Layout, using
from jaxgen.method import Method, TrainState, update_with
from jaxgen.training.checkpoint import Checkpoints, write_atomic
from jaxgen.training.ema import power_name
from jaxgen.training.interrupt import Interrupted, Interrupts
from jaxgen.training.log import Log, progress, say
from jaxgen.training.sharding import batch_sharding, place_frozen, replicated, state_sharding
from jaxgen.training.watch import current
from jaxgen.training.weights import dump

PyTree = Any
LARGEST = np.iinfo(np.int32).max


class Diverged(Failure):
    """A metric stopped being finite; the last good checkpoint is intact."""


def make_step(
    method: Method, layout: Layout | None = None
) -> Callable[..., tuple[TrainState, PyTree]]:
    """step(state, tally, batch, root key, frozen) -> (state, tally): one update, metrics summed.

    The step's key is fold_in(root, state.step): a function of (seed, step) alone. tally holds, per
    metric, the sum and the first step at which it was not finite. layout: in force in the update.
    """

    def step(
        state: TrainState,
        tally: PyTree,
        batch: dict[str, jax.Array],
        root: jax.Array,
        frozen: PyTree = None,
    ) -> tuple[TrainState, PyTree]:
        key = jax.random.fold_in(root, state.step)
        with using(layout):
            state, metrics = update_with(method, state, normalise(batch), key, frozen)
        add = {
            k: (
                tally[k][0] + v.astype(jnp.float32),
                jnp.where(jnp.isfinite(v), tally[k][1], jnp.minimum(tally[k][1], state.step)),
            )
            for k, v in metrics.items()
        }
        return state, add

    return step


def jitted_step(method: Method, layout: Layout, shardings: PyTree) -> Any:
    """`make_step` as it is compiled: the state in its place and donated, the tally everywhere.

    Raises UsageError where the layout asks for what the method does not allow.
    """
    step, mesh = make_step(method, layout), layout.mesh
    if layout.via != "jit" and not method.separable:
        raise invalid(
            "config.mesh.via",
            layout.via,
            "jit, for methods that look at a batch's examples together",
        )
    if layout.via == "shard_map":
        whole, cut = PartitionSpec(), PartitionSpec(BATCH)
        inside = jax.shard_map(
            step,
            mesh=mesh,
            in_specs=(whole, whole, cut, whole, whole),
            out_specs=(whole, whole),
            check_vma=False,
        )
        step = lambda s, t, b, r, f=None: inside(s, t, b, r, f)
    if layout.via == "pmap":
        step = _by_pmap(step, mesh)
    places = (shardings, replicated(mesh))
    return jax.jit(step, donate_argnums=(0,), out_shardings=places)


def _by_pmap(step: Callable[..., Any], mesh: jax.sharding.Mesh) -> Callable[..., Any]:
    """step under `pmap` along "data": batches cut on axis 0, the rest the same everywhere."""
    count = mesh.shape["data"]
    each = jax.pmap(
        step,
        axis_name="data",
        in_axes=(None, None, 0, None, None),
        out_axes=None,
        devices=list(mesh.devices.flat),
    )

    def whole(
        state: TrainState, tally: PyTree, batch: Any, root: jax.Array, frozen: PyTree = None
    ) -> Any:
        shards = jax.tree.map(lambda a: a.reshape(count, -1, *a.shape[1:]), batch)
        return each(state, tally, shards, root, frozen)

    return whole


def empty_tally(method: Method, state: PyTree, batch: PyTree) -> PyTree:
    """A tally with nothing in it, for the metrics that `update` returns."""
    _, metrics = jax.eval_shape(
        lambda s, b, f: update_with(method, s, normalise(b), jax.random.key(0), f),
        state,
        batch,
        method.frozen,
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


@dataclasses.dataclass
class Meter:
    """What is summed on the device between two looks at it, and how long the steps took.

    clean: an empty tally on the device. host: seconds that the loop waited for data, since the last
    look. flops_per_image, peak: for model FLOP/s and MFU; 0 and None where they are not known.
    Pauses (compilation, previews, saves) are not counted: `resume` starts timing again after one.
    """

    log: Log
    clean: PyTree
    batch_size: int
    devices: int
    flops_per_image: float
    peak: float | None

    def __post_init__(self) -> None:
        """Nothing counted yet."""
        self.tally, self.steps, self.seconds, self.host = self.clean, 0, 0.0, 0.0
        self.means: dict[str, float] = {}
        self.resume()

    def resume(self) -> None:
        """Start timing."""
        self.began = time.monotonic()

    def flush(self, done: int) -> dict[str, float]:
        """Log and return the means since the last flush, at step `done`. Raises Diverged."""
        if not self.steps:
            return self.means
        means = read_tally(self.tally, self.steps)  # waits for the device
        elapsed = time.monotonic() - self.began
        self.seconds += elapsed
        rate = self.steps * self.batch_size / elapsed
        means |= {
            "images": float(done * self.batch_size),
            "images_per_second": rate,
            "step_seconds": elapsed / self.steps,
        }
        if self.flops_per_image:
            means["model_tflops"] = self.flops_per_image * rate / 1e12
            if self.peak:
                means["mfu"] = self.flops_per_image * rate / (self.peak * self.devices)
        means |= {"host_seconds": self.host / self.steps}
        watch = current()
        if watch is not None:
            watch.pace = means["host_seconds"]
        self.log.scalars(done, means, **slowest())
        self.tally, self.steps, self.means, self.host = self.clean, 0, means, 0.0
        self.resume()
        return means


def slowest() -> dict[str, str]:
    """The process whose host takes longest a step, as far as the last reports say; {} of one.

    The devices of all processes wait for each other in every step, so step times are the same
    everywhere; what differs is how long each host keeps its devices waiting.
    """
    watch = current()
    paces = {} if watch is None else watch.paces()
    if watch is None or not paces:
        return {}
    index = max(paces, key=lambda i: paces[i])
    return {"slowest_host": f"{watch.name(index)}, {paces[index]:.3g} s a step"}


def fit(
    setup: Any,
    workdir: Path,
    *,
    initial: Callable[[TrainState], TrainState] | None = None,
    preview: Callable[[TrainState, int], np.ndarray] | None = None,
    flops_per_image: float = 0.0,
    peak_flops: float | None = None,
    interrupts: Interrupts,
) -> tuple[TrainState, dict[str, float]]:
    """Train from the workdir's newest whole checkpoint, or from scratch, to `config.train.images`.

    setup: a `jaxgen.run.setup.Setup`. initial: changes the fresh state (`--init_from`).
    preview(state, step) -> picture, called every `train.sample_every` images. flops_per_image:
    useful floating-point operations of one training image (3 x forward, 2 per multiply-add).
    Returns (state, timings in seconds; none where there was nothing left to do). Raises
    Interrupted, with the state saved, after a signal.
    """
    method, mesh, size, total = setup.method, setup.mesh, setup.data.batch_size, setup.steps
    seed = setup.config.get("seed", 0)
    root = to_global(jax.random.key(seed), replicated(mesh))
    begin = time.monotonic()
    abstract = jax.eval_shape(method.init, jax.random.key(0))
    shardings = state_sharding(mesh, abstract)
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(
            Checkpoints(
                workdir,
                keep_last=setup.checkpoint.keep_last,
                keep_best=setup.checkpoint.keep_best,
                keep_every=setup.every(setup.checkpoint.keep_every) or None,
                limits=setup.hosts,
                say=say,
            )
        )
        first, state = _first_state(setup, checkpoints, abstract, shardings, root, initial)
        log = Log(
            workdir,
            step=first,
            tensorboard=setup.log.tensorboard,
            wandb=setup.log.wandb,
            config=setup.config,
        )
        stack.callback(log.close)
        if first >= total:
            return state, {}
        stream = open_stream(setup, seed, first)
        batch = next(stream)
        clean = jax.tree.map(
            lambda a: to_global(a, replicated(mesh)), empty_tally(method, abstract, batch)
        )
        frozen = place_frozen(method, mesh)
        step = jitted_step(method, setup.layout, shardings)
        set_up = time.monotonic()
        compiled = step.lower(state, clean, batch, root, frozen).compile()
        timings = {"setup": set_up - begin, "compile": time.monotonic() - set_up}
        meter = Meter(log, clean, size, mesh.size, flops_per_image, peak_flops)
        advance = stack.enter_context(progress("train", total, first))
        watch, periods = current(), _periods(setup)
        for done in range(first + 1, total + 1):
            with jax.transfer_guard("disallow"):
                state, meter.tally = compiled(state, meter.tally, batch, root, frozen)
            meter.steps += 1
            if watch is not None:
                watch.step, watch.doing = done, "training"
            stop = interrupts.reached()
            last = done == total or stop
            if not last:
                asked = time.monotonic()
                batch = next(stream)
                meter.host += time.monotonic() - asked
            due = {name for name, period in periods.items() if period and done % period == 0}
            if "log" in due or last:
                means = meter.flush(done)
                rate = means["images_per_second"]
                late = "".join(f"  slowest: {text}" for text in slowest().values())
                advance(done, f"loss {means['loss']:.4f}  {rate:.0f} img/s{late}")
            # Snapshots first: a run killed in between makes the same ones again.
            if "snapshot" in due or (done == total and periods["snapshot"]):
                save_snapshots(workdir, setup.ema, state, done * size)
            if "save" in due or last:
                means = meter.flush(done)  # what is not finite is never saved
                checkpoints.save(done, state, about(done, size, means), wait=last)
                meter.resume()
            if preview is not None and "sample" in due and not last:
                meter.flush(done)
                log.image(done, "samples", preview(state, done))
                meter.resume()
            if stop:
                assert interrupts.number is not None
                raise Interrupted(
                    interrupts.number,
                    f"stopped by {signal.Signals(interrupts.number).name}; saved at step {done} of "
                    f"{total} ({done * size} images): the same command goes on from there",
                )
        timings |= {
            "train": meter.seconds,
            "images_per_second": (total - first) * size / max(meter.seconds, 1e-9),
        }
        return state, timings


def _first_state(
    setup: Any,
    checkpoints: Checkpoints,
    abstract: PyTree,
    shardings: PyTree,
    root: jax.Array,
    initial: Callable[[TrainState], TrainState] | None,
) -> tuple[int, TrainState]:
    """The step and the state of the newest whole checkpoint, or 0 and a fresh state."""
    restored = checkpoints.restore(abstract, shardings)
    if restored is not None:
        first, state, _ = restored
        images = first * setup.data.batch_size
        say(f"Resuming at step {first} of {setup.steps} ({images} images).")
        return first, state
    fresh = jax.jit(setup.method.init, out_shardings=shardings)
    state = fresh(jax.random.fold_in(root, LARGEST))
    if initial is not None:
        state = jax.tree.map(to_global, initial(state), shardings)
    return 0, state


def _periods(setup: Any) -> dict[str, int]:
    """After how many steps what is done again; 0: never."""
    images = {
        "log": setup.train.log_every,
        "save": setup.checkpoint.every,
        "sample": setup.train.sample_every,
        "snapshot": setup.checkpoint.snapshot_every,
    }
    return {name: setup.every(period) for name, period in images.items()}


def open_stream(setup: Any, seed: int, first: int) -> Iterator[dict[str, jax.Array]]:
    """Batches on the devices, from step `first` on, each process reading its own rows."""
    sharding, size = batch_sharding(setup.mesh), setup.data.batch_size
    return to_device(
        batches(
            setup.source,
            batch_size=size,
            seed=seed,
            start_step=first,
            rows=None if sharding.is_fully_addressable else local_rows(sharding, size),
            flip=setup.data.flip,
            workers=setup.data.workers,
            prefetch=setup.data.prefetch,
        ),
        sharding,
        prefetch=setup.data.prefetch,
        batch_size=size,
    )


def about(done: int, batch_size: int, means: dict[str, float]) -> dict[str, Any]:
    """A checkpoint's metadata."""
    return {
        "step": done,
        "images": done * batch_size,
        "batch_size": batch_size,
        "loss": means["loss"],
        "jaxgen": __version__,
        "jax": jax.__version__,
    }


def save_snapshots(workdir: Path, averages: Any, state: TrainState, images: int) -> None:
    """Write each power-function average to `ema_snapshots/<name>_<images>.safetensors`, whole."""
    for std in averages.power_std:
        name = power_name(std)
        path = workdir / "ema_snapshots" / f"{name}_{images:012d}.safetensors"
        write_atomic(path, dump(state.ema[name], {"std": str(std), "images": str(images)}))
