"""Changes of some of a model's arrays as parameters of their own: trained alone, 0 at first, added.

What is not changed keeps its bits, whatever the optimizer, and the model as it was stays at hand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.traverse_util as trees
import jax
import jax.numpy as jnp

from jaxgen.method import Learner, LossFn, Method, on_params, retrained, training_of

PyTree = Any


def named(params: PyTree) -> dict[str, jax.Array]:
    """The arrays by their names, joined by "/"."""
    return trees.flatten_dict(params, sep="/")


def shapes(method: Method, option: str) -> dict[str, Any]:
    """Those of the method's parameters. Raises UsageError for one that writes its own update."""
    fresh = training_of(method, option).fresh
    return named(jax.eval_shape(fresh, jax.random.key(0))[0])


def added(params: PyTree, group: str) -> PyTree:
    """The parameters without the group of changes, which are added to the arrays they name."""
    arrays = named({k: a for k, a in params.items() if k != group})
    for name, change in named(params[group]).items():
        arrays[name] = arrays[name] + change
    return trees.unflatten_dict(arrays, sep="/")


def training_changes(
    method: Method, names: Sequence[str], group: str, loss: LossFn, **changes: Any
) -> Method:
    """The method that trains changes of the arrays `names` by a loss, as the parameters `group`.

    In the place of all its learners: of their optimizers the first is taken. Samplers and all else
    are of the changed model. changes: of the `Training`.
    """
    training = training_of(method, "wrap")

    def fresh(key: jax.Array) -> tuple[dict[str, PyTree], PyTree]:
        params, extra = training.fresh(key)
        arrays = named(params)
        zeros = {name: jnp.zeros_like(arrays[name]) for name in names}
        return {**params, group: trees.unflatten_dict(zeros, sep="/")}, extra

    optimizer = training.optimizer
    if isinstance(optimizer, Mapping):
        optimizer = next(iter(optimizer.values()))
    made = retrained(
        method,
        learners={"net": Learner(loss=loss, trains=(group,))},
        fresh=fresh,
        optimizer=optimizer,
        averaged=(group,),
        prepare=None,
        **changes,
    )
    made = dataclasses.replace(made, train_flops=None)
    return on_params(made, lambda params: added(params, group))
