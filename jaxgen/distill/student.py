"""A student whose denoiser learns a target: what distillations of diffusion models share."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.families.diffusion.core.denoiser import Denoiser
from jaxgen.families.diffusion.core.prediction import Prediction
from jaxgen.method import Batch, Method, Sampler, Spec, denoiser_factory, only_learner, retrained
from jaxgen.method.streams import NOISE, OTHER, TIME, example_keys, fold, normal

PyTree = Any
WEIGHT = "w"
"""The condition by which a model is told the guidance weight, where it declares it."""


def student(
    method: Method,
    spec: Spec,
    target: Callable[..., jax.Array],
    weights: tuple[float, float],
    *,
    count: Callable[[jax.Array], jax.Array] | None = None,
    **changes: Any,
) -> Method:
    """The method whose denoiser is regressed on `target`, in v = alpha eps - sigma x0.

    target(params, x, t, labels, w, path, n) -> v [B, ...], held; params have the state's extra and
    the frozen arrays. w [B] is uniform between the two weights; the model is told it if it declares
    "w", and then `sample.guidance` is the w to sample with. count(seen) -> n, the number of steps
    of an even grid that times are drawn from; None: any times. changes: of the `Training`. Raises
    UsageError for a method without a denoiser of labels.
    """
    base, of, draw = only_learner(method, "distill"), denoisers(method), method.sampler
    (low, high), weighted = weights, declares(method)
    assert draw is not None  # `denoisers` has refused
    known = draw

    def loss(params: PyTree, batch: Batch, key: jax.Array, extra: PyTree) -> Any:
        keys, labels = example_keys(key, batch), batch["label"]
        t, of_w = (jax.vmap(jax.random.uniform)(fold(keys, stream)) for stream in (TIME, OTHER))
        w = low + (high - low) * of_w
        n = None if count is None else count(batch["seen"][0])
        t = t if n is None else (jnp.floor(t * n) + 1) / n
        path = of(guidance=())(None, None).path
        x = path.mix(batch["image"], normal(fold(keys, NOISE), spec.shape), t)
        wanted = jax.lax.stop_gradient(target({**params, **extra}, x, t, labels, w, path, n))
        ours = says(of(guidance=())(params, told(method, labels, w)), x, t).v(path, t)
        return ((ours - wanted) ** 2).mean(), ({}, extra)

    @functools.wraps(draw)
    def sampler(*, guidance: Any = 1.0, **options: Any) -> Sampler:
        if not weighted:
            return known(guidance=guidance, **options)
        number = isinstance(guidance, (int, float)) and not isinstance(guidance, bool)
        if not number or not low <= guidance <= high:
            allowed = f"a weight that the student was taught, {low:g} to {high:g}"
            raise invalid("sample.guidance", guidance, allowed)
        inner = known(guidance=(), **options)

        def fn(params: PyTree, keys: jax.Array, labels: jax.Array) -> Any:
            return inner(params, keys, told(method, labels, guidance))

        return dataclasses.replace(inner, fn=fn, chain=None, denoiser=None, by_weight=None)

    learners = {"net": dataclasses.replace(base, loss=loss)}
    made = retrained(method, learners=learners, **changes)
    # Without a weight it has not learnt what to say.
    silent: dict[str, Any] = {"label_error": None, "log_prob": None, "likelihood": None}
    without = silent if weighted else {}
    return dataclasses.replace(made, sampler=sampler, train_flops=None, **without)


def denoisers(method: Method) -> Callable[..., Any]:
    """of(**options) -> (params, condition) -> denoiser. Raises UsageError where there is none."""
    of = denoiser_factory(method)
    if of is None:
        raise invalid("distill", "a method without a denoiser of labels", "diffusion on labels")
    return of


def declares(method: Method) -> bool:
    """Whether the method's model is told a weight."""
    model = denoisers(method)(guidance=())(None, None).network.model
    return WEIGHT in [name for name, *_ in getattr(model, "conditions", ())]


def told(method: Method, labels: jax.Array, w: Any) -> Any:
    """Labels [B] with the weight, (), or [B], for a model that declares one; else labels alone."""
    if not declares(method):
        return labels
    return {"label": labels, WEIGHT: jnp.broadcast_to(jnp.asarray(w, jnp.float32), labels.shape)}


def says(denoiser: Denoiser, x: jax.Array, t: jax.Array) -> Prediction:
    """What a denoiser says of x [B, ...] at t [B]; it draws no noise of its own."""
    return denoiser(jnp.zeros(len(x)), x, t, denoiser.init(x))[0]
