"""Model: a trained model, to sample, encode, decode and measure likelihoods with.

What is here knows a `Method` and nothing of its family.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from jaxgen import config as configs
from jaxgen.data import normalise, to_global, to_host
from jaxgen.errors import UsageError, check_seed, invalid, unknown
from jaxgen.files import local
from jaxgen.mesh import within
from jaxgen.method import Sampler, TrainState, sampling_params, with_frozen
from jaxgen.run import hub, portable, record
from jaxgen.run.adapters import added
from jaxgen.run.others import branch, sections
from jaxgen.run.precision import single
from jaxgen.run.setup import Setup, answering, make_sampler, sample_options, set_up, text_order
from jaxgen.training.checkpoint import Checkpoints
from jaxgen.training.log import progress, say
from jaxgen.training.sharding import batch_devices, batch_sharding, state_sharding
from jaxgen.training.weights import fingerprint, read

PyTree = Any


@dataclasses.dataclass
class Samples:
    """Generated images with how they were made.

    images: float32 [N, H, W, C], as the sampler left them, or what the tokenizer made of them (of
    `decode=False` the codes themselves).
    codes: what the sampler left where a tokenizer stands behind it, else None. labels: int32 [N].
    seconds excludes compilation and the tokenizer. calls: network evaluations per image.
    """

    images: np.ndarray
    codes: np.ndarray | None
    labels: np.ndarray
    seed: int
    ema: str
    options: dict[str, Any]
    calls: float
    steps: int
    seconds: float

    @property
    def images_per_second(self) -> float:
        """Throughput, compilation excluded."""
        return len(self.labels) / max(self.seconds, 1e-9)


class Trajectory(NamedTuple):
    """Samples on their way. steps [F]: how many are done at each of F moments, 0 at first.

    states [N, F, *shape]: what the sampler holds then, codes where a tokenizer stands behind it.
    expected [N, F, H, W, C]: the image that it makes one expect; at the end, the sample.
    """

    steps: np.ndarray
    states: np.ndarray
    expected: np.ndarray


class Model:
    """A trained model.

    `params` maps a name ("params", or an average's such as "half_life_50000") to parameters; `ema`
    is the name used where none is asked for. `workdir`: where it was loaded from, if it was.
    """

    def __init__(
        self,
        setup: Setup,
        params: Mapping[str, PyTree],
        *,
        images: int,
        step: int,
        tokenizer: Callable[[], Model | None] = lambda: None,
    ) -> None:
        """params: by name; the first average becomes the default.

        tokenizer: gives the tokenizer that decodes samples, called when one is first needed.
        """
        self.setup = setup
        self._find_tokenizer = tokenizer
        self.params = dict(params)
        usual = (*setup.ema.names, "params", *self.params)
        self.ema = next(name for name in usual if name in self.params)
        self.images_seen = images
        self.workdir: Path | None = None
        self.step = step
        self._programs: dict[str, tuple[Sampler, Callable[..., jax.Array]]] = {}
        self._others: dict[str, Model] = {}
        self._functions: dict[Any, Callable[..., Any]] = {}

    @functools.cached_property
    def tokenizer(self) -> Model | None:
        """What decodes samples, loaded when first needed; None where samples are images."""
        return self._find_tokenizer()

    def weights(self, ema: str | None, adapters: Any = None) -> PyTree:
        """Parameters by name, with adapters added. Raises UsageError naming what there is."""
        name = ema or self.ema
        if name not in self.params:
            raise unknown("--ema", name, self.params)
        params = with_frozen(self.setup.method, self.params[name])
        if adapters is None:
            return params
        heads = getattr(self.setup.modules, "heads", None)
        return added(params, adapters, model=self._other, heads=heads)

    def program(self, options: Mapping[str, Any]) -> tuple[Sampler, Callable[..., jax.Array]]:
        """The sampler of these options and its jitted function, compiled once per options."""
        options = {k: v for k, v in options.items() if k != "adapters"}
        key = _key(options)
        if key not in self._programs:
            given = {}
            if "models" in options:
                given["branches"] = {
                    name: branch(self.setup, self._other(own["workdir"]).setup, name, own, options)
                    for name, own in sections(options["models"]).items()
                }
            sampler = make_sampler(self.setup, options, **given)
            self._programs[key] = (sampler, jax.jit(within(self.setup.layout, sampler.fn)))
        return self._programs[key]

    @single
    def sample(
        self,
        labels: Sequence[int] | np.ndarray,
        *,
        seed: int = 0,
        ema: str | None = None,
        weak: str | None = None,
        batch_size: int | None = None,
        check: Callable[[], None] = lambda: None,
        stop: Callable[[], bool] = lambda: False,
        each: Callable[[int, np.ndarray], None] = lambda first, images: None,
        show: bool = False,
        decode: bool = True,
        **changes: Any,
    ) -> Samples:
        """One image per label; image i depends on (seed, i, labels[i]) and nothing else.

        ema: whose parameters. weak: the name of worse parameters for autoguidance. batch_size:
        images per call of the compiled program (the result does not depend on it). changes:
        keywords of the method's sampler (guidance, solver, steps, ...) instead of the config's;
        `models` among them: other workdirs, by the name that guidance asks for (`run.others`);
        and `adapters`: low-rank changes to add, {place: weight} (`run.adapters`).
        check, stop: called between batches; where `stop` says so, the images made so far are all
        (none: Samples of length 0). each: called with every batch's first place and its images, as
        they are made. decode=False leaves codes as they are, and needs no
        tokenizer. Raises UsageError for labels or options out of range.
        """
        labels = np.asarray(labels)
        classes = self.setup.spec.num_classes
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or not len(labels):
            raise invalid("labels", labels.tolist(), "a list of one or more integers")
        wrong = labels[(labels < 0) | (labels > classes)]
        if len(wrong):
            raise invalid("labels", int(wrong[0]), f"0 to {classes - 1}, or {classes} for no label")
        labels = labels.astype(np.int32)
        check_seed("--seed", seed)
        options = sample_options(self.setup, changes)
        with configs.collecting() as names, answering(names):
            sampler, program = self.program(options)
        params = self.weights(ema, options.get("adapters"))
        if weak is not None:
            params = {**params, "weak": self.setup.method.plain(self.weights(weak))["net"]}
        if "models" in options:
            params = {**params, "models": self._weights_of(options["models"])}
        coded = self.setup.coding is not None
        tokenizer = self.tokenizer if decode else None  # where it is missing: said before the work
        mesh = self.setup.mesh
        size = self._size(batch_size, len(labels))
        sharding = batch_sharding(mesh)
        params = _placed(params, mesh)
        root = jax.random.key(seed)
        make_keys = jax.jit(lambda ids: jax.vmap(lambda i: jax.random.fold_in(root, i))(ids))
        chunks = [np.arange(i, i + size) for i in range(0, len(labels), size)]

        def run(ids: np.ndarray) -> jax.Array:
            # The last chunk is padded by going on counting: one shape, one compilation.
            padded = np.resize(labels, max(len(labels), int(ids[-1]) + 1))[ids]
            keys = to_global(make_keys(jnp.asarray(ids)), sharding)
            with answering((*names, *self.setup.own)):
                return program(params, keys, to_global(padded, sharding))

        if len(chunks) > 1 and not stop():  # compile first, so that the rate is of the work
            jax.block_until_ready(run(chunks[0]))
        seconds, count = 0.0, 0
        made: list[np.ndarray] = []
        images: list[np.ndarray] = []
        for ids in _shown("sample", chunks, size, show):
            check()
            if stop():
                break
            began = time.monotonic()
            batch = to_host(run(ids))
            seconds += time.monotonic() - began
            shown = batch if tokenizer is None else tokenizer.decode(self._raw(batch))
            there = min(len(ids), len(labels) - count)
            made.append(batch[:there])
            images.append(shown[:there])
            each(count, images[-1])
            count += there
        codes = np.concatenate(made) if made else np.zeros((0, *self.setup.spec.shape), np.float32)
        return Samples(
            images=np.concatenate(images) if made and tokenizer is not None else codes,
            codes=codes if tokenizer is not None or (coded and not decode) else None,
            labels=labels[:count],
            seed=seed,
            ema=ema or self.ema,
            options=options,
            calls=sampler.calls,
            steps=sampler.steps,
            seconds=seconds,
        )

    @single
    def by_weight(
        self,
        labels: np.ndarray,
        weights: np.ndarray,
        noise: np.ndarray,
        *,
        seed: int = 0,
        ema: str | None = None,
        batch_size: int | None = None,
    ) -> np.ndarray:
        """Images [N, H, W, C] of labels [N], each at its own weight [N] of guidance: one program.

        noise: int [N]; images of one number start from the same noise, as image number `noise[i]`
        of `sample` does. The rest as the config's `sample` says. Raises UsageError where guidance
        is no single weight.
        """
        options = sample_options(self.setup, {"guidance": 1.0})
        sampler, _ = self.program(options)
        draw = sampler.by_weight
        if draw is None:
            allowed = "a model whose guidance is a weight, trained with labels dropped"
            raise invalid("guidance", "a weight for each image", allowed)
        fn = self._program(("by_weight", _key(options)), lambda: draw)
        rows = (_noise(seed, noise), labels.astype(np.int32), weights.astype(np.float32))
        return self._decoded(self._map(fn, rows, ema, batch_size))

    @single
    def trajectory(
        self, labels: np.ndarray, *, frames: int, seed: int = 0, ema: str | None = None
    ) -> Trajectory:
        """How the first images of `sample` come about, one for each of labels [N].

        frames: how many moments, at even steps from the start to the end, at most. Raises
        UsageError for a sampler that does not go in steps.
        """
        options = sample_options(self.setup, {})
        sampler, _ = self.program(options)
        make = sampler.chain
        if make is None:
            raise invalid("trajectory", "a sampler that does not go in steps", "one that does")
        stops = np.unique(np.linspace(0, sampler.steps, frames).round().astype(int))
        spans = jnp.asarray(np.stack([np.append(0, stops[:-1]), stops], 1))

        def fn(params: PyTree, keys: jax.Array, labels: jax.Array) -> jax.Array:
            def image(key: jax.Array, label: jax.Array) -> jax.Array:
                chain, keys = make(params, label), key[None]

                def frame(state: Any, span: jax.Array) -> tuple[Any, jax.Array]:
                    step = lambda number, state: chain.step(keys, state, number)
                    state = jax.lax.fori_loop(span[0], span[1], step, state)
                    expected = chain.estimate(keys, state, span[1])
                    return state, jnp.stack([chain.sample(state)[0], expected[0]])

                return jax.lax.scan(frame, chain.start(keys), spans)[1]

            return jax.vmap(image)(keys, labels)

        program = self._program(("trajectory", frames, _key(options)), lambda: fn)
        rows = (_noise(seed, np.arange(len(labels))), labels.astype(np.int32))
        found = self._map(program, rows, ema, None)
        states, estimates = found[:, :, 0], found[:, :, 1]
        # Nothing is left to expect of a sample.
        estimates[:, -1] = states[:, -1]
        flat = self._decoded(estimates.reshape(-1, *estimates.shape[2:]))
        return Trajectory(stops, states, flat.reshape(*estimates.shape[:2], *flat.shape[1:]))

    def _decoded(self, made: np.ndarray) -> np.ndarray:
        """Samples as images, where a tokenizer stands behind them."""
        return made if self.tokenizer is None else self.tokenizer.decode(self._raw(made))

    def _other(self, workdir: str) -> Model:
        """The model of another workdir, loaded once."""
        if workdir not in self._others:
            self._others[workdir] = load(workdir, trust=self.setup.trusted or ())
        return self._others[workdir]

    def _weights_of(self, models: Any) -> PyTree:
        """Parameters of other workdirs' models, by the names that they have here."""
        found = sections(models).items()
        return {name: self._other(o["workdir"]).weights(o.get("ema")) for name, o in found}

    def _raw(self, codes: np.ndarray) -> np.ndarray:
        """Codes as the tokenizer has them: latents without the scale of their source."""
        return codes if self.setup.coding is None else self.setup.coding.raw(codes)

    def examples(self, images: np.ndarray) -> np.ndarray:
        """What the model is of, of images uint8 [N, H, W, C]: themselves, or a tokenizer's codes.

        Images are rounded to the nearest of the model's levels. Raises UsageError for other shapes,
        and for codes of which nobody says whose they are.
        """
        spec, coding = self.setup.spec, self.setup.coding
        tokenizer = None if coding is None else self.tokenizer
        if coding is not None and tokenizer is None:
            raise invalid("--tokenizer", None, "the workdir of the tokenizer that encodes images")
        wanted = spec.shape if tokenizer is None else tokenizer.setup.spec.shape
        if images.shape[1:] != wanted:
            raise invalid(
                "images", f"images {images.shape[1:]}", f"images {wanted}, as the model's"
            )
        if coding is not None and tokenizer is not None:
            return coding.examples(tokenizer.encode(images))
        x = normalise({"image": jnp.asarray(images)})["image"]
        if spec.levels not in (None, 256):
            x = spec.from_tokens(spec.to_tokens(x))
        return np.asarray(x)

    @single
    def log_prob(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        *,
        seed: int = 0,
        keys: jax.Array | None = None,
        ema: str | None = None,
        batch_size: int | None = None,
        **options: Any,
    ) -> np.ndarray:
        """log p(example | label) in nats [N] of examples [N, *shape]; the method's options.

        What the numbers are, `method.likelihood` says. Example i's noise comes from keys[i], else
        from (seed, i).
        Raises UsageError for a method without a likelihood.
        """
        factory = self.setup.method.log_prob
        if factory is None:
            raise invalid("log_prob", "a method without a likelihood", "families that have one")
        fn = self._program(("log_prob", _key(options)), lambda: factory(**options))
        if keys is None:
            root = jax.random.key(seed)
            keys = jax.vmap(lambda i: jax.random.fold_in(root, i))(jnp.arange(len(images)))
        labels = np.asarray(labels, np.int32)
        return self._map(fn, (images, labels, keys), ema, batch_size)

    @single
    def encode(
        self, images: np.ndarray, *, ema: str | None = None, batch_size: int | None = None
    ) -> np.ndarray:
        """Codes of images [N, *shape] (bytes, or floats in [-1, 1]) by a tokenizer."""
        encode = self.setup.method.encode
        if encode is None:
            raise invalid("encode", "a method that is no tokenizer", "a tokenizer's workdir")

        def fn(params: PyTree, image: jax.Array) -> jax.Array:
            return encode(params, normalise({"image": image})["image"])

        return self._map(self._program("encode", lambda: fn), (images,), ema, batch_size)

    @single
    def decode(
        self, codes: np.ndarray, *, ema: str | None = None, batch_size: int | None = None
    ) -> np.ndarray:
        """Images float32 [N, H, W, C] of codes [N, ...] by a tokenizer."""
        decode = self.setup.method.decode
        if decode is None:
            raise invalid("decode", "a method that is no tokenizer", "a tokenizer's workdir")
        return self._map(self._program("decode", lambda: decode), (codes,), ema, batch_size)

    def _size(self, batch_size: int | None, count: int) -> int:
        """Rows per call: what is asked for or the config's, in multiples of the devices."""
        size = min(self.setup.evaluate.batch_size, count) if batch_size is None else batch_size
        if size < 1:
            raise invalid("--batch_size", size, "images >= 1")
        devices = batch_devices(self.setup.mesh)
        return -(-size // devices) * devices

    def _program(self, key: Any, make: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
        """jit(make()), kept under `key`, so that a second call compiles nothing."""
        if key not in self._functions:
            self._functions[key] = jax.jit(within(self.setup.layout, make()))
        return self._functions[key]

    def _map(
        self,
        program: Callable[..., jax.Array],
        arrays: Sequence[Any],
        ema: str | None,
        batch_size: int | None,
    ) -> np.ndarray:
        """program(params, *rows) over all rows; the last batch is padded by going round."""
        count = len(arrays[0])
        size, sharding = self._size(batch_size, count), batch_sharding(self.setup.mesh)
        params = _placed(self.weights(ema), self.setup.mesh)
        out = []
        for start in range(0, count, size):
            rows = np.arange(start, start + size) % count
            out.append(to_host(program(params, *(to_global(a[rows], sharding) for a in arrays))))
        return np.concatenate(out)[:count]


@single
def load(
    workdir: str | Path,
    *,
    tokenizer: str | Path | None = None,
    trust: Sequence[str] = (),
    data: Sequence[str] = (),
) -> Model:
    """The model of a workdir, from its newest whole checkpoint, with every average of it.

    Or of a folder that `jaxgen export` made, with the one average that it holds; hf://OWNER/NAME is
    such a folder on the hub, fetched and verified when it is first asked for.
    No data are opened before they are asked for (`setup.source`): the workdir says what they hold.
    tokenizer: where the tokenizer of its codes is now, if neither beside it nor where it was.
    trust: modules besides jaxgen's own that its config, which somebody else may have written, may
    name; none but these are imported for it (`config.foreign`). data: assignments that say where
    its data are now, such as "data.source.path=/new/place".
    Raises UsageError where there is no run or no checkpoint that can be read, and where neither a
    record nor the data themselves (of a run of before there were records) say what they hold.
    """
    workdir = hub.cached(str(workdir)) if hub.names(workdir) else local("--workdir", workdir)
    setup = _setup(workdir, record.recorded(workdir), data, (*configs.trusted(), *trust))
    decoder = lambda: load_tokenizer(setup, workdir, tokenizer)
    if portable.is_one(workdir):
        params, about = portable.parameters(workdir)
        found, seen = {about["ema"]: params}, dict(images=about["images"], step=about["step"])
        model = Model(setup, found, **seen, tokenizer=decoder)
        model.workdir = workdir
        return model
    if not (workdir / "checkpoints").is_dir():
        raise invalid("--workdir", str(workdir), "a folder with checkpoints")
    abstract = jax.eval_shape(setup.method.init, jax.random.key(0))
    with Checkpoints(workdir, say=say) as checkpoints:
        restored = checkpoints.restore(abstract, state_sharding(setup.mesh, abstract))
    if restored is None:
        raise invalid("--workdir", str(workdir), "a folder with a whole checkpoint")
    model = of_state(setup, restored[1], decoder)
    model.workdir = workdir
    for path in sorted((workdir / "ema").glob("*.safetensors")):
        average, about = read(path)
        images = int(about["images"]) if about.get("images", "").isdigit() else None
        name = average_name(path.stem, images, (model.images_seen, model.setup.ema.names))
        model.params[name] = sampling_params(setup.method, model.params["params"], average)
    return model


def average_name(stem: str, images: int | None, run: tuple[int | None, Sequence[str]]) -> str:
    """What `--ema` calls an average in a file: its name, or NAME@IMAGES of another moment.

    images: at how many seen it was made. run: (how many the run has seen, the averages that it
    keeps itself, which no file takes the place of).
    """
    seen, names = run
    outgrown = images is not None and seen is not None and images != seen
    return (
        f"{stem}@{images if images is not None else 'file'}" if outgrown or stem in names else stem
    )


def _setup(
    workdir: Path, said: Mapping[str, Any], data: Sequence[str], trusted: Sequence[str]
) -> Setup:
    """The setup of a workdir's config, by its record, or else by its data."""
    # Where the run was trained is no matter here: the environment says who joins.
    saved = record.saved_config(workdir).items()
    config = ml_collections.ConfigDict({k: v for k, v in saved if k != "hosts"})
    for assignment in data:
        if not assignment.startswith("data."):
            allowed = "keys of config.data: the rest is how the model was trained"
            raise invalid(f"--config.{assignment.partition('=')[0]}", assignment, allowed)
    configs.override(config, data)
    spec, coding = record.spec_of_record(said), record.coding_of_record(said)
    try:
        order = text_order if spec is None else None
        setup = set_up(
            config, spec=spec, coding=coding, classes=order, trusted=trusted, joining=False
        )
        return dataclasses.replace(setup, held=said.get("holdout"))
    except UsageError as error:
        if said or not str(error).startswith(("source", "config.data")):
            raise
        raise UsageError(
            f"{error} --workdir: {workdir} was trained before runs recorded what their data hold, "
            "so the data have to be there; resumed once beside them, it needs them no more."
        ) from error


def of_state(
    setup: Setup, state: TrainState, tokenizer: Callable[[], Model | None] = lambda: None
) -> Model:
    """The model that a state of training holds. tokenizer: as `Model` takes it."""
    step = int(state.step)
    return Model(
        setup,
        by_name(setup, state),
        images=step * setup.data.batch_size,
        step=step,
        tokenizer=tokenizer,
    )


def by_name(setup: Setup, state: TrainState) -> dict[str, PyTree]:
    """Parameters and averages of a state; an average has the groups that nobody trains, too."""
    averages = {
        name: sampling_params(setup.method, state.params, average)
        for name, average in state.ema.items()
    }
    return {**averages, "params": state.params}


def load_tokenizer(setup: Setup, workdir: Path, place: str | Path | None = None) -> Model | None:
    """The tokenizer whose codes a run's examples are, or None where they are images.

    place: where it is, if not where `record.tokenizer_of` the run's workdir finds it. Raises
    UsageError where it does not fit the codes (vocabulary, grid, parameters).
    """
    coding, place = setup.coding, place or record.tokenizer_of(setup, workdir)
    if place is None:
        return None
    tokenizer = load(place, trust=setup.trusted or ())
    code, spec = tokenizer.setup.method.code, setup.spec
    if code is None:
        raise invalid("--tokenizer", str(place), "the workdir of a tokenizer")
    if (code.shape, code.levels) != (spec.shape, spec.levels):
        raise invalid(
            "--tokenizer",
            f"{place}, whose codes are {code.shape} of {code.levels} levels",
            f"a tokenizer with codes {spec.shape} of {spec.levels} levels, as the source's",
        )
    if coding is not None and coding.digest is not None:
        name = coding.ema or "params"
        tokenizer.ema = name if name in tokenizer.params else tokenizer.ema
        if digest(tokenizer.weights(None)) != coding.digest:
            raise invalid(
                "--tokenizer",
                f"{place}, whose parameters are not those that made the codes",
                "the tokenizer as it was",
                "Train on it no further, or run `jaxgen tokenize` again.",
            )
    return tokenizer


def digest(params: PyTree) -> str:
    """sha256 of parameters, as their safetensors file has them."""
    return fingerprint(params)


def _noise(seed: int, places: np.ndarray) -> jax.Array:
    """The keys [N] of images number `places` [N], as `sample` has them."""
    root = jax.random.key(seed)
    return jax.vmap(lambda i: jax.random.fold_in(root, i))(jnp.asarray(places))


def _key(options: Mapping[str, Any]) -> str:
    return json.dumps(options, sort_keys=True, default=str)


def _placed(params: PyTree, mesh: jax.sharding.Mesh) -> PyTree:
    """Parameters on the mesh as in training, so that what did not fit one device never has to."""
    return jax.tree.map(to_global, params, state_sharding(mesh, params))


def _shown(title: str, chunks: list[np.ndarray], size: int, show: bool) -> Iterator[np.ndarray]:
    if not show:
        yield from chunks
        return
    with progress(title, len(chunks) * size) as advance:
        for i, ids in enumerate(chunks):
            yield ids
            advance((i + 1) * size)


def balanced_labels(count: int, classes: int) -> np.ndarray:
    """`count` labels 0, 1, ..., C-1, 0, 1, ...: all classes equally often, give or take one."""
    return (np.arange(count) % classes).astype(np.int32)
