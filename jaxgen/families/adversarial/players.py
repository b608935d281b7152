"""`Players`: a generator and a discriminator, and the loss of each against the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.errors import UsageError, invalid
from jaxgen.families.adversarial.augmentation import Augment
from jaxgen.families.adversarial.head import Judgement
from jaxgen.families.adversarial.latent import Latent
from jaxgen.families.adversarial.loss import Loss
from jaxgen.families.adversarial.regularisers import Case, Regulariser
from jaxgen.method import Batch, Metrics, Spec, example_keys, fold
from jaxgen.method.streams import NOISE

JUDGE = 1
"""The stream of the discriminator's first parameters."""

PyTree = Any
STATISTICS = ["batch_stats", "spectral"]
AUGMENT, FAKE_AUGMENT, PENALTIES = 1, 2, 3
"""An example's streams beside `NOISE`: augmentation of what is shown first (the real image, the
generator's own fake), of the fake beside it, and from the last on one for each regulariser."""


class Discriminator(nn.Module):
    """A backbone and a head: (x[B, *shape], labels[B]) -> `Judgement`."""

    backbone: nn.Module
    head: nn.Module

    @nn.compact
    def __call__(self, x: jax.Array, labels: jax.Array, *, train: bool = False) -> Judgement:
        """Logits [B] of images or anything else of the backbone's shape."""
        return self.head(self.backbone(x, train=train), labels, train=train)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Players:
    """The networks and what they play for; networks that do not fit together are refused.

    Parameters are {"generator", "discriminator", "statistics"?}, the last what the generator's
    batch and spectral norms carry; the discriminator's are in extra["discriminator"].
    """

    spec: Spec
    generator: Any
    judge: Discriminator
    loss: Loss
    latent: Latent
    regularisers: Sequence[Regulariser]
    augment: Augment | None
    statistics_decay: float

    def __post_init__(self) -> None:
        """Raises UsageError for networks that do not fit together."""
        _check_parts(self.loss, self.regularisers, self.augment, self.judge)

    def fresh(self, key: jax.Array) -> tuple[dict[str, PyTree], PyTree]:
        """First parameters, and the discriminator's statistics where it has any."""
        spec, labels = self.spec, jnp.zeros(1, jnp.int32)
        z = jnp.zeros((1, self.latent.size))
        g = self.generator.init(key, z, labels)
        shape = jax.eval_shape(self.generator.apply, g, z, labels).shape[1:]
        if shape != tuple(spec.shape):
            raise invalid("config.model.generator", shape, f"images of {spec.shape}")
        d = self.judge.init(jax.random.fold_in(key, JUDGE), jnp.zeros((1, *spec.shape)), labels)
        params = {"generator": g.pop("params"), "discriminator": d.pop("params")}
        if g:
            params["statistics"] = g
        return self.projected(params), {"discriminator": d} if d else ()

    def projected(self, params: PyTree) -> PyTree:
        """Params with the discriminator's where the regularisers want them."""
        for rule in self.regularisers:
            if rule.project is not None:
                params = {**params, "discriminator": rule.project(params["discriminator"])}
        return params

    def discriminator_loss(
        self, params: PyTree, batch: Batch, key: jax.Array, extra: PyTree
    ) -> tuple[jax.Array, tuple[Metrics, PyTree]]:
        """Real against fake images, and penalties."""
        d, statistics = params["discriminator"], extra["discriminator"] if extra else {}
        keys, labels, real = example_keys(key, batch), batch["label"], batch["image"]
        fake, _ = self.generator.apply(
            {"params": params["generator"], **params.get("statistics", {})},
            self.latent.draw(fold(keys, NOISE)),
            labels,
            train=True,
            mutable=["batch_stats"],
        )
        fake = jax.lax.stop_gradient(fake)
        shown = [self._shown(real, keys, AUGMENT), self._shown(fake, keys, FAKE_AUGMENT)]
        judged, new = self.judge.apply(
            {"params": d, **statistics},
            jnp.concatenate(shown),
            jnp.concatenate([labels, labels]),
            train=True,
            mutable=STATISTICS,
        )
        value, metrics = judgement_loss(self.loss, judged)
        metrics["loss"] = metrics["d_loss"]
        logits = self._logits(d, statistics)
        for number, rule in enumerate(self.regularisers):
            if rule.penalty is not None:
                penalty_keys = fold(keys, PENALTIES + number)
                case = Case(logits, real, fake, labels, penalty_keys, self.augment)
                metrics[rule.name] = rule.penalty(case)
                value += metrics[rule.name]
            if rule.weights is not None and "discriminator" in rule.networks:
                metrics[f"{rule.name}_discriminator"] = rule.weights(d)
                value += metrics[f"{rule.name}_discriminator"]
        if extra:
            extra = {"discriminator": self._averaged(statistics, new)}
        return value, (metrics, extra)

    def generator_loss(
        self, params: PyTree, batch: Batch, key: jax.Array, extra: PyTree
    ) -> tuple[jax.Array, tuple[Metrics, PyTree]]:
        """Fake images as the discriminator sees them."""
        g, carried = params["generator"], extra or {}
        statistics, d_statistics = (carried.get(n, {}) for n in ("statistics", "discriminator"))
        keys, labels = example_keys(key, batch), batch["label"]
        fake, new = self.generator.apply(
            {"params": g, **statistics},
            self.latent.draw(fold(keys, NOISE)),
            labels,
            train=True,
            mutable=STATISTICS,
        )
        judged, _ = self.judge.apply(
            {"params": params["discriminator"], **d_statistics},
            self._shown(fake, keys, AUGMENT),
            labels,
            train=True,
            mutable=["batch_stats"],
        )
        value = self.loss.generator(judged.logits)
        metrics = {"g_loss": value, "loss": value}
        for rule in self.regularisers:
            if rule.weights is not None and "generator" in rule.networks:
                metrics[rule.name] = rule.weights(g)
                value += metrics[rule.name]
        if statistics:
            extra = {**extra, "statistics": self._averaged(statistics, new)}
        return value, (metrics, extra)

    def _shown(self, x: jax.Array, keys: jax.Array, stream: int) -> jax.Array:
        return x if self.augment is None else self.augment(x, fold(keys, stream))

    def _logits(self, d: PyTree, statistics: PyTree) -> Callable[..., jax.Array]:
        def logits(x: jax.Array, labels: jax.Array) -> jax.Array:
            judged: Any = self.judge.apply({"params": d, **statistics}, x, labels)
            return judged.logits

        return logits

    def _averaged(self, old: PyTree, new: PyTree) -> PyTree:
        """Running averages of moments; the power iterations' vectors as they are now."""
        averages, decay = dict(new), self.statistics_decay
        if "batch_stats" in new:
            averages["batch_stats"] = jax.tree.map(
                lambda a, b: decay * a + (1 - decay) * b, old["batch_stats"], new["batch_stats"]
            )
        return averages


def judgement_loss(loss: Loss, judged: Judgement) -> tuple[jax.Array, Metrics]:
    """The discriminator's loss of a batch whose first half is real, and its metrics.

    SAN's direction learns from the Wasserstein loss whichever the loss is (Takida et al. 2024).
    """
    real, fake = jnp.split(judged.logits, 2)
    value = loss.discriminator(real, fake)
    metrics = {
        "d_loss": value,
        "d_real": (real > loss.threshold).mean(),
        "d_fake": (fake <= loss.threshold).mean(),
    }
    if judged.direction is not None:
        real, fake = jnp.split(judged.direction, 2)
        metrics["direction"] = real.mean() - fake.mean()
        value = value - metrics["direction"]
    return value, metrics


def _check_parts(
    loss: Loss, rules: Sequence[Regulariser], augment: Augment | None, judge: Discriminator
) -> None:
    """Refuse what cannot mean anything."""
    names = [rule.name for rule in rules]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise invalid("method.regularisers", names, f"{sorted(twice)[0]} once")
    for rule in rules:
        if rule.augmented and augment is None:
            raise UsageError(
                f"method.regularisers: {rule.name} compares an image with its augmentation; "
                "set method.augmentation."
            )
    spectral = getattr(judge.backbone, "spectral", False)
    if loss.lipschitz and not spectral and not any(rule.lipschitz for rule in rules):
        raise invalid(
            "method.loss",
            "wasserstein with an unbounded discriminator",
            "wasserstein with a bound on the discriminator's slope",
            "Add clip or gradient_penalty to method.regularisers, or spectral=True to "
            "config.model.discriminator.",
        )
