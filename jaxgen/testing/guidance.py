"""Laws of a guidance: what it is at weights 1 and 0, where it points, and what it may not touch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.families.diffusion.core import path as paths
from jaxgen.families.diffusion.core.denoiser import Denoiser
from jaxgen.families.diffusion.core.prediction import Prediction
from jaxgen.testing.exact import gaussian_denoiser
from jaxgen.testing.functions import ROUNDING
from jaxgen.testing.naming import law

Guide = Callable[[Denoiser, Denoiser, float], Denoiser]
"""guide(cond, uncond, weight) -> the guided denoiser."""

CONDITIONAL = "guidance at w=1 is the conditional model"
UNCONDITIONAL = "guidance at w=0 is the unconditional model"
DIRECTION = "guidance points from the unconditional model to the conditional one"
LINEAR = "guidance is linear in its weight"
ALONE = "guidance keeps the images of a batch apart"
FINITE = "guidance is finite from noise to data"
MEMORY = "memory keeps its structure"
CALLS = "guidance counts its calls truthfully"

SIZE, TIME = 8, 0.6
MEAN = np.array([1.0, -0.5, 0.3])


def check_guidance(
    guide: Guide,
    *,
    weight: float = 2.0,
    at: tuple[float, ...] = (1.0, 0.0),
    linear: bool = False,
    atol: float = 0.0,
) -> None:
    """A guidance's laws on exact denoisers of N([1, -.5, .3], .5^2) and N(0, 1).

    weight: one at which it acts. at: those of 1 and 0 at which it claims to be the conditional and
    the unconditional model. linear: whether it claims to be linear in its weight. atol: 0 asks for
    the same bits at w=1 and w=0; u + w (c - u) in float32 needs 1e-6.
    """
    cond, uncond = models()
    check_weights(guide, at=at, atol=atol)
    c, u, g = _estimate(cond), _estimate(uncond), _estimate(guide(cond, uncond, weight))
    with law(DIRECTION):
        direction = c.x0 - u.x0
        along = float(jnp.vdot(g.x0 - u.x0, direction) / jnp.vdot(direction, direction))
        assert along > 0, f"at w={weight} x0 moves by {along:.3g} of the way"
    if linear:
        with law(LINEAR):
            for w in (-1.0, weight, 3.0 * weight):
                p, room = _estimate(guide(cond, uncond, w)), ROUNDING * max(1.0, abs(w))
                for what, out, a, b in (("x0", p.x0, c.x0, u.x0), ("eps", p.eps, c.eps, u.eps)):
                    straight = b + w * (a - b)
                    np.testing.assert_allclose(out, straight, atol=room, err_msg=f"{what}, w={w}")
    check_denoiser(guide(cond, uncond, weight))
    _check_calls(guide, weight)


def check_weights(guide: Guide, *, at: tuple[float, ...] = (1.0, 0.0), atol: float = 0.0) -> None:
    """The conditional model at w=1, the unconditional at w=0, or at the one of them in `at`."""
    cond, uncond = models()
    for w, plain, name in ((1.0, cond, CONDITIONAL), (0.0, uncond, UNCONDITIONAL)):
        if w in at:
            with law(name):
                p, q = _estimate(guide(cond, uncond, w)), _estimate(plain)
                np.testing.assert_allclose(p.x0, q.x0, rtol=0, atol=atol, err_msg="x0")
                np.testing.assert_allclose(p.eps, q.eps, rtol=0, atol=atol, err_msg="eps")


def check_denoiser(denoiser: Denoiser) -> None:
    """What solvers and `lax.scan` ask of a denoiser of [B, 3]: shapes, memory, images apart."""
    keys, x = _inputs()
    run = jax.jit(lambda keys, x, t, memory: denoiser(keys, x, t, memory))
    memory = denoiser.init(x)
    p, after = run(keys, x, jnp.float32(TIME), memory)
    with law(MEMORY):
        chex.assert_trees_all_equal_structs(memory, after)
        chex.assert_trees_all_equal_shapes_and_dtypes(memory, after)
    with law(FINITE):
        for t in (1.0, TIME, 0.0):
            q, _ = run(keys, x, jnp.float32(t), memory)
            chex.assert_equal_shape([q.x0, q.eps, x])
            assert all(jnp.isfinite(a).all() for a in q[:2]), f"not finite at t={t}"
    with law(ALONE):
        back, _ = run(keys[::-1], x[::-1], jnp.float32(TIME), memory)
        changed, _ = run(keys, x.at[1:].multiply(-1.7), jnp.float32(TIME), memory)
        for name in ("x0", "eps"):
            a, b, c = (getattr(q, name) for q in (p, back, changed))
            np.testing.assert_allclose(b[::-1], a, atol=ROUNDING, err_msg=f"{name} in reverse")
            np.testing.assert_allclose(c[0], a[0], atol=ROUNDING, err_msg=f"{name} of the first")


def _check_calls(guide: Guide, weight: float) -> None:
    """The number of calls that a guidance announces is what one call of it makes; NaN: unknown."""
    seen: list[int] = []

    def counting(denoiser: Denoiser) -> Denoiser:
        def call(keys: jax.Array, x: jax.Array, t: jax.Array, memory: Any) -> Any:
            jax.debug.callback(lambda *_: seen.append(1), t, jax.random.key_data(keys))
            return denoiser(keys, x, t, memory)

        return Denoiser(call, path=denoiser.path)

    cond, uncond = models()
    guided = guide(counting(cond), counting(uncond), weight)
    jax.block_until_ready(_estimate(guided))
    jax.effects_barrier()
    with law(CALLS):
        said = guided.calls(TIME)
        assert np.isnan(said) or said == len(seen), f"said {said}, made {len(seen)}"


def models() -> tuple[Denoiser, Denoiser]:
    """The exact denoisers (conditional, unconditional) of the laws, on the linear path."""
    path = paths.linear()
    return gaussian_denoiser(path, jnp.asarray(MEAN), 0.5), gaussian_denoiser(path, 0.0, 1.0)


def _inputs() -> tuple[jax.Array, jax.Array]:
    x = jax.random.normal(jax.random.key(0), (SIZE, len(MEAN)))
    return jax.random.split(jax.random.key(1), SIZE), x


def _estimate(denoiser: Denoiser) -> Prediction:
    keys, x = _inputs()
    return denoiser(keys, x, jnp.float32(TIME), denoiser.init(x))[0]
