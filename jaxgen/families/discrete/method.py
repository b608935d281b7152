"""`discrete_interpolants`, `maskgit` and `maskbit`: one core of masked and discrete diffusion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax

from jaxgen.config import part
from jaxgen.errors import invalid
from jaxgen.families.discrete.bounds import bound, places, remaining
from jaxgen.families.discrete.core import Bits, Core, Tokens
from jaxgen.families.discrete.loss import interpolant_loss
from jaxgen.families.discrete.sampler import build_sampler
from jaxgen.method import (
    Averages,
    Likelihood,
    Method,
    Sampler,
    Spec,
    Training,
    fold,
    method_of,
    single,
)

PyTree = Any
SCHEDULES = "jaxgen.families.discrete.schedules"
PLACE, NOISE = range(2)
"""Streams of a key of the bound: its place in time, and its noise."""


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
    if noise not in ("mask", "uniform"):
        raise invalid("method.noise", noise, "'mask', 'uniform'")
    if time not in ("implicit", "explicit"):
        raise invalid("method.time", time, "'implicit', 'explicit'")
    timed, changes = time == "explicit", {"extra": 1}
    if hasattr(model, "timed"):
        changes["timed"] = timed
    elif timed:
        raise invalid("method.time", time, "'implicit' for a network without `timed`")
    codec = Tokens(spec.require_levels())
    core = _core(spec, model, changes, codec, schedule, noise=noise, timed=timed)
    loss = interpolant_loss(
        core, weighting=weighting, label_smoothing=label_smoothing, label_dropout=label_dropout
    )
    training = single(loss, core.fresh, optimizer, averages, accumulate=accumulate)
    return _method(core, training, solver="ancestral", guided=label_dropout > 0)


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
    core = _core(spec, model, {"extra": 1}, Tokens(spec.require_levels()), schedule)
    loss = interpolant_loss(
        core, weighting=weighting, label_smoothing=label_smoothing, label_dropout=label_dropout
    )
    training = single(loss, core.fresh, optimizer, averages, accumulate=accumulate)
    return _method(core, training, solver="confidence", guided=label_dropout > 0)


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
    changes = {"bits": bits, "outputs": groups * codec.values}
    core = _core(spec, model, changes, codec, schedule)
    loss = interpolant_loss(
        core, weighting=weighting, label_smoothing=label_smoothing, label_dropout=label_dropout
    )
    training = single(loss, core.fresh, optimizer, averages, accumulate=accumulate)
    return _method(core, training, solver="confidence", guided=label_dropout > 0)


def _core(
    spec: Spec,
    model: Any,
    changes: dict[str, Any],
    codec: Tokens | Bits,
    schedule: Any,
    *,
    noise: str = "mask",
    timed: bool = False,
) -> Core:
    """The core of a bidirectional network, with these of its fields changed."""
    if getattr(model, "causal", True):
        raise invalid("config.model.causal", True, "False: tokens are predicted from all others")
    chosen = part(schedule, SCHEDULES, "method.schedule")
    return Core(spec, model.clone(**changes), codec, chosen, noise, timed)


def _method(core: Core, training: Training, *, solver: str, guided: bool) -> Method:
    """Sampler, bound and classifier around a core. solver: the sampler's default."""
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
        "random" (as many, in random order), "ancestral" (masked elements are revealed
        independently, exact in time) or "euler" (the same by the rate at the step's start:
        tau-leaping). schedule: the steps' own, None: as trained. temperature divides the logits,
        and moves linearly to final_temperature. guidance w: logits of "no label" + w (logits of
        the label - those); guidance_schedule: "constant", or from 1 up to w along a "linear" or
        "cosine" ramp.

        Raises UsageError: values out of range, more steps than elements where every step reveals
        one, guidance that this model was not trained for.
        """
        return build_sampler(
            core,
            solver=solver,
            steps=steps,
            schedule=part(
                core.schedule if schedule is None else schedule, SCHEDULES, "sample.schedule"
            ),
            temperature=temperature,
            final_temperature=final_temperature,
            choice_temperature=choice_temperature,
            guidance=guidance,
            guidance_schedule=guidance_schedule,
            guided=guided,
        )

    def log_prob(*, steps: int = 0, schedule: Any = "linear") -> Callable[..., jax.Array]:
        """fn(params, x[B, *shape], labels[B], keys[B]) -> nats [B], a bound in expectation.

        steps: of parallel decoding in random groups by `schedule`, 0: one by one (masks only).
        """
        counts = None
        if steps:
            if core.noise != "mask" or not 1 <= steps <= core.size:
                raise invalid("steps", steps, f"0, or 1 to {core.size} for masks")
            counts = remaining(part(schedule, SCHEDULES, "schedule"), core.size, steps)

        def fn(params: PyTree, x: jax.Array, labels: jax.Array, keys: jax.Array) -> jax.Array:
            place, noise_keys = places(fold(keys, PLACE), 0), fold(keys, NOISE)
            return -bound(core, params["net"], core.elements(x), labels, noise_keys, place, counts)

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
        place = places(fold(keys, PLACE), draw)
        noise_keys = jax.vmap(jax.random.fold_in)(fold(keys, NOISE), draw)
        return bound(core, params["net"], core.elements(x), labels, noise_keys, place)

    return method_of(
        core.spec,
        training,
        separable=True,
        sampler=sampler,
        log_prob=log_prob,
        likelihood=Likelihood(exact=False, mass=True),
        label_error=label_error,
    )
