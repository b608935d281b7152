"""`vqgan`: an autoencoder with a quantiser and, if wanted, an adversary, as a Method.

Esser et al. 2021; with the quantiser `gaussian` the autoencoder of Rombach et al. 2022.
Reconstruction, perceptual and quantiser losses from the start; the adversarial one after a warm-up,
with a weight that balances its gradient at the decoder's last layer against that of the
reconstruction (Esser et al., equations 6 and 7).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxgen.config import part
from jaxgen.errors import invalid
from jaxgen.families.adversarial.loss import Loss
from jaxgen.method import (
    Averages,
    Encoder,
    Learner,
    Method,
    Spec,
    Training,
    encoder_of,
    method_of,
    optimizers_of,
)
from jaxgen.tokenizers.autoencoding import Tokenizer, distance_of
from jaxgen.tokenizers.quantisers import Quantiser


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
    whose result, a function or an `Encoder`, maps images [B, H, W, C] to a pytree of features;
    `perceptual_weight` is of their mean squared distance. loss: in `families.adversarial.loss`.
    adversarial_weight: of the generator's loss, times the adaptive weight if `adaptive`; 0 until
    `adversarial_start` images were seen, and so is the discriminator's loss.

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
    chosen: Loss = part(loss, "jaxgen.families.adversarial.loss", "method.loss")
    if chosen.lipschitz:
        raise invalid("method.loss", loss, "a loss that needs no bound on the slope")
    features: Encoder | None = None
    if perceptual is not None:
        features = encoder_of(part(perceptual, "jaxgen.tokenizers", "method.perceptual"))
    net, judge = _networks(model, quant)
    tokenizer = Tokenizer(
        net=net,
        quant=quant,
        judge=judge,
        distance=distance_of(reconstruction, features, perceptual_weight),
        loss=chosen,
        adversarial_weight=adversarial_weight,
        adversarial_start=adversarial_start,
        adaptive=adaptive,
    )
    encoded = jax.eval_shape(
        lambda key: net.init_with_output(key, jnp.zeros((1, *spec.shape)), method="encode")[0],
        jax.random.key(0),
    )
    if quant.levels is None:
        code = Spec(encoded[0].shape[1:], spec.num_classes, None)
    else:
        code = Spec(encoded.shape[1:-1], spec.num_classes, quant.levels, tokens=True)

    book = quant.trained and bool(jax.eval_shape(quant.init, jax.random.key(0)))
    learners = {
        "autoencoder": Learner(
            loss=tokenizer.autoencoder_loss,
            trains=("net", "codebook") if book else ("net",),
            after=tokenizer.refreshed,
        )
    }
    if judge is not None:
        learners["discriminator"] = Learner(
            loss=tokenizer.discriminator_loss, trains="discriminator"
        )
    training = Training(
        learners=learners,
        fresh=lambda key: tokenizer.fresh(key, jnp.zeros((1, *spec.shape))),
        optimizer=optimizers_of(optimizer, tuple(learners)),
        averages=averages,
        averaged=("net", "codebook"),
        accumulate=accumulate,
        prepare=tokenizer.gathering if quant.refresh is not None else None,
        frozen={} if features is None else {"perceptual": features.params},
    )
    return method_of(
        spec,
        training,
        encode=tokenizer.encode,
        decode=lambda params, codes: tokenizer.decode(params, codes, code.shape[-1]),
        code=code,
    )


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
