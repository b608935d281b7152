"""`adversarial`: a generator against a discriminator as a Method, from a loss, a head and the rest.

Goodfellow et al. 2014. Loss, head, regularisers, augmentation and latents are chosen one by one;
combinations that mean nothing are refused when the config is built.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.traverse_util as trees
import jax
import jax.numpy as jnp
import optax

from jaxgen.config import part
from jaxgen.errors import invalid
from jaxgen.families.adversarial.latent import Latent
from jaxgen.families.adversarial.players import Discriminator, Players
from jaxgen.method import (
    Averages,
    Learner,
    Method,
    Sampler,
    Spec,
    Training,
    fold,
    method_of,
    optimizers_of,
)
from jaxgen.method.streams import NOISE

PyTree = Any
ROOM = "jaxgen.families.adversarial"
STANDING = 7  # the seed of the latents from which standing statistics come
ANY_LABEL = 1
"""A sample's stream, beside `NOISE`, of the label that it has where it is given none."""


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
    freeze: str = "",
    accumulate: int = 1,
) -> Method:
    """Train a generator and a discriminator against each other; sample the averaged generator.

    model: {"generator": module(z, labels, *, train), "discriminator": a backbone (x, *, train) ->
    features}. optimizer: one for both networks, or one each under the same names. loss, head,
    regularisers, augmentation, latent: sections or names in the files of this family, or already
    built. discriminator_steps: steps of the discriminator for each one of the generator, each on
    its share of the batch; schedules go by updates all the same. statistics_decay: of the running
    averages of batch norm's moments. freeze: a regular expression of dotted names of the
    discriminator's arrays that are not trained, e.g. r"^backbone.hidden[01]" of a model that is
    tuned (FreezeD, Mo et al. 2020).

    Fake images have the labels of the real ones. Parameters are {"generator", "discriminator",
    "statistics"?}: the last holds what the generator's batch and spectral norms carry. The averages
    are of generator and statistics. A sample of the null label has a label drawn uniformly.

    Raises UsageError for networks that do not fit together.
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

    rules = [chosen(r, "regularisers") for r in regularisers]
    layers = tuple(rule.layer for rule in rules if rule.layer is not None)
    players = Players(
        spec=spec,
        generator=model["generator"],
        judge=Discriminator(model["discriminator"], chosen(head, "head"), layers),
        loss=chosen(loss, "loss"),
        latent=chosen(latent, "latent"),
        regularisers=rules,
        augment=None if augmentation is None else chosen(augmentation, "augmentation"),
        statistics_decay=statistics_decay,
    )
    optimizers = optimizers_of(optimizer, ("generator", "discriminator"))
    if freeze:
        optimizers["discriminator"] = _frozen(optimizers["discriminator"], freeze, players)
    training = Training(
        learners={
            "discriminator": Learner(
                loss=players.discriminator_loss,
                trains="discriminator",
                steps=discriminator_steps,
                after=players.judged,
            ),
            "generator": Learner(
                loss=players.generator_loss,
                trains="generator",
                carries=("statistics",),
                after=players.generated,
            ),
        },
        fresh=players.fresh,
        optimizer=optimizers,
        averages=averages,
        averaged=("generator", "statistics"),
        accumulate=accumulate,
    )

    def sampler(*, truncation: float | None = None, standing: int = 0) -> Sampler:
        """Images from latents, one network evaluation each.

        truncation: latents are normal given |z| <= truncation, which trades variety for quality;
        of a generator with styles, these are drawn towards their mean (psi: 1 not, 0 wholly).
        standing: moments of batch norm are those of this many such latents (with uniform labels,
        the same in every call) in place of the running averages; it costs as many evaluations a
        call.

        Raises UsageError: truncation <= 0 or of latents that are not normal, standing statistics of
        a generator that has none.
        """
        return generator_sampler(spec, players.generator, players.latent, truncation, standing)

    return method_of(spec, training, sampler=sampler)


def generator_sampler(
    spec: Spec, generator: Any, latent: Latent, truncation: float | None, standing: int
) -> Sampler:
    """The sampler of a generator; see `adversarial` for the options."""
    draw = latent.draw
    if truncation is not None and hasattr(generator, "psi"):
        if not 0 <= truncation <= 1:
            allowed = "from 0 to 1, how far styles are from their mean, or None"
            raise invalid("sample.truncation", truncation, allowed)
        generator = generator.clone(psi=truncation)
    elif truncation is not None:
        if truncation <= 0:
            raise invalid("sample.truncation", truncation, "a number > 0, or None")
        if latent.truncated is None:
            raise invalid("sample.truncation", truncation, "None: these latents are not normal")
        draw = latent.truncated(truncation)
    if standing < 0 or standing == 1:
        raise invalid("sample.standing", standing, "latents >= 2, or 0 for running averages")
    if standing and not _has_batch_norm(generator, latent):
        raise invalid("sample.standing", standing, "0: this generator has no batch norm")

    def fn(params: PyTree, keys: jax.Array, labels: jax.Array) -> jax.Array:
        variables = {"params": params["generator"], **params.get("statistics", {})}
        if standing:
            many = jax.random.split(jax.random.key(STANDING), standing)
            _, new = generator.apply(
                variables,
                draw(fold(many, NOISE)),
                _any_label(many, spec.num_classes),
                train=True,
                mutable=["batch_stats"],
            )
            variables = {**variables, **new}
        labels = jnp.where(labels == spec.null_label, _any_label(keys, spec.num_classes), labels)
        return generator.apply(variables, draw(fold(keys, NOISE)), labels)

    return Sampler(fn, calls=1, latents=lambda keys: draw(fold(keys, NOISE)))


def _frozen(optimizer: Any, match: str, players: Players) -> optax.GradientTransformation:
    """The optimizer of a discriminator whose arrays with such names stay. Raises UsageError."""

    def chosen(params: PyTree) -> PyTree:
        flat = trees.flatten_dict(params, sep=".")
        return trees.unflatten_dict({n: bool(re.search(match, n)) for n in flat}, sep=".")

    d = jax.eval_shape(players.fresh, jax.random.key(0))[0]["discriminator"]
    if not any(jax.tree.leaves(chosen(d))):
        names = ", ".join(trees.flatten_dict(d, sep="."))
        raise invalid("method.freeze", match, f"a regular expression that matches one of {names}")
    return optax.chain(optimizer, optax.masked(optax.set_to_zero(), chosen))


def _any_label(keys: jax.Array, classes: int) -> jax.Array:
    return jax.vmap(lambda k: jax.random.randint(k, (), 0, classes))(fold(keys, ANY_LABEL))


def _kind(model: Any) -> Any:
    return sorted(model) if isinstance(model, Mapping) else type(model).__name__


def _check_data(spec: Spec) -> None:
    if spec.tokens or spec.target is not None:
        given = "tokens" if spec.tokens else "a target without examples"
        raise invalid("config.data.source", given, "images: adversarial training needs gradients")


def _has_batch_norm(generator: Any, latent: Latent) -> bool:
    z, labels = jnp.zeros((1, latent.size)), jnp.zeros(1, jnp.int32)
    return "batch_stats" in jax.eval_shape(generator.init, jax.random.key(0), z, labels)
