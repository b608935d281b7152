"""Equal budgets, and precision and recall on triangles, a manifold whose distance is known."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.shared.check import Check, below, control, mean_above, mean_below, mean_near, near
from jaxgen.method import minimise
from jaxgen.metrics.scores.budget import expected_best, f_score

PAPER = "Are GANs Created Equal? A Large-Scale Study"
ENTRY = "jaxgen.metrics.scores.budget.expected_best"
SEEDS, COUNT, SIDE = 5, 12, 10
# Samples nearer than this to the manifold are on it: root mean square over pixels in [0, 1].
NEAR = 0.05


def render(corners: jax.Array) -> jax.Array:
    """Pictures [..., SIDE * SIDE] in [0, 1] of triangles with corners [..., 3, 2], softly edged."""
    axis = (jnp.arange(SIDE) + 0.5) / SIDE
    place = jnp.stack(jnp.meshgrid(axis, axis), -1).reshape(-1, 2)
    a, b = corners, jnp.roll(corners, -1, -2)
    side = (b - a)[..., None, :, :]
    off = place[:, None] - a[..., None, :, :]
    cross = side[..., 0] * off[..., 1] - side[..., 1] * off[..., 0]
    ab, ac = corners[..., 1, :] - corners[..., 0, :], corners[..., 2, :] - corners[..., 0, :]
    turn = jnp.sign(ab[..., 0] * ac[..., 1] - ab[..., 1] * ac[..., 0])
    inward = cross * turn[..., None, None] / (jnp.linalg.norm(side, axis=-1) + 1e-6)
    return jax.nn.sigmoid(20.0 * inward).prod(-1)


def triangles(seed: int, count: int) -> np.ndarray:
    """Corners [count, 3, 2] of triangles within the picture that are not slivers."""
    chance = np.random.default_rng(seed)
    centre = chance.uniform(0.35, 0.65, (count, 1, 2))
    angle = chance.uniform(0, 2 * np.pi, (count, 1)) + 2 * np.pi / 3 * np.arange(3)
    angle += chance.uniform(-0.4, 0.4, (count, 3))
    reach = chance.uniform(0.2, 0.35, (count, 3, 1))
    return centre + reach * np.stack([np.cos(angle), np.sin(angle)], -1)


@functools.partial(jax.jit, static_argnames="steps")
def distances(pictures: jax.Array, starts: jax.Array, steps: int = 40) -> jax.Array:
    """Distance [n] of pictures to the nearest triangle: descent from the nearest of `starts`."""

    def loss(corners: jax.Array, picture: jax.Array) -> jax.Array:
        return ((render(corners) - picture) ** 2).mean()

    bank, momentum = render(starts), optax.sgd(0.05, momentum=0.8)
    order = ((pictures[:, None] - bank) ** 2).mean(-1).argsort(1)[:, :2]

    def descend(picture: jax.Array, corners: jax.Array) -> jax.Array:
        last, _ = minimise(lambda c, _: loss(c, picture), momentum, corners, jnp.arange(steps))
        return loss(last, picture)

    squared = jax.vmap(lambda p, c: jax.vmap(lambda start: descend(p, start))(c).min())(
        pictures, starts[order]
    )
    return jnp.sqrt(squared)


def scores(made: np.ndarray, reached: np.ndarray, seed: int) -> tuple[float, float]:
    """Precision of pictures made, and recall: fresh triangles within reach of corners [k, 3, 2]."""
    bank = triangles(1000, 200)
    fresh = render(jnp.asarray(triangles(2000 + seed, COUNT)))
    precision = float((distances(jnp.asarray(made), jnp.asarray(bank)) < NEAR).mean())
    # The generator's own manifold: its latents are corners, moved as far as it can move them.
    if len(reached) == 1:
        away = jnp.sqrt(((render(jnp.asarray(reached)) - fresh) ** 2).mean(-1))
    else:
        away = distances(fresh, jnp.asarray(reached))
    return precision, float((away < NEAR).mean())


def checks() -> list[Check]:
    """Three generators of triangles; then budgets against order statistics."""
    rows: dict[str, list[tuple[float, float]]] = {"real": [], "one": [], "noise": []}
    for seed in range(SEEDS):
        chance = np.random.default_rng(seed)
        real = triangles(seed, COUNT)
        single = np.repeat(real[:1], COUNT, axis=0)
        noise = chance.random((COUNT, SIDE * SIDE)).astype(np.float32)
        rows["real"].append(
            scores(np.asarray(render(jnp.asarray(real))), triangles(3000, 200), seed)
        )
        rows["one"].append(scores(np.asarray(render(jnp.asarray(single))), single[:1], seed))
        rows["noise"].append((scores(noise, single[:1], seed)[0], 0.0))
    p, r = (
        {k: np.array(v)[:, 0] for k, v in rows.items()},
        {k: np.array(v)[:, 1] for k, v in rows.items()},
    )
    results = [
        mean_above("precision of real triangles", p["real"], 0.9),
        mean_above("recall of a generator of all triangles", r["real"], 0.9),
        mean_above("precision of one triangle", p["one"], 0.9),
        mean_below("recall of one triangle", r["one"], 0.1),
        below("precision of noise", p["noise"].max(), 0.0),
        control(below("precision of triangles, as of noise", p["real"].max(), 0.0)),
    ]
    both = [f_score(*pair) for pair in rows["real"]], [f_score(*pair) for pair in rows["one"]]
    results.append(mean_above("F1 of all triangles minus that of one", np.subtract(*both), 0.7))

    # Runs of a method whose score is exponential: the best of n has the mean 1 / n.
    pools = np.random.default_rng(0).exponential(size=(200, 60))
    counts = (1, 5, 20)
    curves = np.array([expected_best(pool, counts).mean for pool in pools])
    # Standard errors .009, .0023 and .001.
    for n, values in zip(counts, curves.T, strict=True):
        check, bound = f"expected best of {n} exponential runs", 0.12 / n
        results.append(mean_near(check, values, 1 / n, bound))
        if n > 1:
            results.append(control(mean_near(check, pools.mean(1), 1 / n, bound)))
    # A steady method wins at small budgets and an uneven one at large ones: one number hides it.
    steady, uneven = np.linspace(0.9, 1.1, 50), np.linspace(0.5, 2.5, 50)
    ahead = expected_best(uneven, (1, 20)).mean - expected_best(steady, (1, 20)).mean
    results.append(near("sign of the lead of a steady method, best of 1", np.sign(ahead[0]), 1, 0))
    results.append(near("sign of its lead, best of 20", np.sign(ahead[1]), -1, 0))
    return results
