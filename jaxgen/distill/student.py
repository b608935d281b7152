"""A student whose denoiser learns a target: what distillations of diffusion models share."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.families.diffusion.core.denoiser import Denoiser
from jaxgen.families.diffusion.core.path import Path, expand
from jaxgen.families.diffusion.core.prediction import Prediction, to_prediction
from jaxgen.families.diffusion.core.sampler import prior
from jaxgen.method import Batch, Method, Sampler, Spec, denoiser_factory, only_learner, retrained
from jaxgen.method.streams import NOISE, OTHER, TIME, example_keys, fold, normal

PyTree = Any
SOLVER = "renoise.renoise"
WEIGHT = "w"
"""The condition by which a model is told the guidance weight, where it declares it."""


class Asked(NamedTuple):
    """What a student is asked: x [B, ...] at t [B] with labels and weight w [B].

    velocity: d x / dt at the x0 and eps of which x is made. n: the steps of the grid that t is
    drawn from, or None. told: the condition that the student is given, columns of the data and the
    weight included where it declares them.
    """

    x: jax.Array
    t: jax.Array
    labels: jax.Array
    w: jax.Array
    velocity: jax.Array
    n: jax.Array | None
    told: Any


def student(
    method: Method,
    spec: Spec,
    target: Callable[[PyTree, Asked, Path], jax.Array],
    weights: tuple[float, float],
    *,
    count: Callable[[jax.Array], jax.Array] | None = None,
    states: Callable[[PyTree, Asked, jax.Array], Asked] | None = None,
    **changes: Any,
) -> Method:
    """The method whose denoiser is regressed on `target`, in v = alpha eps - sigma x0.

    target(params, asked, path) -> v [B, ...], held; params have the state's extra and the frozen
    arrays. w is uniform between the two weights; the model is told it if it declares "w", and then
    `sample.guidance` is the w to sample with. count(seen) -> n, the number of steps of an even grid
    that times are drawn from; None: any times. states(params, asked, keys) -> what is asked in the
    place of noised data. changes: of the `Training`. Raises UsageError for a method without a
    denoiser of labels.
    """
    base, of, draw = only_learner(method, "distill"), denoisers(method), method.sampler
    (low, high), weighted = weights, declares(method)
    columns = [name for name in conditions(method) if name != WEIGHT]
    assert draw is not None  # `denoisers` has refused
    drawn = draw

    def loss(params: PyTree, batch: Batch, key: jax.Array, extra: PyTree) -> Any:
        keys, labels = example_keys(key, batch), batch["label"]
        t, of_w = (jax.vmap(jax.random.uniform)(fold(keys, stream)) for stream in (TIME, OTHER))
        w = low + (high - low) * of_w
        n = None if count is None else count(batch["seen"][0])
        t = t if n is None else (jnp.floor(t * n) + 1) / n
        path = of(guidance=())(None, None).path
        pair = Prediction(batch["image"], normal(fold(keys, NOISE), spec.shape))
        condition = told(method, labels, w, {name: batch[name] for name in columns})
        asked = Asked(pair.mix(path, t), t, labels, w, pair.velocity(path, t), n, condition)
        known = {**params, **extra}
        if states is not None:
            asked = jax.lax.stop_gradient(states(known, asked, keys))
        wanted = jax.lax.stop_gradient(target(known, asked, path))
        denoiser = of(guidance=())(params, asked.told)
        ours = says(denoiser, asked.x, asked.t).v(path, asked.t)
        return ((ours - wanted) ** 2).mean(), ({}, extra)

    @functools.wraps(draw)
    def sampler(*, guidance: Any = 1.0, **options: Any) -> Sampler:
        if not weighted:
            return drawn(guidance=guidance, **options)
        number = isinstance(guidance, (int, float)) and not isinstance(guidance, bool)
        if not number or not low <= guidance <= high:
            allowed = f"a weight that the student was taught, {low:g} to {high:g}"
            raise invalid("sample.guidance", guidance, allowed)
        inner = drawn(guidance=(), **options)

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


def visited(
    says_v: Callable[[Asked, Path], jax.Array],
    asked: Asked,
    keys: jax.Array,
    path: Path,
    steps: int,
) -> Asked:
    """What is asked, at states of DDIM trajectories of `steps` steps by says_v(asked, path) -> v.

    Each is after some of the steps, each number of them as often.
    """
    last = jax.vmap(lambda k: jax.random.randint(k, (), 0, steps))(fold(keys, TIME))

    def step(state: Any, n: jax.Array) -> tuple[Any, None]:
        x, kept = state
        t = jnp.full(last.shape, 1 - n / steps)
        v = says_v(asked._replace(x=x, t=t), path)
        x = to_prediction("v", v, x, t, path).mix(path, t - 1 / steps)
        return (x, jnp.where(expand(last == n + 1, x), x, kept)), None

    x = prior(path, keys, asked.x.shape[1:])
    (_, x), _ = jax.lax.scan(step, (x, x), jnp.arange(steps - 1))
    return asked._replace(x=x, t=1 - last / steps)


def conditions(method: Method) -> list[str]:
    """What the method's model can be told besides labels, by name."""
    model = denoisers(method)(guidance=())(None, None).network.model
    return [name for name, *_ in getattr(model, "conditions", ())]


def declares(method: Method) -> bool:
    """Whether the method's model is told a weight."""
    return WEIGHT in conditions(method)


def told(method: Method, labels: jax.Array, w: Any, columns: Mapping[str, Any] = {}) -> Any:
    """Labels [B] with columns and the weight, () or [B], for a model that declares such."""
    more = dict(columns)
    if declares(method):
        more[WEIGHT] = jnp.broadcast_to(jnp.asarray(w, jnp.float32), labels.shape)
    return {"label": labels, **more} if more else labels


def says(denoiser: Denoiser, x: jax.Array, t: jax.Array) -> Prediction:
    """What a denoiser says of x [B, ...] at t [B]; it draws no noise of its own."""
    return denoiser(jnp.zeros(len(x)), x, t, denoiser.init(x))[0]


def renoising(method: Method, calls: int | None) -> Callable[..., Sampler]:
    """The method's sampler for a student that says samples: noised anew between its calls.

    calls: as many as it was taught; None: as many as `sample.steps` says.
    """
    known = method.sampler
    assert known is not None  # `denoisers` has refused

    @functools.wraps(known)
    def sampler(**options: Any) -> Sampler:
        taught = {"solver": SOLVER, "grid": "uniform", "guidance": 1.0}
        taught |= {} if calls is None else {"steps": calls}
        for name, value in taught.items():
            if options.get(name, value) != value:
                allowed = f"{value!r}, as the student was taught"
                raise invalid(f"sample.{name}", options[name], allowed)
        inner = known(**{**options, **taught, "guidance": ()})
        return dataclasses.replace(inner, denoiser=None, by_weight=None)

    return sampler
