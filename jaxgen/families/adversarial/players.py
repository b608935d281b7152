"""`Players`: a generator and a discriminator, and the loss of each against the other."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.errors import UsageError, invalid
from jaxgen.families.adversarial.augmentation import Augmentation
from jaxgen.families.adversarial.judgement import Head, Judgement
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
PSEUDO, PSEUDO_NOISE = 2**30, 2**30 + 1
"""Whether a fake image passes for an example's real one, and the latent of that."""


class Discriminator(nn.Module):
    """A backbone, layers and a head: (x[B, *shape], labels[B]) -> `Judgement`.

    layers: modules (features[B, F]) -> features, which may look at the whole batch.
    """

    backbone: nn.Module
    head: Head
    layers: tuple[nn.Module, ...] = ()

    @property
    def single(self) -> bool:
        """Whether each image is judged by itself."""
        return self.sloped and not getattr(self.backbone, "group", 0)

    @property
    def sloped(self) -> bool:
        """Whether slopes at images are penalised: by themselves, or with what moves their group.

        The latter as the authors of StyleGAN2 do it.
        """
        return not self.layers and not getattr(self.backbone, "batch_norm", False)

    @nn.compact
    def __call__(self, x: jax.Array, labels: jax.Array, *, train: bool = False) -> Judgement:
        """Logits [B] of images or anything else of the backbone's shape."""
        return self.head(self.features(x, train=train), labels, train=train)

    def features(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """What the head sees: [B, F]."""
        h = self.backbone(x, train=train)
        for layer in self.layers:
            h = layer(h)
        return h


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Players:
    """The networks and what they play for; networks that do not fit together are refused.

    Parameters are {"generator", "discriminator", "statistics"?}, the last what the generator's
    batch and spectral norms carry; the discriminator's are in extra["discriminator"], beside
    extra["augmentation"] (the controller's state) and extra["rules"] (the regularisers' by name),
    each where there is one.
    """

    spec: Spec
    generator: Any
    judge: Discriminator
    loss: Loss
    latent: Latent
    regularisers: Sequence[Regulariser]
    augment: Augmentation | None
    statistics_decay: float

    def __post_init__(self) -> None:
        """Raises UsageError for networks that do not fit together."""
        _check_parts(self.loss, self.regularisers, self.augment, self.judge)

    def fresh(self, key: jax.Array) -> tuple[dict[str, PyTree], PyTree]:
        """First parameters, and what the state carries where there is anything."""
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
        params, extra = self.projected(params), {"discriminator": d} if d else {}
        if self.augment is not None and self.augment.controller is not None:
            extra["augmentation"] = self.augment.controller.start()
        rules = {r.name: r.start(params) for r in self.regularisers if r.start is not None}
        if rules:
            extra["rules"] = rules
        return params, extra or ()

    def projected(self, params: PyTree) -> PyTree:
        """Params with the discriminator's where the regularisers want them."""
        for rule in self.regularisers:
            if rule.project is not None:
                params = {**params, "discriminator": rule.project(params["discriminator"])}
        return params

    def judged(self, params: PyTree, extra: PyTree, metrics: Metrics) -> Any:
        """After a step of the discriminator: projections, and what follows its metrics."""
        params, extra = (
            self.projected(params),
            self._followed("discriminator", params, extra, metrics),
        )
        if extra and "augmentation" in extra:
            assert self.augment is not None and self.augment.controller is not None
            state = self.augment.controller.follow(extra["augmentation"], metrics)
            extra = {**extra, "augmentation": state}
        return params, extra, {k: v for k, v in metrics.items() if k != "seen"}

    def generated(self, params: PyTree, extra: PyTree, metrics: Metrics) -> Any:
        """After a step of the generator: what follows its parameters."""
        return params, self._followed("generator", params, extra, metrics), metrics

    def discriminator_loss(
        self, params: PyTree, batch: Batch, key: jax.Array, extra: PyTree
    ) -> tuple[jax.Array, tuple[Metrics, PyTree]]:
        """Real against fake images, and penalties."""
        d, carried = params["discriminator"], dict(extra or {})
        statistics = carried.get("discriminator", {})
        keys, labels, real = example_keys(key, batch), batch["label"], batch["image"]
        generate = lambda z: self._generated(params, z, labels)[0]
        logits = self._logits(d, statistics)
        z = self._latents(keys, lambda z: logits(generate(z), labels))
        fake = generate(z)
        seen_as_real = self._pseudo(real, generate, keys, carried)
        shown = [self._shown(seen_as_real, keys, AUGMENT, carried),
                 self._shown(fake, keys, FAKE_AUGMENT, carried)]  # fmt: skip
        judged, new = self._judgements(d, statistics, shown, labels)
        value, metrics = judgement_loss(self.loss, judged)
        on_real, on_fake = (
            jax.tree.map(lambda a, n=n: jnp.split(a, 2)[n], judged) for n in range(2)
        )
        metrics["seen"] = batch["seen"].mean()
        metrics["loss"] = metrics["d_loss"]
        term = self.judge.head.discriminator_term(on_real, on_fake, labels)
        if judged.classes is not None:
            metrics["d_classes"] = term
            value += term
        if "augmentation" in carried:
            metrics["p"] = carried["augmentation"]["p"]
        for number, rule in enumerate(self.regularisers):
            if rule.penalty is not None:
                case = self._case(params, carried, number, real, fake, labels, keys, z)
                case = case._replace(logits=(on_real.logits, on_fake.logits))
                metrics[rule.name] = rule.penalty(case)
                value += metrics[rule.name]
            if rule.weights is not None and "discriminator" in rule.networks:
                metrics[f"{rule.name}_discriminator"] = self._weighed(
                    rule, "discriminator", params, carried
                )
                value += metrics[f"{rule.name}_discriminator"]
        if statistics:
            carried["discriminator"] = self._averaged(statistics, new)
        return value, (metrics, carried or extra)

    def generator_loss(
        self, params: PyTree, batch: Batch, key: jax.Array, extra: PyTree
    ) -> tuple[jax.Array, tuple[Metrics, PyTree]]:
        """Fake images as the discriminator sees them."""
        carried = dict(extra or {})
        # What the loss moves itself is carried, not read from the parameters.
        params = {**params, **{k: carried[k] for k in ("statistics",) if k in carried}}
        d, d_statistics = params["discriminator"], carried.get("discriminator", {})
        keys, labels = example_keys(key, batch), batch["label"]
        logits = self._logits(d, d_statistics)
        z = self._latents(keys, lambda z: logits(self._generated(params, z, labels)[0], labels))
        fake, new = self._generated(params, z, labels, STATISTICS)
        judged, _ = self.judge.apply(
            {"params": d, **d_statistics},
            self._shown(fake, keys, AUGMENT, carried),
            labels,
            train=True,
            mutable=["batch_stats"],
        )
        value = self._selected(judged.logits, batch["seen"][0])
        metrics = {"g_loss": value, "loss": value}
        if judged.classes is not None:
            metrics["g_classes"] = self.judge.head.generator_term(judged, labels)
            value += metrics["g_classes"]
        for number, rule in enumerate(self.regularisers):
            if rule.generator is not None:
                real = batch["image"]
                case = self._case(params, carried, number, real, fake, labels, keys, z)
                found = rule.generator(case)
                found, more = found if isinstance(found, tuple) else (found, {})
                metrics |= {f"{rule.name}_generator": found, **more}
                value += found
            if rule.weights is not None and "generator" in rule.networks:
                metrics[rule.name] = self._weighed(rule, "generator", params, carried)
                value += metrics[rule.name]
        if "statistics" in carried:
            carried["statistics"] = self._averaged(carried["statistics"], new)
        return value, (metrics, carried or extra)

    def _generated(
        self, params: PyTree, z: jax.Array, labels: jax.Array, mutable: Any = ("batch_stats",)
    ) -> tuple[jax.Array, PyTree]:
        """Images of latents with the batch's own moments, and the statistics that follow."""
        variables = {"params": params["generator"], **params.get("statistics", {})}
        return self.generator.apply(variables, z, labels, train=True, mutable=list(mutable))

    def _latents(self, keys: jax.Array, judge: Callable[[jax.Array], jax.Array]) -> jax.Array:
        z = self.latent.draw(fold(keys, NOISE))
        for rule in self.regularisers:
            z = z if rule.latent is None else rule.latent(z, judge)
        return z

    def _shown(self, x: jax.Array, keys: jax.Array, stream: int, carried: PyTree) -> jax.Array:
        if self.augment is None:
            return x
        return self.augment(x, fold(keys, stream), carried.get("augmentation", {}).get("p"))

    def _pseudo(
        self, real: jax.Array, generate: Any, keys: jax.Array, carried: PyTree
    ) -> jax.Array:
        """Real images, some replaced by fake ones where the augmentation is of that kind."""
        if self.augment is None or not self.augment.pseudo:
            return real
        fakes = generate(self.latent.draw(fold(keys, PSEUDO_NOISE)))
        chance = jax.vmap(jax.random.uniform)(fold(keys, PSEUDO))
        swapped = (chance < carried["augmentation"]["p"]).reshape(-1, *(1,) * (real.ndim - 1))
        return jnp.where(swapped, fakes, real)

    def _judgements(
        self, d: PyTree, statistics: PyTree, shown: Sequence[jax.Array], labels: jax.Array
    ) -> tuple[Judgement, PyTree]:
        """Of real and fake images, and the next statistics; apart, where a batch is looked at."""
        options: dict[str, Any] = dict(train=True, mutable=STATISTICS)
        if self.judge.single:
            x, both = jnp.concatenate(shown), jnp.concatenate([labels, labels])
            return self.judge.apply({"params": d, **statistics}, x, both, **options)
        halves, news = [], []
        for x in shown:
            judged, new = self.judge.apply({"params": d, **statistics}, x, labels, **options)
            statistics = {**statistics, **new}
            halves.append(judged)
            news.append(new)
        if "batch_stats" in statistics:
            moments = jax.tree.map(lambda a, b: (a + b) / 2, *(n["batch_stats"] for n in news))
            new = {**new, "batch_stats": moments}
        return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *halves), new

    def _case(
        self, params: PyTree, carried: PyTree, number: int, real: jax.Array, fake: jax.Array,
        labels: jax.Array, keys: jax.Array, z: jax.Array,
    ) -> Case:  # fmt: skip
        """What the regulariser of this number sees."""
        rule, d = self.regularisers[number], params["discriminator"]
        judge: Any = self.judge
        statistics, augment = carried.get("discriminator", {}), None
        if self.augment is not None:
            p = carried.get("augmentation", {}).get("p")
            augment = lambda x, keys: self.augment(x, keys, p)
        variables = {"params": d, **statistics}
        return Case(
            judge=self._logits(d, statistics),
            real=real,
            fake=fake,
            labels=labels,
            keys=fold(keys, PENALTIES + number),
            augment=augment,
            features=lambda x, labels: judge.apply(variables, x, method="features"),
            generate=lambda z: self._generated(params, z, labels)[0],
            z=z,
            state=carried.get("rules", {}).get(rule.name),
            styled=self._styled(params, labels) if hasattr(self.generator, "styled") else None,
        )

    def _styled(self, params: PyTree, labels: jax.Array) -> Callable[[jax.Array], Any]:
        variables = {"params": params["generator"], **params.get("statistics", {})}
        of: Any = functools.partial(self.generator.apply, variables)

        def styled(z: jax.Array) -> Any:
            styles, noise = of(z, labels, train=True, method="styled")
            return styles, lambda styles: of(styles, noise, method="images")

        return styled

    def _logits(self, d: PyTree, statistics: PyTree) -> Callable[..., jax.Array]:
        def logits(x: jax.Array, labels: jax.Array) -> jax.Array:
            judged: Any = self.judge.apply({"params": d, **statistics}, x, labels)
            return judged.logits

        return logits

    def _selected(self, logits: jax.Array, seen: jax.Array) -> jax.Array:
        """The generator's loss of the fake images that the regularisers select, or of all."""
        chosen = [r.select(logits, seen) for r in self.regularisers if r.select is not None]
        if not chosen:
            return self.loss.generator(logits)
        return (chosen[0] * jax.vmap(self.loss.generator)(logits[:, None])).sum()

    def _weighed(self, rule: Regulariser, name: str, params: PyTree, carried: PyTree) -> jax.Array:
        assert rule.weights is not None
        return rule.weights(params[name], carried.get("rules", {}).get(rule.name, {}).get(name))

    def _followed(self, player: str, params: PyTree, extra: PyTree, metrics: Metrics) -> PyTree:
        """What is carried, with the states of the regularisers that follow this player."""
        if not extra or "rules" not in extra:
            return extra
        states = dict(extra["rules"])
        for rule in self.regularisers:
            if rule.follow is not None and rule.player == player:
                states[rule.name] = rule.follow(states[rule.name], metrics, params)
        return {**extra, "rules": states}

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
    against = fake if judged.counter is None else jnp.split(judged.counter, 2)[1]
    value = loss.discriminator(real, against)
    metrics = {
        "d_loss": value,
        "d_real": (real > loss.threshold).mean(),
        "d_fake": (against <= loss.threshold).mean(),
        "d_sign": jnp.sign(real - loss.threshold).mean(),
        "real_logit": real.mean(),
        "fake_logit": fake.mean(),
    }
    if judged.direction is not None:
        real, fake = jnp.split(judged.direction, 2)
        metrics["direction"] = real.mean() - fake.mean()
        value = value - metrics["direction"]
    return value, metrics


def _check_parts(
    loss: Loss, rules: Sequence[Regulariser], augment: Augmentation | None, judge: Discriminator
) -> None:
    """Refuse what cannot mean anything."""
    names = [rule.name for rule in rules]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise invalid("method.regularisers", names, f"{sorted(twice)[0]} once")
    for rule in rules:
        if rule.augmented and (augment is None or augment.apply is None):
            raise UsageError(
                f"method.regularisers: {rule.name} compares an image with its augmentation; "
                "set method.augmentation to one that changes images."
            )
        if rule.single and not judge.sloped:
            raise UsageError(
                f"method.regularisers: {rule.name} is of the slope at each image by itself, and "
                "this discriminator looks at the batch; leave out batch norm and minibatch layers."
            )
    if loss.margins and not judge.head.margins:
        raise invalid("method.loss", "multi_hinge", "multi_hinge with the head multi_hinge")
    spectral = getattr(judge.backbone, "spectral", False)
    if loss.lipschitz and not spectral and not any(rule.lipschitz for rule in rules):
        raise invalid(
            "method.loss",
            "wasserstein with an unbounded discriminator",
            "wasserstein with a bound on the discriminator's slope",
            "Add clip or gradient_penalty to method.regularisers, or spectral=True to "
            "config.model.discriminator.",
        )
