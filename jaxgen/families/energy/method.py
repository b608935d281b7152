"""`energy`: energy-based models by persistent contrastive divergence, class-conditional or joint.

p(x | y) is in proportion to exp(f(x)[y]), f a network with an output a class (Tieleman 2008; Du &
Mordatch 2019); joint: f is also the classifier p(y | x) = softmax f(x) (JEM, Grathwohl et al. 2020,
"Your Classifier is Secretly an Energy Based Model and You Should Treat it Like One").
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxgen.errors import invalid
from jaxgen.method import (
    Averages,
    Batch,
    Method,
    Metrics,
    Sampler,
    Spec,
    TrainState,
    dropout_key,
    example_keys,
    fold,
    method_of,
    single,
)
from jaxgen.method.mcmc import chain, langevin
from jaxgen.method.ring import ring_of, turn, turned
from jaxgen.method.streams import LABEL, NOISE, OTHER

PyTree = Any


class Logits(nn.Module):
    """A backbone (x, *, train) -> features, and f(x) [B, classes] linear in them."""

    backbone: nn.Module
    classes: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """f(x), float32 [B, classes], of x [B, ...]."""
        return nn.Dense(self.classes, name="logits")(self.backbone(x, train=train))


def energy(
    spec: Spec,
    model: Any,
    optimizer: optax.GradientTransformation,
    averages: Averages,
    *,
    joint: bool = True,
    buffer: int = 10_240,
    restart: float = 0.05,
    steps: int = 20,
    step_size: float = 2.0,
    noise: float = 0.01,
    data_noise: float = 0.03,
    decay: float = 0.1,
    accumulate: int = 1,
) -> Method:
    """Lower the energy of data and raise that of chains; sample by chains from uniform noise.

    model: a backbone (x, *, train) -> features (`gan.ConvDiscriminator`). joint: add the
    classifier's cross-entropy, and train the density of x, the sum over labels; else that of x
    given its label. buffer: chains that are kept, a multiple of the batch; each goes on for `steps`
    Langevin steps of `step_size` and `noise` when its turn comes, and starts anew with chance
    `restart`. data_noise: deviation of what is added to the data. decay: weight of the squared
    energies. Classifying is exact: p(y | x) with equal priors. Raises UsageError out of range.
    """
    if spec.tokens or spec.target is not None:
        raise invalid("config.data.source", "examples that are no images", "images")
    for name, value, low in (("buffer", buffer, 1), ("steps", steps, 1), ("noise", noise, 0),
                             ("step_size", step_size, 1e-9), ("decay", decay, 0)):  # fmt: skip
        if value < low:
            raise invalid(f"method.{name}", value, f"a number >= {low:g}")
    if not 0 <= restart <= 1:
        raise invalid("method.restart", restart, "0 <= restart <= 1")
    net = Logits(model, spec.num_classes)

    def scores(params: PyTree, x: jax.Array, labels: jax.Array, **options: Any) -> jax.Array:
        """-E(x, label) [B]; of "no label", -E(x)."""
        out: Any = net.apply({"params": params["net"]}, x, **options)
        own = jnp.take_along_axis(out, jnp.minimum(labels, spec.num_classes - 1)[:, None], 1)[:, 0]
        return jnp.where(labels < spec.num_classes, own, jax.nn.logsumexp(out, -1))

    def start(keys: jax.Array) -> jax.Array:
        return jax.vmap(lambda k: jax.random.uniform(k, spec.shape, minval=-1, maxval=1))(keys)

    def moved(
        params: PyTree, keys: jax.Array, x: jax.Array, labels: jax.Array, n: int, size: float
    ) -> jax.Array:
        return chain(langevin(lambda y: scores(params, y, labels), size, noise), keys, x, n)

    def persistent(state: TrainState, batch: Batch, key: jax.Array, frozen: PyTree) -> Any:
        """The chains whose turn it is go on, and are what the data are contrasted with."""
        keys = example_keys(key, batch)
        held = turn(state.extra["replay"], batch["label"].shape[0])
        again = jax.vmap(jax.random.uniform)(fold(keys, LABEL)) < restart
        x = jnp.where(again.reshape(-1, *(1,) * len(spec.shape)), start(fold(keys, 4)), held["x"])
        x = moved(state.params, fold(keys, NOISE), x, held["label"], steps, step_size)
        ring = turned(state.extra["replay"], {**held, "x": x})
        batch = {**batch, "chain": x, "chain_label": held["label"]}
        return state.replace(extra={"replay": ring}), batch, {}

    def loss(params: PyTree, batch: Batch, key: jax.Array, extra: PyTree) -> Any:
        keys, rngs = example_keys(key, batch), {"dropout": dropout_key(key, batch)}
        shake = jax.vmap(lambda k: jax.random.normal(k, spec.shape))(fold(keys, OTHER))
        x, labels = batch["image"] + data_noise * shake, batch["label"]
        asked = jnp.full_like(labels, spec.null_label) if joint else labels
        real = scores(params, x, asked, train=True, rngs=rngs)
        made = scores(params, batch["chain"], batch["chain_label"], train=True, rngs=rngs)
        metrics: Metrics = {"gap": (real - made).mean()}
        value = (made - real + decay * (real**2 + made**2)).mean()
        if joint:
            cross = scores(params, x, asked) - scores(params, x, labels)
            metrics |= {"cross_entropy": cross.mean()}
            value += cross.mean()
        return value, (metrics, extra)

    def fresh(key: jax.Array) -> tuple[dict[str, PyTree], PyTree]:
        params = {"net": net.init(key, jnp.zeros((1, *spec.shape)))["params"]}
        keys = jax.random.split(jax.random.fold_in(key, 1), buffer)
        labels = jnp.arange(buffer, dtype=jnp.int32) % spec.num_classes
        whole = jnp.full_like(labels, spec.null_label) if joint else labels
        return params, {"replay": ring_of({"x": start(keys), "label": whole})}

    def sampler(*, steps: int = 10 * steps, step_size: float = step_size) -> Sampler:
        """Chains of `steps` Langevin steps from uniform noise, with training's noise."""
        if steps < 1 or step_size <= 0:
            raise invalid("sample.steps", (steps, step_size), "steps >= 1, step_size > 0")

        def fn(params: PyTree, keys: jax.Array, labels: jax.Array) -> jax.Array:
            x = moved(params, fold(keys, 1), start(fold(keys, NOISE)), labels, steps, step_size)
            return jnp.clip(x, -1, 1)

        return Sampler(fn, calls=float(steps), steps=steps)

    def label_error(
        params: PyTree, x: jax.Array, labels: jax.Array, keys: Any, draw: Any, draws: int
    ) -> jax.Array:
        return -scores(params, x, labels)

    training = single(loss, fresh, optimizer, averages, accumulate=accumulate, prepare=persistent)
    return method_of(spec, training, sampler=sampler, label_error=label_error, label_noise=False)
