"""`Tokenizer`: an autoencoder around a quantiser, its losses, and the adversary it may have."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.families.adversarial.loss import Loss
from jaxgen.method import Batch, Encoder, Metrics, TrainState, example_keys
from jaxgen.nn.vqgan import LAST
from jaxgen.tokenizers.quantisers import Quantised, Quantiser, perplexity

PyTree = Any
Distance = Callable[[jax.Array, jax.Array, PyTree], tuple[jax.Array, Metrics]]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Tokenizer:
    """params["net"], params["codebook"] where there is one, params["discriminator"] with a judge.

    distance(images, reconstructions, perceptual network's arrays) -> (loss, metrics). loss: the
    adversary's; what it adds is times adversarial_weight, and `adaptive_weight` if adaptive, from
    adversarial_start images on.
    """

    net: Any
    quant: Quantiser
    judge: Any
    distance: Distance
    loss: Loss
    adversarial_weight: float
    adversarial_start: int
    adaptive: bool

    def fresh(self, key: jax.Array, x: jax.Array) -> tuple[dict[str, PyTree], PyTree]:
        """First parameters, for images like x [1, *shape], and the codebook's averages if any."""
        keys = jax.random.split(key, 3)
        params = {"net": self.net.init(keys[0], x)["params"]}
        book = self.quant.init(keys[1])
        if book:
            params["codebook"] = book
        if self.judge is not None:
            params["discriminator"] = self.judge.init(keys[2], x)["params"]
        return params, {"codebook": self.quant.start(book)} if self.quant.refresh else ()

    def encode(self, params: PyTree, x: jax.Array) -> jax.Array:
        """Images [B, *shape] -> tokens [B, h, w], or mean and deviation of latents."""
        z = self.net.apply({"params": params["net"]}, x, method="encode")
        return self.quant.quantise(params.get("codebook", {}), z, None).code

    def decode(self, params: PyTree, codes: jax.Array, width: int) -> jax.Array:
        """Images of tokens, or of latents of `width` channels with or without their deviation."""
        if self.quant.levels is None:
            if codes.shape[-1] not in (width, 2 * width):
                raise invalid("codes", codes.shape, f"{width} or {2 * width} channels")
            codes = codes[..., :width]
        z = self.quant.embed(params.get("codebook", {}), codes)
        return jnp.clip(self.net.apply({"params": params["net"]}, z, method="decode"), -1, 1)

    def autoencoder_loss(
        self, params: PyTree, batch: Batch, key: jax.Array, extra: PyTree
    ) -> tuple[jax.Array, tuple[Metrics, PyTree]]:
        """Distance, the quantiser's loss, and the generator's where there is an adversary."""
        quant, x = self.quant, batch["image"]
        made, quantised, z = self._rebuilt(params, x, example_keys(key, batch))
        value, metrics = self._distance(params, x, made)
        value += quantised.loss
        metrics |= {"quantiser": quantised.loss, **quantised.metrics}
        if self.judge is not None:
            metrics["g_loss"] = self.loss.generator(self._judged(params["discriminator"], made))
            scale = self.adversarial_weight * self._judging(batch)
            if self.adaptive:
                held = jax.lax.stop_gradient((params, quantised.z))
                metrics["adaptive_weight"] = self._weight(*held, x)
                scale *= metrics["adaptive_weight"]
            value += scale * metrics["g_loss"]
        if quant.levels is not None:
            flat = quantised.code.reshape(-1)
            metrics["share"] = jnp.zeros(quant.levels).at[flat].add(1.0) / flat.size
        if quantised.sums is not None and quant.refresh is not None:
            metrics["sums"] = quantised.sums
            # As many vectors of the batch as there are codes, by chance.
            pick = jax.random.randint(key, metrics["share"].shape, 0, flat.size)
            candidates = jax.lax.stop_gradient(z.reshape(-1, quant.width)[pick])
            extra = {**extra, "candidates": candidates}
        return value, (metrics, extra)

    def discriminator_loss(
        self, params: PyTree, batch: Batch, key: jax.Array, extra: PyTree
    ) -> tuple[jax.Array, tuple[Metrics, PyTree]]:
        """Images against their reconstructions."""
        d, x = params["discriminator"], batch["image"]
        made = jax.lax.stop_gradient(self._rebuilt(params, x, example_keys(key, batch))[0])
        real, fake = self._judged(d, x), self._judged(d, made)
        value = self.loss.discriminator(real, fake)
        metrics = {
            "loss": jnp.zeros(()),  # a run's loss is the autoencoder's
            "d_loss": value,
            "d_real": (real > self.loss.threshold).mean(),
            "d_fake": (fake <= self.loss.threshold).mean(),
        }
        return self._judging(batch) * value, (metrics, extra)

    def gathering(
        self, state: TrainState, batch: Batch, key: jax.Array, frozen: PyTree
    ) -> tuple[TrainState, Batch, Metrics]:
        """Room for the vectors that may become codes in this update."""
        room = {"candidates": jnp.zeros((self.quant.levels, self.quant.width))}
        return state.replace(extra={**state.extra, **room}), batch, {}

    def refreshed(self, params: PyTree, extra: PyTree, metrics: Metrics) -> Any:
        """After the autoencoder's step: the codebook's own, and what is said of its use."""
        share, sums = metrics.pop("share", None), metrics.pop("sums", None)
        if self.quant.refresh is not None:
            book, kept = self.quant.refresh(
                params["codebook"], extra["codebook"], share, sums, extra["candidates"]
            )
            params, extra = {**params, "codebook": book}, {"codebook": kept}
        if share is not None:
            metrics |= {"perplexity": perplexity(share), "used": (share > 0).mean()}
        return params, extra, metrics

    def _rebuilt(
        self, params: PyTree, x: jax.Array, keys: jax.Array
    ) -> tuple[jax.Array, Quantised, jax.Array]:
        """Reconstructions in training, what the quantiser did, and what it was given."""
        held, rngs = {"params": params["net"]}, {"dropout": keys[0]}
        z = self.net.apply(held, x, train=True, method="encode", rngs=rngs)
        quantised = self.quant.quantise(params.get("codebook", {}), z, keys)
        out = self.net.apply(held, quantised.z, train=True, method="decode", rngs=rngs)
        return out, quantised, z

    def _distance(self, params: PyTree, x: jax.Array, made: jax.Array) -> tuple[jax.Array, Metrics]:
        return self.distance(x, made, params.get("frozen", {}).get("perceptual"))

    def _judged(self, params: PyTree, x: jax.Array) -> jax.Array:
        # Batch norm in a discriminator goes by the batch, so its moments are not kept.
        return self.judge.apply({"params": params}, x, mutable=["batch_stats"])[0].reshape(-1)

    def _judging(self, batch: Batch) -> jax.Array:
        """1 from when on there is an adversary, 0 before."""
        return (batch["seen"][0] >= self.adversarial_start).astype(jnp.float32)

    def _weight(self, params: PyTree, z: jax.Array, x: jax.Array) -> jax.Array:
        """The adaptive weight at these codes, held."""

        def last(of: Callable[[jax.Array], jax.Array]) -> jax.Array:
            def f(kernel: jax.Array) -> jax.Array:
                held = _replaced(params["net"], LAST, kernel)
                return of(self.net.apply({"params": held}, z, method="decode"))

            return jnp.linalg.norm(jax.grad(f)(_leaf(params["net"], LAST)))

        distance_norm = last(lambda made: self._distance(params, x, made)[0])
        adversarial_norm = last(
            lambda made: self.loss.generator(self._judged(params["discriminator"], made))
        )
        return jax.lax.stop_gradient(adaptive_weight(distance_norm, adversarial_norm))


def distance_of(reconstruction: str, features: Encoder | None, perceptual: float) -> Distance:
    """The mean error, "l1" or "l2", and `perceptual` times the mean square of features' errors."""

    def distance(x: jax.Array, made: jax.Array, frozen: PyTree) -> tuple[jax.Array, Metrics]:
        error = jnp.abs(x - made) if reconstruction == "l1" else jnp.square(x - made)
        metrics = {"reconstruction": error.mean()}
        value = metrics["reconstruction"]
        if features is not None:
            both = (features.apply(frozen, image) for image in (x, made))
            pairs = jax.tree.map(lambda a, b: jnp.square(a - b).mean(), *both)
            metrics["perceptual"] = jnp.stack(jax.tree.leaves(pairs)).mean()
            value += perceptual * metrics["perceptual"]
        return value, metrics

    return distance


def adaptive_weight(reconstruction: jax.Array, adversarial: jax.Array) -> jax.Array:
    """The ratio of two gradients' norms, at most 1e4 (Esser et al. 2021, equation 7)."""
    return jnp.minimum(reconstruction / (adversarial + 1e-4), 1e4)


def _leaf(tree: PyTree, path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _replaced(tree: PyTree, path: tuple[str, ...], leaf: Any) -> PyTree:
    if not path:
        return leaf
    return {**tree, path[0]: _replaced(tree[path[0]], path[1:], leaf)}
