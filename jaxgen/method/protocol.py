"""Method: what a family of models gives the training loop.

A `Method` is a frozen dataclass of pure functions. The loop, the checkpoints, the sharding, the
evaluator and the command line use a family through these functions alone. Most families differ only
in their losses, which `jaxgen.method.learning` turns into `init` and `update`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from jaxgen.errors import invalid, unknown
from jaxgen.method.chain import Chain
from jaxgen.method.columns import Column

PyTree = Any
Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a source of data looks like.

    shape: one example's, (H, W, C) for images in [-1, 1], (h, w) for tokens. Labels are int32 in
    [0, num_classes); `null_label`, one past the last, stands for "no label". levels: how many
    values an element can take: 256 for bytes, the vocabulary for tokens, None where any real number
    may come (latents). tokens: examples are int32 in [0, levels) rather than images. target: what a
    source without examples asks for (`jaxgen.data.source.Target`), else None. classes: their names,
    () where the source has none. columns: what else batches hold of each example, by name.
    """

    shape: tuple[int, ...]
    num_classes: int
    levels: int | None = 256
    tokens: bool = False
    target: Any = None
    classes: tuple[str, ...] = ()
    columns: Mapping[str, Column] = FrozenDict()

    def __post_init__(self) -> None:
        """Columns frozen, so that a Spec can be hashed; from JSON too."""
        read = {k: c if isinstance(c, Column) else Column(**c) for k, c in self.columns.items()}
        object.__setattr__(self, "columns", FrozenDict(read))

    @property
    def class_names(self) -> tuple[str, ...]:
        """A name for every class: its number where the source has none."""
        return self.classes or tuple(str(i) for i in range(self.num_classes))

    def label(self, word: int | str | None, option: str) -> int:
        """The label of a class's name, of a number, or of None: no label. Raises UsageError.

        A word that is a class's name means that class, also where it is a number.
        """
        if word is None:
            return self.null_label
        names = self.class_names
        if str(word) in names and (isinstance(word, str) or not self.classes):
            return names.index(str(word))
        if isinstance(word, int) or word.isdigit():
            if 0 <= int(word) < self.num_classes:
                return int(word)
            raise invalid(option, word, f"labels from 0 to {self.num_classes - 1}")
        raise unknown(option, word, names)

    @property
    def null_label(self) -> int:
        """The label that stands for "no label": one past the last class."""
        return self.num_classes

    @property
    def size(self) -> int:
        """Elements of an example."""
        return math.prod(self.shape)

    @property
    def width(self) -> float:
        """The distance between two neighbouring values of an image in [-1, 1]."""
        return 2.0 / (self.require_levels() - 1)

    def require_levels(self) -> int:
        """`levels`, for what needs them. UsageError: real-valued examples."""
        if self.levels is None:
            raise invalid(
                "config.data.source", "real-valued examples", "a source with discrete values"
            )
        return self.levels

    def to_tokens(self, x: jax.Array) -> jax.Array:
        """Images in [-1, 1] as the nearest of the levels, int32, the same shape; tokens as is."""
        top = self.require_levels() - 1
        if self.tokens:
            return x.astype(jnp.int32)
        return jnp.clip(jnp.round((x + 1) * (top / 2)), 0, top).astype(jnp.int32)

    def from_tokens(self, tokens: jax.Array) -> jax.Array:
        """The inverse of `to_tokens`: float32 images in [-1, 1], or the tokens as they are."""
        if self.tokens:
            return tokens
        return tokens.astype(jnp.float32) * self.width - 1

    def dequantise(self, x: jax.Array, keys: jax.Array) -> jax.Array:
        """Images [B, *shape] with uniform noise of one level's width, keys [B] (Theis et al. 2016).

        ln of the probability of an image is at least E ln p(dequantised) + size ln width.
        """
        noise = jax.vmap(lambda k: jax.random.uniform(k, self.shape, minval=-0.5, maxval=0.5))(keys)
        return x + self.width * noise


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """What the numbers of `Method.log_prob` are.

    exact: of the model itself, up to rounding or a solver's tolerance; otherwise a lower bound in
    expectation. mass: probabilities of the discrete example; otherwise a density over [-1, 1]^d,
    which `Spec.dequantise` turns into a bound on the mass.
    """

    exact: bool
    mass: bool


class TrainState(flax.struct.PyTreeNode):
    """All that training changes; a pytree of arrays, so a checkpoint of it is the whole run.

    step: int32 (), updates done. params: trained parameters. opt_state: the optimizer's.
    ema: name -> averaged params. extra: whatever else a method carries (loss histories, replay
    buffers, codebook counts); () for most.
    """

    step: jax.Array
    params: PyTree
    opt_state: PyTree
    ema: Mapping[str, PyTree]
    extra: PyTree = ()


class Averages(Protocol):
    """Running averages of parameters (see `jaxgen.training.ema`)."""

    def init(self, params: PyTree) -> dict[str, PyTree]:
        """Fresh averages, equal to `params`."""
        ...

    def update(
        self, averages: Mapping[str, PyTree], params: PyTree, step: jax.Array, batch_size: int
    ) -> dict[str, PyTree]:
        """Averages after the update numbered `step` (1 for the first) on `batch_size` images."""
        ...


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A compiled-once sampler: `fn(params, keys[B], labels[B]) -> samples[B, *shape]`.

    Sample i is a function of keys[i] and labels[i] alone. `calls`: network evaluations per sample
    (NFE), guidance branches included; `steps`: solver steps (0 where the notion does not exist).
    chain(params, label ()) -> Chain: the same sampler, for images of one label, taken apart into
    steps that steering may repeat; None where it does not go in steps. denoiser(params, labels[B])
    -> what its solver asks, guidance included; None where labels alone do not say it. Another model
    may be guided by it or stitched to it. by_weight(params, keys[B], labels[B], weights[B]): the
    same sampler with a weight of classifier-free guidance for each image, so that one program does
    for all weights; None where guidance is no single weight. log_probs(params, x, labels) ->
    [B, N]: ln of the probability of each of the N draws that made x, where x says what they were.
    latents(keys[B]) -> the noise [B, D] that a sample is a function of, label and parameters
    besides; None where it draws more of it.
    """

    fn: Callable[[PyTree, jax.Array, jax.Array], Any]
    calls: float
    steps: int = 0
    chain: Callable[[PyTree, jax.Array], Chain] | None = None
    denoiser: Callable[[PyTree, Any], Any] | None = None
    by_weight: Callable[[PyTree, jax.Array, jax.Array, jax.Array], Any] | None = None
    log_probs: Callable[[PyTree, jax.Array, jax.Array], jax.Array] | None = None
    latents: Callable[[jax.Array], jax.Array] | None = None

    def __call__(self, params: PyTree, keys: jax.Array, labels: jax.Array) -> Any:
        """Draw one sample for each key and label."""
        return self.fn(params, keys, labels)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """A family of models, as pure functions. Fields that a family does not have are None.

    init(key) -> TrainState. update(state, batch, key, frozen) -> (TrainState, metrics), where batch
    has `image` [B, *shape] (float32, or int32 tokens; absent where the source is a target), `label`
    [B] int32 and the source's columns, and key is the step's own. metrics has "loss". frozen: the
    method's frozen arrays where they lie; a method without any need not take it.
    training: what `init` and `update` were made of, which wraps change; None where a method writes
    its own.
    sampler(**options) -> Sampler; its signature is the schema of a config's `sample` section.
    log_prob(**options) -> fn(params, x[B, *shape], labels[B], keys[B]) -> nats [B]; `likelihood`
    says what they are.
    label_error(params, x[B], labels[B], keys[B], draw[B], draws) -> [B]: estimate number `draw` of
    `draws` of -log p(x | label) up to a term that does not depend on the label; the same key and
    draw give the same noise for every label. label_noise: False where it ignores keys and draws,
    so that one draw is all there is.
    encode(params, x[B, *shape]) -> code and decode(params, code) -> x: tokenizers; `code` is the
    Spec of a code, its levels None for latents.
    scores(params, key) -> name -> value: what the family alone knows to measure; meanings: name ->
    (which is better, "lower", "higher", "zero" or None; what the value tells, in a sentence).
    train_flops() -> floating-point operations to train on one example; None: counted from `update`.
    separable: the gradient of a batch is the mean over its parts, whatever the cut, so that
    `update` may see one device's part (`mesh.Layout.via`).
    plain(params) -> params as the sampler of the method without its wraps takes them.

    reads: names of the frozen arrays that functions of params need (a database), besides losses;
    they find them in params["frozen"] (`with_frozen`).
    """

    spec: Spec
    init: Callable[[jax.Array], TrainState]
    update: Callable[..., tuple[TrainState, Metrics]]
    training: Any = None
    sampler: Callable[..., Sampler] | None = None
    log_prob: Callable[..., Callable[..., jax.Array]] | None = None
    likelihood: Likelihood | None = None
    label_error: Callable[..., jax.Array] | None = None
    label_noise: bool = True
    encode: Callable[[PyTree, jax.Array], jax.Array] | None = None
    decode: Callable[[PyTree, jax.Array], jax.Array] | None = None
    code: Spec | None = None
    scores: Callable[[PyTree, jax.Array], dict[str, Any]] | None = None
    meanings: Mapping[str, tuple[str | None, str]] = FrozenDict()
    train_flops: Callable[[], float] | None = None
    separable: bool = False
    plain: Callable[[PyTree], PyTree] = lambda params: params
    reads: tuple[str, ...] = ()

    @property
    def frozen(self) -> dict[str, PyTree]:
        """Arrays by name that the update needs and nobody trains."""
        return {} if self.training is None else self.training.arrays()

    @property
    def loss(self) -> Callable[..., Any]:
        """loss(params, batch, key, extra) of a method's one loss. UsageError: it has more."""
        learners = {} if self.training is None else self.training.learners
        if len(learners) != 1:
            raise invalid("method.loss", f"a method of {len(learners)} losses", "one loss")
        return next(iter(learners.values())).loss


def update_with(
    method: Method, state: TrainState, batch: Batch, key: jax.Array, frozen: PyTree
) -> tuple[TrainState, Metrics]:
    """`method.update` told of the frozen arrays, where it has any."""
    has = method.training is not None and method.training.frozen
    return method.update(state, batch, key, *((frozen,) if has else ()))


def with_frozen(method: Method, params: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """Parameters as the method's functions want them: with the frozen arrays that they read."""
    if not method.reads:
        return dict(params)
    held = {name: method.training.frozen[name] for name in method.reads}
    return {**params, "frozen": {n: a() if callable(a) else a for n, a in held.items()}}


def sampling_params(method: Method, params: PyTree, average: PyTree) -> PyTree:
    """An average, completed by the groups of params that no learner trains and it leaves out."""
    trained = None if method.training is None else method.training.trained
    if trained is None:
        return dict(average)
    fixed = {k: a for k, a in params.items() if k not in trained and k not in average}
    return {**fixed, **average}


def denoiser_factory(method: Method) -> Callable[..., Any] | None:
    """of(**options of the sampler) -> (params, labels) -> the denoiser that it asks.

    None where the method's sampler asks no denoiser of labels.
    """
    draw = method.sampler
    if draw is None or draw().denoiser is None:
        return None
    known = draw
    return lambda **options: known(**options).denoiser


def exact_label_error(
    log_prob: Callable[[PyTree, jax.Array, jax.Array, jax.Array], jax.Array],
) -> Callable[..., jax.Array]:
    """A `label_error` from fn(params, x, labels, keys) -> nats: Bayes' rule with equal priors.

    The key of a draw is fold_in(key, draw), the same for every label.
    """

    def error(
        params: PyTree,
        x: jax.Array,
        labels: jax.Array,
        keys: jax.Array,
        draw: jax.Array,
        draws: int,
    ) -> jax.Array:
        del draws
        return -log_prob(params, x, labels, jax.vmap(jax.random.fold_in)(keys, draw))

    return error
