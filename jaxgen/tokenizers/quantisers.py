"""Quantisers: vectors to one of finitely many and back, with a gradient that passes through.

`gaussian` is the one that keeps vectors real: latents with a small KL in place of codes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.method import normal

PyTree = Any
Codebook = Literal["average", "loss"]
MOST_BITS = 24


class Quantised(NamedTuple):
    """z [B, h, w, width]: what was chosen, in the backward pass the identity of what came in.

    code: tokens int32 [B, h, w], or (`gaussian`) mean and deviation [B, h, w, 2 width]. loss: to be
    added to the reconstruction's. metrics. sums [levels, width]: per code the sum of the vectors
    that chose it, over the number of vectors (`nearest`'s codebooks; else None).
    """

    z: jax.Array
    code: jax.Array
    loss: jax.Array
    metrics: dict[str, jax.Array]
    sums: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Quantiser:
    """Pure functions around a codebook (a pytree, {} where there is none to learn).

    levels: how many codes; None: latents, and the encoder gives mean and log-variance. width:
    channels of what is quantised (latents: the network's own). init(key) -> codebook.
    quantise(codebook, z, keys[B] or None) -> Quantised; keys ask for training's noise.
    embed(codebook, tokens [B, h, w] or latents [B, h, w, width]) -> what the decoder is given.
    trained: the codebook learns by gradient. start(codebook) -> its own state;
    refresh(codebook, state, share[levels], sums, candidates[levels, width]) -> codebook and state
    after an update in which code k was chosen by a share of the vectors; candidates are vectors
    of this batch, for codes that nobody chooses.
    """

    levels: int | None
    width: int
    init: Callable[[jax.Array], PyTree]
    quantise: Callable[[PyTree, Any, jax.Array | None], Quantised]
    embed: Callable[[PyTree, jax.Array], jax.Array]
    trained: bool = False
    start: Callable[[PyTree], PyTree] = lambda book: {}
    refresh: Callable[..., tuple[PyTree, PyTree]] | None = None


def straight_through(z: jax.Array, chosen: jax.Array) -> jax.Array:
    """`chosen`, with the gradient passed to z unchanged (Bengio et al. 2013)."""
    return z + jax.lax.stop_gradient(chosen - z)


def gaussian(kl_weight: float = 1e-6, elements: int = 1) -> Quantiser:
    """Gaussian latents with a small KL to N(0, I) (Rombach et al. 2022, appendix G): no codes.

    The encoder gives mean and log-variance, each [B, h, w, width]; the decoder a sample in
    training, else the mean. The loss is kl_weight times the nats of an image over `elements`, the
    numbers in it, as the reconstruction is a mean over them. Raises UsageError if kl_weight < 0.
    """
    if kl_weight < 0:
        raise invalid("quantiser.kl_weight", kl_weight, "kl_weight >= 0")

    def quantise(book: PyTree, z: tuple[jax.Array, jax.Array], keys: jax.Array | None) -> Quantised:
        mean, logvar = z
        std = jnp.exp(0.5 * logvar)
        nats = 0.5 * (mean**2 + jnp.exp(logvar) - 1 - logvar).sum((1, 2, 3)).mean()
        drawn = mean if keys is None else mean + std * normal(keys, mean.shape[1:])
        code = jnp.concatenate([mean, std], axis=-1)
        return Quantised(drawn, code, kl_weight / elements * nats, {"kl": nats})

    return Quantiser(None, 0, lambda key: {}, quantise, lambda book, code: code)


def nearest(
    levels: int = 1024,
    *,
    width: int = 256,
    commitment: float = 0.25,
    codebook: Codebook = "loss",
    decay: float = 0.99,
    l2: bool = False,
    revive: float = 0.0,
) -> Quantiser:
    """The nearest of `levels` learned vectors (van den Oord et al. 2017, VQ-VAE).

    commitment: weight of |z - sg code|^2 (a mean over elements). codebook: "loss", codes learn from
    |sg z - code|^2; "average", codes are running means of what chose them with `decay` per step
    (VQ-VAE, appendix A.1). l2: vectors and codes on the unit sphere (Yu et al. 2022, ViT-VQGAN).
    revive: a code chosen less often than this share of 1 / levels, by a running mean with `decay`,
    becomes a random vector of the batch (Dhariwal et al. 2020, Jukebox); 0: never.
    """
    if levels < 2 or width < 1:
        raise invalid("quantiser", dict(levels=levels, width=width), "levels >= 2, width >= 1")
    if commitment < 0 or not 0 <= decay < 1 or not 0 <= revive < 1:
        raise invalid(
            "quantiser",
            dict(commitment=commitment, decay=decay, revive=revive),
            "commitment >= 0, 0 <= decay < 1, 0 <= revive < 1",
        )
    trained = codebook == "loss"
    hold = jax.lax.stop_gradient

    def place(v: jax.Array) -> jax.Array:
        return v / jnp.maximum(jnp.linalg.norm(v, axis=-1, keepdims=True), 1e-6) if l2 else v

    def init(key: jax.Array) -> PyTree:
        codes = jax.random.normal(key, (levels, width)) / width**0.5
        return {"codes": place(codes)}

    def quantise(book: PyTree, z: jax.Array, keys: jax.Array | None) -> Quantised:
        codes, z = place(book["codes"]), place(z.astype(jnp.float32))
        flat = z.reshape(-1, width)
        tokens = nearest_code(hold(flat), hold(codes))
        chosen = codes[tokens].reshape(z.shape)
        commit = jnp.square(z - hold(chosen)).mean()
        loss = commitment * commit
        if trained:
            loss += jnp.square(hold(z) - chosen).mean()
        sums = jnp.zeros((levels, width)).at[tokens].add(hold(flat)) / len(flat)
        tokens = tokens.reshape(z.shape[:-1])
        return Quantised(straight_through(z, chosen), tokens, loss, {"distortion": commit}, sums)

    def embed(book: PyTree, tokens: jax.Array) -> jax.Array:
        return jnp.take(place(book["codes"]), tokens, axis=0, mode="fill", fill_value=jnp.nan)

    def refresh(
        book: PyTree, state: PyTree, share: jax.Array, sums: jax.Array, candidates: jax.Array
    ) -> tuple[PyTree, PyTree]:
        codes = book["codes"]
        # 1 is what every code has when all are chosen alike.
        use = decay * state["use"] + (1 - decay) * share * levels
        averages = {"use": use}
        if not trained:
            total = decay * state["total"] + (1 - decay) * sums * levels
            codes = place(total / jnp.maximum(use, 1e-6)[:, None])
            averages["total"] = total
        if revive:
            dead = use < revive
            codes = jnp.where(dead[:, None], place(candidates), codes)
            averages["use"] = jnp.where(dead, 1.0, use)
            if not trained:
                averages["total"] = jnp.where(dead[:, None], codes, averages["total"])
        return {"codes": codes}, averages

    def start_from(book: PyTree) -> PyTree:
        state = {"use": jnp.ones(levels)}
        return state if trained else {**state, "total": jnp.copy(book["codes"])}

    return Quantiser(
        levels,
        width,
        init,
        quantise,
        embed,
        trained,
        start_from,
        refresh if revive or not trained else None,
    )


def nearest_code(z: jax.Array, codes: jax.Array) -> jax.Array:
    """int32 [N]: for each row of z [N, D] the closest of codes [K, D], the first of equals."""
    inner = jnp.matmul(z, codes.T, precision=jax.lax.Precision.HIGHEST)
    # |z|^2 is the same for all codes.
    return jnp.argmin(jnp.square(codes).sum(-1) - 2 * inner, axis=-1).astype(jnp.int32)


def lookup_free(
    bits: int = 12,
    *,
    commitment: float = 0.25,
    entropy: float = 0.1,
    diversity: float = 1.0,
    temperature: float = 0.01,
    group: int = 1,
) -> Quantiser:
    """The signs of `bits` channels: code i's bit b is whether channel b is positive.

    Lookup-free quantisation (Yu et al. 2024, MAGVIT-v2, section 3.1), the tokenizer side of MaskBit
    (Weber et al. 2024). `bit_entropies` of p(bit) = sigmoid(4 z / temperature) gives the entropy
    loss: entropy (per vector - diversity x of the batch), nats per bit. group: as many bits are
    taken together in the batch's entropy (must divide `bits`); 1 takes them as independent.
    """
    _check_bits(bits)
    if group < 1 or bits % group or group > 12:
        raise invalid("quantiser.group", group, f"divisors of bits={bits}, at most 12")
    if temperature <= 0 or min(commitment, entropy, diversity) < 0:
        raise invalid(
            "quantiser",
            dict(
                temperature=temperature, commitment=commitment, entropy=entropy, diversity=diversity
            ),
            "temperature > 0, the others >= 0",
        )

    def quantise(book: PyTree, z: jax.Array, keys: jax.Array | None) -> Quantised:
        z = z.astype(jnp.float32)
        chosen = jnp.where(z > 0, 1.0, -1.0)
        per_code, batch = bit_entropies(4 * z / temperature, group)
        commit = jnp.square(z - chosen).mean()
        loss = commitment * commit + entropy * (per_code - diversity * batch)
        metrics = {"distortion": commit, "bit_entropy": per_code, "batch_bit_entropy": batch}
        return Quantised(straight_through(z, chosen), to_index(chosen > 0), loss, metrics)

    def embed(book: PyTree, tokens: jax.Array) -> jax.Array:
        return 2.0 * to_bits(tokens, bits) - 1

    return Quantiser(2**bits, bits, lambda key: {}, quantise, embed)


def bernoulli(bits: int = 16, *, entropy: float = 0.0) -> Quantiser:
    """Bits drawn with probability sigmoid(z) in training, rounded otherwise; the decoder sees 0, 1.

    The binary autoencoder of Wang et al. 2023 (Binary Latent Diffusion, section 3.1), BiGR's
    tokenizer. The gradient is that of the probability. entropy: weight of minus the batch's bit
    entropy (nats per bit), which keeps bits in use.
    """
    _check_bits(bits)
    if entropy < 0:
        raise invalid("quantiser.entropy", entropy, "a number >= 0")

    def quantise(book: PyTree, z: jax.Array, keys: jax.Array | None) -> Quantised:
        z = z.astype(jnp.float32)
        p = jax.nn.sigmoid(z)
        if keys is None:
            on = p > 0.5
        else:
            on = jax.vmap(lambda k, p: jax.random.uniform(k, p.shape) < p)(keys, p)
        per_code, batch = bit_entropies(z, 1)
        metrics = {"bit_entropy": per_code, "batch_bit_entropy": batch}
        chosen = straight_through(p, on.astype(jnp.float32))
        return Quantised(chosen, to_index(on), -entropy * batch, metrics)

    def embed(book: PyTree, tokens: jax.Array) -> jax.Array:
        return to_bits(tokens, bits).astype(jnp.float32)

    return Quantiser(2**bits, bits, lambda key: {}, quantise, embed)


def to_index(on: jax.Array) -> jax.Array:
    """Bits [..., n] (the first is the least) -> int32 [...]."""
    return (on.astype(jnp.int32) << jnp.arange(on.shape[-1])).sum(-1).astype(jnp.int32)


def to_bits(index: jax.Array, bits: int) -> jax.Array:
    """The inverse of `to_index`: int32 [...] -> int32 in {0, 1}, [..., bits]."""
    return (index[..., None] >> jnp.arange(bits)) & 1


def bit_entropies(logits: jax.Array, group: int) -> tuple[jax.Array, jax.Array]:
    """Nats per bit of independent bits with these logits [..., n]: (mean of each, of their mean).

    The second is the entropy of the batch's mean distribution of each `group` of bits, over all of
    its 2^group values.
    """
    bits = logits.shape[-1]
    logits = logits.reshape(-1, bits // group, group)
    log_on, log_off = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    p = jnp.exp(log_on)
    per_code = -(p * log_on + (1 - p) * log_off).mean()
    values = to_bits(jnp.arange(2**group), group)
    joint = (values * log_on[..., None, :] + (1 - values) * log_off[..., None, :]).sum(-1)
    mean = jnp.exp(joint).mean(0)
    batch = -jnp.where(mean > 0, mean * jnp.log(jnp.maximum(mean, 1e-30)), 0).sum(-1)
    return per_code, batch.mean() / group


def perplexity(share: jax.Array) -> jax.Array:
    """exp of the entropy of shares [K]: the effective number of codes in use."""
    return jnp.exp(-(share * jnp.log(jnp.maximum(share, 1e-30))).sum())


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= MOST_BITS:
        raise invalid("quantiser.bits", bits, f"1 to {MOST_BITS}")
