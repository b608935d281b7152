"""DCGAN and SN-DCGAN at 8 pixels and twice that any number of times.

Radford, Metz & Chintala, "Unsupervised Representation Learning with Deep Convolutional Generative
Adversarial Networks" (2016): strided convolutions both ways, batch norm everywhere but at the
generator's output and the discriminator's input, ReLU and leaky ReLU, tanh at the end, weights
drawn with a deviation of 0.02. Miyato et al., "Spectral Normalization" (2018): a discriminator with
spectral norms in the place of batch norm, and a convolution that keeps the size before each one
that halves it. Labels enter at the generator's batch norms (Dumoulin et al. 2017).
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.nn.gan import doublings_of
from jaxgen.nn.gan_layers import BatchNorm, Conv, Dense, Embed
from jaxgen.nn.layers import compute_dtype

START = nn.initializers.normal(0.02)


class Generator(nn.Module):
    """module(z[B, D], labels[B], *, train) -> float32 images [B, H, H, C] in [-1, 1].

    width: channels of the last layer but one; twice as many at each half of the resolution.
    conditional: False ignores labels.
    """

    shape: tuple[int, ...]
    num_classes: int
    width: int = 64
    label_width: int = 32
    conditional: bool = True
    dtype: str = "float32"

    @nn.compact
    def __call__(self, z: jax.Array, labels: jax.Array, *, train: bool = False) -> jax.Array:
        """z [B, D], labels [B] -> float32 [B, H, H, C]."""
        dtype, doublings = compute_dtype(self.dtype), doublings_of(self.shape)
        condition = None
        if self.conditional:
            condition = Embed(self.num_classes, self.label_width, name="labels")(labels)
        width = self.width * 2 ** (doublings - 1)
        options: dict[str, Any] = dict(dtype=dtype, use_bias=False)
        h = Dense(16 * width, name="in", initial=START, **options)(z).reshape(-1, 4, 4, width)
        for number in range(doublings):
            h = nn.relu(BatchNorm(name=f"norm{number}")(h, condition, train=train)).astype(dtype)
            last = number == doublings - 1
            width = self.shape[-1] if last else width // 2
            options = dict(kernel_init=START, dtype=dtype, use_bias=last)
            h = nn.ConvTranspose(width, (4, 4), (2, 2), name=f"up{number}", **options)(h)
        return jnp.tanh(h.astype(jnp.float32))


class Discriminator(nn.Module):
    """Backbone module(x[B, H, H, C], *, train) -> float32 features [B, F], flattened.

    width: channels of the first layer, twice as many at each half of the resolution. batch_norm:
    DCGAN's; spectral: SN-DCGAN's norms, without batch norm.
    """

    width: int = 64
    batch_norm: bool = True
    spectral: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """x [B, H, H, C] -> [B, F]."""
        dtype, width, h = compute_dtype(self.dtype), self.width, x
        initial = nn.initializers.lecun_normal() if self.spectral else START
        options: dict[str, Any] = dict(spectral=self.spectral, dtype=dtype, initial=initial)
        for number in range(doublings_of(x.shape[1:])):
            if self.spectral:
                h = nn.leaky_relu(Conv(width, 3, name=f"same{number}", **options)(h), 0.1)
            norm = self.batch_norm and number > 0
            halve = Conv(width, 4, use_bias=not norm, name=f"down{number}", stride=2, **options)
            h = halve(h)
            if norm:
                h = BatchNorm(name=f"norm{number}")(h, None, train=train).astype(dtype)
            h = nn.leaky_relu(h, 0.1 if self.spectral else 0.2)
            width *= 2
        if self.spectral:
            h = nn.leaky_relu(Conv(width, 3, name="last", **options)(h), 0.1)
        return h.reshape(len(h), -1).astype(jnp.float32)
