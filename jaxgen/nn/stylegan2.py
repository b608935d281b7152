"""StyleGAN2's generator and discriminator, for square images of 8 pixels and more.

Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (2020), configuration F: a
mapping of latents to styles, convolutions whose kernels the style modulates and the modulation is
divided out of again, sums of images over resolutions; a residual discriminator. Rates are equalised
(Karras et al., "Progressive Growing of GANs", 2018): arrays are drawn from N(0, 1) and scaled when
they are used. Labels enter the mapping as in Karras et al., "Training Generative Adversarial
Networks with Limited Data" (2020).

A latent is laid out as [z | noise | z' | two numbers], all of them standard normal: the noise of
every layer, and a second z whose style takes over from a layer on in training (style mixing), so
that a sample is a function of its latent. A latent of z alone has neither.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.nn.gan import doublings_of
from jaxgen.nn.layers import compute_dtype
from jaxgen.nn.resample import FIR, double, upfirdn

NORMAL, ZEROS, GAIN = nn.initializers.normal(1.0), nn.initializers.zeros, math.sqrt(2)
LAYOUT = ("NHWC", "HWIO", "NHWC")


def active(x: jax.Array) -> jax.Array:
    """Leaky ReLU that keeps the second moment of what is standard normal."""
    return nn.leaky_relu(x, 0.2) * GAIN


def unit(x: jax.Array) -> jax.Array:
    """x [B, D] of mean square 1 in each row (pixel norm)."""
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-8)


class Dense(nn.Module):
    """A dense layer of equalised rate. rate: relative to the others'; bias: its first value."""

    features: int
    rate: float = 1.0
    bias: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, C] -> [B, features]."""
        first = nn.initializers.normal(1 / self.rate)
        kernel = self.param("kernel", first, (x.shape[-1], self.features))
        start = nn.initializers.constant(self.bias / self.rate)
        bias = self.param("bias", start, (self.features,)) * self.rate
        scaled = (kernel * (self.rate / math.sqrt(x.shape[-1]))).astype(self.dtype)
        return x.astype(self.dtype) @ scaled + bias.astype(self.dtype)


class Conv(nn.Module):
    """A convolution of equalised rate, of twice or half the resolution, modulated where styled.

    up, down: filtered by `FIR` after doubling, or before halving. demodulate: each output has the
    second moment 1 where inputs have (eq. 3).
    """

    features: int
    size: int = 3
    up: bool = False
    down: bool = False
    demodulate: bool = True
    bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, style: jax.Array | None = None, noise: jax.Array | None = None
    ) -> jax.Array:
        """x [B, H, W, C], style [B, D], noise [B, H', W', 1] -> [B, H', W', features]."""
        channels, size = x.shape[-1], self.size
        kernel = self.param("kernel", NORMAL, (size, size, channels, self.features))
        kernel = kernel / math.sqrt(size * size * channels)
        x, after = x.astype(self.dtype), None
        if style is not None:
            # Scaling what goes in and out is modulating the kernel of each example (section 2.2).
            scale = Dense(channels, bias=1.0, name="style")(style)
            x = x * scale[:, None, None].astype(self.dtype)
            if self.demodulate:
                power = jnp.square(scale) @ jnp.square(kernel).sum((0, 1))
                after = jax.lax.rsqrt(power + 1e-8)[:, None, None].astype(self.dtype)
        edge, stride, dilation = size // 2, 1, 1
        if self.up:
            edge, dilation = size - 1, 2
        if self.down:
            x, edge, stride = upfirdn(x, FIR, pad=(edge + 1, edge + 1)), 0, 2
        x = jax.lax.conv_general_dilated(
            x, kernel.astype(self.dtype), (stride,) * 2, [(edge, edge)] * 2,
            lhs_dilation=(dilation,) * 2, dimension_numbers=LAYOUT,
        )  # fmt: skip
        if self.up:
            x = upfirdn(x, tuple(2 * tap for tap in FIR), pad=(1, 1))
        x = x if after is None else x * after
        if noise is not None:
            x = x + (self.param("noise", ZEROS, ()) * noise).astype(self.dtype)
        if self.bias:
            x = x + self.param("bias", ZEROS, (self.features,)).astype(self.dtype)
        return x


class Mapping(nn.Module):
    """z [B, D], labels [B] -> styles [B, style]; of one class, without labels."""

    num_classes: int
    style: int
    depth: int

    @nn.compact
    def __call__(self, z: jax.Array, labels: jax.Array) -> jax.Array:
        """Both of mean square 1, then `depth` layers of a hundredth of the rate."""
        h = unit(z)
        if self.num_classes > 1:
            told = Dense(self.style, name="labels")(jax.nn.one_hot(labels, self.num_classes))
            h = jnp.concatenate([h, unit(told)], -1)
        for number in range(self.depth):
            h = active(Dense(self.style, 0.01, name=f"hidden{number}")(h))
        return h


class Synthesis(nn.Module):
    """Styles [B, layers, D] and noises, a list of [B, H, W, 1] or of None, to images."""

    side: int
    channels: int
    base: int
    most: int
    dtype: Any

    @nn.compact
    def __call__(self, styles: jax.Array, noises: list[Any]) -> jax.Array:
        """-> float32 [B, side, side, channels]; layer by layer, and the images' last of all."""
        width = width_of(self.base, self.most)
        first = self.param("constant", NORMAL, (4, 4, width(4)))
        h = jnp.broadcast_to(first, (styles.shape[0], *first.shape))
        layer, image, side = 0, None, 4

        def convolved(h: jax.Array, name: str, up: bool) -> jax.Array:
            conv = Conv(width(side), up=up, dtype=self.dtype, name=name)
            return active(conv(h, styles[:, layer], noises[layer]))

        while True:
            if side > 4:
                h, layer = convolved(h, f"up{side}", True), layer + 1
            h, layer = convolved(h, f"conv{side}", False), layer + 1
            out = Conv(self.channels, 1, demodulate=False, dtype=self.dtype, name=f"image{side}")
            made = out(h, styles[:, layer]).astype(jnp.float32)
            if image is not None:
                image = double(image, "fir")
            image = made if image is None else image + made
            if side == self.side:
                return image
            side *= 2


class Generator(nn.Module):
    """module(z[B, D], labels[B], *, train) -> float32 images [B, H, H, C], not bounded.

    base, most: channels at resolution r are the lesser of base / r and most. latent, style: sizes
    of z and of styles. depth: of the mapping. mixing: how often two styles are mixed in training.
    psi: styles are drawn towards their mean (1: not; 0: all the mean), which the collection
    "batch_stats" holds. D is `latent`, or `latents()` with noise and mixing.
    """

    shape: tuple[int, ...]
    num_classes: int
    base: int = 32768
    most: int = 512
    latent: int = 512
    style: int = 512
    depth: int = 8
    mixing: float = 0.9
    psi: float = 1.0
    dtype: str = "float32"

    def setup(self) -> None:
        """The two networks, and the mean style."""
        if doublings_of(self.shape) < 1:
            raise invalid("image size", self.shape, "squares of 8 pixels and more")
        side, channels = self.shape[0], self.shape[-1]
        self.mapping = Mapping(self.num_classes, self.style, self.depth)
        dtype = compute_dtype(self.dtype)
        self.synthesis = Synthesis(side, channels, self.base, self.most, dtype)
        self.mean = self.variable("batch_stats", "style", lambda: jnp.zeros(self.style))

    @property
    def sides(self) -> list[int]:
        """The resolution of each layer with noise."""
        number = doublings_of(self.shape)
        return [4, *(4 * 2**n for n in range(1, number + 1) for _ in range(2))]

    def latents(self) -> int:
        """The size of a latent with noise and a second z."""
        return 2 * self.latent + sum(side * side for side in self.sides) + 2

    def styles(self, z: jax.Array, labels: jax.Array) -> jax.Array:
        """z [B, latent], labels [B] -> styles [B, D]."""
        return self.mapping(z, labels)

    def images(self, styles: jax.Array, noise: jax.Array | None = None) -> jax.Array:
        """Styles [B, layers, D] (`len(sides) + 1`), noise [B, sum of sides^2] -> images."""
        if noise is None:
            return self.synthesis(styles, [None] * len(self.sides))
        sizes = [side * side for side in self.sides]
        ends = [sum(sizes[: n + 1]) for n in range(len(sizes) - 1)]
        parts = zip(jnp.split(noise, ends, -1), self.sides, strict=True)
        return self.synthesis(styles, [part.reshape(-1, side, side, 1) for part, side in parts])

    def styled(
        self, z: jax.Array, labels: jax.Array, *, train: bool = False
    ) -> tuple[jax.Array, jax.Array | None]:
        """z [B, D], labels [B] -> what `images` takes: styles of all layers, and noise."""
        layers, size = len(self.sides) + 1, self.latent
        if z.shape[-1] not in (size, self.latents()):
            allowed = f"{size}, or {self.latents()} with noise and a second latent to mix with"
            raise invalid("method.latent.size", z.shape[-1], allowed)
        w = self.styles(z[:, :size], labels)
        if train and self.is_mutable_collection("batch_stats") and not self.is_initializing():
            self.mean.value = jax.lax.stop_gradient(w.mean(0))
        if not train and self.psi != 1:
            w = self.mean.value + self.psi * (w - self.mean.value)
        styles = jnp.repeat(w[:, None], layers, 1)
        if z.shape[-1] == size:
            return styles, None
        own = z.shape[-1] - 2 * size - 2
        noise, other, numbers = jnp.split(z[:, size:], (own, own + size), -1)
        if train and self.mixing > 0:
            # From the layer on that the first number says, where the second says so.
            uniform = jax.scipy.stats.norm.cdf(numbers)
            start = jnp.where(
                uniform[:, 1] < self.mixing, 1 + jnp.floor(uniform[:, 0] * (layers - 1)), layers
            )
            second = self.styles(other, labels)[:, None]
            styles = jnp.where((jnp.arange(layers) < start[:, None])[..., None], styles, second)
        return styles, noise

    def __call__(self, z: jax.Array, labels: jax.Array, *, train: bool = False) -> jax.Array:
        """z [B, D], labels [B] -> float32 [B, H, H, C]."""
        return self.images(*self.styled(z, labels, train=train))


class Discriminator(nn.Module):
    """Backbone module(x[B, H, H, C], *, train) -> float32 features [B, F].

    base, most: as the generator's. group: of how many neighbours in a batch the deviation is one
    more channel of the last layers (0: none). A slope at an image (R1) has how it moves that
    deviation, as the authors' has.
    """

    base: int = 32768
    most: int = 512
    group: int = 4
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """x [B, H, H, C] -> [B, F]."""
        dtype, width = compute_dtype(self.dtype), width_of(self.base, self.most)
        side = 4 * 2 ** doublings_of(x.shape[1:])
        h = active(Conv(width(side), 1, dtype=dtype, name="in")(x))
        while side > 4:
            y = active(Conv(width(side), dtype=dtype, name=f"conv{side}")(h))
            y = active(Conv(width(side // 2), down=True, dtype=dtype, name=f"down{side}")(y))
            skip = Conv(width(side // 2), 1, down=True, bias=False, dtype=dtype, name=f"skip{side}")
            h, side = (y + skip(h)) / GAIN, side // 2
        h = deviation(h, self.group) if self.group else h
        h = active(Conv(width(4), dtype=dtype, name="conv4")(h))
        h = active(Dense(width(4), dtype=dtype, name="features")(h.reshape(h.shape[0], -1)))
        return h.astype(jnp.float32)


def deviation(x: jax.Array, group: int) -> jax.Array:
    """x [B, H, W, C] with one channel more: its mean deviation among each `group` of neighbours.

    Where B is no multiple of it, of the largest number that divides both.
    """
    size = math.gcd(x.shape[0], group)
    y = x.astype(jnp.float32).reshape(-1, size, *x.shape[1:])
    spread = jnp.sqrt(jnp.square(y - y.mean(1, keepdims=True)).mean(1) + 1e-8).mean((1, 2, 3))
    channel = jnp.broadcast_to(jnp.repeat(spread, size)[:, None, None, None], (*x.shape[:3], 1))
    return jnp.concatenate([x, channel.astype(x.dtype)], -1)


def width_of(base: int, most: int) -> Any:
    """Channels at a resolution."""
    return lambda side: min(base // side, most)
