"""UniPC (Zhao et al. 2023): a predictor and a corrector from one formula, one call a step."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.families.diffusion.core.denoiser import Denoiser
from jaxgen.families.diffusion.core.path import TINY, Path
from jaxgen.families.diffusion.solvers.base import Carry, Solver, half_log_snr, phi, predict


def unipc(path: Path, order: int = 3, corrector: bool = True) -> Solver:
    """UniP-p and UniC-p on data predictions with B(h) = e^h - 1 ("bh2"), p = 1, 2 or 3.

    The denoiser's estimate at the predicted x_t first corrects x_t (their algorithm 1), then
    predicts x_s. Without corrector: UniP alone (algorithm 2). Orders build up as history does and
    fall to 1 in steps with an infinite log-SNR at an end; the last x is not corrected, which would
    cost a call. With the corrector the order of convergence is p + 1 (their theorem 3.1).
    """
    if order not in (1, 2, 3):
        raise invalid("solver.order", order, "1, 2 or 3")
    past = order

    def init(x: jax.Array) -> Any:
        # The last `order` nodes, newest first, then the corrected x at the newest, with its time.
        return (
            jnp.full(past, -jnp.inf, x.dtype),
            jnp.zeros((past, *x.shape), x.dtype),
            jnp.zeros_like(x),
            jnp.zeros((), x.dtype),
        )

    def step(
        denoiser: Denoiser, x: jax.Array, t: jax.Array, s: jax.Array, carry: Carry, keys: jax.Array
    ) -> tuple[jax.Array, Carry]:
        (lambdas, estimates, before, r), memory = carry
        p, memory = predict(denoiser, x, t, memory, keys)
        here = half_log_snr(path, t)
        x0 = p.x0
        if corrector:
            fixed = _advance(path, before, r, t, lambdas, estimates, order, here, x0)
            x = jnp.where(jnp.isfinite(lambdas[0]) & jnp.isfinite(here), fixed, x)
        lambdas = jnp.concatenate([here[None], lambdas])[:past]
        estimates = jnp.concatenate([x0[None], estimates])[:past]
        out = _advance(path, x, t, s, lambdas, estimates, order)
        return out, ((lambdas, estimates, x, t.astype(x.dtype)), memory)

    return Solver(step=step, order=order + 1 if corrector else order, init=init)


def _advance(
    path: Path,
    x: jax.Array,
    t: jax.Array,
    s: jax.Array,
    lambdas: jax.Array,
    estimates: jax.Array,
    order: int,
    end: jax.Array | None = None,
    at_end: jax.Array | None = None,
) -> jax.Array:
    """x at t (node 0) taken to s, by the nodes' estimates and, to correct, the one at s itself.

    x_s = sigma_s / sigma_t x + alpha_s (1 - e^-h) (m_0 + sum_k rho_k (m_k - m_0) / r_k) with
    r_k = (lambda_k - lambda_0) / h. The weights solve sum_k rho_k r_k^(n-1) = b_n, n = 1, 2..
    (their eq. 5), but for a single unknown, which is 1/2 (their appendix F).
    """
    there = half_log_snr(path, s)
    whole = jnp.isfinite(there) & jnp.isfinite(lambdas[0])
    h = jnp.where(whole & (s < t), there - lambdas[0], 1.0)
    gain = path.alpha(s) - path.sigma(s) * path.alpha(t) / jnp.maximum(path.sigma(t), TINY)
    first = path.sigma(s) / jnp.maximum(path.sigma(t), TINY) * x + gain * estimates[0]
    phi1, phi2, phi3, phi4 = phi(h, 4)
    moments = jnp.stack([phi2, 2 * phi3, 6 * phi4]) / phi1

    def correction(others: int) -> jax.Array:
        """The sum over k for `others` earlier nodes (and the end, where given)."""
        nodes = [(lambdas[k] - lambdas[0]) / h for k in range(1, others + 1)]
        gaps = [estimates[k] - estimates[0] for k in range(1, others + 1)]
        if at_end is not None:
            nodes, gaps = [*nodes, jnp.ones(())], [*gaps, at_end - estimates[0]]
        if not nodes:
            return jnp.zeros_like(x)
        if len(nodes) == 1:
            return 0.5 / nodes[0] * gaps[0]
        r = jnp.stack(nodes)
        rho = _solve(r, moments[: len(nodes)])
        return sum(w / n * g for w, n, g in zip(rho, r, gaps, strict=True))

    out = first
    for others in range(order):
        # Nodes must be there and apart: a step of length zero gives one twice.
        used = lambdas[: others + 1]
        usable = whole & (s < t) & jnp.all(jnp.isfinite(used)) & jnp.all(used[:-1] > used[1:])
        out = jnp.where(usable, first + gain * correction(others), out)
    return out


def _solve(r: jax.Array, b: jax.Array) -> jax.Array:
    """Weights with sum_k rho_k r_k^(n-1) = b_n for two or three nodes, by elimination in full."""
    if r.shape[0] == 2:
        second = (b[1] - r[0] * b[0]) / (r[1] - r[0])
        return jnp.stack([b[0] - second, second])
    # Newton's form for the transposed Vandermonde system.
    c1 = b[1] - r[0] * b[0]
    c2 = b[2] - (r[0] + r[1]) * b[1] + r[0] * r[1] * b[0]
    third = c2 / ((r[2] - r[0]) * (r[2] - r[1]))
    second = (c1 - third * (r[2] - r[0])) / (r[1] - r[0])
    return jnp.stack([b[0] - second - third, second, third])
