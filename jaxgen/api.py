"""What the command line and notebooks call: train, load, evaluate, classify, reconstruct_ema."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from jaxgen import config as configs
from jaxgen import files, scoring
from jaxgen.data import normalise
from jaxgen.data.folder import squares
from jaxgen.errors import UsageError, check_seed, invalid
from jaxgen.export import folder, onnx, program
from jaxgen.export.adapter import export as export_adapter
from jaxgen.method import Spec, TrainState
from jaxgen.metrics.sets.quantise import adm, quantise
from jaxgen.report import exhibits, pictures, report
from jaxgen.report.compare import compare
from jaxgen.run import hub, networks, portable, record, start
from jaxgen.run.data import write_data
from jaxgen.run.encode import encode
from jaxgen.run.imported import imported as import_checkpoint
from jaxgen.run.lock import locked
from jaxgen.run.model import Model, Samples, average_name, by_name, load, load_tokenizer, of_state
from jaxgen.run.precision import single
from jaxgen.run.setup import DataOptions, Setup, set_up, trace_own, train_flops
from jaxgen.run.tokenize import tokenize
from jaxgen.scoring import evaluate_files
from jaxgen.training import ema as averages
from jaxgen.training import hosts
from jaxgen.training.checkpoint import has_checkpoints, write_atomic
from jaxgen.training.interrupt import Interrupted, Interrupts
from jaxgen.training.log import read_jsonl, say
from jaxgen.training.loop import fit
from jaxgen.training.peak import peak_flops
from jaxgen.training.watch import watched
from jaxgen.training.weights import dump, read

PyTree = Any

# What may change between two runs of one workdir; the rest decides what the arrays mean or which
# examples and noise step n sees, so a change of it would be another run under the same name.
FREE = (
    *(
        "train",
        "checkpoint",
        "log",
        "sample",
        "evaluate",
        "classify",
        "likelihood",
        "mesh",
        "hosts",
        "start",
        "networks",  # elsewhere; what they are is checked by digest
    ),
    *("data.workers", "data.prefetch", "data.test", "data.tokenizer"),
    *("data.source.path", "data.source.data_dir", "data.source.verify"),  # the same data, elsewhere
    "data.source.download",
    *("data.source.of.path", "data.source.of.data_dir"),
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


@single
def train(
    config: ml_collections.ConfigDict, workdir: str | Path, *, init_from: str | None = None
) -> Trained:
    """Train from the workdir's last whole checkpoint, else `config.start`, else from scratch.

    init_from: a workdir in the place of `config.start`.
    Then scores, classifies and writes `report.html` and `report.json`, as the config says. Raises
    UsageError for bad input (nothing written is lost) and Interrupted after Ctrl-C or SIGTERM (the
    state is saved).
    """
    begin = time.monotonic()
    workdir = files.local("--workdir", workdir)
    config = ml_collections.ConfigDict(config)
    if init_from is not None:
        with config.unlocked():
            config.start = str(init_from)
    with contextlib.ExitStack() as stack:
        interrupts = stack.enter_context(Interrupts())
        stack.enter_context(watched())
        files.check("--workdir", workdir, directory=True)
        if portable.is_one(workdir):
            raise invalid("--workdir", str(workdir), "a new folder, or that of a run",
                          "This is an exported model: start a run from it with --init_from "
                          f"{workdir}.")  # fmt: skip
        setup = set_up(config, classes=record.class_order(workdir))
        setup = dataclasses.replace(setup, held=record.before(workdir).get("holdout"))
        check_end(setup)
        trace_own(setup)
        _check_together(setup, workdir)
        _check_same_run(config, workdir, setup)
        _check_test_half(setup, workdir)
        said, initial = record.before(workdir), None
        said = {k: said[k] for k in ("start",) if k in said} | {
            "networks": networks.digests(setup.networks, said.get("networks", {})),
            **({} if setup.holdout is None else {"holdout": setup.holdout}),
        }
        if setup.method.training is not None:
            setup.method.training.check()
        if setup.start is not None and not has_checkpoints(workdir):
            initial, said["start"] = start.initial(
                setup.method, setup.start, setup.spec.classes, setup.modules
            )
        useful = train_flops(setup)
        stack.enter_context(locked(workdir))
        record.save(workdir, setup, **said)
        say(_headline(setup, workdir))
        state, timings = fit(
            setup,
            workdir,
            initial=initial,
            preview=lambda state, step: _preview(setup, state, step, workdir),
            flops_per_image=useful,
            peak_flops=peak_flops(setup.mesh.devices.flat[0]),
            interrupts=interrupts,
        )
        interrupts.check()
        if not timings:  # nothing was left to do: what is known of the training is of before
            timings = report.timings(workdir)
        model = of_state(setup, state, lambda: load_tokenizer(setup, workdir))
        model.workdir = workdir
        results: dict[str, Any] = {}
        if setup.evaluate.at_end:
            clock = time.monotonic()
            results["evaluate"] = scoring.evaluate(model, workdir, check=interrupts.check)
            timings["evaluate"] = time.monotonic() - clock
        if setup.likelihood.at_end:
            clock = time.monotonic()
            results["likelihood"] = scoring.likelihood(model, workdir, check=interrupts.check)
            timings["likelihood"] = time.monotonic() - clock
        if setup.classify.at_end and setup.method.label_error is not None:
            clock = time.monotonic()
            results["classify"] = scoring.classify(model, workdir, check=interrupts.check)
            timings["classify"] = time.monotonic() - clock
        interrupts.check()
        clock = time.monotonic()
        grids = report_grids(model, interrupts)
        for name, picture in grids.items():
            _save_picture(setup, workdir, f"{pictures.FINAL}{name}", picture)
        # All that is known so far, whatever becomes of the further pictures.
        report.write(workdir, model, results, timings, {}, useful)
        made, missing = exhibits.exhibits(model, interrupts.check)
        if hosts.first():
            exhibits.save(workdir, made)
        timings["report"] = time.monotonic() - clock
        timings["total"] = time.monotonic() - begin
        written = report.write(workdir, model, results, timings, missing, useful)
        times = [f"{k} {v:.1f}" for k, v in timings.items() if k != "images_per_second"]
        say(f"Seconds: {', '.join(times)}")
        say(f"Report: {workdir / 'report.html'}")
    return Trained(model, written)


def reconstruct_ema(
    workdir: str | Path, *, std: float, images: int | None = None
) -> dict[str, Any]:
    """A power-function average of any length from the snapshots, to `ema/std_X.safetensors`.

    images: at how many images seen the average ends (None: at the last snapshot). Raises UsageError
    for a length out of range or a run without snapshots.
    """
    workdir = files.local("--workdir", workdir)
    averages.power_gamma(std)
    paths = sorted((workdir / "ema_snapshots").glob("*.safetensors"))
    files.check("--workdir", workdir / "ema", directory=True)
    if not paths:
        raise invalid(
            "--workdir",
            str(workdir),
            "a run with snapshots of power-function averages",
            "Train with config.ema.power_std=(0.05, 0.1) and config.checkpoint.snapshot_every.",
        )
    loaded = [read(p) for p in paths]
    for snapshot, (_, about) in zip(paths, loaded, strict=True):
        if not {"images", "std"} <= set(about):
            raise UsageError(f"{snapshot}: not a snapshot of an average. Move it elsewhere.")
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
    asked = average_name(name, end, _run_of(workdir))
    say(f"{name} at {end} images from {len(used)} snapshots -> {path}; use it with --ema {asked}")
    return {"out": str(path), "ema": asked, "snapshots": len(used), "weights": weights.tolist()}


def _run_of(workdir: Path) -> tuple[int | None, Sequence[str]]:
    """(images that a run has seen, names of the averages that it keeps), from its checkpoints."""
    steps = [int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdigit()]
    config = record.saved_config(workdir)
    keywords = configs.check(averages.Averages, dict(config.get("ema", {})), "config.ema")
    seen = (
        max(steps) * int(config.data.get("batch_size", DataOptions.batch_size)) if steps else None
    )
    return seen, averages.Averages(**keywords).names


def export(
    model: Model,
    out: str | Path,
    *,
    ema: str | None = None,
    licence: str | None = None,
    adapter: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """A model as a program (`export.program`), an ONNX graph (`export.onnx`) or a folder.

    By the ending of `out`: .jaxexport, .onnx, or none of these (`export.folder`). ema: whose
    parameters (None: the default average). licence: of a folder. adapter: the layout in which the
    run's LoRA is written instead (`export.adapter`). options: of what is exported. Raises
    UsageError.
    """
    place = files.local("--out", out)
    if adapter is not None:
        given = {**({} if licence is None else {"license": licence}), **options}
        if given:
            raise invalid(f"--{next(iter(given))}", next(iter(given.values())), "not of an adapter")
        export_adapter(model, place, ema=ema, layout=adapter)
        say(f"Wrote {place}")
        return {"out": str(place), "ema": ema or model.ema}
    ways: dict[str, Callable[..., Any]] = {
        program.SUFFIX: program.export,
        onnx.SUFFIX: onnx.export,
    }
    if place.suffix.lstrip(".").lower() in _OTHERS:
        raise invalid("--out", str(out), f"a new folder, or NAME{' or NAME'.join(ways)}")
    own = inspect.signature(ways.get(place.suffix, folder.export)).parameters
    given = {**({} if licence is None else {"licence": licence}), **options}
    for name in given:
        if name not in own:
            option = {"licence": "license", "batch": "batch_size", "changes": "sample"}
            allowed = f"nothing where --out is {place.suffix or 'a folder'}"
            raise invalid(f"--{option.get(name, name)}", given[name], allowed)
    if place.suffix in ways:
        made = ways[place.suffix](model, place, ema=ema, **given)
        written = made if isinstance(made, list) else [made]
        say("Wrote " + ", ".join(f"{p} ({p.stat().st_size:,} bytes)" for p in written))
        return {"out": [str(p) for p in written], "ema": ema or model.ema}
    folder.export(model, place, ema=ema, licence=licence)
    size = sum(p.stat().st_size for p in place.rglob("*") if p.is_file())
    say(f"Wrote {place} ({size:,} bytes)")
    return {"out": str(place), **portable.about(place)}


def push(
    workdir: str | Path,
    repo: str,
    *,
    licence: str | None = None,
    ema: str | None = None,
    private: bool = False,
) -> dict[str, Any]:
    """Send a run, exported first, or an exported folder to OWNER/NAME on the hub (`run.hub`).

    Its licence has to be stated, here or when it was exported. Raises UsageError.
    """
    place = files.local("--workdir", workdir)
    name, _ = hub.repository("--repo", repo)
    said = portable.about(place) if portable.is_one(place) else {}
    if licence is None and said.get("licence") is None:
        allowed = "the licence under which others may use the model, e.g. apache-2.0"
        raise invalid("--license", None, allowed)
    with tempfile.TemporaryDirectory() as home:
        sent = place
        if not said or licence is not None or ema is not None:
            sent = folder.export(
                load(place),
                Path(home) / "model",
                ema=ema,
                licence=licence or said["licence"],
                name=name.partition("/")[2],
            )
        address = hub.push(sent, repo, private=private)
        return {"repo": name, "address": address, **portable.about(sent)}


def pull(repo: str, out: str | Path) -> dict[str, Any]:
    """Fetch OWNER/NAME (or OWNER/NAME@REVISION) from the hub into a new folder, verified."""
    place = files.local("--out", out)
    said = hub.pull(repo, place)
    say(f"{repo} -> {place}: {said['images']:,} images seen, {len(said['files']) + 1} files whole")
    return {"out": str(place), **said}


def evaluate(model: Model, workdir: str | Path, **options: Any) -> dict[str, Any]:
    """`scoring.evaluate`; a report that the run has is written again, unless `out` is given."""
    workdir = files.local("--workdir", workdir)
    result = scoring.evaluate(model, workdir, **options)
    return result if options.get("out") is not None else _reported(workdir, result)


def classify(model: Model, workdir: str | Path, **options: Any) -> dict[str, Any]:
    """`scoring.classify`; a report that the run has is written again."""
    workdir = files.local("--workdir", workdir)
    return _reported(workdir, scoring.classify(model, workdir, **options))


def likelihood(model: Model, workdir: str | Path, **options: Any) -> dict[str, Any]:
    """`scoring.likelihood`; a report that the run has is written again."""
    workdir = files.local("--workdir", workdir)
    return _reported(workdir, scoring.likelihood(model, workdir, **options))


def _reported(workdir: str | Path, result: dict[str, Any]) -> dict[str, Any]:
    report.rewrite(Path(workdir))
    return result


def check_end(setup: Setup) -> None:
    """Refuse, before training, what could only fail after it. Raises UsageError."""
    method = setup.method
    for section in ("evaluate", "classify", "likelihood"):
        check_seed(f"config.{section}.seed", getattr(setup, section).seed)
    if setup.likelihood.at_end and method.log_prob is None:
        allowed = "False, as this method has no likelihood"
        raise invalid("config.likelihood.at_end", True, allowed)
    if setup.evaluate.at_end:
        scoring.check_evaluation(
            setup,
            setup.evaluate.samples,
            setup.evaluate.guidance or (None,),
            seed=setup.evaluate.seed,
        )


class Output:
    """Where samples go: a grid (`.png`), arrays (`.npz`), or a folder of PNGs.

    Arrays are images, class_names, labels, seed, clip and codes, or codes that were not decoded
    without the first two; PNGs are as `save_samples` writes them, batch by batch, the others at the
    end. All are read back by `evaluate`, and folders and arrays by training, too. Raises, before
    there are samples, UsageError for a name that is none of the three, where nothing can be
    written, and for a folder with anything in it.
    """

    def __init__(
        self,
        path: str | Path,
        option: str = "--out",
        *,
        replace: bool = False,
        npz: Literal["jaxgen", "adm"] = "jaxgen",
        image_size: int | None = None,
    ) -> None:
        """A dot alone makes no suffix: `samples_w2.5` is a folder.

        replace: whether samples that are in the folder already make place. npz: "adm" for arr_0 and
        arr_1 (`metrics.sets.quantise.adm`) in the place of our own arrays. image_size: pixels a
        side that images get, as bytes (`data.folder.squares`); None: what they have.
        """
        self.path, self.replace = files.local(option, path), replace
        self.npz, self.image_size = npz, image_size
        suffix = self.path.suffix.lower()
        self.folder = suffix not in (".png", ".npz")
        if self.folder and suffix.lstrip(".") in _OTHERS:
            raise invalid(option, str(path), "a name that ends in .png or .npz, or a folder")
        if hosts.first():
            files.check(option, self.path, directory=self.folder)
            if self.folder:
                pictures.check_folder(self.path, replace, option)

    def add(
        self, first: int, images: np.ndarray, labels: Sequence[int], names: Sequence[str]
    ) -> None:
        """Images of a batch [n, H, W, C], whose first is number `first`; labels of them all.

        names: of the classes.
        """
        if not self.folder or not hosts.first():
            return
        if self.replace:
            for old in pictures.earlier(self.path):
                old.unlink()
            self.replace = False
        pictures.save_samples(self.path, first, self._sized(images), labels, names)

    def _sized(self, images: np.ndarray) -> np.ndarray:
        """Images [n, H, W, C] in [-1, 1] in the size that was asked for."""
        if self.image_size is None:
            return images
        pixels = squares(quantise(np.asarray(images, np.float32)), self.image_size)
        return np.asarray(normalise({"image": jnp.asarray(pixels)})["image"])

    def close(self, samples: Samples, columns: int, spec: Spec) -> None:
        """Write what is written in one piece. Codes that were not decoded go into arrays alone."""
        if self.folder or not hosts.first():
            return
        if self.path.suffix.lower() == ".png":
            picture = pictures.picture(spec, self._sized(samples.images), columns)
            if spec.target is None:
                how = pictures.named(picture, spec.class_names, samples.labels, columns)
            else:
                how = picture, pictures.caption(spec.class_names, samples.labels, columns)
            pictures.save_png(self.path, *how)
            return
        if self.npz == "adm":
            files.write_arrays(self.path, adm(self._sized(samples.images), samples.labels))
            return
        codes: dict[str, Any] = {} if samples.codes is None else {"codes": samples.codes}
        if samples.images is not samples.codes:
            codes["images"] = self._sized(samples.images)
            codes["class_names"] = np.array(spec.class_names, np.str_)
        # Values a little beyond are what samplers give; who shows or scores images clips them.
        about: dict[str, Any] = {
            "labels": samples.labels,
            "seed": samples.seed,
            "clip": np.array([-1.0, 1.0]),
        }
        files.write_arrays(self.path, {**about, **codes})


_PICTURES = "jpg jpeg jfif gif webp bmp tif tiff avif heic jp2 ppm svg pdf ico mp4"
_ARRAYS = "npy zip tar gz json csv txt html pt pth safetensors pkl h5 hdf5 parquet mat"
_OTHERS = frozenset(f"{_PICTURES} {_ARRAYS}".split())
"""Suffixes of files that somebody may have wanted and that are not written."""


def write_samples(
    path: str | Path, samples: Samples, columns: int, spec: Spec, *, replace: bool = False
) -> Path:
    """Write samples to an `Output`."""
    output = Output(path, replace=replace)
    output.add(0, samples.images, samples.labels.tolist(), spec.class_names)
    output.close(samples, columns, spec)
    return output.path


def report_grids(model: Model, interrupts: Interrupts) -> dict[str, np.ndarray]:
    """Final grids: a row per class at each scored guidance, or as the config samples.

    Of a tokenizer: test images in odd rows, what it makes of them below.
    """
    per = model.setup.train.preview_per_label
    if model.setup.method.sampler is None:
        return {"reconstructions": _reconstructions(model)}
    labels = _preview_labels(model.setup)
    grids = {}
    for scale in model.setup.evaluate.guidance or (None,):
        asked: dict[str, Any] = {} if scale is None else {"guidance": scale}
        samples = model.sample(
            labels,
            batch_size=model.setup.evaluate.batch_size,
            check=interrupts.check,
            **asked,
        )
        name = "samples" if scale is None else f"guidance_{scale:g}"
        grids[name] = pictures.picture(model.setup.spec, samples.images, per)
    return grids


def _preview_labels(setup: Setup) -> np.ndarray:
    """`preview_per_label` of each of the first 20 classes; of a target, evaluate.samples of one."""
    if setup.spec.target is not None:
        return np.zeros(setup.evaluate.samples, np.int32)
    return np.repeat(np.arange(min(setup.spec.num_classes, 20)), setup.train.preview_per_label)


def _reconstructions(model: Model) -> np.ndarray:
    """Rows of test images, each above what a tokenizer makes of it."""
    columns, rows = 16, 4
    source = model.setup.test_source
    chosen = np.linspace(0, len(source) - 1, columns * rows).astype(int)
    real = normalise({"image": jnp.asarray(source.images(chosen))})["image"]
    made = model.decode(model.encode(np.asarray(real)))
    both = np.stack([np.asarray(real), made]).reshape(2, rows, columns, *real.shape[1:])
    return pictures.grid(both.swapaxes(0, 1).reshape(-1, *real.shape[1:]), columns)


def _preview(setup: Setup, state: TrainState, step: int, workdir: Path) -> np.ndarray:
    """A grid written to `samples/`; the compiled program is kept for the next one."""
    model = _PREVIEWS.get(id(setup))
    if model is None:
        _PREVIEWS.clear()
        model = _PREVIEWS[id(setup)] = of_state(
            setup, state, lambda: load_tokenizer(setup, workdir)
        )
    model.params = by_name(setup, state)
    if setup.method.sampler is None:
        picture = _reconstructions(model)
    else:
        samples = model.sample(_preview_labels(setup), batch_size=setup.evaluate.batch_size)
        per = setup.train.preview_per_label
        picture = pictures.picture(setup.spec, samples.images, per)
    _save_picture(setup, workdir, f"{step * setup.data.batch_size:010d}", picture)
    return picture


def _save_picture(setup: Setup, workdir: Path, name: str, picture: np.ndarray) -> None:
    """A grid of `_preview_labels`, or of reconstructions, with the names of its rows' classes."""
    text: dict[str, str] = {}
    about: dict[str, Any] = {"what": "seed 0"}
    if setup.method.sampler is None:
        about = {"what": "test images, each above its reconstruction"}
    elif setup.spec.target is None:
        per, labels = setup.train.preview_per_label, _preview_labels(setup)
        names = setup.spec.class_names
        picture, text = pictures.named(picture, names, labels, per)
        about = {"what": "a row a class, seed 0", "rows": [names[label] for label in labels[::per]]}
    text |= pictures.told(about) if name.startswith(pictures.FINAL) else {}
    if hosts.first():
        pictures.save_png(workdir / "samples" / f"{name}.png", picture, text)


_PREVIEWS: dict[int, Model] = {}


def _check_together(setup: Setup, workdir: Path) -> None:
    """Refuse processes that are not of one run: other configs, code or data, another folder."""
    own = {k: v for k, v in configs.to_dict(setup.config).items() if k != "hosts"}
    seconds = setup.hosts.barrier_seconds
    examples = None if setup.spec.target is not None else len(setup.source)
    hosts.agree({"config": own, "training examples": examples}, seconds)
    hosts.check_shared(workdir, seconds)


def _check_test_half(setup: Setup, workdir: Path) -> None:
    """Open the test half where the end of training, or a picture on the way, will look at it."""
    measured = setup.likelihood.at_end or (
        setup.classify.at_end and setup.method.label_error is not None
    )
    # Codes are scored as images, by the halves of their tokenizer.
    decoded = setup.coding is not None and record.tokenizer_of(setup, workdir) is not None
    scored = (setup.evaluate.at_end and not decoded) or setup.method.sampler is None
    if setup.spec.target is not None:
        return
    if measured or scored:
        _ = setup.test_source
    if decoded:
        # Previews ask it, too: one that does not fit is refused here, not after the first images.
        tokenizer = load_tokenizer(setup, workdir)
        assert tokenizer is not None
        if setup.evaluate.at_end:
            _ = tokenizer.setup.source, tokenizer.setup.test_source


def _check_same_run(config: ml_collections.ConfigDict, workdir: Path, setup: Setup) -> None:
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
    started = has_checkpoints(workdir)
    read_jsonl(workdir / "metrics.jsonl")
    if started:
        record.check_same_data(workdir, setup)
    changes = list(configs.differences(record.saved_config(workdir), config))
    if not changes:
        return
    lines = [f"  config.{k}: {a!r} -> {b!r}" for k, a, b in changes]

    def below(key: str, prefixes: Sequence[str]) -> bool:
        return any(key == p or key.startswith(p + ".") for p in prefixes)

    def free(key: str, old: Any, new: Any) -> bool:
        return below(key, FREE) or (below(key, ("data.source",)) and _elsewhere(old, new))

    fixed = [k for k, a, b in changes if not free(k, a, b) or below(k, BOUND)]
    if started and fixed:
        raise UsageError(
            f"--workdir: {workdir} holds another run; these keys cannot change in it:\n"
            + "\n".join(line for line, (k, _, _) in zip(lines, changes, strict=True) if k in fixed)
            + f"\nUse another --workdir, or --config.start={workdir} to start from its parameters."
        )
    say("The config changed since the last run:\n" + "\n".join(lines))


def _elsewhere(old: Any, new: Any) -> bool:
    """Whether sources of a union, or a source of features, differ only in where they lie."""

    def bare(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: bare(v) for k, v in value.items() if k not in ("path", "data_dir")}
        return [bare(v) for v in value] if isinstance(value, list) else value

    return bool(bare(old) == bare(new))


def _headline(setup: Setup, workdir: Path) -> str:
    abstract = jax.eval_shape(setup.method.init, jax.random.key(0))
    size = sum(int(np.prod(a.shape)) for a in jax.tree.leaves(abstract.params))
    device = setup.mesh.devices.flat[0]
    shape = "x".join(map(str, setup.spec.shape))
    what = (
        f"{len(setup.source)} training images {shape}, {setup.spec.num_classes} classes, "
        if setup.spec.target is None
        else f"no data, states {shape}, "
    )
    return (
        f"jaxgen: {size / 1e6:.2f}M parameters, {what}"
        f"{setup.steps} steps of {setup.data.batch_size} on {setup.mesh.size} x "
        f"{device.device_kind} -> {workdir}"
    )


__all__ = [
    "Interrupted",
    "Model",
    "Samples",
    "Trained",
    "classify",
    "compare",
    "encode",
    "evaluate",
    "evaluate_files",
    "import_checkpoint",
    "likelihood",
    "load",
    "reconstruct_ema",
    "tokenize",
    "train",
    "write_data",
    "write_samples",
]
