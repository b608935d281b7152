"""LlamaGen: keys kept while decoding, a known token source, guidance at 1, rotary offsets."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shared.causal import method, random_weights
from experiments.shared.check import Check, above, below, control, near
from experiments.shared.quick import quick_jit
from jaxgen.method import Spec
from jaxgen.nn.llama import Llama
from jaxgen.nn.positions import rope_2d, rotate

PAPER = "Autoregressive Model Beats Diffusion: Llama for Scalable Image Generation"
ENTRY = "jaxgen.families.autoregressive.autoregressive"
SPEC = Spec((4, 4), 2, levels=3, tokens=True)
# Rows: p(next | this), asymmetric; and the law that it keeps.
CHAIN = np.array([[0.8, 0.15, 0.05], [0.1, 0.2, 0.7], [0.5, 0.45, 0.05]])
LEFT = np.linalg.eig(CHAIN.T)
STATIONARY = np.real(LEFT[1][:, np.argmax(LEFT[0].real)])
STATIONARY = STATIONARY / STATIONARY.sum()


def entropy(p: np.ndarray) -> np.ndarray:
    """-sum p ln p over the last axis, nats."""
    return -(p * np.log(p)).sum(-1)


def sequences(count: int, seed: int) -> jax.Array:
    """Runs of the chain, row by row: int32 [count, 4, 4]."""
    rng = np.random.default_rng(seed)
    states = [rng.choice(3, count, p=STATIONARY)]
    for _ in range(15):
        coins = rng.random((count, 1))
        states.append((CHAIN[states[-1]].cumsum(1) < coins).sum(1))
    return jnp.asarray(np.stack(states, 1).reshape(-1, 4, 4), jnp.int32)


def checks() -> list[Check]:
    """Each against an exact answer, and once with the mechanism taken away."""
    return [*decoding(), *source(), *guidance(), *offsets()]


def decoding() -> list[Check]:
    """Row by row with kept keys, against the whole sequence at once."""
    module = Llama(2, 11, (4, 4), depth=2, width=32, heads=2, multiple=8)
    tokens = jnp.asarray(np.random.default_rng(2).integers(0, 11, (4, 16)), jnp.int32)
    labels = jnp.array([0, 1, 2, 0])
    weights = random_weights(lambda: module.init(jax.random.key(0), tokens, labels)["params"], 0.3)
    whole = quick_jit(module.apply)({"params": weights}, tokens, labels)

    def rows(keep: bool) -> jax.Array:
        start, step = module.decoder(weights, labels)

        def body(memory: object, i: jax.Array) -> tuple[object, jax.Array]:
            out, new = step(memory, tokens, i)
            return (new if keep else memory), out

        return quick_jit(lambda: jax.lax.scan(body, start, jnp.arange(16))[1])().swapaxes(0, 1)

    gap = float(jnp.abs(rows(True) - whole).max())
    lost = float(jnp.abs(rows(False) - whole).max())
    return [
        below("kept keys against the whole", gap, 1e-4),
        control(below("keys not kept against the whole", lost, 1e-4)),
    ]


def source() -> list[Check]:
    """Train on the chain; score fresh sequences."""
    built = method(SPEC, Llama(2, 3, (4, 4), depth=1, width=32, heads=2, multiple=8))
    state, update = jax.jit(built.init)(jax.random.key(0)), jax.jit(built.update)
    for i in range(300):
        batch = {"image": sequences(64, i), "label": jnp.zeros(64, jnp.int32)}
        state, _ = update(state, batch, jax.random.key(i))
    fresh = sequences(4000, 10_000)
    labels = jnp.zeros(4000, jnp.int32)
    assert built.log_prob is not None
    log = quick_jit(built.log_prob())
    nats = -np.asarray(log(state.params, fresh, labels, None)) / 16
    states = np.asarray(fresh).reshape(4000, 16)
    steps = np.log(CHAIN)[states[:, :-1], states[:, 1:]].sum(1)
    exact = -(np.log(STATIONARY)[states[:, 0]] + steps) / 16
    rate = (entropy(STATIONARY) + 15 * STATIONARY @ entropy(CHAIN)) / 16
    excess = nats - exact
    # The same tokens in an order that hides the chain: all that is left is the marginal law.
    mixed = fresh.reshape(-1)[np.random.default_rng(0).permutation(fresh.size)].reshape(fresh.shape)
    blind = -float(log(state.params, mixed, labels, None).mean()) / 16
    return [
        # 4 standard errors of the mean of 4,000 sequences, and .01 for what is not learnt.
        near("nats a token", nats.mean(), rate, 0.01 + 4 * float(exact.std()) / 4000**0.5),
        # The excess over the source's own log-probability is a divergence: never below 0.
        near("excess over the source, nats a token", excess.mean(), 0.005, 0.005),
        above("the same of tokens without their order", blind, float(entropy(STATIONARY))),
    ]


def guidance() -> list[Check]:
    """A scale of 1 is the conditional model, drawn by a method that has no other branch."""
    net = Llama(2, 3, (4, 4), depth=1, width=16, heads=2, multiple=8)
    built, alone = method(SPEC, net), method(SPEC, net, label_dropout=0.0)
    weights = random_weights(lambda: built.init(jax.random.key(0)).params, 0.5)
    keys = jax.random.split(jax.random.key(3), 64)
    labels = jnp.arange(64) % 2
    assert built.sampler is not None and alone.sampler is not None
    want = quick_jit(alone.sampler().fn)(weights, keys, labels)
    changed = []
    for scale in (1.0, 3.0):
        drawn = quick_jit(built.sampler(guidance=scale).fn)(weights, keys, labels)
        changed.append(float((drawn != want).mean()))
    return [
        below("tokens that guidance 1 changes", changed[0], 0.0),
        control(below("tokens that guidance 3 changes", changed[1], 0.0)),
        below("calls at guidance 1 over those at 3", built.sampler().calls / 32, 0.5),
    ]


def offsets() -> list[Check]:
    """Scores of turned queries and keys move with neither row nor column."""
    angles = rope_2d(6, 6, 16).reshape(6, 6, 8)
    q, k = (jnp.asarray(a, jnp.float32) for a in np.random.default_rng(4).normal(size=(2, 16)))

    def score(a: tuple[int, int], b: tuple[int, int]) -> float:
        return float(rotate(q, angles[a]) @ rotate(k, angles[b]))

    pairs = [((0, 0), (2, 1)), ((3, 4), (5, 5)), ((1, 2), (3, 3))]
    same = [score(a, b) for a, b in pairs]
    moved = abs(score((0, 0), (1, 2)) - same[0])
    return [
        below("scores at one offset, spread", max(same) - min(same), 1e-4),
        control(below("the same, row and column exchanged", moved, 1e-4)),
    ]
