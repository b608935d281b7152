"""Diffusion tree sampling and search: a tree of denoising states that remembers what it has seen.

Jain et al. 2025, "Diffusion Tree Sampling: Scalable inference-time alignment of diffusion models"
(DTS, DTS*). The root's children are states after the first step, the leaves are samples. An edge is
a step of the frozen chain, so every network call adds a node, and none is made twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.method import fold
from jaxgen.method.chain import CHOICE, Chain, Reward, State, Steered
from jaxgen.steer.search import branch

NOWHERE = -1
"""The parent of the root, and of nodes that do not exist yet."""
LOWEST = -1e30
"""The value of a reward that is not a number, or minus infinity."""

Backup = Callable[[jax.Array, jax.Array], jax.Array]
Scores = Callable[["_Tree", jax.Array], jax.Array]


class Leaves(NamedTuple):
    """A tree's samples: B trees of up to K = budget leaves.

    x [B, K, ...], reward [B, K] and log_weights [B, K], the logarithm of the probability that a
    Boltzmann walk from the root ends there, -inf where there is no leaf; so averages under the
    target weigh with it. value [B]: the root's, of which exp (of strength value) estimates
    E[exp(strength reward)].
    """

    x: jax.Array
    reward: jax.Array
    log_weights: jax.Array
    value: jax.Array

    def draw(self, keys: jax.Array) -> jax.Array:
        """One Boltzmann walk down each tree, keys [B]: x [B, ...]."""
        return _rows(self.x, jax.vmap(jax.random.categorical)(keys, self.log_weights))

    def best(self) -> jax.Array:
        """The leaf of the highest reward of each tree: x [B, ...]."""
        return _rows(self.x, self.reward.argmax(1))


@dataclasses.dataclass(frozen=True, eq=False)
class TreeSampling(Steered):
    """Samples from a tree of its own for each key; grow(keys [B]) -> Leaves is the tree itself."""

    grow: Callable[[jax.Array], Leaves]


class _Tree(NamedTuple):
    """Nodes [budget + 1] in the order they were made; node 0 is the root, before any noise.

    value: soft values (sampling) or highest rewards below (search). visits: walks and rollouts that
    came by. now: the node that the next step continues.
    """

    state: Any
    x: jax.Array
    parent: jax.Array
    level: jax.Array
    value: jax.Array
    visits: jax.Array
    children: jax.Array
    rollout: jax.Array
    now: jax.Array


def tree_sampling(
    chain: Chain,
    reward: Reward,
    *,
    budget: int,
    strength: float,
    widen: float = 2.0,
    power: float = 0.8,
) -> TreeSampling:
    """DTS: samples of p(x) exp(strength reward(x)), exact as the budget grows without bound.

    budget: steps of the chain for each tree. A rollout walks from the root, choosing children with
    probability in proportion to exp(strength value), to a node with fewer children than widen
    visits^power, and continues the chain from there to a sample; then the values above it become
    ln mean exp(strength value(child)) / strength. A rollout that the budget cuts off is dropped.
    A budget of chain.steps is the chain itself, bit for bit; strength = 0 samples p. A chain that
    draws no noise in its steps has something to choose at the root alone. A node whose first
    rollouts were poor is seldom seen again, so that finite trees put too little where rewards are
    high, the more so the less they widen; power = 1 with widen >= 1 widens the root alone, which
    is importance sampling.

    Trees of a batch stand at different levels, so each step costs what the dearest does, and a
    denoiser that holds labels must hold one: vmap over labels outside. The reward is evaluated
    after every step, on what may be no sample yet. Image i depends on its own key alone.
    """
    if not 0 <= strength < float("inf"):
        raise invalid("steer.strength", strength, "a number >= 0")

    def soft(values: jax.Array, among: jax.Array) -> jax.Array:
        if strength == 0:
            return values.mean(where=among)
        total = jax.nn.logsumexp(strength * values, where=among)
        return (total - jnp.log(among.sum())) / strength

    def scores(tree: _Tree, key: jax.Array) -> jax.Array:
        return strength * tree.value + jax.random.gumbel(key, tree.value.shape)

    grow = _grower(chain, reward, soft, scores, budget, widen, power)

    def leaves(keys: jax.Array) -> Leaves:
        tree, made = grow(keys)
        return jax.vmap(lambda t, m: _leaves(t, m, chain.steps, strength))(tree, made)

    def fn(keys: jax.Array) -> jax.Array:
        return leaves(keys).draw(fold(fold(keys, CHOICE), budget + 1))

    calls = _calls(chain, budget)
    if budget == chain.steps:
        return TreeSampling(chain.run, calls, leaves)
    return TreeSampling(fn, calls, leaves)


def tree_search(
    chain: Chain,
    reward: Reward,
    *,
    budget: int,
    explore: float = 1.0,
    widen: float = 1.0,
    power: float = 0.5,
) -> TreeSampling:
    """DTS*: the sample of the highest reward in a tree grown greedily.

    As `tree_sampling`, with the highest reward below a node as its value, and of the children that
    of the largest value + explore sqrt(ln visits(parent) / visits(child)) (UCT); `explore` is in
    the reward's units. `grow` gives leaves whose weights are those of the highest, 1.
    """
    if not explore >= 0:
        raise invalid("steer.explore", explore, "a number >= 0")

    def highest(values: jax.Array, among: jax.Array) -> jax.Array:
        return jnp.where(among, values, -jnp.inf).max()

    def scores(tree: _Tree, key: jax.Array) -> jax.Array:
        seen = jnp.maximum(tree.visits, 1)
        bonus = jnp.sqrt(jnp.log(seen[tree.parent]) / seen)
        return tree.value + explore * bonus

    grow = _grower(chain, reward, highest, scores, budget, widen, power)

    def leaves(keys: jax.Array) -> Leaves:
        tree, made = grow(keys)
        done = made & (tree.level == chain.steps)
        score = jnp.where(done, tree.value, -jnp.inf)[:, 1:]
        top = jnp.arange(budget) == score.argmax(1)[:, None]
        return Leaves(tree.x[:, 1:], score, jnp.where(top, 0.0, -jnp.inf), tree.value[:, 0])

    calls = _calls(chain, budget)
    if budget == chain.steps:
        return TreeSampling(chain.run, calls, leaves)
    return TreeSampling(lambda keys: leaves(keys).best(), calls, leaves)


def _calls(chain: Chain, budget: int) -> float:
    return budget * float(chain.step_calls.max())


def _rows(x: jax.Array, index: jax.Array) -> jax.Array:
    """x[b, index[b]]: [B, K, ...] -> [B, ...]."""
    return x[jnp.arange(x.shape[0]), index]


def _grower(
    chain: Chain,
    reward: Reward,
    backup: Backup,
    scores: Scores,
    budget: int,
    widen: float,
    power: float,
) -> Callable[[jax.Array], tuple[_Tree, jax.Array]]:
    """keys [B] -> (trees, which nodes [B, budget + 1] are of rollouts that came to their end)."""
    if budget < chain.steps:
        raise invalid("steer.budget", budget, f"at least the chain's {chain.steps} steps")
    if not widen >= 1 or not 0 < power <= 1:
        raise invalid("steer.widen", (widen, power), "widen >= 1 and 0 < power <= 1")
    ids = jnp.arange(budget + 1)

    def room(tree: _Tree, node: jax.Array) -> jax.Array:
        """Whether a node may get another child: progressive widening (Couetoux et al. 2011)."""
        return tree.children[node] < widen * tree.visits[node] ** power

    def leaf(tree: _Tree) -> jax.Array:
        return tree.level[tree.now] == chain.steps

    def walk(tree: _Tree, key: jax.Array) -> _Tree:
        """From the root to the first node with room, or to a leaf; all on the way are visited."""
        score = scores(tree, key)

        def down(tree: _Tree) -> _Tree:
            child = jnp.where(tree.parent == tree.now, score, -jnp.inf).argmax()
            return tree._replace(now=child, visits=tree.visits.at[child].add(1))

        tree = tree._replace(now=0 * tree.now, visits=tree.visits.at[0].add(1))
        return jax.lax.while_loop(lambda t: ~leaf(t) & ~room(t, t.now), down, tree)

    def select(tree: _Tree, key: jax.Array) -> _Tree:
        """Where a rollout has ended, where the next begins; walks to leaves only widen the tree."""

        def again(carry: tuple[_Tree, jax.Array]) -> tuple[_Tree, jax.Array]:
            tree, number = carry
            return walk(tree, jax.random.fold_in(key, number)), number + 1

        ended = leaf(tree)
        tree, _ = jax.lax.while_loop(lambda c: leaf(c[0]), again, (tree, jnp.zeros((), jnp.int32)))
        return tree._replace(rollout=tree.rollout + ended)

    def step(tree: _Tree, key: jax.Array) -> State:
        """The state after one step from the node `now`."""
        branch_keys, old = (
            branch(key[None], tree.rollout),
            jax.tree.map(lambda a: a[tree.now], tree.state),
        )
        fresh = chain.start(branch_keys)
        old = jax.tree.map(lambda a, b: jnp.where(tree.now == 0, a, b), fresh, old)
        return chain.step(branch_keys, old, tree.level[tree.now])

    def tick(tree: _Tree, number: jax.Array, key: jax.Array) -> _Tree:
        """One step of the chain: node `number`, and the values above where it is a leaf."""
        tree = select(tree, jax.random.fold_in(jax.random.fold_in(key, CHOICE), number))
        state = step(tree, key)
        x = chain.sample(state)
        score = jnp.maximum(jnp.nan_to_num(reward(x)[0], nan=LOWEST, neginf=LOWEST), LOWEST)
        tree = tree._replace(
            state=jax.tree.map(lambda a, b: a.at[number].set(b), tree.state, state),
            x=tree.x.at[number].set(x[0]),
            parent=tree.parent.at[number].set(tree.now),
            level=tree.level.at[number].set(tree.level[tree.now] + 1),
            value=tree.value.at[number].set(score),
            visits=tree.visits.at[number].set(1),
            children=tree.children.at[tree.now].add(1),
            now=number,
        )

        def up(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            value, node = carry
            node = tree.parent[node]
            return value.at[node].set(backup(value, tree.parent == node)), node

        start = (tree.value, jnp.where(leaf(tree), number, 0))
        value, _ = jax.lax.while_loop(lambda c: c[1] > 0, up, start)
        return tree._replace(value=value)

    def grow(key: jax.Array) -> tuple[_Tree, jax.Array]:
        start = chain.start(key[None])
        empty = jax.tree.map(lambda a: jnp.zeros((budget + 1, *a.shape), a.dtype), start)
        sample = chain.sample(start)
        x = jnp.zeros((budget + 1, *sample.shape[1:]), sample.dtype)
        none, zero = jnp.zeros(budget + 1, jnp.int32), jnp.zeros((), jnp.int32)
        value = jnp.zeros(budget + 1, jnp.float32)
        visits = none.at[0].set(1)
        tree = _Tree(empty, x, none + NOWHERE, none, value, visits, none, zero, zero)

        def body(tree: _Tree, number: jax.Array) -> tuple[_Tree, None]:
            return tick(tree, number, key), None

        tree, _ = jax.lax.scan(body, tree, ids[1:])
        last = jnp.where(tree.level == chain.steps, ids, 0).max()
        return tree, ids <= last

    return jax.vmap(grow)


def _leaves(tree: _Tree, made: jax.Array, steps: int, strength: float) -> Leaves:
    """The leaves of one tree and the probabilities that a Boltzmann walk ends there.

    The choices' normalisers cancel down the tree, which leaves exp(strength reward) over the
    product of the numbers of children above, and one normaliser.
    """
    children = jnp.zeros_like(tree.children).at[tree.parent].add(made & (tree.parent >= 0))
    spread = jnp.log(jnp.maximum(children, 1).astype(jnp.float32))

    def up(_: int, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        node, total = carry
        node = tree.parent[node]
        return node, total + spread[node]

    ids = jnp.arange(len(spread))
    _, total = jax.lax.fori_loop(0, steps, up, (ids, jnp.zeros_like(spread)))
    done = made & (tree.level == steps)
    gain = strength * (tree.value - tree.value[0])
    log_weights = jnp.where(done, gain - total, -jnp.inf)
    reward = jnp.where(done, tree.value, -jnp.inf)
    return Leaves(tree.x[1:], reward[1:], log_weights[1:], tree.value[0])
