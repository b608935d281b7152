"""A model that is a table: logits of ten values for each of three classes, trained by wraps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxgen.method import Likelihood, Method, Sampler, Spec, exact_label_error, method_of
from jaxgen.method.learning import single
from jaxgen.training.ema import Averages

CLASSES, VALUES, BATCH = 3, 10, 2048
SPEC = Spec((1,), CLASSES, levels=VALUES, tokens=True)
_RNG = np.random.default_rng(0)
DATA = _RNG.dirichlet(np.full(VALUES, 2.0), CLASSES)
REFERENCE = 0.6 * _RNG.dirichlet(np.full(VALUES, 2.0), CLASSES) + 0.4 / VALUES
"""p(x | c) of the data and of the model as it was trained, which has full support."""


def table(rate: Any, *, normalised: bool = True) -> Method:
    """The method; not normalised: a free log-density for each value, as some optima ask for."""

    def log_prob(params: Any, x: jax.Array, labels: jax.Array, keys: Any = None) -> jax.Array:
        logits = params["net"]["logits"]
        return (jax.nn.log_softmax(logits) if normalised else logits)[labels, x[:, 0]]

    def loss(params: Any, batch: Any, key: jax.Array, extra: Any) -> Any:
        return -log_prob(params, batch["image"], batch["label"]).mean(), ({}, extra)

    def fresh(key: jax.Array) -> Any:
        return {"net": {"logits": jnp.log(jnp.asarray(REFERENCE, jnp.float32))}}, ()

    def sampler() -> Sampler:
        def fn(params: Any, keys: jax.Array, labels: jax.Array) -> jax.Array:
            draw = jax.vmap(jax.random.categorical)
            return draw(keys, params["net"]["logits"][labels])[:, None].astype(jnp.int32)

        def log_probs(params: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
            return log_prob(params, x, labels)[:, None]

        return Sampler(fn, calls=1, log_probs=log_probs if normalised else None)

    training = single(loss, fresh, optax.adam(rate), Averages((1000,)))
    return method_of(
        SPEC,
        training,
        sampler=sampler,
        label_error=exact_label_error(log_prob),
        log_prob=lambda: log_prob,
        likelihood=Likelihood(exact=normalised, mass=True),
    )


class Trained:
    """The method with the reference's parameters, as a config's `networks` gives them."""

    def __init__(self, method: Method) -> None:
        """method: whose first parameters are the reference."""
        self.method, self.params = method, method.init(jax.random.key(0)).params

    def fitting(self, spec: Spec) -> Any:
        """The parameters."""
        return self.params


def history(
    wrap: Callable[..., Method],
    *,
    normalised: bool = True,
    steps: int = 1500,
    seed: int = 1,
    data: np.ndarray = DATA,
) -> np.ndarray:
    """The logits [steps, classes, values] in a wrap's training on data; it starts at REFERENCE."""
    rate = optax.cosine_decay_schedule(3e-2, steps)
    base = table(rate, normalised=normalised)
    method = wrap(base, spec=SPEC, networks={"teacher": Trained(base)})
    log_data = jnp.log(jnp.asarray(data, jnp.float32))

    def body(state: Any, number: jax.Array) -> tuple[Any, jax.Array]:
        key = jax.random.fold_in(jax.random.key(seed), number)
        labels = jnp.arange(BATCH) % CLASSES
        image = jax.random.categorical(key, log_data[labels])[:, None]
        step_key = jax.random.fold_in(key, number)
        state = method.update(state, {"image": image, "label": labels}, step_key)[0]
        return state, state.params["net"]["logits"]

    fit = jax.jit(lambda s: jax.lax.scan(body, s, jnp.arange(steps))[1])
    return np.asarray(fit(method.init(jax.random.key(0))))


def tuned(wrap: Callable[..., Method], **options: Any) -> np.ndarray:
    """The logits [classes, values] at the end of `history`."""
    return history(wrap, **options)[-1]


def law(logits: np.ndarray) -> np.ndarray:
    """p(x | c), [classes, values]."""
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def distance(logits: np.ndarray, wanted: np.ndarray) -> float:
    """Largest total variation of a class's law from the one wanted."""
    return float(np.abs(law(logits) - wanted).sum(1).max() / 2)


REWARDS = np.random.default_rng(5).normal(size=(CLASSES, VALUES)).astype(np.float32)


def reward(x: jax.Array, labels: jax.Array) -> jax.Array:
    """Of a value and its class, one of `REWARDS`."""
    return jnp.asarray(REWARDS)[labels, x[:, 0]]


def tilted(strength: Any, of: np.ndarray = REFERENCE) -> np.ndarray:
    """p exp(strength r) / Z of each class; strength: a number, or [classes, 1]."""
    p = of * np.exp(strength * REWARDS)
    return p / p.sum(1, keepdims=True)
