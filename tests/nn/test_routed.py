"""Networks of their own for classes: routing, gradients, one call for one group."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.errors import UsageError
from jaxgen.nn.mlp import MLP
from jaxgen.nn.routed import Routed

OF = dict(name="mlp.MLP", width=8, depth=1)
X, NOISE = jax.random.normal(jax.random.key(0), (6, 2)), jnp.linspace(0.1, 0.9, 6)
LABELS = jnp.array([0, 1, 2, 3, 4, 1])  # 4: no label


def live(groups):
    net = Routed(OF, groups, 4, 2)
    params = jax.jit(net.init)(jax.random.key(1), X, NOISE, LABELS)["params"]
    return net, jax.tree.map(lambda a: a + 0.3 * jax.random.normal(jax.random.key(a.size), a.shape),
                             params)  # fmt: skip


def test_each_example_is_answered_by_its_own_network():
    net, params = live(((0, 2), (1,), (3,)))
    found = net.apply({"params": params}, X, NOISE, LABELS)
    alone = MLP(4, 2, width=8, depth=1)
    for row, number in enumerate((0, 1, 0, 2, 0, 1)):
        own = jax.tree.map(lambda a, n=number: a[n], params["students"])
        wanted = alone.apply({"params": own}, X[row : row + 1], NOISE[row : row + 1],
                             LABELS[row : row + 1])  # fmt: skip
        np.testing.assert_allclose(found[row], wanted[0], rtol=1e-6, atol=1e-6)


def test_a_network_learns_from_its_own_examples_alone():
    net, params = live(((0, 2), (1,), (3,)))

    def loss(params):
        out = net.apply({"params": params}, X, NOISE, LABELS)
        return (out[jnp.array([1, 5])] ** 2).sum()

    grads = jax.jit(jax.grad(loss))(params)["students"]
    moved = [any(np.abs(a[n]).max() > 0 for a in jax.tree.leaves(grads)) for n in range(3)]
    assert moved == [False, True, False]


def test_one_group_is_the_network_itself():
    net, params = live(((0, 1, 2, 3),))
    own = jax.tree.map(lambda a: a[0], params["students"])
    wanted = MLP(4, 2, width=8, depth=1).apply({"params": own}, X, NOISE, LABELS)
    found = net.apply({"params": params}, X, NOISE, LABELS)
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


def test_networks_that_no_label_asks_for_are_not_called():
    """A network of another group whose parameters are not numbers leaves no trace."""
    net, params = live(((0, 2), (1,), (3,)))
    spoilt = jax.tree.map(lambda a: a.at[0].set(jnp.nan), params)
    labels, apply = jnp.array([1, 3, 1, 3, 1, 3]), jax.jit(lambda p, y: net.apply(p, X, NOISE, y))
    found = apply({"params": spoilt}, labels)
    np.testing.assert_array_equal(found, apply({"params": params}, labels))
    text = str(jax.make_jaxpr(apply)({"params": params}, labels))
    assert "cond" in text


@pytest.mark.parametrize("groups", [((0, 1),), ((0, 1), (1, 2, 3)), ((0, 1, 2, 3), ()), ((0, 4),)])
def test_groups_that_are_no_partition_are_refused(groups):
    with pytest.raises(UsageError, match=r"config\.model\.groups.*in one group"):
        Routed(OF, groups, 4, 2)
