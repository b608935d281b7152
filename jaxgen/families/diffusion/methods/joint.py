"""Images and labels in one diffusion: MT-Diffusion, `Diffusion Models for Multi-Task Generation`.

Chen et al. (2024): encoders take every modality into one space, the forward process noises their
aggregate, and a shared network has a head for each modality. Here z0 = x0 + code[y], so that one
reverse process draws both: z0 first, then y by the label's head, then x0 = z0 - code[y].
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.families.diffusion.core.denoiser import Denoiser, Memory
from jaxgen.families.diffusion.core.path import Path
from jaxgen.families.diffusion.core.prediction import Prediction, target, to_prediction

PyTree = Any


@dataclasses.dataclass(frozen=True, eq=False)
class Joint:
    """A diffusion of z0 = x0 + codes[y] and its two heads.

    model: module(z [B, ..., C], noise [B], labels [B]) -> [B, ..., C + K], any network of the
    library: its last layer is the heads, C channels of the denoiser, then K whose mean over places
    are the label's logits. Its own labels are not used, always 0. codes [K, ..., C]: the label's
    encoder, fixed; the image's is the identity. kind: what the image's head predicts, of
    `prediction.KINDS` but edm.

    The codes decide how much noise hides a label: distances between them much below the data's
    spread make labels a late decision of the sampler, much above it an early one.
    """

    model: Any
    path: Path
    codes: jax.Array
    kind: str = "velocity"

    def __post_init__(self) -> None:
        """Raises UsageError: edm, whose scaling of inputs this has not; fewer than two codes."""
        if self.kind == "edm":
            raise invalid("joint.kind", self.kind, "others")
        if self.codes.shape[0] < 2:
            raise invalid("joint.codes", self.codes.shape, "two classes or more")

    def encode(self, x0: jax.Array, labels: jax.Array) -> jax.Array:
        """The aggregate z0 of images [B, ..., C] and labels [B]."""
        return x0 + self.codes[labels]

    def heads(self, params: PyTree, z: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(the denoiser's output [B, ..., C], logits of p(y | z_t) [B, K]) at z, t [] or [B]."""
        noise = jnp.broadcast_to(self.path.told(t), z.shape[:1])
        nothing = jnp.zeros(z.shape[0], jnp.int32)
        out = self.model.apply({"params": params}, z, noise, nothing)
        image, label = jnp.split(out, [z.shape[-1]], axis=-1)
        if label.shape[-1] != self.codes.shape[0]:
            allowed = z.shape[-1] + self.codes.shape[0]
            raise invalid("model.out_channels", out.shape[-1], f"channels + classes = {allowed}")
        return image, label.reshape(z.shape[0], -1, label.shape[-1]).mean(1)

    def loss(
        self,
        params: PyTree,
        x0: jax.Array,
        labels: jax.Array,
        eps: jax.Array,
        t: jax.Array,
        *,
        label_weight: float = 1.0,
    ) -> jax.Array:
        """|head - target|^2 per element + label_weight times -ln p(y | z_t) in nats; the mean.

        The multi-task bound's two terms with plain weights. x0, eps [B, ...], labels, t [B].
        """
        if label_weight < 0:
            raise invalid("joint.label_weight", label_weight, "label_weight >= 0")
        z0 = self.encode(x0, labels)
        image, logits = self.heads(params, self.path.mix(z0, eps, t), t)
        wanted = target(self.kind, z0, eps, t, self.path)
        nats = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=-1)
        return ((image - wanted) ** 2).mean() + label_weight * nats.mean()

    def denoiser(self, params: PyTree) -> Denoiser:
        """The denoiser of z; any solver and any grid take it to z0."""

        def call(
            keys: jax.Array, z: jax.Array, t: jax.Array, memory: Memory
        ) -> tuple[Prediction, Memory]:
            out = self.heads(params, z, t)[0]
            return to_prediction(self.kind, out, z, t, self.path), memory

        return Denoiser(call, path=self.path)

    def read(
        self, logits: jax.Array, z0: jax.Array, keys: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """(x0 [B, ...], y int32 [B]) of samples z0: y drawn from its head's logits [B, K] there."""
        labels = jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)
        return z0 - self.codes[labels], labels
