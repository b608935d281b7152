"""Optimizers of a config against their formulas."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen.nn.dit import DiT
from jaxgen.testing.networks import live_variables
from jaxgen.training.optim import optimizer, schedule

RUN = dict(images=1000, batch_size=10)
PARAMS = {"w": jnp.array([1.0, -2.0, 3.0])}
GRADS = {"w": jnp.array([30.0, 0.0, 40.0])}


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def moved(*, steps=1, grads=GRADS, **options):
    """What the last of `steps` updates adds to the parameters."""
    rule = optimizer(**options, **RUN)
    state = rule.init(PARAMS)
    for _ in range(steps):
        updates, state = rule.update(grads, state, PARAMS)
    return np.asarray(updates["w"])


def test_gradients_are_clipped_before_the_optimizer_sees_them():
    """By the global norm (here 50), and not the update: momentum then adds up clipped gradients."""
    options = dict(name="sgd", learning_rate=0.5, momentum=0.9)
    close(moved(**options, clip_norm=2.0), -0.5 * 2 * np.array([0.6, 0, 0.8]))
    close(moved(**options, clip_norm=2.0, steps=2), -0.5 * 1.9 * 2 * np.array([0.6, 0, 0.8]))
    # Adam's step has no scale: to clip its update would change it, to clip the gradient does not.
    adam = dict(name="adam", learning_rate=0.5, eps=0.0)
    kept = np.abs(moved(**adam, clip_norm=0.01, grads={"w": jnp.ones(3)}))
    np.testing.assert_allclose(kept, 0.5, rtol=1e-5)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_two_steps_of_adam_by_hand(name):
    rate, b1, b2, eps, decay = 0.1, 0.8, 0.95, 1e-3, 0.25 if name == "adamw" else 0.0
    options = dict(learning_rate=rate, b1=b1, b2=b2, eps=eps, weight_decay=decay)
    rule, grads = optimizer(name, **options, **RUN), [GRADS, {"w": jnp.array([-1.0, 2.0, 5.0])}]
    state = rule.init(PARAMS)
    m = v = np.zeros(3)
    for number, grad in enumerate(grads, 1):
        updates, state = rule.update(grad, state, PARAMS)
        g = np.asarray(grad["w"])
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        step = m / (1 - b1**number) / (np.sqrt(v / (1 - b2**number)) + eps)
        expected = -rate * (step + decay * np.asarray(PARAMS["w"]))
        np.testing.assert_allclose(updates["w"], expected, rtol=1e-5)


def stepped(rule, grads, params):
    return rule.update(grads, rule.init(params), params)[0]


def test_muons_step_of_each_layer_is_optaxs_and_of_all_else_adams():
    shapes = {
        "blocks": {"qkv": {"kernel": (3, 8, 6), "bias": (3, 6)}},
        "students": {"out": {"kernel": (2, 5, 4)}},
        "conv": {"kernel": (3, 3, 2, 7)},
        "labels": {"embedding": (11, 6)},
    }
    keys = iter(jax.random.split(jax.random.key(0), 20))
    draw = lambda shape: jax.random.normal(next(keys), shape)
    params, grads = (
        jax.tree.map(draw, shapes, is_leaf=lambda a: isinstance(a, tuple)) for _ in range(2)
    )
    options = dict(b1=0.7, b2=0.9, eps=1e-4, weight_decay=0.1)
    ours = stepped(optimizer("muon", learning_rate=0.2, **options, **RUN), grads, params)
    rule = optax.contrib.muon(
        0.2, adam_b1=0.7, adam_b2=0.9, eps=1e-4, weight_decay=0.1, consistent_rms=0.2
    )
    alone = lambda w, g: stepped(rule, {"w": g}, {"w": w})["w"]
    for path in (("blocks", "qkv"), ("students", "out")):
        made, w, g = (functools.reduce(dict.get, path, t)["kernel"] for t in (ours, params, grads))
        for layer in range(len(w)):
            np.testing.assert_allclose(made[layer], alone(w[layer], g[layer]), rtol=1e-4, atol=1e-6)
    made, w, g = (t["conv"]["kernel"].reshape(18, 7) for t in (ours, params, grads))
    np.testing.assert_allclose(made, alone(w, g), rtol=1e-4, atol=1e-6)
    # Of a vector optax's is Adam, with Nesterov's momentum.
    for path in (("blocks", "qkv", "bias"), ("labels", "embedding")):
        made, w, g = (functools.reduce(dict.get, path, t).ravel() for t in (ours, params, grads))
        np.testing.assert_allclose(made, alone(w, g), rtol=1e-5)


def test_muons_step_of_a_layer_of_a_network_moves_all_directions_alike():
    """Singular values of U V^T are 1; Newton and Schulz's five iterations give .68 to 1.14."""
    net = DiT(3, 1, patch=2, width=16, depth=2, heads=2)
    params = live_variables(net, (8, 8, 1))["params"]
    grads = jax.tree.map(lambda a: jax.random.normal(jax.random.key(a.size), a.shape), params)
    rate = 0.1
    step = stepped(optimizer("muon", learning_rate=rate, **RUN), grads, params)
    for layer in step["blocks"]["qkv"]["kernel"]:
        sizes = np.linalg.svd(layer, compute_uv=False) / (rate * 0.2 * max(layer.shape) ** 0.5)
        assert sizes.min() > 0.6 and sizes.max() < 1.25, sizes


SHAPES = {
    "constant": lambda seen: 1.0,
    "cosine": lambda seen: 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * progress(seen))),
    "linear": lambda seen: 1 - 0.9 * progress(seen),
    "inverse_sqrt": lambda seen: 1 / np.sqrt(max(seen / 400, 1)),
}


def progress(seen):
    return np.clip((seen - 200) / 800, 0, 1)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("batch", [10, 50])
def test_rates_follow_their_formula_in_images(name, batch):
    rate = schedule(name, learning_rate=0.3, warmup_images=200, decay_images=400,
                    final_fraction=0.1, images=1000, batch_size=batch)  # fmt: skip
    for count in range(0, 1000 // batch + 1, 2):
        seen = count * batch
        warm = min((seen + batch) / 200, 1)
        np.testing.assert_allclose(
            rate(jnp.int32(count)), 0.3 * warm * SHAPES[name](seen), rtol=1e-5
        )
