"""`energy`: energy-based models by persistent contrastive divergence, class-conditional or joint.

p(x | y) is in proportion to exp(f(x)[y]), f a network with an output a class (Tieleman 2008; Du &
Mordatch 2019); joint: f is also the classifier p(y | x) = softmax f(x) (JEM, Grathwohl et al. 2020,
"Your Classifier is Secretly an Energy Based Model and You Should Treat it Like One").
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxgen.errors import invalid
from jaxgen.families.energy.chains import Chains
from jaxgen.method import Averages, Batch, Method, Metrics, Sampler, Spec, method_of, single
from jaxgen.method.protocol import TrainState
from jaxgen.method.streams import OTHER, START, STEPS, dropout_key, example_keys, fold
from jaxgen.nn.logits import Logits

REPLAY = 1
"""The stream of the chains' first points, beside the network's first parameters."""

PyTree = Any


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
    if decay < 0 or data_noise < 0:
        raise invalid("method.decay", (decay, data_noise), "decay >= 0 and data_noise >= 0")
    net = Logits(model, spec.num_classes)
    chains = Chains(tuple(spec.shape), buffer, restart, steps, step_size, noise)

    def scores(params: PyTree, x: jax.Array, labels: jax.Array, **options: Any) -> jax.Array:
        """-E(x, label) [B]; of "no label", -E(x)."""
        out: Any = net.apply({"params": params["net"]}, x, **options)
        of_label = jnp.take_along_axis(out, jnp.minimum(labels, spec.num_classes - 1)[:, None], 1)[
            :, 0
        ]
        return jnp.where(labels < spec.num_classes, of_label, jax.nn.logsumexp(out, -1))

    def contrasted(state: TrainState, batch: Batch, key: jax.Array, frozen: PyTree) -> Any:
        """The chains whose turn it is go on, and are what the data are contrasted with."""
        score = lambda x, labels: scores(state.params, x, labels)
        ring, x, labels = chains.turn(state.extra["replay"], score, example_keys(key, batch))
        batch = {**batch, "chain": x, "chain_label": labels}
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
        labels = jnp.arange(buffer, dtype=jnp.int32) % spec.num_classes
        labels = jnp.full_like(labels, spec.null_label) if joint else labels
        return params, {"replay": chains.ring(jax.random.fold_in(key, REPLAY), labels)}

    def sampler(*, steps: int = 10 * steps) -> Sampler:
        """Chains of `steps` Langevin steps from uniform noise, as in training."""
        if steps < 1:
            raise invalid("sample.steps", steps, "steps >= 1")

        def fn(params: PyTree, keys: jax.Array, labels: jax.Array) -> jax.Array:
            score = lambda x, given: scores(params, x, given)
            x = chains.start(fold(keys, START))
            return jnp.clip(chains.moved(score, fold(keys, STEPS), x, labels, steps), -1, 1)

        return Sampler(fn, calls=float(steps), steps=steps)

    def label_error(
        params: PyTree, x: jax.Array, labels: jax.Array, keys: Any, draw: Any, draws: int
    ) -> jax.Array:
        return -scores(params, x, labels)

    training = single(loss, fresh, optimizer, averages, accumulate=accumulate, prepare=contrasted)
    return method_of(spec, training, sampler=sampler, label_error=label_error, label_noise=False)
