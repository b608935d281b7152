"""Adapting a generator by a direction: every sample moves the same way from what it was.

Gal et al., "StyleGAN-NADA: CLIP-Guided Domain Adaptation of Image Generators" (2022), eq. 3 to 5:
with a frozen copy that shares latents, 1 - cos(E(G(z)) - E(G_frozen(z)), direction), the direction
being the difference of the two domains' encodings, of texts or of images. Samples stay as different
as they were, where a loss of their nearness to the target would make them one. (The paper chooses
layers by how far their latent codes move; here they are named.)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxgen.config import ROOMS, part
from jaxgen.errors import invalid
from jaxgen.files import local
from jaxgen.method import (
    Batch,
    Encoder,
    Method,
    Spec,
    encoder_of,
    example_keys,
    training_of,
)
from jaxgen.tune.changes import added, shapes, training_changes

PyTree = Any
GROUP, ENCODER = "moved", "direction_encoder"
DRAWS = 2**32 - 22
"""Of a step's key: what the two generators draw."""
SMALL = 1e-4
"""Of the encodings' mean square: the least that a difference counts. At first there is none, and
its slope is along the direction; were it let to be far steeper than all that follow, Adam's second
moment would remember nothing else."""


def directional(
    method: Method,
    *,
    spec: Spec,
    encoder: Any,
    direction: str | Sequence[float],
    match: str = r"^generator\..*\.kernel$",
) -> Method:
    """Train changes of the generator's arrays that match; the rest keeps its bits.

    method: one whose sampler draws in one go (a GAN, a one-call student); give the trained model by
    `config.start`. It needs no images: of a batch the labels alone. encoder: a section of
    `jaxgen.frozen.encoders`, an `Encoder` or a function x -> [B, D]. direction: D numbers, or a
    .npy file of them. match: a regular expression of dotted names, by which layers are left alone.
    Raises UsageError: nothing matches, a direction of another length or of 0, no sampler.
    """
    option = "tune.directional"
    names = [n for n in shapes(method, option) if re.search(match, n.replace("/", "."))]
    if not names:
        known = ", ".join(n.replace("/", ".") for n in shapes(method, option))
        allowed = f"a regular expression that matches one of {known}"
        raise invalid(f"{option}.match", match, allowed)
    if method.sampler is None:
        raise invalid(option, "a method without a sampler", "a method that generates")
    draw = method.sampler().fn
    encode = encoder_of(part(encoder, ROOMS["encoder"], f"{option}.encoder"))
    towards = _direction(direction, encode, spec, f"{option}.direction")

    def loss(params: PyTree, batch: Batch, key: jax.Array, extra: PyTree) -> Any:
        keys = example_keys(jax.random.fold_in(key, DRAWS), batch)
        images = (draw(p, keys, batch["label"]) for p in (added(params, GROUP), params))
        new, old = (encode.apply(params["frozen"][ENCODER], x) for x in images)
        least = SMALL * (old**2).sum(-1).mean()
        cosine = optax.losses.cosine_similarity(new - old, towards, epsilon=least)
        return 1 - cosine.mean(), ({"cosine": cosine.mean()}, extra)

    frozen = {**training_of(method, option).frozen, ENCODER: encode.params}
    return training_changes(method, names, GROUP, loss, frozen=frozen)


def _direction(given: Any, encode: Encoder, spec: Spec, option: str) -> jax.Array:
    """The direction [D]. Raises UsageError unless it is one of the encoder's space."""
    if isinstance(given, str):
        file = local(option, given)
        if not file.is_file():
            raise invalid(option, given, "a .npy file, or numbers")
        given = np.load(file)
    towards = np.asarray(given, np.float32)
    image = jax.ShapeDtypeStruct((1, *spec.shape), jnp.float32)
    size = jax.eval_shape(encode.apply, encode.params, image).shape[1:]
    if towards.shape != size or not np.linalg.norm(towards) > 0:
        what = f"{'x'.join(map(str, towards.shape))} numbers of norm {np.linalg.norm(towards):g}"
        raise invalid(option, what, f"{'x'.join(map(str, size))} numbers, as the encoder's, not 0")
    return jnp.asarray(towards)
