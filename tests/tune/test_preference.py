"""Preferences: what is compared, which way the gradient goes, what it takes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.shared.tabular import SPEC, Trained, table
from jaxgen.errors import UsageError
from jaxgen.frozen.rewards import harmonic
from jaxgen.method import Column
from jaxgen.method.learning import placed
from jaxgen.tune.preference import dpo
from tests import toy_diffusion
from tests.nn_kit import first_state, quick_jit

KEY = jax.random.key(3)
WITH_LOSER = dataclasses.replace(SPEC, columns={"loser": Column((1,), "int32")})
ROWS = jnp.arange(60)
BATCH = placed(
    {"image": ROWS[:, None] % 10, "label": ROWS % 3, "loser": (ROWS[:, None] + 3) % 10},
    jnp.zeros((), jnp.int32),
)


def low(x, labels):
    return -1.0 * x[:, 0]


def made(**options):
    base = table(1e-2)
    given = dict(spec=WITH_LOSER, networks={"teacher": Trained(base)})
    method = dpo(base, **{**given, **options})
    return method, method.init(jax.random.key(0)).params | {"frozen": method.frozen}


def gradient(method, params):
    loss = lambda net: method.loss({**params, "net": net}, BATCH, KEY, ())[0]
    return np.asarray(jax.grad(loss)(params["net"])["logits"])


def test_at_the_copy_itself_the_gradient_is_beta_half_of_winner_less_loser():
    method, params = made(loser="loser", beta=0.3)
    value, (metrics, _) = method.loss(params, BATCH, KEY, ())
    assert value == pytest.approx(np.log(2)) and metrics["unscored"] == 0
    wanted = np.zeros((3, 10))
    np.add.at(wanted, (BATCH["label"], BATCH["image"][:, 0]), -0.3 / 2 / 60)
    np.add.at(wanted, (BATCH["label"], BATCH["loser"][:, 0]), 0.3 / 2 / 60)
    np.testing.assert_allclose(gradient(method, params), wanted, atol=1e-7)


def test_pairs_are_two_samples_or_the_datas_own_and_one_sample():
    """With a reward that is all at one value, the gradient raises it, and only samples feel it."""
    only = lambda x, labels: jnp.where(x[:, 0] == 4, 50.0, 0.0)
    for data in (False, True):
        method, params = made(reward=only, data=data)
        slope = gradient(method, params)
        assert (slope[:, 4] < 0).all() and (np.delete(slope, 4, axis=1) >= -1e-7).all()
    never = lambda x, labels: jnp.where(x[:, 0] == 4, jnp.nan, 0.0)
    method, params = made(reward=never, data=True)
    _, (metrics, _) = method.loss(params, BATCH, KEY, ())
    # A tenth of the data, and of the rest what the copy draws.
    assert 0.1 <= metrics["unscored"] < 0.5 and (gradient(method, params)[:, 4] == 0).all()


def test_the_methods_own_loss_is_added():
    plain, params = made(loser="loser")
    both, _ = made(loser="loser", similarity=0.7)
    base = table(1e-2)
    own = base.loss(params, BATCH, KEY, ())[0]
    value, (metrics, _) = both.loss(params, BATCH, KEY, ())
    assert value == pytest.approx(float(plain.loss(params, BATCH, KEY, ())[0] + 0.7 * own))
    assert metrics["similarity"] == own


def test_diffusion_is_compared_at_shared_noise():
    """A pair of one image has no margin, whatever the parameters: its errors are the same."""
    build = lambda: toy_diffusion.build(1e-3)
    other = toy_diffusion.Teacher(build(), first_state(build()).params)
    spec = dataclasses.replace(toy_diffusion.SPEC, columns={"loser": Column((2,), "float32")})
    method = dpo(build(), spec=spec, networks={"teacher": other}, loser="loser")
    data = toy_diffusion.data(KEY)
    moved = jax.tree.map(lambda a: a + 0.1, other.params)
    params = {**moved, "frozen": {"teacher": other.params}}
    value = {}
    for shift in (0.0, 1.0):
        batch = placed({**data, "loser": data["image"] + shift}, jnp.zeros((), jnp.int32))
        value[shift] = quick_jit(lambda p, b: method.loss(p, b, KEY, ())[0])(params, batch)
    assert value[0.0] == pytest.approx(np.log(2), abs=1e-6) and value[1.0] != value[0.0]


def test_the_harmonic_mean_of_two_rewards():
    a, b = (lambda x, labels: x[:, 0]), (lambda x, labels: x[:, 1])
    x, labels = (
        jnp.array([[1.0, 3.0], [2.0, 2.0], [0.0, 5.0], [4.0, -1.0]]),
        jnp.zeros(4, jnp.int32),
    )
    plain = harmonic(first=a, second=b, exponential=False)(x, labels)
    np.testing.assert_allclose(plain, [2 * 3 / 4, 2, 0, 0], rtol=1e-6)
    found = harmonic(first=a, second=b, share=0.2)(x, labels)
    wanted = 1 / (0.2 / np.exp(x[:, 0]) + 0.8 / np.exp(x[:, 1]))
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    with pytest.raises(UsageError, match="reward.share"):
        harmonic(first=a, second=b, share=1.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(networks={}, reward=low), "a network called 'teacher'"),
        (dict(), "one of the two"),
        (dict(loser="loser", reward=low), "one of the two"),
        (dict(loser="other"), "column 'other'"),
        (dict(loser="loser", beta=0.0), "beta > 0"),
        (dict(loser="loser", draws=0), "draws >= 1"),
        (dict(loser="loser", similarity=-1.0), "similarity >= 0"),
        (dict(reward=lambda x, labels: x), "a number for each sample"),
    ],
)
def test_bad_input_is_named(change, words):
    with pytest.raises(UsageError, match=words):
        made(**change).training.check()


def test_a_method_that_cannot_be_compared_is_named():
    base = table(1e-2)
    mute = Trained(dataclasses.replace(base, sampler=None))
    with pytest.raises(UsageError, match="one can sample"):
        dpo(base, spec=SPEC, networks={"teacher": mute}, reward=low).training.check()
    silent = dataclasses.replace(base, label_error=None)
    with pytest.raises(UsageError, match="methods that classify"):
        dpo(silent, spec=SPEC, networks={"teacher": Trained(base)}, reward=low)
    scalar = dataclasses.replace(SPEC, columns={"loser": Column((), "float32")})
    with pytest.raises(UsageError, match=r"examples, \(1,\)"):
        dpo(base, spec=scalar, networks={"teacher": Trained(base)}, loser="loser")
