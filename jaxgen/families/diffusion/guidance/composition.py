"""Products, negations and mixtures of models (Du & Kaelbling 2024; Du et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.families.diffusion.core.denoiser import Denoiser, Memory, path_of, together
from jaxgen.families.diffusion.core.path import TINY, Path, expand
from jaxgen.families.diffusion.core.prediction import Prediction

LogDensity = Callable[[jax.Array, jax.Array], jax.Array]


def product(
    guided: Denoiser, other: Denoiser, weight: float = 1.0, *, path: Path | None = None
) -> Denoiser:
    """guided times other^weight: the sum of their scores; a negative weight is negation.

    The sum of noised scores is not the score of the noised product, so a sampler that only follows
    the flow gets the wrong weights of modes: sample with Langevin steps at each noise level
    (`solver="predictor_corrector"`, annealed MCMC). weight = 0 is `guided` itself. Where alpha is 0
    x0 cannot move. Calls that share a network are one batch.
    """
    if weight == 0:
        return guided
    path = path_of(guided, path)

    def call(
        keys: jax.Array, x: jax.Array, t: jax.Array, memory: Memory
    ) -> tuple[Prediction, Memory]:
        (p, q), memories = together([guided, other], keys, x, t, memory)
        alpha, sigma = expand(path.alpha(t), x), expand(path.sigma(t), x)
        x0 = p.x0 - weight * sigma * alpha / (alpha**2 + TINY) * q.eps
        return Prediction(x0, p.eps + weight * q.eps, p.variance), tuple(memories)

    return Denoiser(
        call,
        init=lambda x: (guided.init(x), other.init(x)),
        calls=lambda t: guided.calls(t) + other.calls(t),
        path=path,
    )


def mixture(
    denoisers: Sequence[Denoiser], log_densities: Sequence[LogDensity], weights: Sequence[float]
) -> Denoiser:
    """sum_k weights[k] p_k: estimates averaged by each density's share of the noised density at x.

    log_densities[k](x[B, ...], t) -> [B] in nats, minus their energies; a common constant
    does not matter. Exact, so any solver will do. One denoiser is itself.
    """
    if not len(denoisers) == len(log_densities) == len(weights) or not denoisers:
        sizes = (len(denoisers), len(log_densities), len(weights))
        raise invalid(
            "guidance.denoisers", sizes, "as many denoisers as densities and weights, at least 1"
        )
    if min(weights) <= 0:
        raise invalid("guidance.weights", weights, "weights > 0")
    if len(denoisers) == 1:
        return denoisers[0]

    def call(
        keys: jax.Array, x: jax.Array, t: jax.Array, memory: Memory
    ) -> tuple[Prediction, Memory]:
        predictions, memories = together(denoisers, keys, x, t, memory)
        logits = (
            jnp.stack([f(x, t) for f in log_densities]) + jnp.log(jnp.asarray(weights))[:, None]
        )
        share = jax.nn.softmax(logits, axis=0)

        def mean(values: list[jax.Array]) -> jax.Array:
            return sum((expand(s, v) * v for s, v in zip(share, values, strict=True)), 0 * x)

        x0, eps = mean([p.x0 for p in predictions]), mean([p.eps for p in predictions])
        return Prediction(x0, eps, predictions[0].variance), tuple(memories)

    return Denoiser(
        call,
        init=lambda x: tuple(denoiser.init(x) for denoiser in denoisers),
        calls=lambda t: sum(denoiser.calls(t) for denoiser in denoisers),
        path=denoisers[0].path,
    )
