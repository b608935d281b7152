"""Count parameters and forward multiply-adds of a network, without allocating or running it.

Convention: one multiply-add of a matrix product or convolution counts one. Papers often call this
number "Gflops" (DiT) or "GMACs"; the floating-point operations of hardware peaks are twice as many,
and a training step (forward and backward) costs three forwards. Element-wise work is not counted.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend import core

from jaxgen.method import is_constant


def _inputs(shape: tuple[int, ...], batch: int) -> tuple[jax.ShapeDtypeStruct, ...]:
    image = jax.ShapeDtypeStruct((batch, *shape), jnp.float32)
    noise = jax.ShapeDtypeStruct((batch,), jnp.float32)
    return image, noise, jax.ShapeDtypeStruct((batch,), jnp.int32)


def abstract_variables(module: nn.Module, shape: tuple[int, ...]) -> Any:
    """The variables of `module` for examples of `shape` (H, W, C), as shapes and dtypes only."""
    return jax.eval_shape(module.init, jax.random.key(0), *_inputs(shape, 1))


def parameters(module: nn.Module, shape: tuple[int, ...]) -> int:
    """The number of trained parameters of `module` for examples of `shape` (H, W, C)."""
    leaves = jax.tree_util.tree_leaves_with_path(abstract_variables(module, shape)["params"])
    return sum(math.prod(leaf.shape) for path, leaf in leaves if not is_constant(path))


def multiply_adds(
    module: nn.Module, shape: tuple[int, ...], *, batch: int = 1, train: bool = False
) -> float:
    """Forward multiply-adds of `module` on `batch` examples of `shape` (H, W, C).

    train: as it is trained, for networks that then do less.
    """
    variables = abstract_variables(module, shape)
    more: dict[str, Any] = {"train": True, "rngs": {"dropout": jax.random.key(0)}} if train else {}
    forward = functools.partial(module.apply, **more)
    jaxpr = jax.make_jaxpr(forward)(variables, *_inputs(shape, batch))
    return count(jaxpr.jaxpr)


def count(jaxpr: core.Jaxpr) -> float:
    """Multiply-adds of the matrix products and convolutions in a jaxpr, inner ones included.

    A scan's body counts once for each step; of a cond, the dearest branch. A while loop that holds
    matrix products is a ValueError, since its number of steps is unknown.
    """
    return float(sum(_equation(equation) for equation in jaxpr.eqns))


def _equation(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contract, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        size = math.prod(equation.outvars[0].aval.shape)
        return size * math.prod(left[axis] for axis in contract)
    if name == "grouped_matmul":
        left, right = (a.aval.shape for a in equation.invars[:2])
        return math.prod(left) * right[1 if params["kind"] == "turned" else -1]
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        features = kernel[params["dimension_numbers"].rhs_spec[0]]
        # A kernel's input axis already is one group's; lhs dilation (transposed convolutions)
        # multiplies by inserted zeros, which are not work.
        zeros = math.prod(params["lhs_dilation"])
        size = math.prod(equation.outvars[0].aval.shape)
        return size * math.prod(kernel) / features / zeros
    if name == "cond":
        return max(count(branch.jaxpr) for branch in params["branches"])
    inner = sum(count(jaxpr) for jaxpr in _inner(params))
    if name == "scan":
        return inner * params["length"]
    if name == "while" and inner:
        raise ValueError("multiply_adds: a while loop holds matrix products; use lax.scan.")
    return inner


def _inner(params: dict[str, Any]) -> list[core.Jaxpr]:
    """The jaxprs in an equation's parameters: bodies of scan, pjit, remat, custom derivatives."""
    jaxprs = []
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                jaxprs.append(item.jaxpr)
            elif isinstance(item, core.Jaxpr):
                jaxprs.append(item)
    return jaxprs
