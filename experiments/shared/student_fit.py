"""One-call students of a teacher that is exact: four Gaussians in the plane, a class each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.shared.quick import quick_jit
from jaxgen.distill.matching import matching
from jaxgen.families.diffusion import denoising
from jaxgen.families.diffusion.core.denoiser import Denoiser
from jaxgen.families.diffusion.core.path import linear
from jaxgen.method import Method, Sampler, Spec, TrainState, with_frozen
from jaxgen.method.learning import copied
from jaxgen.nn.mlp import MLP
from jaxgen.testing import gaussian_denoiser, mixture_denoiser
from jaxgen.training.ema import Averages

MEANS = np.array([[1.5, 0.0], [0.0, 1.5], [-1.5, 0.0], [0.0, -1.5]], np.float32)
STD, CLASSES, COUNT = 0.3, 4, 500
SPEC, PATH = Spec((2,), CLASSES, levels=None), linear()


def exact(labels: jax.Array, means: Any = MEANS, every: Any = MEANS) -> Denoiser:
    """Of the class of each of labels [B]; of all classes where there is none.

    means, every: of the classes, [CLASSES, 2]; where a label is told, and where none is.
    """
    alone = gaussian_denoiser(PATH, jnp.asarray(means)[jnp.minimum(labels, CLASSES - 1)], STD)
    shares = jnp.ones(CLASSES) / CLASSES
    mixed = mixture_denoiser(PATH, jnp.asarray(every), jnp.full(CLASSES, STD), shares)

    def call(keys: Any, x: jax.Array, t: jax.Array, memory: Any) -> Any:
        (one, _), (both, _) = (d(keys, x, t, ()) for d in (alone, mixed))
        told = (labels < CLASSES)[:, None]
        return jax.tree.map(lambda a, b: jnp.where(told, a, b), one, both), memory

    return Denoiser(call, path=PATH)


class Teacher:
    """The exact denoiser as a method with a sampler, as a config's `networks` gives one."""

    params: Any = jnp.zeros(1)

    @property
    def method(self) -> Any:
        """Itself: its sampler is all that is asked."""
        return self

    def sampler(self, *, guidance: float = 1.0) -> Sampler:
        """Whose denoiser is exact, with a label (1) or without (0)."""
        assert guidance in (0, 1)

        def denoiser(params: Any, labels: jax.Array) -> Denoiser:
            return exact(labels if guidance else jnp.full_like(labels, CLASSES))

        return Sampler(lambda *_: None, calls=1, denoiser=denoiser)

    def fitting(self, spec: Spec) -> Any:
        """Nothing is frozen."""
        return self.params


def trained(method: Method, state: TrainState, steps: int, jit: Any = jax.jit) -> TrainState:
    """After steps on fresh data of all classes."""

    def body(state: Any, number: jax.Array) -> tuple[Any, None]:
        key = jax.random.fold_in(jax.random.key(1), number)
        label_key, noise_key = jax.random.split(key)
        labels = jax.random.randint(label_key, (128,), 0, CLASSES)
        image = jnp.asarray(MEANS)[labels] + STD * jax.random.normal(noise_key, (128, 2))
        batch = {"image": image, "label": labels}
        return method.update(state, batch, jax.random.fold_in(key, number), method.frozen)[0], None

    return jit(lambda s: jax.lax.scan(body, s, jnp.arange(steps))[0])(state)


def denoiser(rate: Any, network: Any = None) -> Method:
    """A small network, or another, for data of all classes."""
    net = MLP(CLASSES, 2, 64, 2) if network is None else network
    return denoising(SPEC, net, optax.adam(rate), Averages((3000,)), label_dropout=0.1)


def learnt(steps: int = 1500, network: Any = None) -> tuple[Method, Any]:
    """(it, its parameters after training)."""
    base = denoiser(optax.cosine_decay_schedule(1e-3, steps), network)
    return base, trained(base, quick_jit(base.init)(jax.random.key(0)), steps).params


def drawn(
    wrap: Callable[..., Method] = matching, updates: int = 1500, network: Any = None, **options: Any
) -> np.ndarray:
    """Samples [classes, COUNT, 2] of a student that a wrap taught so, begun as a denoiser."""
    base, net = learnt(updates, network)
    method = wrap(base, spec=SPEC, networks={"teacher": Teacher()}, **options)
    state = method.init(jax.random.key(0))
    params = copied({**state.params, **net}, method.training.copies)
    state = state.replace(params=params)
    state = trained(method, state, updates)
    weights = with_frozen(method, {**state.params, **state.ema["half_life_3000"]})
    assert method.sampler is not None
    labels = jnp.repeat(jnp.arange(CLASSES), COUNT)
    keys = jax.random.split(jax.random.key(2), len(labels))
    sampler = method.sampler(steps=1)
    return np.asarray(sampler.fn(weights, keys, labels)).reshape(CLASSES, COUNT, 2)
