"""The randomness of a step is a function of the run's key and of the step's number."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxgen.method import Method, Spec, Training, example_keys, learn, single
from jaxgen.training.ema import Averages
from jaxgen.training.loop import empty_tally, make_step, read_tally

BATCH = {"image": jnp.zeros((4, 1)), "label": jnp.zeros(4, jnp.int32)}


def method() -> Method:
    """Its loss is its step's draw, and a draw for each example."""

    def loss(params, batch, key, extra):
        keys = example_keys(key, batch)
        drawn = {"drawn": jax.random.uniform(key), "last": jax.random.uniform(keys[-1])}
        return params["a"] ** 2, (drawn, extra)

    training: Training = single(
        loss, lambda key: ({"a": jnp.ones(())}, ()), optax.sgd(0.1), Averages((10,))
    )
    init, update = learn(training)
    return Method(spec=Spec((1,), 1), init=init, update=update, training=training)


def test_step_n_draws_by_the_roots_key_folded_with_n():
    made, root = method(), jax.random.key(7)
    state = made.init(jax.random.key(0))
    step = jax.jit(make_step(made))
    for number in range(3):
        tally = empty_tally(made, state, BATCH)
        state, tally = step(state, tally, BATCH, root)
        key, values = jax.random.fold_in(root, number), read_tally(tally, 1)
        np.testing.assert_allclose(values["drawn"], jax.random.uniform(key), rtol=1e-6)
        example = jax.random.uniform(jax.random.fold_in(key, 3))
        np.testing.assert_allclose(values["last"], example, rtol=1e-6)
