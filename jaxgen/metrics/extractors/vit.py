"""The vision transformer (Dosovitskiy et al. 2021) as DINOv2 and CLIP have it: its class token."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.errors import invalid
from jaxgen.metrics.extractors.weights import State, dense, taken
from jaxgen.nn.dit import patchify
from jaxgen.nn.parallel import self_attention
from jaxgen.nn.stack import stacked
from jaxgen.pretrained.layout import by_head

GELU: dict[str, Callable[[jax.Array], jax.Array]] = {
    "exact": functools.partial(nn.gelu, approximate=False),
    # CLIP's approximation (Hendrycks & Gimpel 2016, section 2).
    "quick": lambda x: x * nn.sigmoid(1.702 * x),
}


class Layer(nn.Module):
    """Attention, then an MLP of four times the width, each on normalised tokens and added.

    scaled: whether what is added is multiplied by learned gains (LayerScale, Touvron et al. 2021).
    """

    width: int
    heads: int
    gelu: str
    scaled: bool
    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, N, width] -> [B, N, width]."""
        h = self._dense(3 * self.width, "qkv")(self._norm("norm1")(x))
        # Kernels round float32 as they like; XLA's products are as exact as they are asked to be.
        implementation = "xla" if jnp.dtype(self.dtype) == jnp.float32 else "auto"
        h = self_attention(h, heads=self.heads, implementation=implementation)
        x = x + self._gain("scale1", self._dense(self.width, "proj")(h))
        h = self._dense(4 * self.width, "expand")(self._norm("norm2")(x))
        h = self._dense(self.width, "contract")(GELU[self.gelu](h))
        return x + self._gain("scale2", h)

    def _dense(self, features: int, name: str) -> nn.Dense:
        return nn.Dense(features, dtype=self.dtype, name=name)

    def _norm(self, name: str) -> nn.LayerNorm:
        return _norm(self.epsilon, self.dtype, name)

    def _gain(self, name: str, x: jax.Array) -> jax.Array:
        if not self.scaled:
            return x
        return x * self.param(name, nn.initializers.ones, (self.width,)).astype(self.dtype)


class ViT(nn.Module):
    """x [B, S, S, 3], normalised by channel -> the class token's output, float32.

    [B, width] after the last norm, or [B, projection] after a matrix more. before: whether tokens
    are normalised before the first layer. The positions are those of S / patch patches a side.
    """

    width: int
    depth: int
    heads: int
    patch: int = 14
    gelu: str = "exact"
    scaled: bool = False
    before: bool = False
    bias: bool = True
    epsilon: float = 1e-6
    projection: int | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, S, S, 3] -> [B, width or projection]."""
        images, side = x.shape[0], x.shape[1] // self.patch
        x = patchify(x.astype(self.dtype), self.patch).reshape(images, side * side, -1)
        x = nn.Dense(self.width, use_bias=self.bias, dtype=self.dtype, name="patch")(x)
        normal = nn.initializers.normal(0.02)
        token = self.param("token", normal, (self.width,)).astype(self.dtype)
        places = self.param("positions", normal, (side * side + 1, self.width)).astype(self.dtype)
        token = jnp.broadcast_to(token, (images, 1, self.width))
        x = jnp.concatenate([token, x], axis=1) + places
        if self.before:
            x = _norm(self.epsilon, self.dtype, "norm_before")(x)
        layers = stacked(Layer, self.depth, scan=True, remat="none")
        fields = self.width, self.heads, self.gelu, self.scaled, self.epsilon, self.dtype
        x = layers(*fields, name="layers")(x)
        x = _norm(self.epsilon, jnp.float32, "norm_after")(x[:, 0])
        if self.projection is None:
            return x
        return nn.Dense(self.projection, use_bias=False, name="projection")(x)


def _norm(epsilon: float, dtype: Any, name: str) -> nn.LayerNorm:
    """LayerNorm whose variance is of differences: squares of large tokens lose their digits."""
    return nn.LayerNorm(epsilon=epsilon, dtype=dtype, use_fast_variance=False, name=name)


def shapes(module: ViT, size: int) -> Any:
    """Shapes of a module's parameters for images of size x size."""
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(module.init, jax.random.key(0), images)["params"]


def normalised(mean: tuple[float, ...], std: tuple[float, ...]) -> Callable[..., jax.Array]:
    """fn(images [B, H, W, 3] in 0..255): in [0, 1], less a mean, over a deviation, by channel."""
    return lambda images: (images / 255 - jnp.asarray(mean)) / jnp.asarray(std)


def layers(
    state: State, prefix: str, names: Mapping[str, str], qkv: tuple[str, ...], heads: int
) -> dict[str, Any]:
    """Parameters of all `Layer`s, on an axis 0, from a PyTorch state dict.

    A weight is called {prefix}{number}.{name}. names: ours -> theirs, of dense layers, norms and
    gains. qkv: theirs, three layers or one whose outputs are queries, keys and values in turn.
    """
    numbers = {k.removeprefix(prefix).split(".")[0] for k in state if k.startswith(prefix)}
    blocks = [
        _layer(state, f"{prefix}{number}.", names, qkv, heads) for number in range(len(numbers))
    ]
    if not blocks:
        raise invalid("weights", f"no {prefix}0", "the state dict of a vision transformer")
    return jax.tree.map(lambda *each: np.stack(each), *blocks)


def _layer(
    state: State, prefix: str, names: Mapping[str, str], qkv: tuple[str, ...], heads: int
) -> dict[str, Any]:
    projections = [dense(state, prefix + name) for name in qkv]
    if len(projections) == 1:
        thirds = {key: np.split(value, 3, axis=-1) for key, value in projections[0].items()}
        projections = [{key: thirds[key][i] for key in thirds} for i in range(3)]
    parameters: dict[str, Any] = {
        "qkv": {
            key: by_head([projection[key] for projection in projections], heads)
            for key in projections[0]
        }
    }
    for ours, theirs in names.items():
        if ours.startswith("norm"):
            parameters[ours] = norm(state, prefix + theirs)
        elif ours.startswith("scale"):
            parameters[ours] = taken(state, prefix + theirs)
        else:
            parameters[ours] = dense(state, prefix + theirs)
    return parameters


def norm(state: State, name: str) -> dict[str, np.ndarray]:
    """A LayerNorm's scale and bias."""
    return {"scale": taken(state, f"{name}.weight"), "bias": taken(state, f"{name}.bias")}


def patch_kernel(state: State, name: str) -> np.ndarray:
    """The patch embedding [width, 3, p, p] as a matrix [p * p * 3, width]."""
    kernel = taken(state, name)
    return kernel.transpose(2, 3, 1, 0).reshape(-1, kernel.shape[0])
