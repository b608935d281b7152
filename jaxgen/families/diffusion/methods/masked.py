"""`masked_denoising`: one network that denoises and fills in masked patches.

Hansen-Estruch et al., "Unified Auto-Encoding with Masked Diffusion" (2024): the times of diffusion
get one more, without noise and highly masked (the representation step, a masked autoencoder's, He
et al. 2022); at all others patches are noised and some of them masked.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxgen.config import ROOMS, part
from jaxgen.errors import invalid
from jaxgen.families.diffusion.core.denoiser import Network
from jaxgen.families.diffusion.core.path import Path
from jaxgen.families.diffusion.core.prediction import target, x0_gain
from jaxgen.families.diffusion.core.times import Times
from jaxgen.families.diffusion.core.weighting import Weighting
from jaxgen.families.diffusion.methods.denoising import denoising
from jaxgen.method import (
    Averages,
    Batch,
    LossFn,
    Method,
    Metrics,
    Spec,
    drop_labels,
    dropout_key,
    example_keys,
    fold,
    normal,
    only_learner,
    retrained,
)
from jaxgen.method.streams import LABEL, NOISE, OTHER, STEP_TIME, TIME
from jaxgen.nn.dit import patchify
from jaxgen.nn.masked_dit import MaskedDiT

REPRESENTATION = 1
"""The stream of dropout in the pass over clean images."""

PyTree = Any


def masked_denoising(
    spec: Spec,
    model: Any,
    optimizer: optax.GradientTransformation,
    averages: Averages,
    *,
    path: Path | str = "linear",
    prediction: str = "velocity",
    weighting: Any = "simple",
    times: Any = "uniform",
    label_dropout: float = 0.1,
    sigma_data: float = 0.5,
    representation: float = 0.5,
    representation_mask: float = 0.75,
    mask: float = 0.375,
    reconstruction: float = 1.0,
    accumulate: int = 1,
) -> Method:
    """Train a `nn.masked_dit.MaskedDiT` to denoise what it sees and to fill in what it does not.

    representation: the share of a batch's examples (of a microbatch's) that the representation step
    gets: no noise, no label, representation_mask of the patches masked. The rest is noised, `mask`
    of its patches masked. Shares of patches are rounded to whole ones. The defaults of the three
    are those of the authors' code. reconstruction: the weight of the masked patches' squared error
    against the clean ones, in both; 0 leaves the denoising of visible patches. The authors weigh
    the denoising of a noised example and its reconstruction by 1/2 each and give each its own
    output channels; here a patch has one output, of the kind that its place asks for.

    All else, sampling included, is `denoising`'s, by the network that sees everything. Not
    separable: which examples are noised is a matter of their place in what the loss is given.

    Raises UsageError: values out of range, another network.
    """
    if not isinstance(model, MaskedDiT):
        raise invalid("model.name", type(model).__name__, "masked_dit.MaskedDiT")
    if not 0 <= representation <= 1:
        raise invalid("method.representation", representation, "0 <= representation <= 1")
    if reconstruction < 0:
        raise invalid("method.reconstruction", reconstruction, "reconstruction >= 0")
    counts = []
    for option, ratio in (("representation_mask", representation_mask), ("mask", mask)):
        if not 0 <= ratio < 1:
            raise invalid(f"method.{option}", ratio, f"0 <= {option} < 1")
        counts.append(_kept(spec, model, option, ratio))
    if representation and counts[0] == _patches(spec, model):
        raise invalid(
            "method.representation_mask", representation_mask, "a share that masks a patch or more"
        )
    route: Path = part(path, ROOMS["path"], "method.path")
    sampled: Times = part(times, ROOMS["times"], "method.times")
    weights: Weighting = part(weighting, ROOMS["weighting"], "method.weighting")
    whole = denoising(
        spec,
        model,
        optimizer,
        averages,
        path=route,
        prediction=prediction,
        weighting=weights,
        times=sampled,
        label_dropout=label_dropout,
        sigma_data=sigma_data,
    )
    loss = masked_loss(
        Network(model.clone(out_channels=spec.shape[-1]), route, prediction, sigma_data),
        sampled,
        weights,
        num_classes=spec.num_classes,
        label_dropout=label_dropout,
        representation=representation,
        kept=(counts[0], counts[1]),
        reconstruction=reconstruction,
    )
    learner = dataclasses.replace(only_learner(whole, "method"), loss=loss)
    masked = retrained(whole, learners={"net": learner}, accumulate=accumulate)
    return dataclasses.replace(masked, train_flops=None, separable=False)


def masked_loss(
    network: Network,
    times: Times,
    weighting: Weighting,
    *,
    num_classes: int,
    label_dropout: float,
    representation: float,
    kept: tuple[int, int],
    reconstruction: float,
) -> LossFn:
    """loss(params, batch, key, extra), the mean over examples of either kind's.

    kept: visible patches in the representation step and in the others. Metrics: `mse`, of noised
    visible patches, `mse_masked` of their masked ones, `mse_representation`. An example's draws are
    `denoising_loss`'s and one more, so that with nothing masked the losses are the same.
    """
    path, kind, sigma_data = network.path, network.kind, network.sigma_data
    patch = network.model.patch

    def shown(keys: jax.Array, x0: jax.Array, count: int) -> tuple[jax.Array | None, jax.Array]:
        """The visible patches, as the network takes them and as bool [B, N]."""
        total = x0.shape[1] * x0.shape[2] // patch**2
        if count == total:
            return None, jnp.ones((len(x0), total), bool)
        visible = visible_patches(fold(keys, OTHER), total, count)
        return visible, (visible[:, :, None] == jnp.arange(total)).any(1)

    def represented(params: PyTree, batch: Batch, dropout: jax.Array) -> tuple[jax.Array, Metrics]:
        x0 = batch["image"]
        visible, seen = shown(batch["keys"], x0, kept[0])
        t, labels = jnp.zeros(len(x0)), jnp.full_like(batch["label"], num_classes)
        out, _ = network.output(params["net"], x0, t, labels, dropout, visible=visible)
        error = patch_mean((out - x0) ** 2, ~seen, patch)
        return (reconstruction * error).sum(), {"mse_representation": error.mean()}

    def noised(
        params: PyTree, batch: Batch, step: jax.Array, dropout: jax.Array, extra: PyTree
    ) -> tuple[jax.Array, Metrics, PyTree]:
        x0, keys, state = batch["image"], batch["keys"], extra["times"]
        visible, seen = shown(keys, x0, kept[1])
        t, importance = times.draw(fold(keys, TIME), step, batch["index"], path, state)
        eps = normal(fold(keys, NOISE), x0.shape[1:])
        labels = drop_labels(fold(keys, LABEL), batch["label"], label_dropout, num_classes)
        x = path.mix(x0, eps, t)
        out, _ = network.output(params["net"], x, t, labels, dropout, visible=visible)
        wanted = target(kind, x0, eps, t, path, sigma_data=sigma_data)
        error = patch_mean((out - wanted) ** 2, seen, patch)
        weighted = error * weighting(path, t, x0_gain(kind, t, path, sigma_data=sigma_data))
        state = times.update(state, t, jax.lax.stop_gradient(weighted))
        metrics = {"mse": error.mean()}
        if visible is not None:
            hidden = patch_mean((out - x0) ** 2, ~seen, patch)
            metrics["mse_masked"] = hidden.mean()
            weighted = weighted + reconstruction * hidden
        return (importance * weighted).sum(), metrics, {**extra, "times": state}

    def loss(
        params: PyTree, batch: Batch, key: jax.Array, extra: PyTree
    ) -> tuple[jax.Array, tuple[Metrics, PyTree]]:
        size = batch["label"].shape[0]
        count = round(representation * size)
        if count in (0, size) and 0 < representation < 1:
            allowed = f"a share of whole examples, and not all, of {size} in a microbatch"
            raise invalid("method.representation", representation, allowed)
        examples = {
            "image": batch["image"].astype(jnp.float32),
            "label": batch["label"],
            "index": batch["index"],
            "keys": example_keys(key, batch),
        }
        clean, rest = divided(examples, count)
        dropout, total = dropout_key(key, batch), jnp.zeros(())
        metrics: Metrics = {}
        if count < size:
            step = jax.random.fold_in(key, STEP_TIME)
            total, metrics, extra = noised(params, rest, step, dropout, extra)
        if count:
            other, more = represented(params, clean, jax.random.fold_in(dropout, REPRESENTATION))
            total, metrics = total + other, metrics | more
        return total / size, (metrics, extra)

    return loss


def visible_patches(keys: jax.Array, total: int, count: int) -> jax.Array:
    """Places of `count` of `total` patches for each of keys [B], uniform, sorted: [B, count]."""
    return jax.vmap(lambda key: jnp.sort(jax.random.permutation(key, total)[:count]))(keys)


def patch_mean(a: jax.Array, chosen: jax.Array, patch: int) -> jax.Array:
    """The mean of a [B, H, W, C] over the patches chosen, bool [B, N], one or more: [B]."""
    each = patchify(a, patch).reshape(*chosen.shape, -1).mean(-1)
    return jnp.where(chosen, each, 0.0).sum(1) / chosen.sum(1)


def divided(tree: PyTree, count: int) -> tuple[PyTree, PyTree]:
    """Arrays [B, ...] as (count of their rows, the others), spread evenly over the batch.

    Each group of B / gcd(B, count) neighbours gives the same rows, so that those of a device stay
    on it where it holds whole groups.
    """
    size = jax.tree.leaves(tree)[0].shape[0]
    groups = math.gcd(size, count)

    def rows(a: jax.Array, start: int, stop: int) -> jax.Array:
        grouped = a.reshape(groups, size // groups, *a.shape[1:])[:, start:stop]
        return grouped.reshape(-1, *a.shape[1:])

    local, all_ = count // groups, size // groups
    return (
        jax.tree.map(lambda a: rows(a, 0, local), tree),
        jax.tree.map(lambda a: rows(a, local, all_), tree),
    )


def _patches(spec: Spec, model: MaskedDiT) -> int:
    height, width, _ = spec.shape
    return (height // model.patch) * (width // model.patch)


def _kept(spec: Spec, model: MaskedDiT, option: str, ratio: float) -> int:
    """How many patches stay visible. Raises UsageError: none."""
    total = _patches(spec, model)
    kept = total - round(ratio * total)
    if kept < 1:
        raise invalid(f"method.{option}", ratio, f"a share that leaves one of {total} patches")
    return kept
