"""Every law catches the mistake that it is there for, and lets the right piece pass.

A piece with one thing broken must fail by the name of the law that forbids it.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import pallas as pl

from jaxgen import testing
from jaxgen.families.diffusion import solvers
from jaxgen.families.diffusion.core.denoiser import Denoiser
from jaxgen.families.diffusion.core.path import Path, linear
from jaxgen.families.diffusion.core.prediction import Prediction, target, to_prediction
from jaxgen.method import (
    Method,
    Spec,
    example_keys,
    learn,
    no_label,
    normal,
    single,
)
from jaxgen.metrics.scores.frechet import frechet_distance, merge, moments
from jaxgen.testing import (
    functions,
    guidance,
    kernels,
    losses,
    methods,
    metrics,
    networks,
    paths,
    samplers,
)
from jaxgen.testing import solvers as laws_of_solvers
from jaxgen.testing.solvers import CALLS, ENDS, ORDER
from jaxgen.training.ema import Averages

# --- A path and a prediction.

PATH = linear()
SHORT = dataclasses.replace(PATH, alpha=lambda t: 0.95 - 0.95 * t)
FALLING = dataclasses.replace(
    PATH,
    alpha=jnp.ones_like,
    sigma=lambda t: jnp.sin(0.75 * jnp.pi * t),
    ratio_inverse=lambda r: 2**0.5 * r,
)


class Steep(Path):
    def d_sigma(self, t):
        return 2.0 * super().d_sigma(t)


class Loose(Path):
    def transition(self, t, s):
        """Without the ratio on what was there before."""
        ratio, _ = super().transition(t, s)
        return ratio, jnp.maximum(self.sigma(t) ** 2 - self.sigma(s) ** 2, 0.0)


def of(kind):
    return kind(**{f.name: getattr(PATH, f.name) for f in dataclasses.fields(PATH)})


def both(kind, x0, eps, t, path):
    return jnp.concatenate([x0, eps], -1)


def halves(kind, output, x, t, path):
    """A network that says x0 and eps, each by itself."""
    return Prediction(*jnp.split(output, 2, -1))


def swapped(kind, output, x, t, path):
    p = to_prediction(kind, output, x, t, path)
    return Prediction(p.eps, p.x0)


def careless(kind, output, x, t, path):
    """x0 from the velocity, and eps by a division by sigma, which is 0 at t=0."""
    x0 = to_prediction(kind, output, x, t, path).x0
    at = jnp.asarray(t).reshape(-1, 1)
    return Prediction(x0, (x - (1 - at) * x0) / at)


def check_pair(pair):
    aim, read = pair
    key = jax.random.key(0)
    testing.check_prediction("velocity", PATH, key, target=aim, to_prediction=read)


# --- A solver: Heun's method.


def heun_step(path, sign=1.0):
    def step(denoiser, x, t, s, carry, keys):
        d_alpha, d_sigma = path.alpha(s) - path.alpha(t), path.sigma(s) - path.sigma(t)
        p, memory = denoiser(keys, x, t, carry[1])
        first = d_alpha * p.x0 + d_sigma * p.eps
        q, memory = denoiser(keys, x + first, s, memory)
        second = d_alpha * q.x0 + d_sigma * q.eps
        return x + sign * 0.5 * (first + second), (carry[0], memory)

    return step


def heun(path, steps, **changes):
    twice = lambda n, t, s: [float(t), float(s)]
    return solvers.Solver(**{"step": heun_step(path), "order": 2, "times": twice, **changes})


def by_ratio(path, steps):
    """Euler in sigma / alpha, which is infinite at t=1."""

    def step(denoiser, x, t, s, carry, keys):
        p, memory = denoiser(keys, x, t, carry[1])
        moved = x / path.alpha(t) + (path.ratio(s) - path.ratio(t)) * p.eps
        return path.alpha(s) * moved, (carry[0], memory)

    return solvers.Solver(step=step, order=1)


def check_small(build):
    """Without the order."""
    testing.check_solver(lambda path, steps: dataclasses.replace(build(path, steps), order=0))


# --- Guidance: u + w (c - u), by a rule for both of x0 and eps.


def guide(rule=lambda c, u, w, t: u + w * (c - u), calls=2.0, init=lambda x: (), remember=None):
    def guided(cond, uncond, w):
        def call(keys, x, t, memory):
            (p, _), (q, _) = cond(keys, x, t), uncond(keys, x, t)
            after = memory if remember is None else remember(x)
            return Prediction(rule(p.x0, q.x0, w, t), rule(p.eps, q.eps, w, t)), after

        return Denoiser(call, init=init, calls=lambda t: calls)

    return guided


def of_batch(c, u, w, t):
    """As rescale, with the deviation of the whole batch where each image's own belongs."""
    out = u + w * (c - u)
    return jnp.where(w > 1, out * c.std() / (out.std() + 1e-6), out)


check_guide = lambda g: testing.check_guidance(g, atol=1e-6)


# --- A sampler: N(mean of the label, 1), 3 numbers.

MEANS = 3.0 * jnp.arange(12.0).reshape(4, 3)


def sampler(noise, mean=lambda labels: MEANS[labels]):
    return jax.jit(lambda params, keys, labels: mean(labels) + noise(keys, labels))


own = lambda keys, labels: normal(keys, (3,))
check_images = lambda fn: testing.check_sampler(fn, None, jnp.arange(8) % 4)


# --- A kernel: causal attention, one head.

ARGS = [jax.random.normal(jax.random.key(n), (6, 4)) for n in range(3)]


def attention(q, k, v, *, scale=0.5, after=0, hidden=-jnp.inf):
    scores = q @ k.T * scale
    seen = jnp.arange(6)[None] <= jnp.arange(6)[:, None] + after
    return jax.nn.softmax(jnp.where(seen, scores, hidden), -1) @ v


def additive(q, k, v):
    """The mask as -1e9 added to the scores."""
    return jax.nn.softmax(q @ k.T * 0.5 - 1e9 * (1 - jnp.tri(6)), -1) @ v


@jax.custom_jvp
def off(q, k, v):
    """Right values; the gradient by k leaves out the scale."""
    return attention(q, k, v)


@off.defjvp
def _(primals, tangents):
    (q, k, v), (dq, dk, dv) = primals, tangents
    return jax.jvp(attention, (q, k, v), (dq, 2 * dk, dv))


def in_blocks(rows):
    """v by a Pallas kernel, two rows at a time, so many of the six rows."""

    def copy(v, out):
        out[...] = v[...]

    def kernel(q, k, v):
        block = pl.BlockSpec((2, 4), lambda n: (n, 0))
        return pl.pallas_call(
            copy, jax.ShapeDtypeStruct(v.shape, v.dtype), grid=(rows // 2,),
            in_specs=[block], out_specs=block, interpret=True,
        )(v)  # fmt: skip

    return kernel


POISONED = [a.at[3:].set(1e30) for a in ARGS]


def check_first_rows(kernel):
    """The first three rows, which must not see the others."""
    testing.check_unseen(lambda q, k, v: kernel(q, k, v)[:3], ARGS, POISONED)


# --- A metric: the Frechet distance, and one of its values that is known in closed form.

CHANCE = np.random.default_rng(0)
X, Y = CHANCE.normal(size=(40, 3)), 1.5 * CHANCE.normal(size=(30, 3)) + 1.0


def frechet(x, y):
    return frechet_distance(moments(x), moments(y))


def streamed(xs, ys):
    return frechet_distance(merge(map(moments, xs)), merge(map(moments, ys)))


def check_distance(pair):
    metric, parts = pair
    kinds = {"rotation": testing.rotation, "translation": testing.translation}
    testing.check_metric(
        metric, X, Y, invariant=kinds, symmetric=True, zero=1e-9, streamed=parts, rtol=1e-8
    )


LINE = np.array([[0.0], [2.0]]), np.array([[3.0], [7.0]])
"""Means 1 and 5, deviations 2^.5 and 8^.5 with divisor N - 1: 16 + 2."""


def by_number(x, y):
    """With divisor N."""
    return (x.mean() - y.mean()) ** 2 + (x.std() - y.std()) ** 2


# --- A network: two layers on 3 numbers, of 2 classes.

WEIGHTS = {
    name: 0.5 * jax.random.normal(jax.random.key(n), shape)
    for n, (name, shape) in enumerate(
        {"in": (3, 8), "noise": (8,), "labels": (3, 8), "out": (8, 3)}.items()
    )
}


def network(p, x, noise, labels):
    h = jnp.tanh(x @ p["in"] + noise[:, None] * p["noise"] + p["labels"][labels])
    return h @ p["out"]


check_net = lambda apply: testing.check_network(apply, WEIGHTS, (3,), 2)


# --- A loss: denoising by that network; noise from each example's place in the batch.

BATCH = {
    "image": np.asarray(CHANCE.normal(size=(8, 3)), np.float32),
    "label": np.arange(8, dtype=np.int32) % 2,
}


def errors(params, batch, key, noise=None, net=network):
    eps = normal(example_keys(key, batch), (3,)) if noise is None else noise
    t = jnp.linspace(0.3, 0.7, 8)[batch["index"]]
    return ((net(params, batch["image"] + eps, t, batch["label"]) - batch["image"]) ** 2).mean(-1)


def loss(reduce=jnp.mean, **changes):
    return lambda p, batch, key: reduce(errors(p, batch, key, **changes))


by_place = lambda p, b, k: errors(p, b, k, noise=jax.random.normal(k, b["image"].shape)).mean()
unlabelled = lambda p, x, noise, labels: network(p, x, noise, no_label(labels, 2))
check_objective = lambda fn: testing.check_loss(fn, WEIGHTS, BATCH, jax.random.key(0))


# --- A method: that loss, descended.

BATCHES = [
    {"image": np.repeat(np.eye(3, dtype=np.float32)[:2], 8, 0), "label": np.repeat([0, 1], 8)}
    for _ in range(4)
]
AVERAGE = Averages(half_life=(40,), ramp=None)


def noisy(params, batch, key, rate=0.1):
    eps = normal(example_keys(key, batch), (3,))
    t = jnp.full(batch["image"].shape[0], 0.5)
    out = network(params, batch["image"] + rate * eps, t, batch["label"])
    return ((out - batch["image"]) ** 2).mean()


def plain(objective):
    return lambda p, b, k, extra: (objective(p, b, k), ({}, extra))


def method(objective=noisy, optimizer=None, averages=AVERAGE, then=lambda old, new: new):
    """Build() of a method; then(old state, new state) -> the state that an update returns."""
    optimizer = optax.sgd(0.1) if optimizer is None else optimizer

    def fresh(key):
        del key
        return jax.tree.map(jnp.asarray, WEIGHTS), jnp.float32(0)

    init, inner = learn(single(plain(objective), fresh, optimizer, averages))

    def update(state, batch, key):
        new, found = inner(state, batch, key)
        return then(state, new), found

    return lambda: Method(spec=Spec((3,), 2), init=init, update=update, separable=True)


def keyless(params, batch, key):
    return noisy(params, batch, jax.random.key(0))


def by_row(params, batch, key):
    """Noise from the place among the rows that a device sees."""
    rows = jnp.arange(batch["image"].shape[0], dtype=jnp.int32)
    return noisy(params, {**batch, "index": rows}, key)


def forgetful():
    """Noise of a strength that is drawn when the method is built and is in no state."""
    rate = 0.1 * (1 + next(BUILDS))
    return method(lambda p, b, k: noisy(p, b, k, rate))()


BUILDS = itertools.count()


class Grown(Averages):
    def update(self, averages, params, step, batch_size):
        return {k: jax.tree.map(lambda a: 1.5 * a, params) for k in averages}


class Stuck(Averages):
    def update(self, averages, params, step, batch_size):
        return averages


def check_whole(build):
    testing.check_method(build, BATCHES, jax.random.key(0), falls=0.9)


# --- Any function.

DIFFERENT = jnp.array([0.3, -1.2])


@jax.custom_jvp
def softplus(x):
    return jnp.log1p(jnp.exp(x))


softplus.defjvp(lambda x, dx: (softplus(*x), dx[0] * jax.nn.sigmoid(-x[0])))


def eager(x):
    """Another value where x is known."""
    return x * (2.0 if isinstance(x, jax.core.Tracer) else 2.1)


compiles = lambda fn: testing.check_compiles_once(fn, DIFFERENT, again=(DIFFERENT + 1,))
varies = lambda fn: testing.check_variants(fn, DIFFERENT)
derives = lambda fn: testing.check_derivative(fn, DIFFERENT)

Row = tuple[Callable[[Any], None], Any, dict[str, tuple[str, Any]]]

# kind -> (its check, a right piece, mutant -> (the law that catches it, the broken piece)).
TABLE: dict[str, Row] = {
    "path": (testing.check_path, PATH, {
        "starts at .95 x0": (paths.ENDS, SHORT),
        "noise falls at the end": (paths.FALLS, FALLING),
        "another slope": (paths.SLOPES, of(Steep)),
        "noise that does not add up": (paths.COMPOSE, of(Loose)),
        "the inverse of another path": (
            paths.INVERSES,
            dataclasses.replace(PATH, ratio_inverse=lambda r: (1 / (1 + 1 / r)) ** 2),
        ),
    }),
    "prediction": (check_pair, (target, to_prediction), {
        "eps and x0 swapped": (paths.ROUND, (target, swapped)),
        "sigma divides": (paths.FINITE, (target, careless)),
        "x0 and eps by themselves": (paths.SUM, (both, halves)),
    }),
    "order": (testing.check_order, heun, {
        "wrong sign": (
            ORDER, lambda path, steps: heun(path, steps, step=heun_step(path, -1.0))
        ),
        "order 1 declared 2": (
            ORDER, lambda path, steps: heun(path, steps, step=solvers.euler(path).step)
        ),
    }),
    "solver": (check_small, heun, {
        "says one call and makes two": (
            CALLS,
            lambda path, steps: heun(path, steps, times=lambda n, t, s: [float(t)]),
        ),
        "divides by alpha(1)": (ENDS, by_ratio),
    }),
    "guidance": (check_guide, guide(), {
        "the paper's w": (
            guidance.CONDITIONAL, guide(lambda c, u, w, t: u + (w + 1) * (c - u))
        ),
        "no label ignored": (guidance.UNCONDITIONAL, guide(lambda c, u, w, t: w * c)),
        "the batch's deviation": (guidance.ALONE, guide(of_batch)),
        "divides by t": (guidance.FINITE, guide(lambda c, u, w, t: u + w * t * (c - u) / t)),
        "memory of another dtype": (
            guidance.MEMORY, guide(init=lambda x: jnp.int32(0), remember=lambda x: x.sum())
        ),
        "two calls said to be one": (guidance.CALLS, guide(calls=1.0)),
    }),
    "guidance, w=1 alone": (
        lambda g: testing.check_guidance(g, at=(1.0,), weight=3.0, atol=1e-6),
        guide(),
        {"sign flipped": (guidance.DIRECTION, guide(lambda c, u, w, t: c - (w - 1) * (c - u)))},
    ),
    "linear guidance": (
        lambda g: testing.check_guidance(g, linear=True, atol=1e-6),
        guide(),
        {"the weight squared": (guidance.LINEAR, guide(lambda c, u, w, t: u + w * w * (c - u)))},
    ),
    "sampler": (check_images, sampler(own), {
        "two images share noise": (
            samplers.PLACE, sampler(lambda k, y: own(k[jnp.arange(len(k)) // 2 * 2], y))
        ),
        "noise of the place in the batch": (
            samplers.PLACE,
            sampler(lambda k, y: own(jax.vmap(jax.random.fold_in)(k, jnp.arange(len(k))), y)),
        ),
        "depends on the batch's size": (samplers.REST, sampler(lambda k, y: own(k, y) / len(k))),
        "noise of the label": (
            samplers.KEYS, sampler(lambda k, y: own(jax.vmap(jax.random.key)(y), y))
        ),
        "a class of NaN": (
            samplers.FINITE, sampler(own, lambda labels: MEANS.at[2].set(jnp.nan)[labels])
        ),
        "label ignored": (samplers.LABELS, sampler(own, lambda labels: 0.0)),
    }),
    "kernel": (
        lambda fn: testing.check_kernel(fn, attention, ARGS),
        attention,
        {
            "wrong scale": (kernels.FORWARD, lambda *a: attention(*a, scale=0.25)),
            "mask off by one": (kernels.FORWARD, lambda *a: attention(*a, after=1)),
            "wrong gradient": (kernels.GRADIENT, off),
        },
    ),
    "kernel's jvp": (
        lambda fn: testing.check_jvp(fn, attention, ARGS),
        attention,
        {"wrong tangent": (kernels.TANGENT, off)},
    ),
    "kernel in blocks": (
        lambda fn: testing.check_forward(fn, lambda q, k, v: v, ARGS),
        in_blocks(6),
        {"the last block is not written": (kernels.WRITTEN, in_blocks(4))},
    ),
    "masked kernel": (
        check_first_rows, attention, {"the mask is added": (kernels.UNSEEN, additive)}
    ),
    "metric": (check_distance, (frechet, streamed), {
        "pairs by order": (
            metrics.ORDER, (lambda x, y: ((x[:30] - y[:30]) ** 2).sum(-1).mean(), None)
        ),
        "infinite": (metrics.FINITE, (lambda x, y: np.inf, None)),
        "biased": (metrics.SELF, (lambda x, y: frechet(x, y) + 0.1, None)),
        "by coordinates": (
            metrics.invariance("rotation"),
            (lambda x, y: np.abs(x.mean(0) - y.mean(0)).sum(), None),
        ),
        "relative to one side": (
            metrics.SYMMETRIC,
            (lambda x, y: ((x.mean(0) - y.mean(0)) ** 2).sum() / np.trace(np.cov(y.T)), None),
        ),
        "mean over parts": (
            metrics.STREAMED,
            (frechet, lambda xs, ys: np.mean([frechet(xs[-1], ys[-1]), frechet(xs[-1], ys[-1])])),
        ),
    }),
    "metric's value": (
        lambda metric: testing.check_metric(metric, *LINE, golden=18.0),
        lambda x, y: (x.mean() - y.mean()) ** 2 + (x.std(ddof=1) - y.std(ddof=1)) ** 2,
        {"divisor N": (metrics.GOLDEN, by_number)},
    ),
    "network": (check_net, network, {
        "label ignored": (networks.LABELS, unlabelled),
        "no label is class 0": (networks.LABELS, lambda p, x, n, y: network(p, x, n, y % 2)),
        "noise ignored": (networks.NOISE, lambda p, x, n, y: network(p, x, 0 * n, y)),
        "mixes the batch": (networks.ALONE, lambda p, x, n, y: network(p, x - x.mean(0), n, y)),
        "float16 out": (networks.SHAPE, lambda *a: network(*a).astype(jnp.float16)),
        "log of the noise": (networks.FINITE, lambda p, x, n, y: network(p, x, n * jnp.log(n), y)),
        "a dead parameter": (
            networks.GRADIENT,
            lambda p, *a: network({**p, "in": jax.lax.stop_gradient(p["in"])}, *a),
        ),
    }),
    "loss": (check_objective, loss(), {
        "a sum over examples": (losses.MEAN, loss(jnp.sum)),
        "noise of the row": (losses.ORDER, by_place),
        "key ignored": (losses.KEY, loss(noise=0.0)),
        "label ignored": (losses.LABELS, loss(net=unlabelled)),
        "a number for each example": (losses.SCALAR, loss(lambda a: a)),
        "a root of 0": (
            losses.GRADIENT, lambda p, *a: loss()(p, *a) + jnp.sqrt((0 * p["in"]).sum())
        ),
    }),
    "method": (check_whole, method(), {
        "key ignored": (methods.KEY, method(keyless)),
        "hidden state": (methods.RESUME, forgetful),
        "noise of the row": (methods.DEVICES, method(by_row)),
        "ascends": (methods.FALLS, method(optimizer=optax.sgd(-0.1))),
        "steps not counted": (
            methods.COUNTED, method(then=lambda old, new: new.replace(step=old.step))
        ),
        "a loss of NaN": (methods.FINITE, method(lambda *a: jnp.nan * noisy(*a))),
        "a Python number in the state": (
            methods.PROGRAM, method(then=lambda old, new: new.replace(extra=jnp.sin(0.0)))
        ),
        "a step becomes a float": (
            methods.STRUCTURE, method(then=lambda old, new: new.replace(step=old.step + 1.0))
        ),
        "averages that grow": (methods.AVERAGES, method(averages=Grown(half_life=(40,)))),
        "averages that stay": (methods.AVERAGES, method(averages=Stuck(half_life=(40,)))),
    }),
    "compiled": (compiles, jax.jit(lambda x: 2 * x), {
        "compiles each call": (functions.ONCE, lambda x: jax.jit(lambda y: 2 * y)(x)),
    }),
    "variants": (varies, lambda x: 2.0 * x, {
        "knows whether it is traced": (functions.SAME, eager),
    }),
    "derivative": (derives, jax.nn.softplus, {
        "wrong rule": (functions.DERIVATIVES, softplus),
    }),
}  # fmt: skip

MUTANTS = [
    pytest.param(check, law, wrong, id=f"{kind}: {name}")
    for kind, (check, _, wrongs) in TABLE.items()
    for name, (law, wrong) in wrongs.items()
]


@pytest.mark.parametrize("kind", TABLE)
def test_the_right_piece_passes(kind):
    check, right, _ = TABLE[kind]
    check(right)


@pytest.mark.parametrize(("check", "law", "wrong"), MUTANTS)
def test_a_mutant_breaks_the_law_named_for_it(check, law, wrong):
    with pytest.raises(AssertionError, match=re.escape(f"law '{law}'")):
        check(wrong)


def test_every_law_has_a_mutant():
    kinds = (functions, guidance, kernels, losses, methods, metrics, networks, paths, samplers)
    kinds = (*kinds, laws_of_solvers)
    laws = {v for kind in kinds for k, v in vars(kind).items() if k.isupper() and type(v) is str}
    assert laws - {law for _, _, wrongs in TABLE.values() for law, _ in wrongs.values()} == set()
    assert len(MUTANTS) >= 20 and len(laws) >= 50
