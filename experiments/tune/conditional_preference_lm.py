"""Conditional training: a model that was told which sequences are good is asked for good ones."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shared.causal import method
from experiments.shared.check import Check, below, control, near
from experiments.shared.tabular import DATA, REFERENCE, distance, reward, tilted, tuned
from jaxgen.method import Method, Spec
from jaxgen.nn.llama import Llama
from jaxgen.tune.told import told
from jaxgen.tune.weighted import weighted

PAPER = "Pretraining Language Models with Human Preferences"
ENTRY = "jaxgen.tune.told.told"
LENGTH, WORDS, BATCH, STEPS, COUNT = 6, 4, 256, 400, 4000
BAD, SHARE = WORDS, 0.3
"""The token that makes a sequence bad, and the share of such sequences."""
SPEC = Spec((1, LENGTH), 2, levels=WORDS + 1, tokens=True)
CHAIN = np.random.default_rng(2).dirichlet(np.full(WORDS, 0.5), WORDS + 1)
"""Of the next word given the last; the last row begins."""
CHAINED = jnp.log(jnp.asarray(CHAIN, jnp.float32))


def sequences(key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """(tokens [count, 1, LENGTH], good or not [count]): words of the chain; bad ones lose some."""
    words, chosen, where = jax.random.split(key, 3)

    def word(last: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        new = jax.random.categorical(key, CHAINED[last])
        return new, new

    start = jnp.full(count, WORDS)
    _, tokens = jax.lax.scan(word, start, jax.random.split(words, LENGTH))
    bad = jax.random.uniform(chosen, (count,)) < SHARE
    lost = jax.random.uniform(where, (count, LENGTH)) < 0.5
    lost = lost.at[:, 0].set(lost[:, 0] | ~lost.any(1))
    tokens = jnp.where(bad[:, None] & lost, BAD, tokens.T)
    return tokens[:, None].astype(jnp.int32), (~bad).astype(jnp.int32)


def trained(made: Method, labelled: jax.Array) -> Any:
    """Parameters after STEPS batches; labelled: 1 tells which are good, 0 tells nothing."""

    def body(state: Any, key: jax.Array) -> tuple[Any, None]:
        tokens, good = sequences(key, BATCH)
        batch = {"image": tokens, "label": good * labelled}
        return made.update(state, batch, key)[0], None

    keys = jax.random.split(jax.random.key(1), STEPS)
    return jax.lax.scan(body, made.init(jax.random.key(0)), keys)[0].params


def rate(sample: Any, params: Any) -> float:
    """The share of bad ones among samples that are asked for label 0."""
    keys = jax.random.split(jax.random.key(2), COUNT)
    drawn = jax.jit(sample.fn)(params, keys, jnp.zeros(COUNT, jnp.int32))
    return float((np.asarray(drawn) == BAD).any((1, 2)).mean())


def excess(made: Method, params: Any, label: int) -> float:
    """Nats a word more than the chain's own of good sequences, under a label."""
    assert made.log_prob is not None
    tokens, good = sequences(jax.random.key(3), COUNT)
    nats = jax.jit(made.log_prob())(params, tokens, jnp.full(COUNT, label), None)
    before = jnp.concatenate([jnp.full((COUNT, 1), WORDS), tokens[:, 0, :-1]], axis=1)
    exact = CHAINED[before, jnp.minimum(tokens[:, 0], WORDS - 1)].sum(1)
    return float((jnp.where(good == 1, exact - nats, 0.0)).sum() / good.sum() / LENGTH)


def checks() -> list[Check]:
    """Bad samples, and what good data cost, told or not; the law of weighted regression."""
    net = Llama(SPEC.num_classes, WORDS + 1, SPEC.shape, width=32, depth=1, heads=2, multiple=32)
    base = method(SPEC, net, label_dropout=0.01)
    fit = jax.jit(jax.vmap(functools.partial(trained, base)))
    params = fit(jnp.array([1, 0]))
    aware, plain = (jax.tree.map(lambda a, n=n: a[n], params) for n in (0, 1))
    best = told(base, spec=SPEC, levels=2)
    assert best.sampler is not None and base.sampler is not None
    good, bad = "share of bad samples", "nats a word of good data, less the chain's own"
    results = [
        below(f"{good}, told the best", rate(best.sampler(), aware), 0.02),
        control(below(f"{good}, told the worst", rate(base.sampler(), aware), 0.02)),
        near(f"{good}, told nothing", rate(base.sampler(), plain), SHARE, 0.03),
        below(f"{bad}, told the best", excess(base, aware, 1), 0.02),
        control(below(f"{bad}, told nothing", excess(base, plain, 0), 0.02)),
    ]

    def regression(method: Method, **given: Any) -> Method:
        return weighted(method, spec=given["spec"], reward=reward, beta=1.0)

    check, law = "total variation of weighted regression from the tilted data", tilted(1.0, DATA)
    results.append(below(check, distance(tuned(regression, steps=500), law), 0.02))
    results.append(control(below(f"{check}, before", distance(np.log(REFERENCE), law), 0.02)))
    return results
