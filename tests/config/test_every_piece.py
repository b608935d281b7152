"""Every option of a piece that a config names changes what the piece computes.

Paths, times, weightings, grids, solvers, guidance, searches, regularisers and quantisers: each is
called with another allowed value, and its traced program must differ, or the numbers beside it.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.errors import UsageError
from jaxgen.families.adversarial import augmentation, head, latent, loss, regularisers
from jaxgen.families.diffusion import guidance, solvers
from jaxgen.families.diffusion.core import grids, path, times, weighting
from jaxgen.families.diffusion.core.denoiser import Denoiser
from jaxgen.families.diffusion.core.path import Path
from jaxgen.families.diffusion.core.sampler import as_chain
from jaxgen.families.diffusion.guidance.adaptive import Affine
from jaxgen.families.diffusion.guidance.cfg import cfg
from jaxgen.families.diffusion.solvers import Solver, euler
from jaxgen.families.discrete import schedules
from jaxgen.method.chain import Steered
from jaxgen.steer import paths, search, svdd, tree
from jaxgen.tokenizers import quantisers
from tests.guidance_kit import (
    AMOUNTS,
    COND,
    GRID,
    LABELS,
    MEANS,
    OTHER,
    PATH,
    SHAPE,
    SIZE,
    UNCOND,
    by_label,
    goal,
    logits,
    total,
)
from tests.option_kit import options, others, traced

KEYS, X, T = jax.random.split(jax.random.key(0), SIZE), jnp.ones((SIZE, *SHAPE)), jnp.float32(0.6)
GUIDED = cfg(COND, UNCOND, 3.0)


def of_path(it: Path) -> str:
    at = lambda t: (it.alpha(t), it.sigma(t), it.ratio_inverse(t))
    return traced(at, T) + repr((it.ratio_min, it.ratio_max))


def of_times(it: times.Times) -> str:
    state, index = it.init(), jnp.arange(SIZE)
    draw = lambda keys, key, s: it.draw(keys, key, index, PATH, s)
    update = lambda t, error, s: it.update(s, t, error)
    each = jnp.full(SIZE, 0.5)
    return traced(draw, KEYS, jax.random.key(1), state) + traced(update, each, each, state)


def of_solver(it: Solver) -> str:
    step = lambda x, t, s, k: it.step(GUIDED, x, t, s, (it.init(x), GUIDED.init(x)), k)
    return traced(step, X, T, T - 0.1, KEYS) + repr(it.calls(COND, np.asarray(GRID)))


def of_denoiser(it: Denoiser) -> str:
    memory = jax.eval_shape(it.init, X)
    calls = [it.calls(t) for t in np.linspace(0, 1, 9)]
    return traced(it, KEYS, X, T, memory) + traced(it.init, X) + repr(calls)


def of_regulariser(it: regularisers.Regulariser) -> str:
    judge = lambda x, labels: 0.1 * (x**2).sum(-1)
    net = {"a": {"kernel": jnp.ones((3, 4))}}
    params = {"generator": net, "discriminator": net}
    state = None if it.start is None else it.start(params)
    case = lambda x: regularisers.Case(
        judge, x, 2 * x, LABELS, KEYS, lambda x, keys: 3 * x, (x[:, 0], x[:, 1]),
        lambda x, y: x, lambda z: 5 * z, x, state,
        lambda z: (z[:, None], lambda styles: styles[:, 0][:, None, None]),
    )  # fmt: skip
    text, at = repr((it.name, it.networks, it.layer)), lambda x: case(x.reshape(SIZE, -1))
    for penalty in (it.penalty, it.generator):
        text += "" if penalty is None else traced(lambda x, p=penalty: p(at(x)), X)
    metrics = {"real_logit": jnp.ones(()), "fake_logit": jnp.zeros(()), "path": jnp.ones(())}
    for function, given in (
        (it.weights, (net, net)),
        (it.project, (net,)),
        (it.select, (jnp.arange(3.0), jnp.float32(7))),
        (None if it.latent is None else lambda z: it.latent(z, lambda z: judge(z, None)), (X,)),
        (it.follow, (state, metrics, params)),
    ):
        text += "" if function is None else traced(function, *given)
    return text


def of_augmentation(it: augmentation.Augmentation) -> str:
    return traced(it, IMAGES, KEYS[:2], jnp.float32(0.5)) + repr((it.controller, it.pseudo))


def of_loss(it: loss.Loss) -> str:
    logits = jnp.arange(3.0)
    return traced(it.discriminator, logits, logits) + traced(it.generator, logits)


def of_head(it: head.Head) -> str:
    h, said = jnp.ones((SIZE, 4)), lambda v, h: it.apply(v, h, LABELS)
    weights = jax.eval_shape(lambda k: it.init(k, h, LABELS), jax.random.key(0))
    terms = lambda v, h: it.discriminator_term(said(v, h), said(v, 2 * h), LABELS)
    of = lambda v, h: (said(v, h), terms(v, h), it.generator_term(said(v, h), LABELS))
    return traced(of, weights, h)


def of_quantiser(it: quantisers.Quantiser) -> str:
    book = jax.eval_shape(it.init, jax.random.key(0))
    z = jnp.ones((SIZE, 2, 2, it.width or 4))
    z = (z, z) if it.levels is None else z
    text = traced(it.init, jax.random.key(0)) + traced(it.quantise, book, z, KEYS)
    text += traced(lambda book, z: it.quantise(book, z, None), book, z)
    if it.refresh is not None:
        share, sums = jnp.ones(it.levels), jnp.ones((it.levels, it.width))
        state = jax.eval_shape(it.start, book)
        text += traced(it.start, book) + traced(it.refresh, book, state, share, sums, sums)
    return text


def of_numbers(it: Any) -> str:
    return repr(np.asarray(it).tolist())


IMAGES = jnp.ones((2, 32, 32, 1))


class Kind(NamedTuple):
    """Functions of modules whose result is annotated so; what they are given, and the text."""

    modules: tuple[Any, ...]
    result: Any
    text: Callable[[Any], str]
    given: Mapping[str, Any] = {}


CHAIN = as_chain(euler(PATH), COND, GRID, SHAPE, PATH)
ACTS: Mapping[str, Any] = dict(
    cond=COND, uncond=UNCOND, guided=GUIDED, other=UNCOND, tuned=OTHER, incoherent=UNCOND,
    weak=UNCOND, path=PATH, grid=GRID, labels=LABELS, by_label=by_label, logits=logits,
    log_prob=goal, similarity=goal, evaluate=goal, constraint=total, vectors=MEANS,
    amounts=AMOUNTS, denoisers=[COND, OTHER], log_densities=[goal, lambda x, t: -goal(x, t)],
    refiner=lambda x, v, t: 0.1 * v, branches={"small": UNCOND, "other": OTHER},
    layers=(1,), good=COND, bad=UNCOND,
)  # fmt: skip
FIT = Affine([1.0, 0.8, 0.6, 0.4, 0.2], [False, True] * 2 + [False], [[0.6, -0.3, 0.7]] * 5)
STEERED = dict(chain=CHAIN, reward=total)


def _modules(package: Any) -> tuple[Any, ...]:
    names = [f"{package.__name__}.{m.name}" for m in pkgutil.iter_modules(package.__path__)]
    return tuple(map(importlib.import_module, names))


KINDS = {
    "path": Kind((path,), Path, of_path, dict(path=path.linear())),
    "times": Kind((times,), times.Times, of_times),
    "weighting": Kind(
        (weighting,), weighting.Weighting, lambda w: traced(lambda t, gain: w(PATH, t, gain), T, T)
    ),
    "grid": Kind((grids,), jax.Array, of_numbers, dict(steps=4, path=path.edm())),
    "solver": Kind(_modules(solvers), Solver, of_solver, dict(path=PATH, steps=4)),
    "guidance": Kind(_modules(guidance), Denoiser, of_denoiser, ACTS),
    "regulariser": Kind((regularisers,), regularisers.Regulariser, of_regulariser),
    "latent": Kind((latent,), latent.Latent, lambda z: traced(z.draw, KEYS) + repr(z.size)),
    "augmentation": Kind((augmentation,), augmentation.Augmentation, of_augmentation),
    "loss": Kind((loss,), loss.Loss, of_loss),
    "head": Kind((head,), head.Head, of_head, dict(num_classes=3)),
    "schedule": Kind((schedules,), schedules.Schedule, lambda s: traced(s.share, T)),
    "quantiser": Kind((quantisers,), quantisers.Quantiser, of_quantiser),
    "steer": Kind((paths, search, svdd, tree), Steered, lambda s: traced(s.fn, KEYS), STEERED),
}

SET: dict[str, dict[str, Any]] = {
    "edm.edm": dict(s_churn=1.0),
    "flowturbo.flowturbo": dict(heun=1, refine=1),
    "multi.sine": dict(weight=2.0),
    "elucd.elucd": dict(weight=2.0),
    "cads.cads": dict(low=0.2),
    "cfg.cfg": dict(weight=2.0),
    "apg.apg": dict(momentum=-0.5, radius=1.0),
    "interval.limit": dict(low=0.2, high=0.8),
    "sag.sag": dict(layer=1),
    "composition.mixture": dict(weights=[0.3, 0.7]),
    "paths.over_paths": dict(width=2, branches=2, start=2, stride=1, back=1),
    "search.best_of": dict(count=2),
    "search.zero_order": dict(rounds=2, neighbours=2),
    "stitch.stitch": dict(models=[(COND, 0.4), (UNCOND, 0.6)]),
    "stitch.early": dict(models=(("small", 0.4),)),
    "multi.blend": dict(share=0.5),
    "svdd.svdd": dict(proposals=2, alpha=0.5, value=None),
    "tree.tree_sampling": dict(budget=20, strength=1.0),
    "tree.tree_search": dict(budget=20),
    "pair.extrapolate": dict(weight=2.0),
    "adaptive.linear_ag": dict(fit=FIT),
    "cfgpp.cfgpp": dict(guided=cfg(COND, UNCOND, 0.6)),
    "quantisers.nearest": dict(codebook="average", revive=0.1),
    "augmentation.differentiable": dict(policy=augmentation.POLICIES),
    "augmentation.adaptive": dict(policy=augmentation.POLICIES),
}
"""What a piece must be told, or is told so that its other options matter."""

VALUES: dict[str, Any] = {
    "path.discrete.betas": "cosine",
    "grids.respaced.levels": 500,
    "sde.euler_maruyama.form": "sigma",
    "cfg.cfg.channels": 1,
    "augmentation.differentiable.policy": ("flip",),
    "augmentation.adaptive.policy": ("flip",),
    "regularisers.historical_averaging.networks": ("discriminator",),
    "regularisers.orthogonal.networks": ("discriminator",),
    "adaptive.adaptive.max_tries": 7,
    "dynamic_cfg.dynamic_cfg.weights": (1.0, 3.0),
    "stitch.stitch.models": [(COND, 0.8), (UNCOND, 0.2)],
    "adaptive.linear_ag.fit": FIT._replace(skip=[False] * 4 + [True]),
    "stitch.early.models": (("other", 0.6),),
    "composition.mixture.weights": [0.5, 0.5],
    "multi.spatext.weights": (0.5, 2.0),
    "elucd.elucd.schedule": "sine",
    "rescale.rescale.kind": "eps",
    "interval.limit.low": 0.4,
    "cads.cads.low": 0.4,
    "adaptive.adaptive.order": 5,
    "ancestral.ddpm.variance": "large",
    "sag.sag.layer": None,
    "paths.over_paths.stride": 3,
    "svdd.svdd.value": lambda state, number: state[0].sum(-1),
}

HELPERS = {
    "base.gaussian",
    "search.search",
    "pair.pair",
    "pair.ruled",
    "pair.pushed",
    "pair.needs_pair",
    "universal.uphill",
}
"""Not for a config: they are given functions."""


def pieces(kind: Kind) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Its public functions, `module.function` each."""
    for module in kind.modules:
        for name, function in vars(module).items():
            if not inspect.isfunction(function) or function.__module__ != module.__name__:
                continue
            result = typing.get_type_hints(function).get("return")
            fits = result == kind.result or (
                inspect.isclass(result) and inspect.isclass(kind.result)
                and issubclass(result, kind.result)
            )  # fmt: skip
            full = f"{module.__name__.rpartition('.')[2]}.{name}"
            if fits and not name.startswith("_") and full not in HELPERS:
                yield full, function


EVERY = {
    f"{kind}:{name}": (KINDS[kind], name, f) for kind in KINDS for name, f in pieces(KINDS[kind])
}


@pytest.mark.parametrize("case", EVERY)
def test_another_value_computes_something_else(case):
    kind, name, function = EVERY[case]
    taken = options(function)
    given = {k: v for k, v in kind.given.items() if k in taken}
    told = given | SET.get(name, {})
    before, trouble = kind.text(function(**told)), []
    for option, (hint, default) in taken.items():
        if option in kind.given:
            continue
        now, key, seen = told.get(option, default), f"{name}.{option}", {before}
        for value in (VALUES[key],) if key in VALUES else others(hint, now):
            if value == now:
                continue
            try:
                text = kind.text(function(**told | {option: value}))
            except UsageError:
                continue
            if text in seen:
                trouble.append(f"{option}={value!r}, not {now!r}, changes nothing")
            seen.add(text)
            # Of a number two others: what is 0 at first may only be turned on.
            if hint is not float or len(seen) > 2:
                break
        if len(seen) == 1 and not trouble:
            trouble.append(f"{option}: no other value than {now!r} is known")
    assert trouble == []


def test_there_are_pieces_of_every_kind():
    assert {case.partition(":")[0] for case in EVERY} == KINDS.keys()
