"""Domain expansion: dormant directions, latents placed along them, the loss by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.errors import UsageError
from jaxgen.tune.expansion import dormant, expansion, placed

KERNEL = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)


def test_dormant_directions_are_the_last_singular_vectors():
    """Also of a layer that is narrower than its latents, which is blind to some of them."""
    wide = np.random.default_rng(1).normal(size=(5, 9)).astype(np.float32)
    for kernel, count in ((KERNEL, 3), (wide, 2)):
        directions, felt = dormant(jnp.asarray(kernel), count)
        u, s, _ = np.linalg.svd(kernel, full_matrices=True)
        s = np.concatenate([s, np.zeros(5 - len(s))])
        np.testing.assert_allclose(felt, s[::-1][:count], atol=2e-3)
        np.testing.assert_allclose(directions @ directions.T, np.eye(count), atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(directions @ kernel, axis=1), felt, atol=2e-3)
        # The same space as the last left-singular vectors of W span.
        last = u[:, 5 - count :]
        np.testing.assert_allclose(directions.T @ directions, last @ last.T, atol=1e-3)


def test_latents_have_the_shifts_and_are_else_what_they_were():
    directions, _ = dormant(jnp.asarray(KERNEL), 2)
    z = jax.random.normal(jax.random.key(0), (7, 5))
    each = jax.random.normal(jax.random.key(1), (7, 2))
    for shifts, wanted in ((jnp.array([3.0, -1.0]), np.tile([3.0, -1.0], (7, 1))), (each, each)):
        found = placed(z, directions, shifts)
        np.testing.assert_allclose(found @ directions.T, wanted, atol=1e-5)
        rest = np.eye(5) - directions.T @ directions
        np.testing.assert_allclose(found @ rest, z @ rest, atol=1e-5)
        np.testing.assert_allclose(found @ KERNEL, z @ KERNEL, atol=1e-4)


def test_the_loss_by_hand():
    directions, _ = dormant(jnp.asarray(KERNEL), 2)
    generate = lambda params, z: z @ params
    old, new = jnp.asarray(KERNEL), jnp.asarray(KERNEL) + 0.3
    z = jax.random.normal(jax.random.key(0), (7, 5))
    losses = (lambda x: x.sum(), lambda x: (x**2).mean())
    loss = expansion(generate, old, directions, losses, shift=2.0, replay=3.0)
    base = placed(z, directions, jnp.zeros(2))
    first, second = (
        placed(z, directions, s) @ new for s in (jnp.array([2.0, 0.0]), jnp.array([0.0, 2.0]))
    )
    wanted = 3 * ((base @ (new - old)) ** 2).mean() + first.sum() + (second**2).mean()
    np.testing.assert_allclose(loss(new, z), wanted, rtol=1e-5)


@pytest.mark.parametrize("count", [0, 5])
def test_a_count_that_cannot_be_is_refused(count):
    with pytest.raises(UsageError, match="1 to 4, of 5 latents"):
        dormant(jnp.asarray(KERNEL), count)


@pytest.mark.parametrize(
    ("losses", "options", "words"),
    [
        ((), dict(shift=1.0), "one for each of 2"),
        ((jnp.sum,), dict(shift=1.0), "one for each of 2"),
        ((jnp.sum, jnp.sum), dict(shift=0.0), "a shift that is not 0"),
        ((jnp.sum, jnp.sum), dict(shift=1.0, replay=-1.0), "replay >= 0"),
    ],
)
def test_bad_input_is_named(losses, options, words):
    directions, _ = dormant(jnp.asarray(KERNEL), 2)
    with pytest.raises(UsageError, match=words):
        expansion(lambda p, z: z, None, directions, losses, **options)
