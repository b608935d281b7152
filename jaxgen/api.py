"""What the command line and notebooks call: train, load, evaluate, classify, reconstruct_ema."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from jaxgen import config as configs
from jaxgen import pictures, report
from jaxgen.errors import UsageError, invalid
from jaxgen.method import TrainState
from jaxgen.model import Model, Samples
from jaxgen.nn.flops import multiply_adds
from jaxgen.scoring import classify, evaluate
from jaxgen.setup import Setup, setup
from jaxgen.training import ema as averages
from jaxgen.training.checkpoint import Checkpoints, has_checkpoints, write_atomic
from jaxgen.training.interrupt import Interrupted, Interrupts
from jaxgen.training.log import say
from jaxgen.training.loop import fit
from jaxgen.training.peak import peak_flops
from jaxgen.training.sharding import state_sharding
from jaxgen.training.weights import dump, read

PyTree = Any

# What may change between two runs of one workdir; the rest decides what the arrays mean or which
# examples and noise step n sees, so a change of it would be another run under the same name.
FREE = (
    *("train", "checkpoint", "log", "sample", "evaluate", "classify", "mesh"),
    *("data.workers", "data.prefetch", "data.test"),
    *("data.source.path", "data.source.data_dir"),  # the same data, elsewhere
    *("optimizer.learning_rate", "optimizer.weight_decay"),
)
BOUND = ("train.accumulate",)


@dataclasses.dataclass
class Trained:
    """What `train` returns: the model, and the report as a dict."""

    model: Model
    report: dict[str, Any]

    def sample(self, labels: Sequence[int], **options: Any) -> Samples:
        """As `Model.sample`."""
        return self.model.sample(labels, **options)


def train(
    config: ml_collections.ConfigDict, workdir: str | Path, *, init_from: str | None = None
) -> Trained:
    """Train from the workdir's last whole checkpoint, else `init_from`, else from scratch.

    Then scores, classifies and writes `report.html` and `report.json`, as the config says. Raises
    UsageError for bad input (nothing written is lost) and Interrupted after Ctrl-C or SIGTERM (the
    state is saved).
    """
    begin = time.monotonic()
    workdir = Path(workdir)
    config = ml_collections.ConfigDict(config)
    with Interrupts() as interrupts:
        _check_same_run(config, workdir)
        parts = setup(config)
        initial = None if init_from is None else _initial(init_from)
        workdir.mkdir(parents=True, exist_ok=True)
        write_atomic(workdir / "config.json", configs.to_json(config))
        useful = 6 * _multiply_adds(parts)
        say(_headline(parts, workdir))
        state, timings = fit(
            parts,
            workdir,
            initial=initial,
            preview=lambda state, step: _preview(parts, state, step, workdir),
            flops_per_image=useful,
            peak_flops=peak_flops(parts.mesh.devices.flat[0]),
            interrupts=interrupts,
        )
        interrupts.check()
        model = _model(parts, state)
        results: dict[str, Any] = {}
        if parts.evaluate.at_end:
            clock = time.monotonic()
            results["evaluate"] = evaluate(model, workdir, check=interrupts.check)
            timings["evaluate"] = time.monotonic() - clock
        if parts.classify.at_end and parts.method.label_error is not None:
            clock = time.monotonic()
            results["classify"] = classify(model, workdir, check=interrupts.check)
            timings["classify"] = time.monotonic() - clock
        interrupts.check()
        clock = time.monotonic()
        grids = report_grids(model, interrupts)
        for name, picture in grids.items():
            pictures.save_png(workdir / "samples" / f"final_{name}.png", picture)
        timings["report"] = time.monotonic() - clock
        timings["total"] = time.monotonic() - begin
        written = report.write(workdir, model, results, timings, grids, useful)
        say(report.summary(written))
        say(f"Report: {workdir / 'report.html'}")
    return Trained(model, written)


def load(workdir: str | Path) -> Model:
    """The model of a workdir, from its newest whole checkpoint, with every average of it.

    Raises UsageError where there is no run or no checkpoint that can be read.
    """
    workdir = Path(workdir)
    parts = setup(_saved_config(workdir))
    if not (workdir / "checkpoints").is_dir():
        raise invalid("--workdir", str(workdir), "a folder with checkpoints")
    abstract = jax.eval_shape(parts.method.init, jax.random.key(0))
    with Checkpoints(workdir, say=say) as checkpoints:
        restored = checkpoints.restore(abstract, state_sharding(parts.mesh, abstract))
    if restored is None:
        raise invalid("--workdir", str(workdir), "a folder with a whole checkpoint")
    model = _model(parts, restored[1])
    for path in sorted((workdir / "ema").glob("*.safetensors")):
        model.params[path.stem] = read(path)[0]
    return model


def reconstruct_ema(
    workdir: str | Path, *, std: float, images: int | None = None
) -> dict[str, Any]:
    """A power-function average of any length from the snapshots, to `ema/std_X.safetensors`.

    images: at how many images seen the average ends (None: at the last snapshot). Raises UsageError
    for a length out of range or a run without snapshots.
    """
    workdir = Path(workdir)
    averages.power_gamma(std)
    paths = sorted((workdir / "ema_snapshots").glob("*.safetensors"))
    if not paths:
        raise invalid(
            "--workdir",
            str(workdir),
            "a run with snapshots of power-function averages",
            "Train with config.ema.power_std=(0.05, 0.1) and config.checkpoint.snapshot_every.",
        )
    loaded = [read(p) for p in paths]
    times = [int(m["images"]) for _, m in loaded]
    end = max(times) if images is None else images
    if not 0 < end <= max(times):
        raise invalid("--images", images, f"images seen from 1 to {max(times)}")
    used = [i for i, t in enumerate(times) if t <= end]
    stds = [float(loaded[i][1]["std"]) for i in used]
    weights = averages.posthoc_weights([times[i] for i in used], stds, time=end, std=std)
    trees = [loaded[i][0] for i in used]
    params = jax.tree.map(
        lambda *leaves: sum(
            w * leaf.astype(np.float64) for w, leaf in zip(weights, leaves, strict=True)
        ),
        *trees,
    )
    params = jax.tree.map(lambda a: a.astype(np.float32), params)
    name = averages.power_name(std)
    path = workdir / "ema" / f"{name}.safetensors"
    write_atomic(path, dump(params, {"std": str(std), "images": str(end)}))
    say(f"{name} at {end} images from {len(used)} snapshots -> {path}; use it with --ema {name}")
    return {"out": str(path), "ema": name, "snapshots": len(used), "weights": weights.tolist()}


def write_samples(path: str | Path, samples: Samples, columns: int) -> Path:
    """Write a grid (`.png`), arrays (`.npz`: images, labels, seed) or a folder of PNGs."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        pictures.save_png(path, pictures.grid(samples.images, columns))
    elif path.suffix == ".npz":
        np.savez(path, images=samples.images, labels=samples.labels, seed=samples.seed)
    elif path.suffix == "":
        for i, (image, label) in enumerate(zip(samples.images, samples.labels, strict=True)):
            picture = pictures.grid(image[None], 1, scale=1, gap=0)
            pictures.save_png(path / f"{i:06d}_label{label}.png", picture)
    else:
        raise invalid("--out", str(path), "a name that ends in .png or .npz, or a folder")
    return path


def report_grids(model: Model, interrupts: Interrupts) -> dict[str, np.ndarray]:
    """Final grids: a row per class at each scored guidance and the config's own."""
    classes = min(model.parts.spec.num_classes, 20)
    per = model.parts.train.preview_per_label
    labels = np.repeat(np.arange(classes), per)
    grids = {}
    scales: list[Any] = list(model.parts.evaluate.guidance)
    if not scales:
        scales = [None]
    for scale in scales:
        samples = model.sample(
            labels,
            batch_size=model.parts.evaluate.batch_size,
            check=interrupts.check,
            **({} if scale is None else {"guidance": scale}),
        )
        name = "config" if scale is None else f"guidance_{scale:g}"
        grids[name] = pictures.grid(samples.images, per)
    return grids


def _model(parts: Setup, state: TrainState) -> Model:
    step = int(state.step)
    return Model(
        parts,
        {**state.ema, "params": state.params},
        images=step * parts.data.batch_size,
        step=step,
    )


def _preview(parts: Setup, state: TrainState, step: int, workdir: Path) -> np.ndarray:
    """A grid written to `samples/`; the compiled program is kept for the next one."""
    model = _PREVIEWS.get(id(parts))
    if model is None:
        _PREVIEWS.clear()
        model = _PREVIEWS[id(parts)] = _model(parts, state)
    model.params = {**state.ema, "params": state.params}
    per = parts.train.preview_per_label
    labels = np.repeat(np.arange(min(parts.spec.num_classes, 20)), per)
    samples = model.sample(labels, batch_size=parts.evaluate.batch_size)
    picture = pictures.grid(samples.images, per)
    pictures.save_png(workdir / "samples" / f"{step * parts.data.batch_size:010d}.png", picture)
    return picture


_PREVIEWS: dict[int, Model] = {}


def _saved_config(workdir: Path) -> ml_collections.ConfigDict:
    path = workdir / "config.json"
    if not path.is_file():
        raise invalid("--workdir", str(workdir), "the folder of a run (it has a config.json)")
    try:
        return configs.from_json(path.read_text())
    except ValueError as error:
        raise UsageError(f"{path}: not readable as JSON: {error}") from error


def _check_same_run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Say what changed since the workdir's last run; refuse what cannot be gone on with."""
    if workdir.exists() and not workdir.is_dir():
        raise invalid("--workdir", str(workdir), "a folder")
    if not (workdir / "config.json").is_file():
        if has_checkpoints(workdir):
            raise UsageError(
                f"--workdir: {workdir} has checkpoints but no config.json; it cannot be resumed. "
                "Restore config.json or choose another folder."
            )
        return
    changes = list(configs.differences(_saved_config(workdir), config))
    if not changes:
        return
    started = has_checkpoints(workdir)
    lines = [f"  config.{k}: {a!r} -> {b!r}" for k, a, b in changes]

    def below(key: str, prefixes: Sequence[str]) -> bool:
        return any(key == p or key.startswith(p + ".") for p in prefixes)

    fixed = [k for k, _, _ in changes if not below(k, FREE) or below(k, BOUND)]
    if started and fixed:
        raise UsageError(
            f"--workdir: {workdir} holds another run; these keys cannot change in it:\n"
            + "\n".join(line for line, (k, _, _) in zip(lines, changes, strict=True) if k in fixed)
            + f"\nUse another --workdir, or --init_from {workdir} to start from its parameters."
        )
    say("The config changed since the last run:\n" + "\n".join(lines))


def _initial(init_from: str) -> Any:
    source = load(init_from)

    def initial(state: TrainState) -> TrainState:
        params = source.weights(None)
        have = jax.tree.map(lambda a: (a.shape, str(a.dtype)), params)
        want = jax.tree.map(lambda a: (a.shape, str(a.dtype)), state.params)
        if have != want:
            raise invalid("--init_from", init_from, "a run with the same networks")
        copies = {name: jax.tree.map(np.asarray, params) for name in state.ema}
        return state.replace(params=jax.tree.map(np.asarray, params), ema=copies)

    say(f"Starting from {init_from} ({source.images_seen} images).")
    return initial


def _multiply_adds(parts: Setup) -> float:
    """Forward multiply-adds of one image, summed over the method's networks."""
    modules = parts.modules.values() if isinstance(parts.modules, dict) else [parts.modules]
    return sum(multiply_adds(m, parts.spec.shape) for m in modules)


def _headline(parts: Setup, workdir: Path) -> str:
    abstract = jax.eval_shape(parts.method.init, jax.random.key(0))
    count = sum(int(np.prod(a.shape)) for a in jax.tree.leaves(abstract.params))
    device = parts.mesh.devices.flat[0]
    return (
        f"jaxgen: {count / 1e6:.2f}M parameters, {len(parts.source)} training images "
        f"{'x'.join(map(str, parts.spec.shape))}, {parts.spec.num_classes} classes, "
        f"{parts.steps} steps of {parts.data.batch_size} on {parts.mesh.size} x "
        f"{device.device_kind} -> {workdir}"
    )


__all__ = [
    "Interrupted",
    "Model",
    "Samples",
    "Trained",
    "classify",
    "evaluate",
    "load",
    "reconstruct_ema",
    "train",
    "write_samples",
]
