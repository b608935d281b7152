"""Losses and the dynamic programme, against flows that are known exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.data.bit_sequences import bit_sequences
from jaxgen.data.hypergrid import additive, hypergrid
from jaxgen.data.sets import sets
from jaxgen.errors import UsageError
from jaxgen.families.gflownet import exact, losses
from jaxgen.families.gflownet.walk import (
    NEVER,
    NetworkHeads,
    Outputs,
    rollout,
    seen,
    tabled,
    walk,
)
from jaxgen.nn.policy import Policy
from tests.nn_kit import quick_jit, random_like

ENVIRONMENTS = {
    "grid": hypergrid(dims=2, height=5),
    "additive": additive(dims=2, height=4),
    "bits": bit_sequences(length=6, word=2, modes=2),
    "sets": sets(items=6, size=3),
}
LOSSES = {
    "flow_matching": losses.flow_matching(),
    "detailed_balance": losses.detailed_balance(),
    "trajectory_balance": losses.trajectory_balance(),
    "subtrajectory_balance": losses.subtrajectory_balance(0.8),
}


def log_softmax(logits):
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def uniform(env):
    """The policies that are uniform over what is allowed, [N, ...] each."""
    allowed, parents = jax.jit(lambda s: (env.allowed(s), env.parents(s)))(env.states())
    return tuple(log_softmax(np.where(m, 0.0, NEVER)).astype("f4") for m in (allowed, parents))


def table(env, change=0.0):
    """Heads that look up flows, and as their parameters the exact ones for a uniform P_B.

    F(s) = R(s) [one may stop] + sum over children F(s') P_B(s | s'), children first; then logits
    are moved by normal noise times `change`.
    """
    tables = exact.graph(env)
    _, log_backward = uniform(env)
    backward = np.exp(np.asarray(log_backward, np.float64))
    edges = np.zeros((env.count, env.actions))
    edges[:, -1] = tables.target * np.exp(tables.log_z)
    ways = np.asarray(env.back(jnp.arange(env.stop)))
    for s in np.argsort(-depths(env, tables), kind="stable"):
        for a in np.flatnonzero(tables.has_child[s]):
            child = tables.children[s, a]
            edges[s, a] = edges[child].sum() * backward[child, ways[a]]
    logits = np.log(np.maximum(edges, 1e-300))
    logits += change * np.random.default_rng(0).normal(size=logits.shape)
    logits = np.where(edges > 0, logits, NEVER)
    params = {
        "forward": log_softmax(logits).astype("f4"),
        "flow": np.logaddexp.reduce(logits, axis=-1).astype("f4"),
        "logits": logits.astype("f4"),
    }

    def heads(params, states):
        i = env.index(states)
        back = jnp.asarray(log_backward)[i]
        return Outputs(params["forward"][i], back, params["flow"][i], params["logits"][i])

    params = jax.tree.map(jnp.asarray, params)
    return heads, params, tables, float(params["flow"][tables.root])


def depths(env, tables):
    depth = np.full(env.count, -1)
    depth[tables.root] = 0
    for level in range(env.steps):
        for s in np.flatnonzero(depth == level):
            depth[tables.children[s][tables.has_child[s]]] = level + 1
    return depth


def draw(env, count=64):
    """Trajectories of a policy that explores, so that all kinds of edges are on them."""
    heads, params, _, _ = table(env, change=1.0)
    keys = jax.random.split(jax.random.key(0), count)
    return jax.jit(
        lambda keys: rollout(env, heads, params, keys, jnp.zeros(count, bool), epsilon=0.5)
    )(keys)


@pytest.mark.parametrize("env", ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_exact_flows_have_no_loss_and_others_do(env):
    actions, _ = draw(env)
    heads, _, tables, _ = table(env)
    keys = jax.random.split(jax.random.key(1), len(actions))

    @jax.jit
    def measure(params, log_z):
        found = []
        for truncate in (0, 2):
            path = walk(env, heads, params, actions, keys, log_z=log_z, truncate=truncate)
            found.append((path.whole, {name: loss.of(path) for name, loss in LOSSES.items()}))
        out = heads(params, jnp.asarray(tables.states))
        return found, exact.scores(tables, out.log_forward, out.log_backward)

    _, params, _, log_z = table(env)
    np.testing.assert_allclose(log_z, env.log_z, atol=1e-5)
    found, scores = jax.device_get(measure(params, log_z))
    # Exact flows sample the target.
    assert all(abs(float(v)) < 1e-5 for v in scores.values()), scores
    for _, every in found:
        for name, values in every.items():
            # Sums of at most 11 logs of size 10 in float32, squared.
            assert values.max() < 1e-9, (name, values.max())

    _, params, _, log_z = table(env, 0.3)
    (full, parts), scores = jax.device_get(measure(params, log_z))
    assert scores["total_variation"] > 0.02
    assert full[0].all() and not parts[0].all()
    # What has no end has no reward to balance.
    assert (parts[1]["trajectory_balance"][~parts[0]] == 0).all()
    for name in LOSSES:
        assert np.median(full[1][name]) > 1e-3, name
        assert name == "trajectory_balance" or np.median(parts[1][name]) > 1e-3, name


@pytest.mark.parametrize(
    ("dims", "height", "tv", "kl", "elbo", "eubo"),
    [
        (2, 8, 0.699978, 1.522356, 1.537807, 6.015716),
        (2, 16, 0.780599, 2.188974, 1.943010, 11.014129),
        (4, 8, 0.800148, 2.713007, 3.449082, 10.528954),
    ],
)
def test_uniform_policy_scores_as_computed_elsewhere(dims, height, tv, kl, elbo, eubo):
    env = hypergrid(dims=dims, height=height)
    tables = exact.graph(env)
    policies = uniform(env)
    found = jax.jit(lambda: exact.scores(tables, *map(jnp.asarray, policies)))()
    # Six digits were given; float32 sums over at most 4096 states add a few units of the sixth.
    for name, expected in (
        ("total_variation", tv),
        ("kl", kl),
        ("elbo_gap", tables.log_z - elbo),
        ("eubo_gap", eubo - tables.log_z),
    ):
        np.testing.assert_allclose(found[name], expected, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("env", ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_rollouts_stop_where_the_programme_says(env):
    heads, params, tables, _ = table(env, change=1.0)
    expected = np.asarray(jax.jit(lambda: exact.terminating(tables, params["forward"]))())
    count = 20_000
    keys = jax.random.split(jax.random.key(3), count)
    _, end = jax.jit(lambda k: rollout(env, heads, params, k, jnp.zeros(count, bool)))(keys)
    found = np.bincount(np.asarray(env.index(end)), minlength=env.count) / count
    # The mean of an empirical distribution's distance; its deviation is far smaller.
    floor = np.sqrt(2 * expected * (1 - expected) / (np.pi * count)).sum() / 2
    assert 0.5 * np.abs(found - expected).sum() < 1.5 * floor


def test_trajectory_balance_by_hand():
    env = hypergrid(dims=2, height=3)
    heads, params, _, _ = table(env, change=0.5)
    # Right, up, stop; the last two entries are padding.
    actions = jnp.asarray([[0, 1, 2, 2, 2]])
    states = jnp.asarray([[0, 0], [1, 0], [1, 1]])
    out = heads(params, states)
    forward = sum(float(out.log_forward[i, a]) for i, a in enumerate((0, 1, 2)))
    residual = 0.7 + forward - float(env.log_reward(states[2])) - np.log(1.0 * 0.5)

    @jax.jit
    def measure():
        keys = jax.random.split(jax.random.key(0), 1)
        path = walk(env, heads, params, actions, keys, log_z=0.7)
        extremes = [losses.subtrajectory_balance(decay).of(path) for decay in (1e-6, 1e6)]
        return [LOSSES[n].of(path) for n in ("trajectory_balance", "detailed_balance")] + extremes

    trajectory, detailed, local, whole = measure()
    np.testing.assert_allclose(trajectory[0], residual**2, rtol=1e-5)
    # All of SubTB's weight on neighbours is detailed balance.
    np.testing.assert_allclose(local, detailed, rtol=1e-4)
    first, last = float(out.flow[0]), residual - 0.7
    np.testing.assert_allclose(whole[0], (first + last) ** 2, rtol=1e-4)


def test_parts_are_in_a_row_and_anywhere():
    stops = jnp.arange(9)[None].repeat(4000, 0) >= 6
    parts = np.asarray(seen(stops, jax.random.split(jax.random.key(0), 4000), 3))
    assert (parts.sum(1) == 3).all()
    first = parts.argmax(1)
    assert (parts[np.arange(4000), first + 2]).all()
    share = np.bincount(first, minlength=5) / 4000
    assert len(share) == 5 and np.abs(share - 0.2).max() < 0.03
    short = seen(stops[:1], jax.random.split(jax.random.key(0), 1), 20)
    assert int(short.sum()) == 7


def test_bad_decay():
    with pytest.raises(UsageError, match="method.loss.decay"):
        losses.subtrajectory_balance(0.0)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_table_of_heads_says_the_same(name):
    """Losses and their gradients by look-up are those of the network at every row."""
    env = ENVIRONMENTS[name]
    net = Policy(outputs=env.actions + env.back_actions + 1, width=16, depth=1)
    features = env.features(jnp.asarray(env.root())[None])
    shapes = jax.eval_shape(net.init, jax.random.key(0), features)["params"]
    params = {"net": random_like(shapes, 0.3)}
    keys, done = jax.random.split(jax.random.key(2), 64), jnp.zeros(64, bool)
    # Between them they ask for all that heads say, of parents too.
    for kind in ("flow_matching", "subtrajectory_balance"):
        loss = LOSSES[kind]
        flow = "edges" if loss.flow == "edges" else "head"
        heads = NetworkHeads(env, net, learned_backward=True, flow=flow)
        actions, _ = quick_jit(lambda p, h=heads: rollout(env, h, p, keys, done))(params)

        def value(params, tabulate, heads=heads, actions=actions, loss=loss):
            own = tabled(env, heads, params) if tabulate else heads
            return loss.of(walk(env, own, params, actions, keys)).mean()

        both = quick_jit(jax.value_and_grad(value), static_argnums=1)
        pairs = [both(params, which) for which in (False, True)]
        for a, b in zip(*map(jax.tree.leaves, pairs), strict=True):
            np.testing.assert_allclose(
                a, b, rtol=2e-4, atol=2e-5 * float(jnp.abs(a).max()), err_msg=kind
            )
        again, _ = quick_jit(lambda p, h=heads: rollout(env, tabled(env, h, p), p, keys, done))(
            params
        )
        np.testing.assert_array_equal(actions, again)
