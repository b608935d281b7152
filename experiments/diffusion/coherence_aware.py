"""Coherence: half of the labels are random and marked so; what is asked for is still drawn."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.shared.check import Check, control, mean_above, mean_below, mean_near
from experiments.shared.toys import MEANS, PATH, STDS, WEIGHTS, posterior
from jaxgen.families.diffusion.methods.denoising import denoising
from jaxgen.method import Method, Spec
from jaxgen.nn.conditions import Conditions, embed
from jaxgen.testing import mixture_denoiser
from jaxgen.training.ema import Averages

PAPER = "Don't drop your samples! Coherence-aware training benefits Conditional diffusion"
ENTRY = "jaxgen.families.diffusion.guidance.coherence.coherence"
SEEDS, COUNT = 5, 600


class Shares(nn.Module):
    """The mixture's exact denoiser but for the classes' shares, which follow from the label."""

    num_classes: int
    width: int = 16
    conditions: Conditions = ()

    @nn.compact
    def __call__(self, x: jax.Array, noise: Any, told: Any, *, train: bool = False) -> jax.Array:
        """x [B, 2], noise [B], a condition -> x0 [B, 2]."""
        table = nn.Embed(self.num_classes + 1, self.width, name="labels")
        y = embed(told, table, self.conditions, len(x), width=self.width, dtype=jnp.float32)
        shares = nn.softmax(nn.Dense(3)(nn.tanh(nn.Dense(self.width)(y))))

        def mixed(x: jax.Array, t: jax.Array, share: jax.Array) -> jax.Array:
            exact = mixture_denoiser(PATH, MEANS, STDS, share)
            return exact(None, x[None], t)[0].x0[0]

        return jax.vmap(mixed)(x, noise, shares)


def checks() -> list[Check]:
    """The class of samples for each label at high and at low coherence, and with labels alone."""
    results = []
    data = _data()
    levels = _trained(2, data)
    plain = _trained(1, data)
    wanted = jnp.arange(COUNT) % 3

    aware = _classes(*levels, 2 * wanted)
    check = "share of samples of the class asked for"
    results.append(mean_above(check, (aware == wanted).mean(1), 0.95))
    results.append(control(mean_above(check, (_classes(*plain, wanted) == wanted).mean(1), 0.95)))
    # At the lowest coherence the label says nothing: the first class as often as in the data.
    low = _classes(*levels, 2 * wanted, guidance=0.0)
    check = "share of the first class at low coherence"
    results.append(mean_near(check, (low == 0).mean(1), WEIGHTS[0], 0.07))
    results.append(control(mean_near(check, (aware == 0).mean(1), WEIGHTS[0], 0.07)))
    # Guided away from the marginal: samples that leave the other classes further behind.
    check = "share of the class asked for that could be another's"
    doubt = _doubt(*levels, 2 * wanted, guidance=1.0), _doubt(*levels, 2 * wanted, guidance=2.0)
    results.append(mean_below(check, doubt[1] / doubt[0], 0.1))
    results.append(control(mean_below(check, doubt[0] / doubt[0], 0.1)))
    return results


def _data(steps: int = 300, batch: int = 128) -> dict[str, np.ndarray]:
    """x0 [SEEDS, steps, batch, 2], label and coherence: 0 where the label is random (half)."""
    rng, shape = np.random.default_rng(0), (SEEDS, steps, batch)
    which = rng.choice(3, shape, p=WEIGHTS)
    x0 = MEANS[which] + STDS[which][..., None] * rng.normal(size=(*shape, 2))
    right = rng.random(shape) < 0.5
    label = np.where(right, which, rng.integers(0, 3, shape))
    return {"image": x0.astype(np.float32), "label": label, "coherence": right.astype(int)}


def _trained(levels: int, data: dict[str, np.ndarray]) -> tuple[Method, Any]:
    """A method and its parameters for each seed, by labels with coherence or (levels=1) alone."""
    method = denoising(
        Spec((2,), 3 * levels), Shares(3), optax.adam(1e-2), Averages((100,)),
        prediction="x0", weighting="snr", times="logit_normal", label_dropout=0.0,
        coherence=levels,
    )  # fmt: skip
    label = data["label"] * levels + (data["coherence"] if levels == 2 else 0)

    def run(key: jax.Array, image: jax.Array, label: jax.Array) -> Any:
        def body(state: Any, batch: Any) -> tuple[Any, None]:
            number, batch = batch
            return method.update(state, batch, jax.random.fold_in(key, number))[0], None

        batches = jnp.arange(image.shape[0]), {"image": image, "label": label}
        return jax.lax.scan(body, method.init(key), batches)[0].params

    # Compiling takes longer than running here: half of it at this level.
    fit = jax.jit(jax.vmap(run), compiler_options={"xla_backend_optimization_level": 1})
    keys = jax.vmap(jax.random.key)(jnp.arange(SEEDS))
    return method, fit(keys, data["image"], label.astype(np.int32))


def _samples(method: Method, params: Any, labels: jax.Array, guidance: float) -> jax.Array:
    """[SEEDS, COUNT, 2]."""
    assert method.sampler is not None
    sections = [dict(name="coherence.coherence", weight=guidance)] if guidance != 1 else 1.0
    draw = method.sampler(solver="euler", steps=24, grid="uniform", guidance=sections).fn
    keys = jax.random.split(jax.random.key(1), COUNT)
    return jax.jit(jax.vmap(lambda p: draw(p, keys, labels.astype(jnp.int32))))(params)


def _classes(method: Method, params: Any, labels: jax.Array, guidance: float = 1.0) -> jax.Array:
    """The likeliest class of each sample, [SEEDS, COUNT]."""
    return posterior(_samples(method, params, labels, guidance)).argmax(-1)


def _doubt(method: Method, params: Any, labels: jax.Array, guidance: float) -> jax.Array:
    """The mean probability of the classes that were not asked for, [SEEDS]."""
    share = posterior(_samples(method, params, labels, guidance))
    return 1 - jnp.take_along_axis(share, (labels // 2)[None, :, None], -1).mean((1, 2))
