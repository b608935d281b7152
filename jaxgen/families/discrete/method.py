"""`discrete_interpolants`, `maskgit` and `maskbit`: one core of masked and discrete diffusion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxgen.config import part
from jaxgen.errors import invalid
from jaxgen.families.discrete.bounds import bound, places, remaining
from jaxgen.families.discrete.core import Bits, Core, Tokens, negative_log
from jaxgen.families.discrete.sampler import build_sampler
from jaxgen.families.discrete.schedules import Schedule
from jaxgen.method import (
    Averages,
    Batch,
    Likelihood,
    Method,
    Metrics,
    Sampler,
    Spec,
    drop_labels,
    dropout_key,
    example_keys,
    fold,
    method_of,
    single,
)

PyTree = Any
SCHEDULES = "jaxgen.families.discrete.schedules"


def discrete_interpolants(
    spec: Spec,
    model: Any,
    optimizer: optax.GradientTransformation,
    averages: Averages,
    *,
    noise: str = "mask",
    schedule: Any = "linear",
    time: str = "implicit",
    weighting: str = "simple",
    label_smoothing: float = 0.0,
    label_dropout: float = 0.1,
    accumulate: int = 1,
) -> Method:
    """Predict the clean tokens from a part of them (Hu & Ommer, "[MASK] is All You Need", 2024).

    spec: the data; its elements must have levels. model: a bidirectional Flax module(x[B, N],
    labels[B], *, train) -> [B, N, levels] (`jaxgen.nn.bert.Bert`; `jaxgen.nn.llama.Llama` with
    causal=False, for implicit time). noise: "mask", or "uniform" over the levels. schedule: a name
    or section in `families.discrete.schedules`: the share of noised tokens at time t. time:
    "implicit" (the network sees it in what is masked) or "explicit" (it is told; `model.timed`).
    weighting: "simple", the mean of -ln p of noised tokens (all tokens, for uniform noise) at
    uniform times, over the mean share of masks; "elbo", the bound on -ln p(x), per token.
    label_smoothing: mixed into the targets of "simple" (MaskGIT: .1). label_dropout: share of
    labels dropped in training, which guidance needs.

    `log_prob` is a bound: of decoding one by one in any order (mask), or of the jump process
    (uniform). Raises UsageError for values out of range, real-valued examples, causal networks.
    """
    if spec.levels is None:
        raise invalid("config.data.source", "real-valued examples", "a source with discrete values")
    if time not in ("implicit", "explicit"):
        raise invalid("method.time", time, "'implicit', 'explicit'")
    changes: dict[str, Any] = {"extra": 1}
    if hasattr(model, "timed"):
        changes["timed"] = time == "explicit"
    elif time == "explicit":
        raise invalid("method.time", time, "'implicit' for a network without `timed`")
    return _method(
        spec,
        model,
        changes,
        Tokens(spec.levels),
        optimizer,
        averages,
        noise=noise,
        schedule=schedule,
        timed=time == "explicit",
        weighting=weighting,
        label_smoothing=label_smoothing,
        label_dropout=label_dropout,
        accumulate=accumulate,
        solver="ancestral",
    )


def maskgit(
    spec: Spec,
    model: Any,
    optimizer: optax.GradientTransformation,
    averages: Averages,
    *,
    schedule: Any = "cosine",
    weighting: str = "simple",
    label_smoothing: float = 0.1,
    label_dropout: float = 0.1,
    accumulate: int = 1,
) -> Method:
    """MaskGIT (Chang et al. 2022): masks, cosine schedule, decoding by confidence.

    Options as `discrete_interpolants`, of which this is a case (implicit time).
    """
    if spec.levels is None:
        raise invalid("config.data.source", "real-valued examples", "a source with discrete values")
    return _method(
        spec,
        model,
        {"extra": 1},
        Tokens(spec.levels),
        optimizer,
        averages,
        noise="mask",
        schedule=schedule,
        timed=False,
        weighting=weighting,
        label_smoothing=label_smoothing,
        label_dropout=label_dropout,
        accumulate=accumulate,
        solver="confidence",
    )


def maskbit(
    spec: Spec,
    model: Any,
    optimizer: optax.GradientTransformation,
    averages: Averages,
    *,
    groups: int = 1,
    schedule: Any = "arccos",
    weighting: str = "simple",
    label_smoothing: float = 0.1,
    label_dropout: float = 0.1,
    accumulate: int = 1,
) -> Method:
    """MaskBit (Weber et al. 2024): tokens are their bits, without a table of embeddings.

    spec: the data; its levels must be a power of two, 2^K, whose numbers are read as K bits (the
    codes of a lookup-free quantiser). groups: how many groups of K / groups bits, each masked apart
    and predicted by its own softmax. model: `jaxgen.nn.bert.Bert`. Options as `maskgit`.

    Raises UsageError for levels that are no power of two and groups that do not divide K.
    """
    levels = spec.levels or 0
    bits = levels.bit_length() - 1
    if levels < 2 or levels != 2**bits:
        raise invalid("config.data.source", f"{spec.levels} levels", "a power of two, 2 or more")
    if groups < 1 or bits % groups:
        raise invalid("method.groups", groups, f"a divisor of {bits} bits")
    if not hasattr(model, "bits"):
        raise invalid("config.model.name", type(model).__name__, "a network on bits (bert.Bert)")
    codec = Bits(bits, groups)
    return _method(
        spec,
        model,
        {"bits": bits, "outputs": groups * codec.values},
        codec,
        optimizer,
        averages,
        noise="mask",
        schedule=schedule,
        timed=False,
        weighting=weighting,
        label_smoothing=label_smoothing,
        label_dropout=label_dropout,
        accumulate=accumulate,
        solver="confidence",
    )


def _method(
    spec: Spec,
    model: Any,
    changes: dict[str, Any],
    codec: Tokens | Bits,
    optimizer: optax.GradientTransformation,
    averages: Averages,
    *,
    noise: str,
    schedule: Any,
    timed: bool,
    weighting: str,
    label_smoothing: float,
    label_dropout: float,
    accumulate: int,
    solver: str,
) -> Method:
    if noise not in ("mask", "uniform"):
        raise invalid("method.noise", noise, "'mask', 'uniform'")
    if weighting not in ("simple", "elbo"):
        raise invalid("method.weighting", weighting, "'simple', 'elbo'")
    for name, value in (("label_dropout", label_dropout), ("label_smoothing", label_smoothing)):
        if not 0 <= value < 1:
            raise invalid(f"method.{name}", value, f"0 <= {name} < 1")
    if label_smoothing and weighting == "elbo":
        raise invalid("method.label_smoothing", label_smoothing, "0 with weighting='elbo'")
    if getattr(model, "causal", True):
        raise invalid("config.model.causal", True, "False: tokens are predicted from all others")
    way: Schedule = part(schedule, SCHEDULES, "method.schedule")
    core = Core(spec, model.clone(**changes), codec, way, noise, timed)
    # The share of noised tokens, on average over times: what "simple" is divided by.
    grid = jnp.linspace(0.0, 1.0, 2001)
    with jax.ensure_compile_time_eval():
        mean_share = float(way.share(0.5 * (grid[1:] + grid[:-1])).mean())

    def loss(
        params: PyTree, batch: Batch, key: jax.Array, extra: PyTree
    ) -> tuple[jax.Array, tuple[Metrics, PyTree]]:
        keys = example_keys(key, batch)
        labels = drop_labels(fold(keys, 0), batch["label"], label_dropout, spec.null_label)
        dropout = dropout_key(key, batch)
        x = core.elements(batch["image"])
        place = jax.vmap(jax.random.uniform)(fold(keys, 1))
        own = fold(keys, 2)
        if weighting == "elbo":
            found = bound(core, params["net"], x, labels, own, place, dropout=dropout)
            return found.mean() / core.size, ({}, extra)
        share = way.share(place)[:, None]
        draws = jax.vmap(lambda k: jax.random.uniform(k, (core.size,)))(fold(own, 0))
        chosen = draws < share
        noised = core.noised(fold(own, 1), x, chosen)
        logits = core.logits(params["net"], noised, labels, place, dropout)
        error = negative_log(logits, x)
        if label_smoothing:
            flat = -jax.nn.log_softmax(logits, axis=-1).mean(-1)
            error = (1 - label_smoothing) * error + label_smoothing * flat
        if noise == "uniform":
            return error.mean(), ({}, extra)
        return (error * chosen).mean() / mean_share, ({}, extra)

    def fresh(key: jax.Array) -> tuple[dict[str, PyTree], PyTree]:
        x = core.codec.inputs(jnp.zeros((1, core.size), jnp.int32))
        options = {"noise": jnp.zeros(1)} if timed else {}
        params = {"net": core.net.init(key, x, jnp.zeros(1, jnp.int32), **options)["params"]}
        return params, ()

    default = solver

    def sampler(
        *,
        solver: str = default,
        steps: int = 12,
        schedule: Any = None,
        temperature: float = 1.0,
        final_temperature: float | None = None,
        choice_temperature: float = 4.5,
        guidance: float = 1.0,
        guidance_schedule: str = "constant",
    ) -> Sampler:
        """Samples from all noise in `steps` steps of one compiled scan.

        solver: "confidence" (MaskGIT: each step keeps the drawn elements with the highest ln p +
        choice_temperature x (share of steps left) x Gumbel noise, as many as the schedule says),
        "random" (as many, in random order), "ancestral" (each masked element comes by its own coin,
        exact in time) or "euler" (the same by the rate at the step's start: tau-leaping). schedule:
        the steps' own, None: as trained. temperature divides the logits, and moves linearly to
        final_temperature. guidance w: logits of "no label" + w (logits of the label - those);
        guidance_schedule: "constant", or from 1 up to w along a "linear" or "cosine" ramp.

        Raises UsageError: values out of range, more steps than elements where every step reveals
        one, guidance that this model was not trained for.
        """
        return build_sampler(
            core,
            solver=solver,
            steps=steps,
            schedule=way if schedule is None else part(schedule, SCHEDULES, "sample.schedule"),
            temperature=temperature,
            final_temperature=final_temperature,
            choice_temperature=choice_temperature,
            guidance=guidance,
            guidance_schedule=guidance_schedule,
            guided=label_dropout > 0,
        )

    def log_prob(*, steps: int = 0, schedule: Any = "linear") -> Callable[..., jax.Array]:
        """fn(params, x[B, *shape], labels[B], keys[B]) -> nats [B], a bound in expectation.

        steps: of parallel decoding in random groups by `schedule`, 0: one by one (masks only).
        """
        counts = None
        if steps:
            if noise != "mask" or not 1 <= steps <= core.size:
                raise invalid("steps", steps, f"0, or 1 to {core.size} for masks")
            counts = remaining(part(schedule, SCHEDULES, "schedule"), core.size, steps)

        def fn(params: PyTree, x: jax.Array, labels: jax.Array, keys: jax.Array) -> jax.Array:
            place = places(fold(keys, 0), 0)
            found = bound(
                core, params["net"], core.elements(x), labels, fold(keys, 1), place, counts
            )
            return -found

        return fn

    def label_error(
        params: PyTree,
        x: jax.Array,
        labels: jax.Array,
        keys: jax.Array,
        draw: jax.Array,
        draws: int,
    ) -> jax.Array:
        """The bound at one place of a sequence that is even over any first draws."""
        del draws
        place = places(fold(keys, 0), draw)
        own = jax.vmap(jax.random.fold_in)(fold(keys, 1), draw)
        return bound(core, params["net"], core.elements(x), labels, own, place)

    return method_of(
        spec,
        single(loss, fresh, optimizer, averages, accumulate=accumulate),
        separable=True,
        sampler=sampler,
        log_prob=log_prob,
        likelihood=Likelihood(exact=False, mass=True),
        label_error=label_error,
    )
