"""`autoregressive`: any causal network as a Method with an exact likelihood.

Sun et al. 2024 (LlamaGen), van den Oord et al. 2016 (Gated PixelCNN), Salimans et al. 2017
(PixelCNN++): the same loss, sampler and likelihood around different networks and heads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxgen.config import build
from jaxgen.errors import invalid
from jaxgen.families.autoregressive.guidance import Source, build_guide
from jaxgen.families.autoregressive.sampler import build_sampler
from jaxgen.method import (
    Averages,
    Batch,
    Likelihood,
    LossFn,
    Method,
    Metrics,
    Sampler,
    Spec,
    check_dropout,
    drop_labels,
    dropout_key,
    exact_label_error,
    example_keys,
    fold,
    method_of,
    never_dropped,
    single,
)

PyTree = Any
HEADS = "jaxgen.families.autoregressive.heads"
DROPPED = 0
"""The stream of an example's key that says whether its label is dropped."""


@dataclasses.dataclass(frozen=True, eq=False)
class Causal:
    """A causal network with the head that makes a distribution of its output: params["net"]."""

    spec: Spec
    net: Any
    head: Any

    def fresh(self, key: jax.Array) -> tuple[dict[str, PyTree], PyTree]:
        """First parameters, and no extra."""
        tokens, labels = jnp.zeros((1, self.spec.size), jnp.int32), jnp.zeros(1, jnp.int32)
        return {"net": self.net.init(key, tokens, labels)["params"]}, ()

    def log_probs(
        self, params: PyTree, x: jax.Array, labels: jax.Array, dropout: jax.Array | None = None
    ) -> jax.Array:
        """ln p of each group [B, N / group] of examples [B, *shape]; dropout: a key, or None."""
        tokens = self.spec.to_tokens(x).reshape(x.shape[0], -1)
        out = self.net.apply(
            {"params": params["net"]},
            tokens,
            labels,
            train=dropout is not None,
            rngs=None if dropout is None else {"dropout": dropout},
        )
        return self.head.log_prob(out, tokens.reshape(*out.shape[:2], -1))

    def log_posterior(
        self, params: PyTree, batch: Batch, alpha: float, dropout: jax.Array | None
    ) -> jax.Array:
        """ln p(label | x) [B], p(c | x) in proportion to p(x | c)^(alpha / size) over all c."""

        def of_label(label: jax.Array) -> jax.Array:
            labels = jnp.full_like(batch["label"], label)
            return self.log_probs(params, batch["image"], labels, dropout).sum(-1)

        log = jax.lax.map(of_label, jnp.arange(self.spec.num_classes))
        log = jax.nn.log_softmax(alpha / self.spec.size * log, axis=0)
        return jnp.take_along_axis(log, batch["label"][None], axis=0)[0]


def causal_loss(
    causal: Causal, *, label_dropout: float, discriminative: float, alpha: float
) -> LossFn:
    """The mean of -ln p per element and GeDi's loss, in shares 1 - and `discriminative`."""

    def loss(
        params: PyTree, batch: Batch, key: jax.Array, extra: PyTree
    ) -> tuple[jax.Array, tuple[Metrics, PyTree]]:
        keys = fold(example_keys(key, batch), DROPPED)
        labels = drop_labels(keys, batch["label"], label_dropout, causal.spec.null_label)
        dropout = dropout_key(key, batch)
        log_probs = causal.log_probs(params, batch["image"], labels, dropout)
        total = -log_probs.sum() / (log_probs.shape[0] * causal.spec.size)
        if discriminative:
            discriminative_loss = -causal.log_posterior(params, batch, alpha, dropout).mean()
            total = (1 - discriminative) * total + discriminative * discriminative_loss
        return total, ({}, extra)

    return loss


def autoregressive(
    spec: Spec,
    model: Any,
    optimizer: optax.GradientTransformation,
    averages: Averages,
    *,
    head: Any = "softmax",
    label_dropout: float = 0.1,
    discriminative: float = 0.0,
    alpha: float = 1.0,
    accumulate: int = 1,
) -> Method:
    """Predict each element from those before it: images row by row, a pixel's channels in turn.

    spec: the data; its elements must have levels. model: a causal Flax module(tokens[B, N],
    labels[B], *, train) -> [B, N / group, outputs], whose row i depends on the label and on tokens
    [0, i group); `model.group` elements are predicted in one go. Where it has `decoder` (see
    `jaxgen.nn.llama.Llama`), sampling keeps what was computed; else every step runs the whole
    network. head: a section or name in `families.autoregressive.heads`. label_dropout: share of
    labels dropped in training, which guidance needs. discriminative: the share of GeDi's loss of
    a classifier, -ln p(label | x) with p(c | x) proportional to p(x | c)^(alpha / size) over all
    classes (Krause et al. 2020), at one more call for each class.

    The rest of the loss is the mean of -ln p per element, in nats. `log_prob` is exact.

    Raises UsageError for values out of range, real-valued examples and bidirectional networks.
    """
    check_dropout(label_dropout)
    if not 0 <= discriminative <= 1 or alpha <= 0:
        allowed = "0 <= discriminative <= 1, alpha > 0"
        raise invalid("method.discriminative", (discriminative, alpha), allowed)
    levels = spec.require_levels()
    if not hasattr(model, "group"):
        raise invalid("config.model.name", type(model).__name__, "a causal network with `group`")
    if not getattr(model, "causal", True):
        raise invalid("config.model.causal", False, "True: this family predicts what comes next")
    distribution = build(head, HEADS, "method.head", levels=levels, group=model.group)
    causal = Causal(spec, model.clone(outputs=distribution.outputs), distribution)

    def sampler(
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        typical: float = 1.0,
        guidance: float | Sequence[Any] = 1.0,
        models: Mapping[str, Any] | None = None,
    ) -> Sampler:
        """Exact samples, one element after another, in one compiled loop.

        temperature divides the logits; top_k (0: all), top_p and typical (1: all) then cut them
        (`families.autoregressive.truncation`). guidance w: logits of "no label" + w (logits of
        the label - those), before all of that; 1 is the label's own model and costs one branch. Or
        sections of `families.autoregressive.guidance`, in order. models: further causal networks
        that guidance may name; parameters are then {"net": ..., name: ...}.

        Raises UsageError: values out of range, guidance that this model was not trained for.
        """
        if label_dropout == 0 and Source("net", "null") in build_guide(guidance).sources:
            raise never_dropped(guidance)
        made = build_sampler(
            causal.net,
            distribution,
            spec,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            typical=typical,
            guidance=guidance,
            models={n: m.clone(outputs=distribution.outputs) for n, m in (models or {}).items()},
        )
        weighed = label_dropout > 0 and isinstance(guidance, (int, float))
        if not weighed:
            made = dataclasses.replace(made, by_weight=None)
        itself = (temperature, top_k, top_p, typical, guidance) == (1, 0, 1, 1, 1)
        return dataclasses.replace(made, log_probs=causal.log_probs) if itself else made

    def log_prob() -> Any:
        """fn(params, x[B, *shape], labels[B], keys[B]) -> nats [B], exact."""
        return lambda params, x, labels, keys: causal.log_probs(params, x, labels).sum(-1)

    loss = causal_loss(
        causal, label_dropout=label_dropout, discriminative=discriminative, alpha=alpha
    )
    return method_of(
        spec,
        single(loss, causal.fresh, optimizer, averages, accumulate=accumulate),
        separable=True,
        sampler=sampler,
        log_prob=log_prob,
        likelihood=Likelihood(exact=True, mass=True),
        label_error=exact_label_error(log_prob()),
        label_noise=False,
    )
