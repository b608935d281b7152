"""Fully connected inference and generative networks with any number of layers of latents.

Layers are numbered from the data upwards: latents[0] is next to x. The label enters every network
as a one-hot vector with a place for "no label".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.errors import invalid, unknown
from jaxgen.nn.layers import compute_dtype
from jaxgen.nn.parallel import Dropout

Head = dict[str, jax.Array]
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "tanh": jnp.tanh,
    "relu": nn.relu,
    "silu": nn.silu,
    "gelu": nn.gelu,
    "none": lambda x: x,
}


class MLP(nn.Module):
    """Dense layers of the widths given, each followed by the activation."""

    widths: tuple[int, ...]
    activation: str
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """x [..., n] -> [..., widths[-1]]."""
        for number, width in enumerate(self.widths):
            x = nn.Dense(width, dtype=self.dtype, name=f"dense{number}")(x)
            x = ACTIVATIONS[self.activation](x)
            x = Dropout(self.dropout, deterministic=not train)(x)
        return x


def _gaussian(h: jax.Array, size: int, name: str, direction: bool = False) -> Head:
    """A head (see `families.variational.posterior`) of `size` latents; log-scales in [-7, 7]."""
    widths = {"mean": size, "log_scale": size, **({"direction": size} if direction else {})}
    zeros = nn.initializers.zeros
    head = {}
    for name_of, width in widths.items():
        # Narrow posteriors and priors at the start would make the first gradients huge.
        init = zeros if name_of == "log_scale" else nn.initializers.lecun_normal()
        dense = nn.Dense(width, kernel_init=init, name=f"{name}_{name_of}")
        head[name_of] = dense(h.astype(jnp.float32))
    head["log_scale"] = 7 * jnp.tanh(head["log_scale"] / 7)
    return head


class Inference(nn.Module):
    """q(z | x, label). chain: q(z_1 | x) q(z_2 | z_1) ... (IWAE); else each q(z_l | x) (DLGM)."""

    latents: tuple[int, ...]
    hidden: tuple[tuple[int, ...], ...]
    num_classes: int
    activation: str
    chain: bool
    rank_one: bool
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        labels: jax.Array,
        choose: Callable[[int, Head], jax.Array],
        *,
        train: bool = False,
    ) -> tuple[list[Head], list[jax.Array]]:
        """x [B, ...], labels [B]; choose(layer, head) -> z [B, n]. Heads and latents by layer."""
        one_hot = jax.nn.one_hot(labels, self.num_classes + 1)
        h = x.reshape(*labels.shape, -1)
        heads, zs = [], []
        for layer, size in enumerate(self.latents):
            widths = self.hidden[layer]
            mlp = MLP(widths, self.activation, self.dropout, self.dtype, name=f"mlp{layer}")
            h = mlp(jnp.concatenate([h, one_hot], -1), train=train)
            heads.append(_gaussian(h, size, f"q{layer}", self.rank_one))
            zs.append(choose(layer, heads[-1]))
            h = zs[-1] if self.chain else h
        return heads, zs


class Generative(nn.Module):
    """p(x, z | label). noise: latents are noises that enter deterministic layers (DLGM)."""

    latents: tuple[int, ...]
    hidden: tuple[tuple[int, ...], ...]
    num_classes: int
    shape: tuple[int, ...]
    outputs: int
    activation: str
    noise: bool
    conditional_prior: bool
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(
        self,
        labels: jax.Array,
        choose: Callable[[int, Head], jax.Array],
        *,
        train: bool = False,
    ) -> tuple[jax.Array, list[Head]]:
        """labels [B]; choose(layer, prior) -> z [B, n]. Outputs [B, *shape, outputs] and priors."""
        one_hot = jax.nn.one_hot(labels, self.num_classes + 1)
        top = len(self.latents) - 1
        priors: list[Head] = []
        h = one_hot
        for layer in range(top, -1, -1):
            size = self.latents[layer]
            zeros = jnp.zeros((*labels.shape, size))
            if layer == top and self.conditional_prior:
                prior = _gaussian(one_hot, size, "prior")
            elif layer == top or self.noise:
                prior = {"mean": zeros, "log_scale": zeros}
            else:
                prior = _gaussian(h, size, f"p{layer}")
            priors.insert(0, prior)
            z = choose(layer, prior)
            if self.noise:
                # h_l = T_l(h_{l+1}) + G_l xi_l
                z = nn.Dense(size, use_bias=False, name=f"noise{layer}")(z)
                if layer < top:
                    z = z + nn.Dense(size, name=f"from_above{layer}")(h)
            widths = tuple(reversed(self.hidden[layer]))
            mlp = MLP(widths, self.activation, self.dropout, self.dtype, name=f"mlp{layer}")
            h = mlp(jnp.concatenate([z, one_hot], -1), train=train)
        # Small at the start, so that outputs begin near 0 whatever the width.
        init = nn.initializers.variance_scaling(0.1, "fan_in", "normal")
        size = math.prod(self.shape) * self.outputs
        out = nn.Dense(size, kernel_init=init, name="out")(h.astype(jnp.float32))
        return out.reshape(*labels.shape, *self.shape, self.outputs), priors


class VAE(nn.Module):
    """Inference and generative networks of one model; parameters "inference" and "generative".

    latents: sizes of the layers of latents, from the data upwards. hidden: widths of the
    deterministic layers between, one tuple a layer of latents (or one tuple for all), in the order
    of inference; the generative network has them mirrored. chain, rank_one, noise,
    conditional_prior: see `Inference` and `Generative`. outputs: numbers per element of x that the
    observation model wants (the method sets it). Raises UsageError for sizes that do not match.
    """

    num_classes: int
    shape: tuple[int, ...]
    latents: tuple[int, ...] = (32,)
    hidden: tuple[Any, ...] = (256, 256)
    activation: str = "silu"
    chain: bool = True
    rank_one: bool = False
    noise: bool = False
    conditional_prior: bool = False
    dropout: float = 0.0
    dtype: str = "float32"
    outputs: int = 1

    def setup(self) -> None:
        """The two networks."""
        if self.activation not in ACTIVATIONS:
            raise unknown("config.model.activation", self.activation, ACTIVATIONS)
        if not self.latents or any(n < 1 for n in self.latents):
            raise invalid("config.model.latents", self.latents, "one or more sizes >= 1")
        nested = all(isinstance(h, tuple) for h in self.hidden)
        hidden: Sequence[Any] = self.hidden if nested else (self.hidden,) * len(self.latents)
        if len(hidden) != len(self.latents):
            raise invalid("config.model.hidden", self.hidden, "one tuple a layer of latents")
        if self.noise and self.conditional_prior:
            raise invalid("config.model.conditional_prior", True, "False where noise=True")
        common: dict[str, Any] = dict(
            latents=self.latents,
            hidden=tuple(hidden),
            num_classes=self.num_classes,
            activation=self.activation,
            dropout=self.dropout,
            dtype=compute_dtype(self.dtype),
        )
        self.inference = Inference(chain=self.chain, rank_one=self.rank_one, **common)
        self.generative = Generative(
            shape=self.shape,
            outputs=self.outputs,
            noise=self.noise,
            conditional_prior=self.conditional_prior,
            **common,
        )

    def infer(self, *args: Any, **kwargs: Any) -> tuple[list[Head], list[jax.Array]]:
        """As `Inference`."""
        return self.inference(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> tuple[jax.Array, list[Head]]:
        """As `Generative`."""
        return self.generative(*args, **kwargs)

    def __call__(self, x: jax.Array, labels: jax.Array) -> jax.Array:
        """The outputs at the posterior's means; what `init` runs."""
        _, zs = self.infer(x, labels, lambda _, head: head["mean"])
        return self.generate(labels, lambda layer, _: zs[layer])[0]
