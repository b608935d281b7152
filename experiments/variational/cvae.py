"""CVAE on linear-Gaussian data, where ln p(x | y) and the best bound are known.

x = a z + b_y + noise, z ~ N(0, 1), x in R^2, three classes of unequal means. With linear networks
the model family holds the truth and the optimal encoder, so the bound reaches E ln p(x | y).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.stats import multivariate_normal

from experiments.shared.check import Check, above, below, control
from jaxgen.families.variational import vae
from jaxgen.method import Spec
from jaxgen.nn.vae import VAE
from jaxgen.training.ema import Averages

PAPER = (
    "Learning Structured Output Representations from Attributes using Deep Conditional Generative "
    "Models"
)
ENTRY = "jaxgen.families.variational.vae"
GAIN = np.array([1.0, -0.6])
MEANS = np.array([[2.0, 0.0], [-1.0, 1.5], [0.5, -2.0]])
NOISE = 0.3
STEPS, BATCH = 1500, 256


def draw(key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """x [count, 2, 1, 1] and labels."""
    a, b, c = jax.random.split(key, 3)
    labels = jax.random.randint(a, (count,), 0, 3)
    z = jax.random.normal(b, (count, 1))
    x = z * GAIN + jnp.asarray(MEANS)[labels] + NOISE * jax.random.normal(c, (count, 2))
    return x[..., None, None], labels


@functools.cache
def trained(use_labels: bool):
    """(method, params) after training; without labels every example has the null label."""
    spec = Spec((2, 1, 1), 3, levels=None)
    model = VAE(num_classes=3, shape=(2, 1, 1), latents=(1,), hidden=((),))
    tx = optax.adam(optax.cosine_decay_schedule(1e-2, STEPS))
    method = vae(spec, model, tx, Averages((1_000,)), observation="gaussian")

    def step(state, key):
        x, labels = draw(jax.random.fold_in(key, 1), BATCH)
        labels = labels if use_labels else jnp.full_like(labels, 3)
        return method.update(state, {"image": x, "label": labels}, key)[0], None

    keys = jax.random.split(jax.random.key(0), STEPS)
    state = method.init(jax.random.key(1))
    return method, jax.jit(lambda s: jax.lax.scan(step, s, keys)[0])(state).params


def checks() -> list[Check]:
    """The bound against the exact density; class means of samples; the same without labels."""
    x, labels = draw(jax.random.key(9), 10_000)
    points, given = np.asarray(x).reshape(-1, 2), np.asarray(labels)
    covariance = np.outer(GAIN, GAIN) + NOISE**2 * np.eye(2)
    exact = multivariate_normal([0, 0], covariance).logpdf(points - MEANS[given])
    keys = jax.random.split(jax.random.key(2), len(given))
    gaps, offsets = {}, {}
    for use in (True, False):
        method, params = trained(use)
        label = labels if use else jnp.full_like(labels, 3)
        estimates = np.asarray(method.log_prob(samples=1)(params, x, label, keys))
        gaps[use] = (exact - estimates).mean(), (exact - estimates).std() / len(given) ** 0.5
        sampler = method.sampler(pixels="sample")
        made = np.asarray(sampler(params, keys, label)).reshape(-1, 2)
        means = np.stack([made[given == c].mean(0) for c in range(3)])
        offsets[use] = np.abs(means - MEANS).max()
    # A class has some 3,300 samples of standard deviation at most 1.05: an error of 0.018; four.
    return [
        above("E ln p(x | y) - bound, in standard errors", gaps[True][0] / gaps[True][1], -4),
        below("E ln p(x | y) - bound with a trained encoder", gaps[True][0], 0.02),
        below("class means of samples", offsets[True], 0.075),
        control(below("the same without labels", gaps[False][0], 0.02)),
        control(below("class means of samples without labels", offsets[False], 0.075)),
    ]
