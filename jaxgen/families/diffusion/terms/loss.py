"""The denoising loss: weighted squared error of what the network predicts, and further terms.

One function of (params, batch, key, extra) in the form of a `Learner`'s loss. All noise of an
example comes from its own key, so the loss does not depend on devices, hosts or microbatches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.families.diffusion.core.coupling import INDEPENDENT, Coupling
from jaxgen.families.diffusion.core.denoiser import Network
from jaxgen.families.diffusion.core.noise import GAUSSIAN, Noise
from jaxgen.families.diffusion.core.path import Path
from jaxgen.families.diffusion.core.prediction import target, x0_gain
from jaxgen.families.diffusion.core.times import Times
from jaxgen.families.diffusion.core.weighting import Weighting
from jaxgen.families.diffusion.descriptions.base import NAME, Description
from jaxgen.families.diffusion.terms.base import Noised, Tap, Term, example_mean
from jaxgen.families.diffusion.terms.variance import variance
from jaxgen.method import Batch, LossFn, Metrics, drop_labels, dropout_key, example_keys, fold
from jaxgen.method.columns import RESERVED
from jaxgen.method.streams import LABEL, NOISE, OTHER, STEP_TIME, TIME

PyTree = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draws:
    """What of training is random: noise and its coupling, times, and which labels are dropped.

    label_dropout: the share of labels replaced by num_classes, "no label" (Ho & Salimans 2022).
    describe: what the network is told in the place of a label. columns: of the data, which it is
    told besides, by the names of the model's conditions. All are dropped together.
    """

    times: Times
    num_classes: int
    label_dropout: float = 0.0
    noise: Noise = GAUSSIAN
    coupling: Coupling = INDEPENDENT
    describe: Description | None = None
    columns: tuple[str, ...] = ()

    def eps(self, x0: jax.Array, keys: jax.Array) -> jax.Array:
        """The noises of examples x0 [B, ...], paired with them."""
        return self.coupling.pair(x0, self.noise.draw(fold(keys, NOISE), x0.shape[1:]))

    def at(
        self,
        path: Path,
        kind: str,
        x0: jax.Array,
        keys: jax.Array,
        t: jax.Array,
        sigma_data: float = 0.5,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(eps, x, target): examples x0 [B, ...] noised to t [B], and what is to be said of it."""
        eps = self.eps(x0, keys)
        return eps, path.mix(x0, eps, t), target(kind, x0, eps, t, path, sigma_data=sigma_data)

    def condition(self, x0: jax.Array, batch: Batch, frozen: PyTree, keys: jax.Array) -> Any:
        """What the network is told of each example before any of it is dropped."""
        missing = [name for name in self.columns if name not in batch]
        if missing:
            allowed = f"columns of the data: {', '.join(set(batch) - set(RESERVED)) or 'none'}"
            raise invalid("model.conditions", missing[0], allowed)
        columns = {name: batch[name] for name in self.columns}
        if self.describe is not None:
            return {NAME: self.describe.told(frozen, x0, keys), **columns}
        return {"label": batch["label"], **columns} if columns else batch["label"]

    def dropped(self, told: Any, keys: jax.Array) -> Any:
        """The same with a share of it dropped."""
        return drop_labels(fold(keys, LABEL), told, self.label_dropout, self.num_classes)


def denoising_loss(
    network: Network,
    times: Times,
    weighting: Weighting,
    *,
    terms: Sequence[Term] = (),
    **draws: Any,
) -> LossFn:
    """loss(params, batch, key, extra): the mean over the batch of the weighted error and all terms.

    params["net"] are the network's, params[term.name] a term's. draws: fields of `Draws`. With a
    learned variance its bound is one of the terms. extra: {"times": the times' state}, which learns
    from the weighted error. A column `weight` [B] multiplies an example's part of the loss.
    Metrics: `mse`, the unweighted error of the network's own output, and each term by its name.
    """
    drawn = Draws(times=times, **draws)
    terms = (*terms, variance()) if network.learned_variance else tuple(terms)

    def loss(
        params: PyTree, batch: Batch, key: jax.Array, extra: PyTree
    ) -> tuple[jax.Array, tuple[Metrics, PyTree]]:
        noised, told = noised_batch(network, weighting, terms, drawn, params, batch, key, extra)
        weighted = noised.error * noised.weight
        state = times.update(extra["times"], noised.t, jax.lax.stop_gradient(weighted))
        metrics, total, frozen = {"mse": noised.error.mean()}, weighted, params.get("frozen", {})
        for term in terms:
            value = term.of(noised, params.get(term.name), frozen.get(term.name))
            metrics[term.name] = value.mean()
            total = total + value
        total = noised.importance * total * batch.get("weight", 1.0)
        describe = drawn.describe
        if describe is not None and describe.loss is not None:
            describe_keys = fold(noised.keys, OTHER)
            fitting = describe.loss(params["describe"], told[NAME], batch["label"], describe_keys)
            metrics["describe"] = fitting.mean()
            total = total + fitting
        return total.mean(), (metrics, {**extra, "times": state})

    return loss


def noised_batch(
    network: Network,
    weighting: Weighting,
    terms: Sequence[Term],
    draws: Draws,
    params: PyTree,
    batch: Batch,
    key: jax.Array,
    extra: PyTree,
) -> tuple[Noised, Any]:
    """The network at a batch noised at random times; and what it was told, none of it dropped."""
    path, kind = network.path, network.kind
    x0, keys = batch["image"].astype(jnp.float32), example_keys(key, batch)
    step = jax.random.fold_in(key, STEP_TIME)
    t, importance = draws.times.draw(fold(keys, TIME), step, batch["index"], path, extra["times"])
    eps, x, wanted = draws.at(path, kind, x0, keys, t, network.sigma_data)
    told = draws.condition(x0, batch, params.get("frozen", {}).get("describe"), keys)
    condition = draws.dropped(told, keys)
    asked = taps_of(terms)
    output, variance, taps = network.tapped(
        params["net"], x, t, condition, dropout_key(key, batch), asked
    )
    return Noised(
        network=network,
        x0=x0,
        eps=eps,
        t=t,
        importance=importance,
        x=x,
        condition=condition,
        batch=batch,
        keys=keys,
        target=wanted,
        output=output,
        variance=variance,
        taps=taps,
        error=example_mean((output - wanted) ** 2),
        weight=weighting(path, t, x0_gain(kind, t, path, sigma_data=network.sigma_data)),
    ), told


def taps_of(terms: Sequence[Term]) -> tuple[Tap, ...]:
    """The layers that terms ask for, each once."""
    return tuple(dict.fromkeys(tap for term in terms for tap in term.taps))
