"""Consistency training: a denoiser whose x0 is the same all along a path, learnt without a teacher.

Song et al., "Consistency Models" (2023), algorithm 3, with the network itself, held, in the place
of its average (Song & Dhariwal, "Improved Techniques for Training Consistency Models", 2024).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.distill.student import denoisers, says
from jaxgen.errors import invalid
from jaxgen.families.diffusion.core.path import expand
from jaxgen.method import Batch, Method, Spec, only_learner, retrained
from jaxgen.method.streams import (
    LABEL,
    NOISE,
    TIME,
    check_dropout,
    drop_labels,
    example_keys,
    fold,
    normal,
)

PyTree = Any


def consistency(
    method: Method, *, spec: Spec, steps: int = 32, label_dropout: float = 0.1
) -> Method:
    """The method whose x0 at time n / steps, n drawn evenly, learns that at (n - 1) / steps.

    Both are of one example and one noise; at time 0 it is the example. Squared distances; the
    number of steps stays. Sample with solver="renoise.renoise", grid="uniform", in one step or a
    few. label_dropout: share of conditions dropped. Raises UsageError: a method without a denoiser,
    a network that says noise, of which nothing is an x0 at time 1.
    """
    base, of = only_learner(method, "distill.consistency"), denoisers(method)
    if steps < 1:
        raise invalid("distill.consistency.steps", steps, "steps >= 1")
    check_dropout(label_dropout)
    network = of(guidance=())(None, None).network
    if network.kind in ("eps", "score"):
        raise invalid("method.prediction", network.kind, "x0, v, velocity or edm")
    columns = [name for name, *_ in getattr(network.model, "conditions", ())]

    def loss(params: PyTree, batch: Batch, key: jax.Array, extra: PyTree) -> Any:
        keys, x0, labels = example_keys(key, batch), batch["image"], batch["label"]
        told = {"label": labels, **{n: batch[n] for n in columns}} if columns else labels
        told = drop_labels(fold(keys, LABEL), told, label_dropout, spec.null_label)
        n = jax.vmap(lambda k: jax.random.randint(k, (), 1, steps + 1))(fold(keys, TIME))
        eps, denoiser = normal(fold(keys, NOISE), spec.shape), of(guidance=())(params, told)

        def at(n: jax.Array) -> jax.Array:
            t = n / steps
            return says(denoiser, network.path.mix(x0, eps, t), t).x0

        earlier = jnp.where(expand(n > 1, x0), at(jnp.maximum(n - 1, 1)), x0)
        error = ((at(n) - jax.lax.stop_gradient(earlier)) ** 2).mean()
        return error, ({}, extra)

    made = retrained(method, learners={"net": dataclasses.replace(base, loss=loss)})
    silent: dict[str, Any] = {"label_error": None, "log_prob": None, "likelihood": None}
    return dataclasses.replace(made, train_flops=None, **silent)
