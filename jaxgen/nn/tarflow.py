"""TarFlow: a stack of autoregressive affine flows on patches, each a causal transformer.

Zhai et al., "Normalizing Flows are Capable Generative Models" (2024). Block t maps patches x_1 ..
x_N to z_i = (x_i - mu(x_<i)) exp(-alpha(x_<i)) and reverses their order, so that neighbours in the
stack look in opposite directions. The first patch of a block passes unchanged. "No label" is the
mean of all labels' embeddings, as in the paper's code.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.nn.layers import compute_dtype
from jaxgen.nn.parallel import Dropout
from jaxgen.nn.stack import stacked
from jaxgen.ops import Causal, Mask, attention

PyTree = Any


class Layer(nn.Module):
    """A pre-norm causal transformer layer on all places, or on one place with a cache.

    Places are rows of a matrix: XLA on CPU runs dense layers on more axes slower.
    """

    places: int
    width: int
    heads: int
    dropout: float
    train: bool
    dtype: Any

    def setup(self) -> None:
        """The parts that `__call__` and `step` share."""
        self.norm1 = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype)
        self.norm2 = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype)
        self.qkv = nn.Dense(3 * self.width, dtype=self.dtype)
        self.proj = nn.Dense(self.width, dtype=self.dtype)
        self.expand = nn.Dense(4 * self.width, dtype=self.dtype)
        self.contract = nn.Dense(self.width, dtype=self.dtype)
        self.drop = Dropout(self.dropout, deterministic=not self.train)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B * places, width] -> the same; place n sees places up to n."""
        n = self.places
        q, k, v = self._heads(x, n)
        examples = x.shape[0] // n
        x = x + self.drop(self._attend(q, k, v, Causal()), examples)
        return x + self.drop(self._mlp(x), examples)

    def step(self, x: jax.Array, cache: PyTree, place: jax.Array) -> tuple[jax.Array, PyTree]:
        """Place `place` alone: x [B, width], cache {"k", "v"} [B, H, places, D]."""
        q, k, v = self._heads(x, 1)
        cache = jax.tree.map(
            lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, place, axis=2),
            cache,
            {"k": k, "v": v},
        )
        seen = jnp.arange(cache["k"].shape[2]) <= place
        x = x + self._attend(q, cache["k"], cache["v"], seen)
        return x + self._mlp(x), cache

    def _heads(self, x: jax.Array, places: int) -> jax.Array:
        """Queries, keys and values, each [B, H, places, D]."""
        qkv = self.qkv(self.norm1(x))
        return qkv.reshape(-1, places, 3, self.heads, self.width // self.heads).transpose(
            2, 0, 3, 1, 4
        )

    def _attend(
        self, q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask | jax.Array
    ) -> jax.Array:
        h = attention(q, k, v, scale=q.shape[-1] ** -0.5, mask=mask)
        return self.proj(h.transpose(0, 2, 1, 3).reshape(-1, self.width))

    def _mlp(self, x: jax.Array) -> jax.Array:
        return self.contract(nn.gelu(self.expand(self.norm2(x)), approximate=False))


class Flow(nn.Module):
    """One autoregressive flow on patches [B, N, D]; forward in parallel, backward one by one."""

    places: int
    dim: int
    num_classes: int
    width: int
    layers: int
    heads: int
    dropout: float
    train: bool
    remat: str
    scan: bool
    dtype: Any

    def setup(self) -> None:
        """Embeddings, the transformer and a head that starts at the identity flow."""
        init = nn.initializers.normal(0.01)
        self.embed = nn.Dense(self.width, dtype=self.dtype)
        self.place = self.param("place", init, (self.places, self.width))
        self.label = self.param("label", init, (self.num_classes, self.width))
        self.stack = stacked(Layer, self.layers, scan=self.scan, remat=self.remat)(
            self.places, self.width, self.heads, self.dropout, self.train, self.dtype
        )
        self.head = nn.Dense(2 * self.dim, kernel_init=nn.initializers.zeros)

    def __call__(
        self, carry: tuple[jax.Array, jax.Array], labels: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """(x [B, N, D], ln |det| [B]) -> (z in reversed order, ln |det| with this flow's)."""
        x, log_det = carry
        h = self.stack(self._enter(x, labels, self.place))
        alpha, mu = (each[:, :-1] for each in self._leave(h, self.places))
        first, rest = x[:, :1], (x[:, 1:] - mu) * jnp.exp(-alpha)
        z = jnp.concatenate([first, rest], axis=1)[:, ::-1]
        return z, log_det - alpha.sum((1, 2))

    def enter(self, x: jax.Array, labels: jax.Array, place: jax.Array) -> jax.Array:
        """Patches [B, 1, D] of one place as the transformer's input [B, width]."""
        return self._enter(x, labels, jax.lax.dynamic_slice_in_dim(self.place, place, 1))

    def leave(self, h: jax.Array) -> tuple[jax.Array, jax.Array]:
        """alpha and mu [B, D] of the next place, from the transformer's output [B, width]."""
        alpha, mu = self._leave(h, 1)
        return alpha[:, 0], mu[:, 0]

    def _enter(self, x: jax.Array, labels: jax.Array, place: jax.Array) -> jax.Array:
        rows = self.embed(x.reshape(-1, self.dim)).reshape(*x.shape[:2], self.width)
        table = jnp.concatenate([self.label, self.label.mean(0, keepdims=True)])
        label = jnp.take(table, labels, axis=0, mode="fill")  # NaN out of range
        return (rows + (place + label[:, None]).astype(self.dtype)).reshape(-1, self.width)

    def _leave(self, h: jax.Array, places: int) -> tuple[jax.Array, jax.Array]:
        out = self.head(h).reshape(-1, places, 2 * self.dim)
        alpha, mu = jnp.split(out, 2, axis=-1)
        return alpha, mu


class TarFlow(nn.Module):
    """An invertible map between images [B, H, W, C] and standard normal noise, given labels.

    flows: T, the blocks; layers: K, the transformer layers of each (the paper writes
    [patch-width-T-K]); patch divides H and W. labels: label `num_classes` is "no label".
    scan, remat: as `nn.dit.DiT`. Raises UsageError for sizes that do not fit.
    """

    num_classes: int
    shape: tuple[int, ...]
    patch: int = 2
    width: int = 768
    flows: int = 8
    layers: int = 8
    heads: int = 12
    dropout: float = 0.0
    dtype: str = "float32"
    scan: bool = True
    remat: str = "none"

    guidable = True
    """Whether `inverse` can be guided: labels enter every step."""

    @property
    def grid(self) -> tuple[int, int, int]:
        """Rows and columns of patches, and the numbers in one."""
        height, width, channels = self.shape
        if height % self.patch or width % self.patch or height * width == self.patch**2:
            raise invalid("config.model.patch", self.patch, f"a proper divisor of {self.shape[:2]}")
        return height // self.patch, width // self.patch, self.patch**2 * channels

    def _flow(self, train: bool = False) -> dict[str, Any]:
        if self.width % self.heads:
            raise invalid("config.model.heads", self.heads, f"a divisor of width={self.width}")
        rows, columns, dim = self.grid
        return dict(
            places=rows * columns,
            dim=dim,
            num_classes=self.num_classes,
            width=self.width,
            layers=self.layers,
            heads=self.heads,
            dropout=self.dropout,
            train=train,
            remat=self.remat,
            scan=self.scan,
            dtype=compute_dtype(self.dtype),
        )

    @nn.compact
    def __call__(
        self, x: jax.Array, labels: jax.Array, *, train: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """x [B, H, W, C], labels [B] -> (z [B, H W C], ln |det dz/dx| [B])."""
        stack = stacked(Flow, self.flows, scan=self.scan, remat="none", shared=("examples",))
        carry = (self.patches(x.astype(jnp.float32)), jnp.zeros(x.shape[0]))
        z, log_det = stack(**self._flow(train), name="stack")(carry, labels)
        return self._ordered(z).reshape(x.shape[0], -1), log_det

    def _ordered(self, z: jax.Array) -> jax.Array:
        """The last block's patches [B, N, D] in raster order, which an odd number reverses."""
        return z[:, ::-1] if self.flows % 2 else z

    def patches(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, N, D], raster order."""
        rows, columns, dim = self.grid
        x = x.reshape(-1, rows, self.patch, columns, self.patch, self.shape[-1])
        return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, rows * columns, dim)

    def images(self, patches: jax.Array) -> jax.Array:
        """The inverse of `patches`."""
        rows, columns, _ = self.grid
        x = patches.reshape(-1, rows, columns, self.patch, self.patch, self.shape[-1])
        return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, *self.shape)

    def inverse(
        self,
        params: PyTree,
        z: jax.Array,
        labels: jax.Array,
        guidance: float | jax.Array = 1.0,
        *,
        annealed: bool = False,
    ) -> jax.Array:
        """z [B, H W C] -> x [B, H, W, C]: flows in turn, places in turn, keys and values cached.

        guidance w: alpha and mu of each place become those without a label plus w times the
        difference to those with it (Zhai et al., eq. 8); at 1 the label's alone, in one branch. An
        array [B] is one for each image.
        annealed: w - 1 grows in equal steps over a flow's places, from (w - 1) / (N - 1) for the
        first that is predicted to w - 1 for the last, as in the paper's code. A function of
        parameters, not a method to `apply`.
        """
        settings = self._flow()
        flow = Flow(**{**settings, "scan": True}, parent=None)
        places, dim, head = settings["places"], settings["dim"], self.width // self.heads
        layer = Layer(places, self.width, self.heads, 0.0, False, settings["dtype"], parent=None)
        weight = guidance[:, None] if isinstance(guidance, jax.Array) else guidance
        branches = 2 if isinstance(guidance, jax.Array) or guidance != 1.0 else 1
        size = z.shape[0]
        if branches == 2:
            labels = jnp.concatenate([labels, jnp.full_like(labels, self.num_classes)])

        def block(x: jax.Array, p: PyTree) -> tuple[jax.Array, None]:
            # The block reversed its output, so its input comes from the reversed sequence.
            noise = x[:, ::-1].swapaxes(0, 1)
            empty = jnp.zeros(
                (self.layers, branches * size, self.heads, places, head), settings["dtype"]
            )

            def place(carry: Any, inputs: Any) -> tuple[Any, jax.Array]:
                x, caches = carry
                number, z = inputs
                rows = jnp.tile(x, (branches, 1))[:, None]
                h: Any = flow.apply({"params": p}, rows, labels, number, method="enter")

                def through(h: jax.Array, layer_state: Any) -> tuple[jax.Array, PyTree]:
                    weights, cache = layer_state
                    return layer.apply({"params": weights}, h, cache, number, method="step")

                h, caches = jax.lax.scan(through, h, (p["stack"], caches))
                out: Any = flow.apply({"params": p}, h, method="leave")
                alpha, mu = out
                if branches == 2:
                    w = 1 + (weight - 1) * ((number + 1) / (places - 1) if annealed else 1)
                    alpha, mu = (b + w * (a - b) for a, b in (_halves(alpha), _halves(mu)))
                x = z * jnp.exp(alpha) + mu
                return (x, caches), x

            carry = (noise[0], {"k": empty, "v": empty})
            _, rest = jax.lax.scan(place, carry, (jnp.arange(places - 1), noise[1:]))
            return jnp.concatenate([noise[:1], rest]).swapaxes(0, 1), None

        z = self._ordered(z.reshape(-1, places, dim))
        x, _ = jax.lax.scan(block, z, params["stack"], reverse=True)
        return self.images(x)

    def calls(self, guidance: float) -> float:
        """Network evaluations a sample: one a place, as a token model counts, for each branch."""
        return (math.prod(self.grid[:2]) - 1) * self.flows * (1.0 if guidance == 1.0 else 2.0)


def _halves(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    half = a.shape[0] // 2
    return a[:half], a[half:]
