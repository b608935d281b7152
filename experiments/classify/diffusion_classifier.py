"""The diffusion classifier agrees with Bayes; shared noise and elimination are why it is cheap."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.shared.check import Check, above, below, control
from jaxgen.classify import classify
from jaxgen.families.diffusion import denoising
from jaxgen.families.diffusion.core.path import linear
from jaxgen.method import Method, Spec
from jaxgen.training.ema import Averages

PAPER = "Your Diffusion Model is Secretly a Zero-Shot Classifier"
ENTRY = "jaxgen.classify.classify"

MEANS = jnp.array([[-1.2, 0.4], [1.1, 0.9], [0.3, -1.3], [-0.8, -1.1], [1.4, -0.6], [0.2, 0.1]])
STD, CLASSES, DRAWS = 0.45, 6, 128


class Exact(nn.Module):
    """The exact conditional velocity of class c, N(MEANS[c], STD^2), on the linear path."""

    @nn.compact
    def __call__(
        self, x: jax.Array, noise: jax.Array, labels: jax.Array, *, train: bool = False
    ) -> jax.Array:
        """x [B, 2], noise [B], labels [B] -> [B, 2]."""
        mean, path = MEANS[labels], linear()
        alpha, sigma = path.alpha(noise)[:, None], path.sigma(noise)[:, None]
        rest = (x - alpha * mean) / ((alpha * STD) ** 2 + sigma**2)
        return sigma * rest - (mean + alpha * STD**2 * rest)


def method() -> Method:
    """Diffusion with the exact network; nothing is trained."""
    return denoising(Spec((2,), CLASSES), Exact(), optax.identity(), Averages((1,)))


def checks() -> list[Check]:
    """Six Gaussian classes of equal covariance: Bayes is the nearest mean."""
    exact, params = method(), {"net": {}}
    truth = np.arange(1200) % CLASSES
    noise = jax.random.normal(jax.random.key(0), (1200, 2))
    x = np.asarray(MEANS[truth] + STD * noise)
    keys = jax.random.split(jax.random.key(1), 1200)
    bayes = np.asarray(((x[:, None] - MEANS) ** 2).sum(-1).argmin(1))
    results = []

    every = classify(exact, params, x, keys, draws=DRAWS, rounds=((DRAWS, 1),), batch=8000)
    results.append(above("agreement with Bayes", (every.labels == bayes).mean(), 0.99))

    fewer = classify(exact, params, x, keys, draws=DRAWS, confidence=4.0, batch=8000)
    results.append(above("winner kept by elimination", (fewer.labels == every.labels).mean(), 0.99))
    results.append(below("calls with elimination over all calls", fewer.calls / every.calls, 0.5))

    # The spread of a margin over noises, each image against its nearest rival class.
    error, many = exact.label_error, 128
    assert error is not None
    gap = np.asarray(((MEANS[:, None] - MEANS) ** 2).sum(-1)) + 1e9 * np.eye(CLASSES)
    images, label = jnp.repeat(x[:48], many, 0), np.repeat(truth[:48], many)

    def pair(labels: np.ndarray, seed: int) -> np.ndarray:
        keys = jax.random.split(jax.random.key(seed), len(images))
        both = (
            error(params, images, jnp.asarray(labels), keys, jnp.full(len(images), n), 2)
            for n in range(2)
        )
        return np.asarray(sum(both)).reshape(-1, many) / 2

    of_label, rival = pair(label, 1), gap.argmin(1)[label]
    paired, apart = pair(rival, 1) - of_label, pair(rival, 2) - of_label
    ratio = paired.var(1).mean() / apart.var(1).mean()
    check = "variance of margins, shared over separate noise"
    results.append(below(check, ratio, 0.4))
    again = (pair(rival, 3) - of_label).var(1).mean() / apart.var(1).mean()
    results.append(control(below("the same, separate over separate", again, 0.4)))
    return results
