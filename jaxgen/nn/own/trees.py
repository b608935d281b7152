"""A network's parameters by name, and the same network with other parameters of these names."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxgen.errors import invalid
from jaxgen.method import CONSTANTS

Name = tuple[str, ...]
Opened = tuple[dict[Name, Any], Callable[[Mapping[Name, Any]], Any]]
"""A network's arrays by name; and of others with these names the network that has them."""

MOST = 8
"""Names that a message lists."""


def parameters(network: Any) -> dict[str, Any]:
    """A network's parameters as a run has them: nested dicts of float32, by the paths to them.

    network: an NNX or Equinox module, or a tree of arrays (Linen's, or of a pair's `init`). Arrays
    of floats in NNX modules that are no variables are under `constants` (`jaxgen.method`), which
    nobody trains. Raises UsageError that names what a run would have to carry and does not.
    """
    arrays = {name: jnp.asarray(value, jnp.float32) for name, value in _opened(network)[0].items()}
    return flax.traverse_util.unflatten_dict(arrays)


def filled(network: Any, params: Mapping[str, Any]) -> Any:
    """The network with these parameters in the place of its own: the way back of `parameters`.

    Each has the dtype of what it replaces. Raises UsageError for one that is missing or of another
    shape.
    """
    arrays, rebuild = _opened(network)
    given = flax.traverse_util.flatten_dict(dict(params))
    for name, own in arrays.items():
        found = getattr(given.get(name), "shape", None)
        if found != own.shape:
            raise invalid(f"parameter {'.'.join(name)}", found, f"an array of {own.shape}")
    return rebuild({name: given[name].astype(own.dtype) for name, own in arrays.items()})


def refuse(names: Iterable[str]) -> None:
    """Raise UsageError for what is no parameter, if there is any."""
    if found := sorted(names):
        raise invalid(
            "config.model.of",
            ", ".join(found[:MOST]) + ", ..." * (len(found) > MOST),
            "a network all of whose state is parameters of floats",
            "What a step changes besides them (statistics of BatchNorm) is not carried on: "
            "GroupNorm and LayerNorm have none.",
        )


def _opened(network: Any) -> Opened:
    return _of_nnx(network) if isinstance(network, nnx.Module) else _of_tree(network)


def _of_nnx(module: nnx.Module) -> Opened:
    nodes = dict(nnx.iter_graph(module))
    refuse(
        f"{'.'.join(map(str, path))} ({type(node).__name__})"
        for path, node in nodes.items()
        if isinstance(node, nnx.Variable) and not isinstance(node, nnx.Param | nnx.RngState)
    )
    # Plain arrays: NumPy's are the same in every program, others may be of the run's seed.
    constants = {p: a for p, a in nodes.items() if isinstance(a, jax.Array) and _floats(a)}
    trained = {p: jnp.asarray(v.get_value()) for p, v in nodes.items() if isinstance(v, nnx.Param)}
    paths = {_names(p): p for p in trained} | {(CONSTANTS, *_names(p)): p for p in constants}
    every = trained | constants

    def rebuild(arrays: Mapping[Name, Any]) -> Any:
        new = nnx.clone(module)
        nodes = dict(nnx.iter_graph(new))
        for name, path in paths.items():
            if path in trained:
                nodes[path].set_value(arrays[name])
            else:
                object.__setattr__(nodes[path[:-1]], str(path[-1]), arrays[name])
        return new

    return {name: every[path] for name, path in paths.items()}, rebuild


def _of_tree(tree: Any) -> Opened:
    module = _equinox_module(tree)
    index: Any = () if module is None else module.nn.StateIndex
    leaves, structure = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda leaf: isinstance(leaf, index)
    )
    names = [_names(jax.tree_util.keystr((k,), simple=True) for k in path) for path, _ in leaves]
    values = [leaf for _, leaf in leaves]

    def trained(leaf: Any) -> bool:
        return _floats(leaf) and not (module and isinstance(leaf, np.ndarray))

    refuse(
        ".".join(name)
        for name, leaf in zip(names, values, strict=True)
        if isinstance(leaf, index) or (module is None and not trained(leaf))
    )

    def rebuild(arrays: Mapping[Name, Any]) -> Any:
        pairs = zip(names, values, strict=True)
        return jax.tree.unflatten(structure, [arrays[n] if trained(a) else a for n, a in pairs])

    return {n: a for n, a in zip(names, values, strict=True) if trained(a)}, rebuild


def _equinox_module(tree: Any) -> Any:
    """The package equinox, where this is a module of it."""
    package = sys.modules.get("equinox")
    return package if package is not None and isinstance(tree, package.Module) else None


def _names(path: Iterable[Any]) -> Name:
    """Names of a path's parts, none of which has the dot that joins them in files."""
    return tuple(str(part).replace(".", "_") for part in path) or ("value",)


def _floats(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
