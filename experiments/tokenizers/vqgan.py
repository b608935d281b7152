"""VQGAN: exact quantiser, balanced adversary, and codes whose law per class is the data's."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.shared.check import Check, above, below, control, near
from experiments.shared.quick import quick_jit
from jaxgen.method import Method, Spec, TrainState
from jaxgen.tokenizers import quantisers
from jaxgen.tokenizers.vqgan import vqgan
from jaxgen.training.ema import Averages

PAPER = "Taming Transformers for High-Resolution Image Synthesis"
ENTRY = "jaxgen.tokenizers.vqgan.vqgan"
LAW = np.array([[0.5, 0.3, 0.2, 0.0], [0.05, 0.15, 0.2, 0.6]])  # prototype given class
SIZE = 4000


class Patch(nn.Module):
    """A whole 2x2 image as one code: linear both ways."""

    code_channels: int = 4

    def setup(self) -> None:
        """Encoder, and the decoder's last layer where it is looked for."""
        self.encoder, self.decoder = nn.Dense(self.code_channels), _Decoder()

    def encode(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """x [B, 2, 2, 1] -> [B, 1, 1, code_channels]."""
        return self.encoder(x.reshape(-1, 1, 1, 4))

    def decode(self, z: jax.Array, *, train: bool = False) -> jax.Array:
        """z [B, 1, 1, code_channels] -> [B, 2, 2, 1]."""
        return self.decoder(z)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Both, for `init`."""
        return self.decode(self.encode(x))


class _Decoder(nn.Module):
    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        return nn.Dense(4, name="conv_out")(z).reshape(-1, 2, 2, 1)


class _Judge(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(1, name="out")(jnp.square(x.reshape(-1, 4)))


PROTOTYPES = np.array(
    [[-0.8, -0.8, 0.7, 0.7], [0.6, -0.6, 0.6, -0.6], [0.8, 0.8, 0.8, 0.1], [-0.7, 0.5, -0.2, -0.9]]
)


def checks() -> list[Check]:
    """The quantiser alone, one update by hand, and both stages on four prototypes."""
    results = []
    rng = np.random.default_rng(0)
    z = jnp.asarray(rng.normal(size=(8, 4, 4, 6)), jnp.float32)
    quantiser = quantisers.nearest(50, width=6)
    book = quantiser.init(jax.random.key(0))
    codes = np.asarray(book["codes"], np.float64)
    best = ((np.asarray(z, np.float64)[..., None, :] - codes) ** 2).sum(-1).argmin(-1)
    wrong = np.asarray(quantiser.quantise(book, z, None).code) != best
    # The inner product alone leaves out the codes' lengths.
    inner = (np.asarray(z) @ codes.T).argmax(-1) != best
    results.append(below("tokens that are not brute force's", wrong.sum(), 0))
    results.append(control(below("the same by inner product alone", inner.sum(), 0)))
    weight = jnp.asarray(rng.normal(size=z.shape), jnp.float32)

    def plain(z: jax.Array) -> jax.Array:
        tokens = quantiser.quantise(book, z, None).code
        return (weight * quantiser.embed(book, tokens)).sum()

    through = jax.grad(lambda z: (weight * quantiser.quantise(book, z, None).z).sum())(z)
    error, lost = (float(jnp.abs(g - weight).max()) for g in (through, jax.grad(plain)(z)))
    results.append(below("gradient through the quantiser from the identity's", error, 1e-6))
    results.append(control(below("the same without straight-through", lost, 1e-6)))

    results += adaptive(rng)

    # The second stage is the table of counts, the optimum of a model of one token given the class.
    for levels in (8, 2):
        distance = two_stages(levels, rng)
        if levels == 8:
            results.append(below("total variation of sampled prototypes", distance, 0.05))
        else:
            # Two images at most: what is left of the law's two largest shares, at least.
            left = 1 - max(np.sort(row)[-2:].sum() for row in LAW)
            results.append(above("total variation with two codes for four", distance, left - 0.02))
            results.append(
                control(below("the same, beside what eight codes reach", distance, 0.05))
            )
    return results


def two_stages(levels: int, rng: np.random.Generator) -> float:
    """Total variation between sampled prototypes and the data's, of the worse class."""
    method = tokenizer(levels)
    params = trained(method)
    label = np.arange(2 * SIZE) % 2
    image = data(jax.random.key(7), jnp.asarray(label))
    assert method.encode is not None and method.decode is not None
    tokens = np.asarray(method.encode(params, image)).reshape(-1)
    distances = []
    for c in range(2):
        counts = np.bincount(tokens[label == c], minlength=levels)
        chosen = rng.choice(levels, SIZE, p=counts / counts.sum()).astype(np.int32)
        made = np.asarray(method.decode(params, jnp.asarray(chosen).reshape(-1, 1, 1)))
        nearest = ((made.reshape(-1, 1, 4) - PROTOTYPES) ** 2).sum(-1).argmin(-1)
        share = np.bincount(nearest, minlength=4) / SIZE
        distances.append(0.5 * np.abs(share - LAW[c]).sum())
    return float(max(distances))


def data(key: jax.Array, label: jax.Array) -> jax.Array:
    """Images [B, 2, 2, 1]: a prototype by the class's law, and a little noise."""
    class_key, noise_key = jax.random.split(key)
    which = jax.random.categorical(class_key, jnp.log(jnp.asarray(LAW))[label])
    noise = 0.05 * jax.random.normal(noise_key, (len(label), 4))
    return (jnp.asarray(PROTOTYPES)[which] + noise).reshape(-1, 2, 2, 1)


def tokenizer(levels: int) -> Method:
    """A first stage with running means of which the dead are revived."""
    return vqgan(
        Spec((2, 2, 1), 2, None),
        Patch(),
        optax.adam(1e-2),
        Averages(half_life=(1_000,)),
        quantiser=dict(
            name="nearest", levels=levels, width=4, codebook="average", decay=0.9, revive=0.1
        ),
        reconstruction="l2",
    )


def trained(method: Method) -> Any:
    """The averaged parameters after 400 updates on fresh images."""

    def body(state: TrainState, _: None) -> tuple[TrainState, None]:
        key = jax.random.fold_in(jax.random.key(3), state.step)
        label = jnp.arange(64) % 2
        batch = {"image": data(key, label), "label": label}
        return method.update(state, batch, key)[0], None

    def run() -> Any:
        return jax.lax.scan(body, method.init(jax.random.key(0)), None, length=400)[0]

    return quick_jit(run)().ema["half_life_1000"]


def adaptive(rng: np.random.Generator) -> list[Check]:
    """One update's adaptive weight against NumPy's, and what it is there for."""
    images = jnp.asarray(rng.normal(size=(16, 2, 2, 1)) * 0.5, jnp.float32)
    method = vqgan(
        Spec((2, 2, 1), 1, None),
        {"autoencoder": Patch(), "discriminator": _Judge()},
        optax.adam(1e-3),
        Averages(half_life=(1_000,)),
        quantiser=dict(name="nearest", levels=16, width=4),
        reconstruction="l2",
    )
    state = method.init(jax.random.key(0))
    batch = {"image": images, "label": jnp.zeros(16, jnp.int32)}
    _, metrics = quick_jit(method.update)(state, batch, jax.random.key(1))
    tokens = np.asarray(method.encode(state.params, images))  # type: ignore[misc]
    net: Any = jax.tree.map(lambda a: np.asarray(a, np.float64), state.params)
    z = net["codebook"]["codes"][tokens.reshape(-1)]
    last = net["net"]["decoder"]["conv_out"]
    x, made = np.asarray(images, np.float64).reshape(-1, 4), z @ last["kernel"] + last["bias"]
    distance_slope = z.T @ (2 * (made - x)) / x.size
    adversarial_slope = z.T @ (-2 * made * net["discriminator"]["out"]["kernel"][:, 0]) / 16
    ratio = np.linalg.norm(distance_slope) / (np.linalg.norm(adversarial_slope) + 1e-4)
    value = float(metrics["adaptive_weight"])
    return [
        near("adaptive weight over the ratio by hand", value / ratio, 1.0, 1e-4),
        above("its distance from no weight, 1", abs(ratio - 1), 0.01),
    ]
