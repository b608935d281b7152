"""Tuning a class's embedding alone: what a frozen classifier thinks of the model's own samples.

For generators, activation maximisation with a term of diversity: Li et al., "A cost-effective
method for improving and re-purposing large, pre-trained GANs by fine-tuning their class-embeddings"
(2020), eq. 2 and 3. For diffusion, with gradients through the last denoising steps alone: Schwartz
et al., "Discriminative Class Tokens for Text-to-Image Diffusion Models" (2023). Nothing else moves:
the samples of all other classes are what they were, to the bit.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.traverse_util as trees
import jax
import jax.numpy as jnp

from jaxgen.config import ROOMS, Later, part
from jaxgen.errors import invalid
from jaxgen.method import (
    Batch,
    Learner,
    Method,
    Sampler,
    Spec,
    denoiser_factory,
    encoder_of,
    on_params,
    retrained,
    training_of,
)
from jaxgen.method.streams import example_keys
from jaxgen.tune.rewards import scored

PyTree = Any
DRAWS = 2**32 - 15
"""Of a step's key: what the samples are drawn from."""
TABLES = r"\blabels?\d*(\.embedding|\.kernel)?$"


def tokens(
    method: Method,
    *,
    spec: Spec,
    classes: tuple[int | str, ...],
    reward: Later | Any,
    targets: tuple[int, ...] = (),
    diversity: float = 0.0,
    encoder: Any = "flat",
    last: int = 1,
    sample: dict[str, Any] | None = None,
    match: str = TABLES,
) -> Method:
    """Train changes of the rows of `classes`, `params["tokens"]`; all that samples has them added.

    Minimises -reward(x, target) - diversity |f(x) - f(x')| / |z - z'|, x and x' samples of one
    class from latents z and z'. Data are not looked at. Start from the trained model
    (`config.start`; a class of its own may begin as another, `parents`).

    reward: a section of `frozen.rewards` ("classifier": ln p(label | x)). targets: the label that
    it is asked for each of the classes; (): their own. encoder: f, a section of `frozen.encoders`.
    last: steps of the sampler that gradients go through, where it goes in steps. sample: options of
    the sampler (a `sample` section). match: a regular expression of the dotted names of tables.

    Raises UsageError: no such class or table; a sampler without gradients (tokens, discrete
    pixels); diversity where samples are no functions of latents (all but adversarial models).
    """
    option = "tune.tokens"
    judged = scored(reward, spec, f"{option}.reward")
    features = encoder_of(part(encoder, ROOMS["encoder"], f"{option}.encoder"))
    rows = labels_of(spec, classes, f"{option}.classes")
    asked = jnp.asarray(targets, jnp.int32) if targets else rows
    if len(asked) != len(rows):
        raise invalid(option, (classes, targets), "as many targets as classes, or none")
    if diversity < 0 or last < 1:
        raise invalid(option, (diversity, last), "diversity >= 0, last >= 1")
    sampler = smooth_sampler(method, option, sample)
    if diversity and sampler.latents is None:
        raise invalid(f"{option}.diversity", diversity, "0: these samples have no latents")

    def objective(params: PyTree, batch: Batch, key: jax.Array) -> Any:
        keys = example_keys(jax.random.fold_in(key, DRAWS), batch)
        which = jnp.arange(len(keys)) // 2 % len(rows)  # two neighbours are of one class
        x = drawn(sampler, added(params, rows, spec.num_classes), keys, rows[which], last)
        goal = judged()(x, asked[which]).mean()
        value, metrics = -goal, {"reward": goal}
        if diversity:
            assert sampler.latents is not None
            apart = (_apart(features(x)) / _apart(sampler.latents(keys))).mean()
            value, metrics = value - diversity * apart, {**metrics, "diversity": apart}
        return value, metrics

    return rows_trained(method, spec, rows, match, objective, (judged,))


def rows_trained(
    method: Method,
    spec: Spec,
    rows: jax.Array,
    match: str,
    objective: Callable[..., Any],
    needed: Sequence[Callable[[], object]] = (),
) -> Method:
    """The method that trains changes of these rows alone, `params["tokens"]`, by an objective.

    objective(params, batch, key) -> (value, metrics), of groups without the changes added (see
    `added`). match: of the dotted names of tables. needed: as of `retrained`. All
    that samples has the changes.
    """
    training = training_of(method, "tune.tokens")

    def fresh(key: jax.Array) -> tuple[dict[str, PyTree], PyTree]:
        params, extra = training.fresh(key)
        return {**params, "tokens": changes(params, len(rows), spec.num_classes, match)}, extra

    def loss(params: PyTree, batch: Batch, key: jax.Array, extra: PyTree) -> Any:
        value, metrics = objective(params, batch, key)
        return value, (metrics, extra)

    jax.eval_shape(fresh, jax.random.key(0))
    made = retrained(
        method,
        needed,
        learners={"tokens": Learner(loss=loss, trains=("tokens",))},
        fresh=fresh,
        averaged=("tokens",),
        prepare=None,
        optimizer=_only_optimizer(training.optimizer),
    )
    whole = dataclasses.replace(made, separable=False, train_flops=None)
    return on_params(whole, lambda params: added(params, rows, spec.num_classes))


def labels_of(spec: Spec, classes: Sequence[int | str], option: str) -> jax.Array:
    """Labels of classes, each a name or a number. Raises UsageError for none and for unknown."""
    if not classes:
        raise invalid(option, classes, "one class or more")
    return jnp.asarray([spec.label(c, option) for c in classes], jnp.int32)


def smooth_sampler(method: Method, option: str, sample: Mapping[str, Any] | None) -> Sampler:
    """The method's sampler, of these options, whose samples have gradients in the parameters.

    Raises UsageError where they have none, and where a class's row is not its own.
    """
    known = method.sampler
    if known is None or not _smooth(method, known()):
        raise invalid(option, "a sampler without gradients", "diffusion, flows, adversarial models")
    _check_rows(method)
    return known(**(sample or {}))


def drawn(
    sampler: Sampler, params: PyTree, keys: jax.Array, labels: jax.Array, last: int
) -> jax.Array:
    """Samples [B, *shape]; their gradient in params is that of the `last` steps alone."""
    if sampler.chain is None:
        return sampler.fn(params, keys, labels)
    chain_of, held = sampler.chain, jax.lax.stop_gradient(params)

    def one(key: jax.Array, label: jax.Array) -> jax.Array:
        key, before, after = key[None], chain_of(held, label), chain_of(params, label)
        first = max(after.steps - last, 0)

        def step(state: Any, n: jax.Array) -> tuple[Any, None]:
            return before.step(key, state, n), None

        state = jax.lax.scan(step, before.start(key), jnp.arange(first))[0]
        for n in range(first, after.steps):
            state = after.step(key, state, jnp.asarray(n))
        return after.sample(state)[0]

    return jax.vmap(one)(keys, labels)


def changes(params: PyTree, count: int, classes: int, match: str) -> PyTree:
    """Zeros of the shape of `count` rows of every table of classes that matches, by its name."""
    flat = trees.flatten_dict(params, sep=".")
    found = {n: a for n, a in flat.items() if re.search(match, n) and _axis(a, classes) is not None}
    if not found:
        allowed = f"a regular expression that matches one of {', '.join(flat)}"
        raise invalid("tune.tokens.match", match, allowed)
    made = {}
    for name, table in found.items():
        axis = _axis(table, classes)
        made[name] = jnp.zeros((*table.shape[:axis], count, *table.shape[axis + 1 :]), table.dtype)
    return trees.unflatten_dict(made, sep=".")


def added(params: PyTree, rows: jax.Array, classes: int) -> PyTree:
    """The groups without "tokens", its changes added to these rows of their tables."""
    tables = trees.flatten_dict({k: v for k, v in params.items() if k != "tokens"}, sep="/")
    for name, change in trees.flatten_dict(params["tokens"], sep="/").items():
        table = tables[name]
        where = (slice(None),) * _axis(table, classes) + (rows,)
        tables[name] = table.at[where].add(change)
    return trees.unflatten_dict(tables, sep="/")


def _axis(table: Any, classes: int) -> Any:
    """The first axis that is as long as there are classes, or with "no label"; None: there is none.

    A table's, of one or more axes besides.
    """
    if table.ndim < 2:
        return None
    return next((n for n, size in enumerate(table.shape[:-1]) if size - classes in (0, 1)), None)


def _only_optimizer(optimizer: Any) -> Any:
    """The one optimizer of all losses. Raises UsageError where there are several."""
    if not isinstance(optimizer, Mapping):
        return optimizer
    several = list(optimizer.values())
    if any(one is not several[0] for one in several):
        raise invalid("config.optimizer", sorted(optimizer), "one section with tune.tokens")
    return several[0]


def _check_rows(method: Method) -> None:
    """Refuse a denoiser whose rows of classes are normalised over all of them."""
    of = denoiser_factory(method)
    asked = None if of is None else of(guidance=())(None, None)
    model = getattr(getattr(asked, "network", None), "model", None)
    if getattr(model, "class_scale", 1.0) is None:
        allowed = "networks whose rows of classes do not depend on each other"
        raise invalid("tune.tokens", type(model).__name__, allowed)


def _smooth(method: Method, sampler: Sampler) -> bool:
    """Whether samples are differentiable in the parameters."""
    discrete = method.likelihood is not None and method.likelihood.mass
    return sampler.denoiser is not None or (sampler.chain is None and not discrete)


def _apart(x: jax.Array) -> jax.Array:
    """Distances [B / 2] of the two of each pair of neighbours, of x [B, ...]."""
    x = x[: len(x) // 2 * 2].reshape(len(x) // 2, 2, -1)
    return jnp.sqrt(((x[:, 0] - x[:, 1]) ** 2).sum(-1) + 1e-12)
