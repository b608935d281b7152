"""Glow: actnorm, invertible 1x1 convolutions and affine couplings at several scales.

Kingma & Dhariwal, "Glow: Generative Flow with Invertible 1x1 Convolutions" (2018). Each level
squeezes 2x2 places into channels, runs K steps, and (but for the last) splits off half of the
channels as latents whose mean and scale are predicted from the other half.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from jaxgen.errors import invalid
from jaxgen.nn.layers import compute_dtype

PyTree = Any


class Actnorm(nn.Module):
    """x -> (x + shift) exp(log_scale), channel by channel; set from the first batch."""

    @nn.compact
    def __call__(
        self, x: jax.Array, *, inverse: bool = False, initialise: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """x [B, H, W, C] -> (y, ln |det| a place). initialise: first make y's moments 0 and 1."""
        zeros, size = nn.initializers.zeros, x.shape[-1:]
        shift = self.param("shift", zeros, size)
        log_scale = self.param("log_scale", zeros, size)
        if initialise:
            shift = -x.mean((0, 1, 2))
            log_scale = -jnp.log(x.std((0, 1, 2)) + 1e-6)
            self.put_variable("params", "shift", shift)
            self.put_variable("params", "log_scale", log_scale)
        if inverse:
            return x * jnp.exp(-log_scale) - shift, -log_scale.sum()
        return (x + shift) * jnp.exp(log_scale), log_scale.sum()


class Mixing(nn.Module):
    """An invertible 1x1 convolution W = P L (U + diag(sign exp(log_s))), started at a rotation."""

    channels: int

    @nn.compact
    def __call__(self, x: jax.Array, *, inverse: bool = False) -> tuple[jax.Array, jax.Array]:
        """x [B, H, W, C] -> (x W, ln |det W| a place)."""
        n = self.channels
        # P and the signs are constants of the network, from a rotation of a fixed seed.
        rotation = np.linalg.qr(np.random.default_rng(n).normal(size=(n, n)))[0]
        p, low, up = scipy.linalg.lu(rotation)
        diagonal = np.diag(up)

        def start(value: np.ndarray) -> Any:
            return lambda _: jnp.asarray(value, jnp.float32)

        lower = self.param("lower", start(np.tril(low, -1)))
        upper = self.param("upper", start(np.triu(up, 1)))
        log_s = self.param("log_s", start(np.log(np.abs(diagonal))))
        lower = jnp.tril(lower, -1) + jnp.eye(n)
        upper = jnp.triu(upper, 1) + jnp.diag(jnp.asarray(np.sign(diagonal)) * jnp.exp(log_s))
        if not inverse:
            return x @ (jnp.asarray(p, jnp.float32) @ lower @ upper), log_s.sum()
        solve = jax.scipy.linalg.solve_triangular
        # x = y W^-1, in columns: U^T (L^T (P^T .)) from the right.
        flat = x.reshape(-1, n).T
        flat = solve(upper.T, flat, lower=True)
        flat = jnp.asarray(p, jnp.float32) @ solve(lower.T, flat, lower=False)
        return flat.T.reshape(x.shape), -log_s.sum()


class Coupling(nn.Module):
    """Half of the channels scale and shift the other half, through three convolutions."""

    hidden: int
    num_classes: int
    dtype: Any

    @nn.compact
    def __call__(
        self, x: jax.Array, labels: jax.Array, *, inverse: bool = False, initialise: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """x [B, H, W, C] -> (y, ln |det| [B])."""
        del initialise
        a, b = jnp.split(x, 2, axis=-1)
        init = nn.initializers.normal(0.05)
        label = nn.Embed(self.num_classes + 1, self.hidden, embedding_init=init, name="label")
        h = nn.Conv(self.hidden, (3, 3), kernel_init=init, dtype=self.dtype, name="conv1")(a)
        h = nn.relu(h + label(labels)[:, None, None].astype(h.dtype))
        h = nn.Conv(self.hidden, (1, 1), kernel_init=init, dtype=self.dtype, name="conv2")(h)
        zeros = nn.initializers.zeros
        h = nn.Conv(2 * b.shape[-1], (3, 3), kernel_init=zeros, name="conv3")(
            nn.relu(h).astype(jnp.float32)
        )
        # A learned gain a channel lets the zero start move at its own pace (the paper, sec. 3.3).
        h = h * jnp.exp(3 * self.param("gain", zeros, (2 * b.shape[-1],)))
        shift, raw = jnp.split(h, 2, axis=-1)
        # sigmoid(raw + 2) bounds the scale; its logarithm in a form that does not overflow.
        log_scale = jax.nn.log_sigmoid(raw + 2.0)
        log_det = log_scale.sum((1, 2, 3))
        if inverse:
            return jnp.concatenate([a, b * jnp.exp(-log_scale) - shift], -1), -log_det
        return jnp.concatenate([a, (b + shift) * jnp.exp(log_scale)], -1), log_det


class Step(nn.Module):
    """Actnorm, mixing, coupling."""

    hidden: int
    num_classes: int
    dtype: Any

    @nn.compact
    def __call__(
        self, x: jax.Array, labels: jax.Array, *, inverse: bool = False, initialise: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """x [B, H, W, C] -> (y, ln |det| [B])."""
        area, channels = x.shape[1] * x.shape[2], x.shape[-1]
        coupling = Coupling(self.hidden, self.num_classes, self.dtype, name="coupling")
        mixing, norm = Mixing(channels, name="mixing"), Actnorm(name="norm")
        total = jnp.zeros(x.shape[0])
        if inverse:
            x, log_det = coupling(x, labels, inverse=True)
            total += log_det
            x, log_det = mixing(x, inverse=True)
            total += area * log_det
            x, log_det = norm(x, inverse=True)
            return x, total + area * log_det
        x, log_det = norm(x, initialise=initialise)
        total += area * log_det
        x, log_det = mixing(x)
        total += area * log_det
        x, log_det = coupling(x, labels)
        return x, total + log_det


class Prior(nn.Module):
    """Mean and log-scale of latents from the half that stays: a convolution that starts at zero."""

    channels: int

    @nn.compact
    def __call__(self, h: jax.Array) -> tuple[jax.Array, jax.Array]:
        """h [B, H, W, c] -> mean, log_scale [B, H, W, channels]."""
        init = nn.initializers.zeros
        out = nn.Conv(2 * self.channels, (3, 3), kernel_init=init, name="conv")(h)
        mean, log_scale = jnp.split(out, 2, axis=-1)
        return mean, log_scale


def squeeze(x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, H / 2, W / 2, 4 C]."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 5, 2, 4)
    return x.reshape(b, h // 2, w // 2, 4 * c)


def unsqueeze(x: jax.Array) -> jax.Array:
    """The inverse of `squeeze`."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, c // 4, 2, 2).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(b, 2 * h, 2 * w, c // 4)


class Glow(nn.Module):
    """An invertible map between images [B, H, W, C] and standard normal noise, given labels.

    steps: K of each level; scales: L, how many levels; hidden: channels inside couplings (the
    paper's CIFAR-10 and ImageNet models: K = 32 and 48, L = 3, 512). The label enters the couplings
    and the top prior.
    Steps are unrolled: their sizes differ between levels, and convolutions inside a scan are slow
    on CPU. 2^scales must divide H and W, else UsageError.
    """

    num_classes: int
    shape: tuple[int, ...]
    steps: int = 32
    scales: int = 3
    hidden: int = 512
    dtype: str = "float32"

    guidable = False
    """A guided coupling would no longer be the inverse of anything."""

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        labels: jax.Array,
        *,
        train: bool = False,
        inverse: bool = False,
        initialise: bool = False,
    ) -> tuple[jax.Array, jax.Array]:
        """Images to (noise [B, H W C], ln |det| [B]), or with inverse=True noise to images.

        initialise: set every actnorm from this batch on the way (apply with mutable=["params"]).
        """
        del train
        factor = 2**self.scales
        height, width, channels = self.shape
        if height % factor or width % factor:
            raise invalid("config.model.scales", self.scales, f"2^scales that divides {self.shape}")
        dtype = compute_dtype(self.dtype)
        count = x.shape[0]

        def level_steps(h: jax.Array, level: int) -> tuple[jax.Array, jax.Array]:
            total = jnp.zeros(count)
            order = range(self.steps)
            for number in reversed(order) if inverse else order:
                step = Step(self.hidden, self.num_classes, dtype, name=f"step{level}_{number}")
                h, log_det = step(h, labels, inverse=inverse, initialise=initialise)
                total += log_det
            return h, total

        sizes = []  # channels after the squeeze of each level
        c = channels
        for level in range(self.scales):
            sizes.append(4 * c)
            c = 4 * c if level == self.scales - 1 else 2 * c
        top = nn.Embed(
            self.num_classes + 1,
            2 * sizes[-1],
            embedding_init=nn.initializers.zeros,
            name="prior_top",
        )(labels)
        mean, log_scale = (p[:, None, None] for p in jnp.split(top, 2, axis=-1))
        total = jnp.zeros(count)
        if not inverse:
            h, latents = x.astype(jnp.float32), []
            for level in range(self.scales):
                h, log_det = level_steps(squeeze(h), level)
                total += log_det
                if level < self.scales - 1:
                    h, z = jnp.split(h, 2, axis=-1)
                    m, s = Prior(z.shape[-1], name=f"prior{level}")(h)
                    latents.append((z - m) * jnp.exp(-s))
                    total -= s.sum((1, 2, 3))
            latents.append((h - mean) * jnp.exp(-log_scale))
            total -= (h.shape[1] * h.shape[2]) * log_scale.sum((1, 2, 3))
            return jnp.concatenate([z.reshape(count, -1) for z in latents], axis=1), total
        ends, shapes = [0], []
        for level, size in enumerate(sizes):
            side = (height >> (level + 1), width >> (level + 1))
            columns = size if level == self.scales - 1 else size // 2
            shapes.append((*side, columns))
            ends.append(ends[-1] + math.prod(shapes[-1]))
        levels = [
            x[:, a:b].reshape(count, *s)
            for a, b, s in zip(ends[:-1], ends[1:], shapes, strict=True)
        ]
        h = levels[-1] * jnp.exp(log_scale) + mean
        total += (h.shape[1] * h.shape[2]) * log_scale.sum((1, 2, 3))
        for level in reversed(range(self.scales)):
            if level < self.scales - 1:
                m, s = Prior(levels[level].shape[-1], name=f"prior{level}")(h)
                h = jnp.concatenate([h, levels[level] * jnp.exp(s) + m], axis=-1)
                total += s.sum((1, 2, 3))
            h, log_det = level_steps(h, level)
            total += log_det
            h = unsqueeze(h)
        return h, total

    def inverse(
        self, params: PyTree, z: jax.Array, labels: jax.Array, guidance: float = 1.0
    ) -> jax.Array:
        """z [B, H W C] -> x [B, H, W, C]. A function of parameters, not a method to `apply`."""
        del guidance
        x, _ = self.clone(parent=None).apply({"params": params}, z, labels, inverse=True)
        return x

    def calls(self, guidance: float) -> float:
        """One pass."""
        del guidance
        return 1.0
