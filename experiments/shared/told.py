"""Eight unequal modes in the plane, and small methods trained on them for five seeds at once."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.shared.toys import SEEDS
from jaxgen.families.diffusion.methods.denoising import denoising
from jaxgen.method import Method, Spec
from jaxgen.nn.mlp import MLP
from jaxgen.training.ema import Averages

SPEC, COUNT, WIDTH = Spec((2,), 1, levels=None), 800, 32
_ANGLES = 2 * np.pi * np.arange(8) / 8
CENTRES = 1.6 * np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)
STRETCH = np.array([0.24, 0.1])
"""Deviations of a mode along and across its direction from the origin."""
SHARES = np.array([4, 1, 2, 1, 3, 1, 2, 2]) / 16
IN_HASTE = {"xla_backend_optimization_level": 1}
"""Compiling takes longer than running here: half of it at this level."""


def drawn(rng: np.random.Generator, shape: tuple[int, ...], modes: Any = range(8)) -> np.ndarray:
    """Examples [*shape, 2] of some of the modes, in proportion to their shares."""
    chosen = np.asarray(list(modes))
    which = rng.choice(chosen, shape, p=SHARES[chosen] / SHARES[chosen].sum())
    along, across = np.moveaxis(STRETCH * rng.normal(size=(*shape, 2)), -1, 0)
    out = CENTRES[which] / 1.6
    turned = np.stack([-out[..., 1], out[..., 0]], axis=-1)
    x = CENTRES[which] + along[..., None] * out + across[..., None] * turned
    return x.astype(np.float32)


def mode_of(x: jax.Array) -> jax.Array:
    """The nearest mode of x [..., 2]."""
    return ((x[..., None, :] - CENTRES) ** 2).sum(-1).argmin(-1)


def trained(describe: Any, width: int = WIDTH) -> tuple[Method, Any]:
    """(the method, its parameters [SEEDS, ...]); describe: the method's, None for nothing told."""
    steps, batch = 400, 128
    rate = optax.cosine_decay_schedule(1e-2, steps)
    method = denoising(
        SPEC, MLP(1, 2, width, 2), optax.adam(rate), Averages((100,)), label_dropout=0.1,
        describe=describe,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    data = drawn(rng, (SEEDS, steps, batch))

    def run(key: jax.Array, data: jax.Array) -> Any:
        def body(state: Any, batch: Any) -> tuple[Any, None]:
            number, image = batch
            given = {"image": image, "label": jnp.zeros(len(image), jnp.int32)}
            return method.update(state, given, jax.random.fold_in(key, number))[0], None

        return jax.lax.scan(body, method.init(key), (jnp.arange(steps), data))[0].params

    fit = jax.jit(jax.vmap(run), compiler_options=IN_HASTE)
    return method, fit(jax.vmap(jax.random.key)(jnp.arange(SEEDS)), data)


def samples(method: Method, params: Any, labels: Any = (0,) * COUNT, **options: Any) -> np.ndarray:
    """[SEEDS, len(labels), 2]; labels: what the description's `draw` is given."""
    assert method.sampler is not None
    draw = method.sampler(solver="heun", steps=12, **options).fn
    keys = jax.random.split(jax.random.key(1), len(labels))
    run = jax.vmap(lambda p: draw(p, keys, jnp.asarray(labels, jnp.int32)))
    return np.asarray(jax.jit(run, compiler_options=IN_HASTE)(params))
