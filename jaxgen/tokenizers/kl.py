"""`kl`: the autoencoder of latent diffusion as a tokenizer (Rombach et al. 2022, appendix G).

Images to the mean and standard deviation of Gaussian latents, latents back to images.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from jaxgen.errors import invalid
from jaxgen.method import (
    Averages,
    Batch,
    Method,
    Metrics,
    Spec,
    TrainState,
    example_keys,
    gradient_update,
    normal,
)

PyTree = Any
DROPOUT = 2**32 - 1


def kl(
    spec: Spec,
    model: Any,
    optimizer: optax.GradientTransformation,
    averages: Averages,
    *,
    reconstruction: Literal["l1", "l2"] = "l1",
    kl_weight: float = 1e-6,
    accumulate: int = 1,
) -> Method:
    """Train by reconstruction and a light KL to N(0, I); a tokenizer, so it does not sample.

    model: `jaxgen.nn.autoencoder.AutoencoderKL`, or a module with its `encode` and `decode`.
    reconstruction: mean absolute or squared error per element, to which kl_weight times the KL in
    nats per element is added. Codes [B, h, w, 2 c] are mean and standard deviation; `decode` takes
    them (and decodes the mean) or latents [B, h, w, c]. Metrics: rec, kl (nats an image).

    Raises UsageError for values out of range and sources of tokens.
    """
    if reconstruction not in ("l1", "l2"):
        raise invalid("method.reconstruction", reconstruction, "'l1', 'l2'")
    if kl_weight < 0:
        raise invalid("method.kl_weight", kl_weight, "kl_weight >= 0")
    if spec.tokens or len(spec.shape) != 3:
        raise invalid("method", "an image tokenizer", "a source of images")

    def apply(params: PyTree, x: jax.Array, name: str, **kwargs: Any) -> Any:
        return model.apply({"params": params["net"]}, x, method=name, **kwargs)

    def loss(
        params: PyTree, batch: Batch, key: jax.Array, extra: PyTree
    ) -> tuple[jax.Array, tuple[Metrics, PyTree]]:
        x = batch["image"]
        rng = jax.random.fold_in(jax.random.fold_in(key, DROPOUT), batch["index"][0])
        given: dict[str, Any] = dict(train=True, rngs={"dropout": rng})
        mean, logvar = apply(params, x, "encode", **given)
        eps = normal(example_keys(key, batch), mean.shape[1:])
        made = apply(params, mean + jnp.exp(0.5 * logvar) * eps, "decode", **given)
        error = jnp.abs(made - x) if reconstruction == "l1" else (made - x) ** 2
        nats = 0.5 * (mean**2 + jnp.exp(logvar) - 1 - logvar).sum((1, 2, 3))
        value = error.mean() + kl_weight * nats.mean() / spec.size
        return value, ({"rec": error.mean(), "kl": nats.mean()}, extra)

    def init(key: jax.Array) -> TrainState:
        params = {"net": model.init(key, jnp.zeros((1, *spec.shape)))["params"]}
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=optimizer.init(params),
            ema=averages.init(params),
        )

    def encode(params: PyTree, x: jax.Array) -> jax.Array:
        mean, logvar = apply(params, x, "encode")
        return jnp.concatenate([mean, jnp.exp(0.5 * logvar)], axis=-1)

    variables = jax.eval_shape(init, jax.random.key(0)).params
    example = jax.ShapeDtypeStruct((1, *spec.shape), jnp.float32)
    shape = jax.eval_shape(encode, variables, example).shape[1:]
    channels = shape[-1] // 2

    def decode(params: PyTree, code: jax.Array) -> jax.Array:
        if code.shape[-1] not in (channels, 2 * channels):
            raise invalid("codes", code.shape, f"{channels} or {2 * channels} channels")
        return apply(params, code[..., :channels], "decode")

    return Method(
        spec=spec,
        init=init,
        update=gradient_update(loss, optimizer, averages, accumulate=accumulate),
        encode=encode,
        decode=decode,
        code=Spec((*shape[:-1], channels), spec.num_classes, levels=None),
    )
