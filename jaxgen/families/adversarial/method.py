"""`adversarial`: a generator against a discriminator as a Method, from a loss, a head and the rest.

Goodfellow et al. 2014. Loss, head, regularisers, augmentation and latent law are chosen one by one;
combinations that mean nothing are refused when the config is built.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.config import part
from jaxgen.errors import UsageError, invalid
from jaxgen.families.adversarial.augmentation import Augment
from jaxgen.families.adversarial.head import Judgement
from jaxgen.families.adversarial.latent import Latent
from jaxgen.families.adversarial.loss import Loss
from jaxgen.families.adversarial.regularisers import Case, Regulariser
from jaxgen.method import (
    Averages,
    Batch,
    Learner,
    Method,
    Metrics,
    Sampler,
    Spec,
    Training,
    example_keys,
    fold,
    method_of,
    optimizers_of,
)
from jaxgen.method.streams import NOISE

PyTree = Any
ROOM = "jaxgen.families.adversarial"
STATISTICS = ["batch_stats", "spectral"]
STANDING = 7  # the seed of the latents from which standing statistics come


class Discriminator(nn.Module):
    """A backbone and a head: (x[B, *shape], labels[B]) -> `Judgement`."""

    backbone: nn.Module
    head: nn.Module

    @nn.compact
    def __call__(self, x: jax.Array, labels: jax.Array, *, train: bool = False) -> Judgement:
        """Logits [B] of images or anything else of the backbone's shape."""
        return self.head(self.backbone(x, train=train), labels, train=train)


def adversarial(
    spec: Spec,
    model: Any,
    optimizer: Any,
    averages: Averages,
    *,
    loss: Any = "non_saturating",
    head: Any = "projection",
    regularisers: Sequence[Any] = (),
    augmentation: Any = None,
    latent: Any = "normal",
    discriminator_steps: int = 1,
    statistics_decay: float = 0.9,
    accumulate: int = 1,
) -> Method:
    """Train a generator and a discriminator against each other; sample the averaged generator.

    model: {"generator": module(z, labels, *, train), "discriminator": a backbone (x, *, train) ->
    features}. optimizer: one for both networks, or one each under the same names. loss, head,
    regularisers, augmentation, latent: sections or names in the files of this family, or already
    built. discriminator_steps: steps of the discriminator for each one of the generator, each on
    its share of the batch; schedules go by updates all the same. statistics_decay: of the running
    averages of batch norm's moments.

    Fake images have the labels of the real ones. Parameters are {"generator", "discriminator",
    "statistics"?}: the last holds what the generator's batch and spectral norms carry. The averages
    are of generator and statistics. A sample of the null label has a label drawn uniformly.

    Raises UsageError for parts that do not fit together.
    """
    _check_data(spec)
    if not isinstance(model, Mapping) or set(model) != {"generator", "discriminator"}:
        raise invalid("config.model", _kind(model), "sections generator and discriminator")
    if discriminator_steps < 1:
        raise invalid("method.discriminator_steps", discriminator_steps, "steps >= 1")
    if not 0 <= statistics_decay < 1:
        raise invalid("method.statistics_decay", statistics_decay, "0 <= decay < 1")

    def chosen(value: Any, key: str) -> Any:
        return part(value, f"{ROOM}.{key}", f"method.{key}", num_classes=spec.num_classes)

    game: Loss = chosen(loss, "loss")
    law: Latent = chosen(latent, "latent")
    augment: Augment | None = None if augmentation is None else chosen(augmentation, "augmentation")
    rules: list[Regulariser] = [chosen(r, "regularisers") for r in regularisers]
    backbone = model["discriminator"]
    judge = Discriminator(backbone, chosen(head, "head"))
    _check_parts(game, rules, augment, judge)
    generator = model["generator"]

    def projected(params: PyTree) -> PyTree:
        for rule in rules:
            if rule.project is not None:
                params = {**params, "discriminator": rule.project(params["discriminator"])}
        return params

    def fresh(key: jax.Array) -> tuple[dict[str, PyTree], PyTree]:
        labels = jnp.zeros(1, jnp.int32)
        g = generator.init(key, jnp.zeros((1, law.size)), labels)
        _check_output(g, generator, law, spec)
        d = judge.init(jax.random.fold_in(key, 1), jnp.zeros((1, *spec.shape)), labels)
        params = {"generator": g.pop("params"), "discriminator": d.pop("params")}
        if g:
            params["statistics"] = g
        return projected(params), {"discriminator": d} if d else ()

    def moved(old: PyTree, new: PyTree) -> PyTree:
        """Running averages of moments; the power iterations' vectors as they are now."""
        found = dict(new)
        if "batch_stats" in new:
            found["batch_stats"] = jax.tree.map(
                lambda a, b: statistics_decay * a + (1 - statistics_decay) * b,
                old["batch_stats"],
                new["batch_stats"],
            )
        return found

    def logits_of(d: PyTree, statistics: PyTree) -> Callable[..., jax.Array]:
        def logits(x: jax.Array, labels: jax.Array) -> jax.Array:
            judged: Any = judge.apply({"params": d, **statistics}, x, labels)
            return judged.logits

        return logits

    def discriminator_loss(
        params: PyTree, batch: Batch, key: jax.Array, extra: PyTree
    ) -> tuple[jax.Array, tuple[Metrics, PyTree]]:
        d, statistics = params["discriminator"], extra["discriminator"] if extra else {}
        keys, labels, real = example_keys(key, batch), batch["label"], batch["image"]
        fake, _ = generator.apply(
            {"params": params["generator"], **params.get("statistics", {})},
            law.draw(fold(keys, NOISE)),
            labels,
            train=True,
            mutable=["batch_stats"],
        )
        fake = jax.lax.stop_gradient(fake)
        shown = [
            x if augment is None else augment(x, fold(keys, i + 1))
            for i, x in enumerate((real, fake))
        ]
        judged, new = judge.apply(
            {"params": d, **statistics},
            jnp.concatenate(shown),
            jnp.concatenate([labels, labels]),
            train=True,
            mutable=STATISTICS,
        )
        value, metrics = judgement_loss(game, judged)
        metrics["loss"] = metrics["d_loss"]
        for number, rule in enumerate(rules):
            if rule.penalty is not None:
                case = Case(
                    logits_of(d, statistics),
                    real,
                    fake,
                    labels,
                    fold(keys, 3 + number),
                    augment,
                )
                metrics[rule.name] = rule.penalty(case)
                value += metrics[rule.name]
            if rule.weights is not None and "discriminator" in rule.networks:
                metrics[f"{rule.name}_discriminator"] = rule.weights(d)
                value += metrics[f"{rule.name}_discriminator"]
        return value, (metrics, {"discriminator": moved(statistics, new)} if extra else extra)

    def generator_loss(
        params: PyTree, batch: Batch, key: jax.Array, extra: PyTree
    ) -> tuple[jax.Array, tuple[Metrics, PyTree]]:
        g, carried = params["generator"], extra or {}
        statistics, d_statistics = (carried.get(n, {}) for n in ("statistics", "discriminator"))
        keys, labels = example_keys(key, batch), batch["label"]
        fake, new = generator.apply(
            {"params": g, **statistics},
            law.draw(fold(keys, NOISE)),
            labels,
            train=True,
            mutable=STATISTICS,
        )
        shown = fake if augment is None else augment(fake, fold(keys, 1))
        judged, _ = judge.apply(
            {"params": params["discriminator"], **d_statistics},
            shown,
            labels,
            train=True,
            mutable=["batch_stats"],
        )
        value = game.generator(judged.logits)
        metrics = {"g_loss": value, "loss": value}
        for rule in rules:
            if rule.weights is not None and "generator" in rule.networks:
                metrics[rule.name] = rule.weights(g)
                value += metrics[rule.name]
        if statistics:
            extra = {**extra, "statistics": moved(statistics, new)}
        return value, (metrics, extra)

    training = Training(
        learners={
            "discriminator": Learner(
                loss=discriminator_loss,
                trains="discriminator",
                steps=discriminator_steps,
                after=lambda params, extra, metrics: (projected(params), extra, metrics),
            ),
            "generator": Learner(loss=generator_loss, trains="generator", carries=("statistics",)),
        },
        fresh=fresh,
        optimizer=optimizers_of(optimizer, ("generator", "discriminator")),
        averages=averages,
        averaged=("generator", "statistics"),
        accumulate=accumulate,
    )

    def sampler(*, truncation: float | None = None, standing: int = 0) -> Sampler:
        """Images from latents, one network evaluation each.

        truncation: latents are normal given |z| <= truncation, which trades variety for quality.
        standing: moments of batch norm are those of this many such latents (with uniform labels,
        the same in every call) in place of the running averages; it costs as many evaluations a
        call.

        Raises UsageError: truncation <= 0 or of latents that are not normal, standing statistics of
        a generator that has none.
        """
        draw = law.draw
        if truncation is not None:
            if truncation <= 0:
                raise invalid("sample.truncation", truncation, "a number > 0, or None")
            if law.truncated is None:
                raise invalid("sample.truncation", truncation, "None: these latents are not normal")
            draw = law.truncated(truncation)
        if standing < 0 or standing == 1:
            raise invalid("sample.standing", standing, "latents >= 2, or 0 for running averages")
        if standing and not _has_batch_norm(generator, law):
            raise invalid("sample.standing", standing, "0: this generator has no batch norm")

        def fn(params: PyTree, keys: jax.Array, labels: jax.Array) -> jax.Array:
            variables = {"params": params["generator"], **params.get("statistics", {})}
            if standing:
                many = jax.random.split(jax.random.key(STANDING), standing)
                _, new = generator.apply(
                    variables,
                    draw(fold(many, 0)),
                    _any_label(many, spec.num_classes),
                    train=True,
                    mutable=["batch_stats"],
                )
                variables = {**variables, **new}
            labels = jnp.where(
                labels == spec.null_label, _any_label(keys, spec.num_classes), labels
            )
            return generator.apply(variables, draw(fold(keys, 0)), labels)

        return Sampler(fn, calls=1)

    return method_of(spec, training, sampler=sampler)


def judgement_loss(game: Loss, judged: Judgement) -> tuple[jax.Array, Metrics]:
    """The discriminator's loss of a batch whose first half is real, and its metrics.

    SAN's direction learns from the Wasserstein game whatever the loss (Takida et al. 2024).
    """
    real, fake = jnp.split(judged.logits, 2)
    value = game.discriminator(real, fake)
    metrics = {
        "d_loss": value,
        "d_real": (real > game.threshold).mean(),
        "d_fake": (fake <= game.threshold).mean(),
    }
    if judged.direction is not None:
        real, fake = jnp.split(judged.direction, 2)
        metrics["direction"] = real.mean() - fake.mean()
        value = value - metrics["direction"]
    return value, metrics


def _any_label(keys: jax.Array, classes: int) -> jax.Array:
    return jax.vmap(lambda k: jax.random.randint(k, (), 0, classes))(fold(keys, 1))


def _kind(model: Any) -> Any:
    return sorted(model) if isinstance(model, Mapping) else type(model).__name__


def _check_data(spec: Spec) -> None:
    if spec.tokens or spec.target is not None:
        given = "tokens" if spec.tokens else "a target without examples"
        raise invalid("config.data.source", given, "images: adversarial training needs gradients")


def _has_batch_norm(generator: nn.Module, law: Latent) -> bool:
    z, labels = jnp.zeros((1, law.size)), jnp.zeros(1, jnp.int32)
    return "batch_stats" in jax.eval_shape(generator.init, jax.random.key(0), z, labels)


def _check_output(variables: PyTree, generator: nn.Module, law: Latent, spec: Spec) -> None:
    z, labels = jnp.zeros((1, law.size)), jnp.zeros(1, jnp.int32)
    found = jax.eval_shape(generator.apply, variables, z, labels)
    if found.shape[1:] != tuple(spec.shape):
        raise invalid("config.model.generator", found.shape[1:], f"images of {spec.shape}")


def _check_parts(
    game: Loss, rules: Sequence[Regulariser], augment: Augment | None, judge: Discriminator
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
    if game.lipschitz and not spectral and not any(rule.lipschitz for rule in rules):
        raise invalid(
            "method.loss",
            "wasserstein with an unbounded discriminator",
            "wasserstein with a bound on the discriminator's slope",
            "Add clip or gradient_penalty to method.regularisers, or spectral=True to "
            "config.model.discriminator.",
        )
