"""`vqgan`: an autoencoder with a quantiser and, if wanted, an adversary, as a Method.

Esser et al. 2021; with the quantiser `gaussian` the autoencoder of Rombach et al. 2022.
Reconstruction, perceptual and quantiser losses from the start; the adversarial one after a warm-up,
with a weight that balances its gradient at the decoder's last layer against that of the
reconstruction (Esser et al., equations 6 and 7).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxgen.config import part
from jaxgen.errors import invalid
from jaxgen.families.adversarial.loss import Loss
from jaxgen.method import (
    Averages,
    Batch,
    Learner,
    Method,
    Metrics,
    Spec,
    Training,
    TrainState,
    example_keys,
    method_of,
    optimizers_of,
)
from jaxgen.nn.vqgan import LAST
from jaxgen.tokenizers.quantisers import Quantised, Quantiser, perplexity

PyTree = Any
Features = Callable[[jax.Array], Any]


def vqgan(
    spec: Spec,
    model: Any,
    optimizer: Any,
    averages: Averages,
    *,
    quantiser: Any = "nearest",
    reconstruction: Literal["l1", "l2"] = "l1",
    perceptual: Any = None,
    perceptual_weight: float = 1.0,
    loss: Any = "hinge",
    adversarial_weight: float = 0.8,
    adversarial_start: int = 0,
    adaptive: bool = True,
    accumulate: int = 1,
) -> Method:
    """Train a tokenizer of images: `encode` to tokens [h, w] or latents, `decode` to images.

    model: an autoencoder (with encode, decode and code_channels, as `nn.vqgan.VQGAN`; for latents
    `nn.autoencoder.AutoencoderKL`), or sections {"autoencoder", "discriminator"}, the latter
    module(x) -> logits of any shape. optimizer: one for all, or one each under the same names.
    quantiser: a section or name in `tokenizers.quantisers`. perceptual: a section naming a factory
    whose result maps images [B, H, W, C] to a pytree of features; `perceptual_weight` is of their
    mean squared distance. loss: in `families.adversarial.loss`. adversarial_weight: of the
    generator's loss, times the adaptive weight if `adaptive`; 0 until `adversarial_start` images
    were seen, and so is the discriminator's loss.

    Parameters are {"net", "codebook"?, "discriminator"?}; averages leave out the discriminator.
    Raises UsageError for parts that do not fit together.
    """
    if spec.tokens or spec.target is not None:
        raise invalid("config.data.source", "examples that are no images", "images to tokenize")
    for name, value in (
        ("perceptual_weight", perceptual_weight),
        ("adversarial_weight", adversarial_weight),
        ("adversarial_start", adversarial_start),
    ):
        if value < 0:
            raise invalid(f"method.{name}", value, "a number >= 0")
    quant: Quantiser = part(
        quantiser, "jaxgen.tokenizers.quantisers", "method.quantiser", elements=spec.size
    )
    game: Loss = part(loss, "jaxgen.families.adversarial.loss", "method.loss")
    if game.lipschitz:
        raise invalid("method.loss", loss, "a loss that needs no bound on the slope")
    features: Features | None = None
    if perceptual is not None:
        features = part(perceptual, "jaxgen.tokenizers", "method.perceptual")
    net, judge = _networks(model, quant)
    encoded = jax.eval_shape(
        lambda key: net.init_with_output(key, jnp.zeros((1, *spec.shape)), method="encode")[0],
        jax.random.key(0),
    )
    if quant.levels is None:
        width = encoded[0].shape[-1]
        code = Spec(encoded[0].shape[1:], spec.num_classes, None)
    else:
        code = Spec(encoded.shape[1:-1], spec.num_classes, quant.levels, tokens=True)

    def fresh(key: jax.Array) -> tuple[dict[str, PyTree], PyTree]:
        keys = jax.random.split(key, 3)
        x = jnp.zeros((1, *spec.shape))
        params = {"net": net.init(keys[0], x)["params"]}
        book = quant.init(keys[1])
        if book:
            params["codebook"] = book
        if judge is not None:
            params["discriminator"] = judge.init(keys[2], x)["params"]
        return params, {"codebook": quant.start(book)} if quant.refresh is not None else ()

    def rebuilt(
        params: PyTree, x: jax.Array, keys: jax.Array | None
    ) -> tuple[jax.Array, Quantised, jax.Array]:
        """Reconstructions, what the quantiser did, and what it was given."""
        held = {"params": params["net"]}
        z = net.apply(held, x, train=keys is not None, method="encode", rngs=_rngs(keys))
        found = quant.quantise(params.get("codebook", {}), z, keys)
        out = net.apply(held, found.z, train=keys is not None, method="decode", rngs=_rngs(keys))
        return out, found, z

    def judged(params: PyTree, x: jax.Array) -> jax.Array:
        assert judge is not None
        # Batch norm in a discriminator goes by the batch, so its moments are not kept.
        return judge.apply({"params": params}, x, mutable=["batch_stats"])[0].reshape(-1)

    def distance(x: jax.Array, made: jax.Array) -> tuple[jax.Array, Metrics]:
        """Reconstruction and perceptual loss together, and each as a metric."""
        error = jnp.abs(x - made) if reconstruction == "l1" else jnp.square(x - made)
        metrics = {"reconstruction": error.mean()}
        value = metrics["reconstruction"]
        if features is not None:
            pairs = jax.tree.map(lambda a, b: jnp.square(a - b).mean(), features(x), features(made))
            metrics["perceptual"] = jnp.stack(jax.tree.leaves(pairs)).mean()
            value += perceptual_weight * metrics["perceptual"]
        return value, metrics

    def weight(params: PyTree, z: jax.Array, x: jax.Array) -> jax.Array:
        """The adaptive weight at these codes, held."""

        def last(of: Callable[[jax.Array], jax.Array]) -> jax.Array:
            def f(kernel: jax.Array) -> jax.Array:
                held = _replaced(params["net"], LAST, kernel)
                return of(net.apply({"params": held}, z, method="decode"))

            return jnp.linalg.norm(jax.grad(f)(_leaf(params["net"], LAST)))

        one = last(lambda made: distance(x, made)[0])
        two = last(lambda made: game.generator(judged(params["discriminator"], made)))
        return jax.lax.stop_gradient(adaptive_weight(one, two))

    def judging(batch: Batch) -> jax.Array:
        """1 from when on there is an adversary, 0 before."""
        return (batch["seen"][0] >= adversarial_start).astype(jnp.float32)

    def autoencoder_loss(
        params: PyTree, batch: Batch, key: jax.Array, extra: PyTree
    ) -> tuple[jax.Array, tuple[Metrics, PyTree]]:
        x, keys = batch["image"], example_keys(key, batch)
        made, found, z = rebuilt(params, x, keys)
        value, metrics = distance(x, made)
        value += found.loss
        metrics |= {"quantiser": found.loss, **found.metrics}
        if judge is not None:
            metrics["g_loss"] = game.generator(judged(params["discriminator"], made))
            scale = adversarial_weight * judging(batch)
            if adaptive:
                held = jax.lax.stop_gradient((params, found.z))
                metrics["adaptive_weight"] = weight(*held, x)
                scale *= metrics["adaptive_weight"]
            value += scale * metrics["g_loss"]
        if quant.levels is not None:
            flat = found.code.reshape(-1)
            metrics["share"] = jnp.zeros(quant.levels).at[flat].add(1.0) / flat.size
        if found.sums is not None and quant.refresh is not None:
            metrics["sums"] = found.sums
            # As many vectors of the batch as there are codes, by chance.
            pick = jax.random.randint(key, metrics["share"].shape, 0, flat.size)
            candidates = jax.lax.stop_gradient(z.reshape(-1, quant.width)[pick])
            extra = {**extra, "candidates": candidates}
        return value, (metrics, extra)

    def discriminator_loss(
        params: PyTree, batch: Batch, key: jax.Array, extra: PyTree
    ) -> tuple[jax.Array, tuple[Metrics, PyTree]]:
        d, x = params["discriminator"], batch["image"]
        made = jax.lax.stop_gradient(rebuilt(params, x, example_keys(key, batch))[0])
        real, fake = judged(d, x), judged(d, made)
        value = game.discriminator(real, fake)
        metrics = {
            "loss": jnp.zeros(()),  # a run's loss is the autoencoder's
            "d_loss": value,
            "d_real": (real > game.threshold).mean(),
            "d_fake": (fake <= game.threshold).mean(),
        }
        return judging(batch) * value, (metrics, extra)

    def gathering(
        state: TrainState, batch: Batch, key: jax.Array, frozen: PyTree
    ) -> tuple[TrainState, Batch, Metrics]:
        """Room for the vectors that may become codes in this update."""
        room = {"candidates": jnp.zeros((quant.levels, quant.width))}
        return state.replace(extra={**state.extra, **room}), batch, {}

    def refreshed(params: PyTree, extra: PyTree, metrics: Metrics) -> Any:
        """After the autoencoder's step: the codebook's own, and what is said of its use."""
        share, sums = metrics.pop("share", None), metrics.pop("sums", None)
        if quant.refresh is not None:
            book, kept = quant.refresh(
                params["codebook"], extra["codebook"], share, sums, extra["candidates"]
            )
            params, extra = {**params, "codebook": book}, {"codebook": kept}
        if share is not None:
            metrics |= {"perplexity": perplexity(share), "used": (share > 0).mean()}
        return params, extra, metrics

    book = quant.trained and bool(jax.eval_shape(quant.init, jax.random.key(0)))
    trains = ("net", "codebook") if book else ("net",)
    learners = {"autoencoder": Learner(loss=autoencoder_loss, trains=trains, after=refreshed)}
    if judge is not None:
        learners["discriminator"] = Learner(loss=discriminator_loss, trains="discriminator")
    training = Training(
        learners=learners,
        fresh=fresh,
        optimizer=optimizers_of(optimizer, tuple(learners)),
        averages=averages,
        averaged=("net", "codebook"),
        accumulate=accumulate,
        prepare=gathering if quant.refresh is not None else None,
    )

    def encode(params: PyTree, x: jax.Array) -> jax.Array:
        z = net.apply({"params": params["net"]}, x, method="encode")
        return quant.quantise(params.get("codebook", {}), z, None).code

    def decode(params: PyTree, codes: jax.Array) -> jax.Array:
        if quant.levels is None:
            # Mean and deviation, as `encode` gives them, or a latent.
            if codes.shape[-1] not in (width, 2 * width):
                raise invalid("codes", codes.shape, f"{width} or {2 * width} channels")
            codes = codes[..., :width]
        z = quant.embed(params.get("codebook", {}), codes)
        return jnp.clip(net.apply({"params": params["net"]}, z, method="decode"), -1, 1)

    return method_of(
        spec,
        training,
        encode=encode,
        decode=decode,
        code=code,
    )


def adaptive_weight(reconstruction: jax.Array, adversarial: jax.Array) -> jax.Array:
    """The ratio of two gradients' norms, at most 1e4 (Esser et al. 2021, equation 7)."""
    return jnp.minimum(reconstruction / (adversarial + 1e-4), 1e4)


def _rngs(keys: jax.Array | None) -> dict[str, jax.Array]:
    return {} if keys is None else {"dropout": keys[0]}


def _leaf(tree: PyTree, path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _replaced(tree: PyTree, path: tuple[str, ...], leaf: Any) -> PyTree:
    if not path:
        return leaf
    return {**tree, path[0]: _replaced(tree[path[0]], path[1:], leaf)}


def _networks(model: Any, quant: Quantiser) -> tuple[Any, Any]:
    if not isinstance(model, Mapping):
        net, judge = model, None
    elif set(model) == {"autoencoder", "discriminator"}:
        net, judge = model["autoencoder"], model["discriminator"]
    else:
        raise invalid(
            "config.model", sorted(model), "one network, or autoencoder and discriminator"
        )
    wanted, example = (
        ("code_channels", "vqgan.VQGAN")
        if quant.levels is not None
        else ("latent_channels", "autoencoder.AutoencoderKL")
    )
    if not all(hasattr(net, name) for name in ("encode", "decode", wanted)):
        raise invalid("config.model", type(net).__name__, f"an autoencoder such as {example}")
    return net if quant.levels is None else net.clone(code_channels=quant.width), judge
