"""A network of two times that is linear in z, trained by the library's methods on N(.7, .5^2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from experiments.shared.check import Check, control, mean_below, mean_near
from jaxgen.families.diffusion.core.path import linear
from jaxgen.method import Method, Spec
from jaxgen.testing import gaussian_flow
from jaxgen.training.ema import Averages

MEAN, STD, SEEDS = 0.7, 0.5, 5


class LinearJump(nn.Module):
    """a(t, h) z + b(t, h), a and b a small network of the two times alone."""

    @nn.compact
    def __call__(self, x: jax.Array, noise: Any, labels: Any, *, train: bool = False) -> jax.Array:
        """x [B, 1], noise [B, 2] -> [B, 1]."""
        h = nn.tanh(nn.Dense(32)(4 * noise - 2))
        a, b = jnp.split(nn.Dense(2)(nn.tanh(nn.Dense(32)(h))), 2, -1)
        return a * x + b


def trained(method: Any, steps: int = 2000, **options: Any) -> tuple[Method, Any]:
    """(the method, its parameters with a leading axis of SEEDS) after training on fresh data."""
    rate = optax.cosine_decay_schedule(1e-2, steps)
    m = method(Spec((1,), 1), LinearJump(), optax.adam(rate), Averages((100,)), **options)

    def run(key: jax.Array) -> Any:
        def body(state: Any, n: jax.Array) -> tuple[Any, None]:
            step_key = jax.random.fold_in(key, n)
            x0 = MEAN + STD * jax.random.normal(jax.random.fold_in(step_key, 1), (128, 1))
            batch = {"image": x0, "label": jnp.zeros(128, jnp.int32)}
            return m.update(state, batch, step_key)[0], None

        return jax.lax.scan(body, m.init(key), jnp.arange(steps))[0].params

    # Compiling takes longer than running here: half of it at this level.
    fast = {"xla_backend_optimization_level": 1}
    fit = jax.jit(jax.vmap(run), compiler_options=fast)
    return m, fit(jax.vmap(jax.random.key)(jnp.arange(SEEDS)))


def samples(method: Method, params: Any, steps: int) -> jax.Array:
    """4000 samples of each seed's parameters, [SEEDS, 4000]."""
    keys, labels = jax.random.split(jax.random.key(9), 4000), jnp.zeros(4000, jnp.int32)
    assert method.sampler is not None
    draw = method.sampler(steps=steps).fn
    return jax.vmap(lambda p: draw(p, keys, labels))(params)[..., 0]


@jax.jit
def errors(params: Any, t: float, h: float) -> jax.Array:
    """Root mean square of u - (z_t - z_{t-h}) / h over z of time t, for each seed [SEEDS]."""
    path, z = linear(), jnp.linspace(-2.0, 2.0, 41)[:, None]
    start, end = jnp.asarray(t, jnp.float32), jnp.asarray(t - h, jnp.float32)
    z = path.alpha(start) * MEAN + z * jnp.sqrt((path.alpha(start) * STD) ** 2 + start**2)
    exact = (z - gaussian_flow(path, z, start, end, MEAN, STD)) / h
    noise, labels = (
        jnp.broadcast_to(jnp.stack([start, start - end]), (41, 2)),
        jnp.zeros(41, jnp.int32),
    )
    out = jax.vmap(lambda p: LinearJump().apply({"params": p["net"]}, z, noise, labels))(params)
    return jnp.sqrt(((out - exact) ** 2).mean((1, 2)))


def compared(method: Any, spans: Sequence[tuple[float, float]], **options: Any) -> list[Check]:
    """The learned u against (z_t - z_{t-h}) / h over spans (t, h), then samples of 1 and 4 jumps.

    The controls are the same method without jumps: share = 0, which is flow matching.
    """
    m, params = trained(method, share=0.5, **options)
    _, plain = trained(method, share=0.0, **options)
    results = []
    for t, h in spans:
        check = f"error of the mean velocity from t={t:g} over h={h:g}"
        results.append(mean_below(check, errors(params, t, h), 0.1))
        results.append(control(mean_below(check, errors(plain, t, h), 0.1)))
    for steps in (1, 4):
        x = samples(m, params, steps)
        results.append(mean_near(f"mean, {steps} steps", x.mean(1), MEAN, 0.06))
        check = f"deviation, {steps} steps"
        results.append(mean_near(check, x.std(1), STD, 0.06))
        if steps == 1:
            y = samples(m, plain, steps)
            results.append(control(mean_near(check, y.std(1), STD, 0.06)))
    return results
