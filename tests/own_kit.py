"""The files of docs/own_network.md, and networks beside them that draw, keep and lack things."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

PAGE = Path(__file__).parents[1] / "docs" / "own_network.md"
FILES = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", PAGE.read_text(), re.DOTALL))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with the page's files, where Python finds them."""
    folder = tmp_path_factory.mktemp("own")
    for name, text in FILES.items():
        (folder / f"{name}.py").write_text(text)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    for name in FILES:
        sys.modules.pop(name, None)


class NNXDraws(nnx.Module):
    """Four draws, from two layers' dropout and two streams, in the place of an output."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.scale = nnx.Param(jnp.ones(()))
        self.layers = nnx.List([nnx.Dropout(0.5, rngs=rngs) for _ in range(2)])
        self.rngs = rngs

    def __call__(self, x, t, y):
        """[B, H, W, 4]."""
        ones = jnp.ones((*x.shape[:-1], 1))
        drawn = [layer(ones) for layer in self.layers]
        if not self.layers[0].deterministic:
            keys = (self.rngs.noise(), self.rngs.mask())
            drawn += [2.0 * jax.random.bernoulli(key, 0.5, ones.shape) for key in keys]
        else:
            drawn += [ones, ones]
        return self.scale * jnp.concatenate(drawn, -1)


class LinenDraws(nn.Module):
    """One layer, and three streams in one place, one of them the layer's."""

    @nn.compact
    def __call__(self, x, t, y, *, train=False):
        """[B, H, W, 4]."""
        ones = jnp.ones((*x.shape[:-1], 1))
        drawn = [nn.Dropout(0.5, deterministic=not train)(ones)]
        for name in ("dropout", "noise", "mask"):
            draw = train and 2.0 * jax.random.bernoulli(self.make_rng(name), 0.5, ones.shape)
            drawn.append(draw if train else ones)
        return self.param("scale", nn.initializers.ones, ()) * jnp.concatenate(drawn, -1)


class EquinoxDraws(eqx.Module):
    """The same, of one example."""

    scale: jax.Array
    drop: eqx.nn.Dropout

    def __init__(self, *, key):
        self.scale, self.drop = jnp.ones(()), eqx.nn.Dropout(0.5)

    def __call__(self, x, t, y, key):
        """[4, H, W]."""
        ones = jnp.ones((1, *x.shape[1:]))
        keys = [None] * 4 if key is None else jax.random.split(key, 4)
        return self.scale * jnp.concatenate([self.drop(ones, key=k) for k in keys])


def pure_draws():
    """The same, as a pair."""

    def apply(params, x, t, y, key=None):
        shape = (*x.shape[:-1], 4)
        drawn = 1.0 if key is None else 2.0 * jax.random.bernoulli(key, 0.5, shape)
        return params[0] * drawn * jnp.ones(shape)

    return (lambda key: [jnp.ones(())]), apply


class NNXNorm(nnx.Module):
    """With statistics."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.norm = nnx.BatchNorm(1, rngs=rngs)

    def __call__(self, x, t, y):
        """x's shape."""
        return self.norm(x)


class LinenNorm(nn.Module):
    """The same."""

    @nn.compact
    def __call__(self, x, t, y, train: bool = False):
        """x's shape."""
        return nn.BatchNorm(use_running_average=not train, name="norm")(x)


class EquinoxNorm(eqx.Module):
    """The same."""

    norm: eqx.nn.BatchNorm

    def __init__(self, *, key):
        self.norm = eqx.nn.BatchNorm(1, "batch", mode="batch")


def counted():
    """A pair with a number that is no parameter."""
    return (lambda key: {"w": jnp.ones(1), "seen": jnp.zeros((), jnp.int32)}), lambda *_: None


def nothing():
    """A pair without parameters."""
    return (lambda key: {}), lambda params, x, t, y: x


def halved():
    """A pair whose output has another shape."""
    return (lambda key: {"w": jnp.ones(())}), lambda params, x, t, y: params["w"] * x[:, ::2, ::2]


def broken():
    """A pair that fails."""
    return (lambda key: {"w": jnp.ones(())}), lambda params, x, t, y: params["nothing"]


def times():
    """A pair that says what it is told of time, and of an angle."""

    def apply(params, x, t, y, angle=None):
        told = t if angle is None else jnp.stack([t, jnp.nan_to_num(angle, nan=-7.0)], -1)
        return params["w"] * jnp.broadcast_to(told.reshape(len(x), 1, 1, -1), (*x.shape[:-1], 2))

    return (lambda key: {"w": jnp.ones(())}), apply


def shaded(times: float = 1.0):
    """A pair on any layout, of one example too."""

    def apply(params, x, t, y):
        return params["w"] * x + times * jnp.reshape(t, (*t.shape, 1, 1, 1))

    return (lambda key: {"w": jnp.ones(())}), apply


def shaded_twice():
    """The same with other numbers."""
    return shaded(2.0)


def like_haiku():
    """A pair as Haiku makes them, each with a flag."""

    def init(rng, x, t, y, is_training):
        assert not is_training
        return {"linear/~/a": {"w.x": jax.random.normal(rng, (x.shape[-1], x.shape[-1]))}}

    def apply(params, rng, x, t, y, is_training):
        assert is_training == (rng is not None)
        return x @ params["linear/~/a"]["w.x"]

    return init, apply


class NNXStack(nnx.Module):
    """Layers of dropout in one stack: nnx.vmap makes them, nnx.scan goes through them."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.scale = nnx.Param(jnp.ones(()))

        @nnx.split_rngs(splits=4)
        @nnx.vmap
        def stack(rngs):
            return nnx.Dropout(0.5, rngs=rngs)

        self.layers = stack(rngs)

    def __call__(self, x, t, y):
        """[B, H, W, 4]: a layer's draws each."""

        @nnx.scan(in_axes=(0, None), out_axes=0)
        def drawn(layer, ones):
            return layer(ones)

        return self.scale * jnp.moveaxis(drawn(self.layers, jnp.ones(x.shape[:-1])), 0, -1)


class Constants(nnx.Module):
    """Fixed arrays, of the run's key and of none; layers in a list, annotated for a mesh."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.random = jax.random.normal(rngs.params(), (3,))
        self.even = jnp.arange(3.0)
        init = nnx.with_partitioning(nnx.initializers.lecun_normal(), (None, "model"))
        self.layers = nnx.List([nnx.Linear(1, 1, kernel_init=init, rngs=rngs) for _ in range(2)])

    def __call__(self, x, t, y):
        """x's shape."""
        for layer in self.layers:
            x = layer(x)
        return x + (self.random * self.even).sum()


class EquinoxConstants(eqx.Module):
    """One parameter, and arrays that are none."""

    w: jax.Array
    fixed: np.ndarray
    order: jax.Array

    def __init__(self):
        self.w, self.fixed, self.order = jnp.ones(()), np.full(2, 0.5), jnp.arange(3)

    def __call__(self, x, t, y):
        """x, shifted by 3.5."""
        return self.w * x + self.order.sum() + self.fixed[0]


class linen_alone(nn.Module):
    """One example, [C, H, W]: x + t, and dropout."""

    @nn.compact
    def __call__(self, x, t, y, deterministic=True):
        """x's shape."""
        assert x.shape == (1, 8, 8) and t.shape == y.shape == ()
        x = self.param("scale", nn.initializers.ones, ()) * x + t
        return nn.Dropout(0.5, deterministic=deterministic)(x)


class nnx_alone(nnx.Module):
    """The same."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.scale, self.drop = nnx.Param(jnp.ones(())), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x, t, y):
        """x's shape."""
        assert x.shape == (1, 8, 8) and t.shape == y.shape == ()
        return self.drop(self.scale * x + t)


def pure_alone():
    """The same."""

    def apply(params, x, t, y, key=None):
        assert x.shape == (1, 8, 8) and t.shape == y.shape == ()
        x = params["scale"] * x + t
        return x if key is None else x * 2 * jax.random.bernoulli(key, 0.5, x.shape)

    return (lambda key: {"scale": jnp.ones(())}), apply
