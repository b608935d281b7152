"""The loss of the discrete family against cross-entropies by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from jaxgen.families.discrete.core import Core, Tokens
from jaxgen.families.discrete.loss import interpolant_loss
from jaxgen.families.discrete.schedules import cosine, linear
from jaxgen.method import Spec

VALUES, PLACES, COUNT = 3, 4, 20_000
LOGITS = np.array([1.0, -0.5, 0.2])


@dataclasses.dataclass(frozen=True, eq=False)
class Known:
    """Sees what is not masked, and guesses the rest by LOGITS; or (seeing=False) guesses all."""

    seeing: bool = True

    def apply(self, variables, x, labels, **options):
        guess = jnp.broadcast_to(jnp.asarray(LOGITS), (*x.shape, VALUES))
        seen = 60.0 * jax.nn.one_hot(x, VALUES)
        return jnp.where((x == VALUES)[..., None] | (not self.seeing), guess, seen)


class Told:
    """Guesses by the label: a loss near 0 with the label, and ln 3 with none."""

    def apply(self, variables, x, labels, **options):
        hot = 60.0 * jax.nn.one_hot(labels, VALUES)  # 0 where the label is none of them
        return jnp.broadcast_to(hot[:, None], (*x.shape, VALUES))


def value(net, *, token=0, schedule=None, smoothing=0.0, dropout=0.0):
    """The loss over many images of one token each, and its standard error, roughly."""
    spec = Spec((1, PLACES), VALUES, VALUES, tokens=True)
    core = Core(spec, net, Tokens(VALUES), schedule or linear(), "mask", False)
    loss = interpolant_loss(
        core, weighting="simple", label_smoothing=smoothing, label_dropout=dropout
    )
    label = jnp.full(COUNT, token)
    batch = {
        "image": jnp.full((COUNT, 1, PLACES), token),
        "label": label,
        "index": jnp.arange(COUNT),
        "microbatch": jnp.int32(0),
    }
    return float(jax.jit(loss)({"net": {}}, batch, jax.random.key(0), ())[0])


NATS = -scipy.special.log_softmax(LOGITS)


@pytest.mark.parametrize("token", range(VALUES))
@pytest.mark.parametrize("schedule", [linear(), cosine()], ids=["linear", "cosine"])
def test_it_is_the_cross_entropy_of_what_is_masked(token, schedule):
    """Over the mean share of masks: known tokens cost nothing and do not dilute the others."""
    found = value(Known(), token=token, schedule=schedule)
    assert abs(found / NATS[token] - 1) < 0.02


@pytest.mark.parametrize("smoothing", [0.1, 0.4])
def test_smoothing_mixes_the_uniform_distribution_into_the_target(smoothing):
    found = value(Known(seeing=False), token=1, smoothing=smoothing)
    wanted = (1 - smoothing) * NATS[1] + smoothing * NATS.mean()
    assert abs(found / wanted - 1) < 0.02


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_share_of_labels_is_dropped(dropout):
    assert abs(value(Told(), token=2, dropout=dropout) - dropout * np.log(VALUES)) < 0.01
