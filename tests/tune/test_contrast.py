"""Contrasts with a frozen copy: where they begin, what is a negative, what they take."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.shared.tabular import SPEC, Trained, table
from jaxgen.errors import UsageError
from jaxgen.method.learning import placed
from jaxgen.tune.contrast import cca, ddo
from tests import toy_diffusion

KEY = jax.random.key(3)
BATCH = {"image": jnp.arange(600)[:, None] % 10, "label": jnp.arange(600) % 3}
BATCH = placed(BATCH, jnp.zeros((), jnp.int32))


def made(wrap, **options):
    base = table(1e-2)
    method = wrap(base, spec=SPEC, networks={"teacher": Trained(base)}, **options)
    params = method.init(jax.random.key(0)).params
    return method, params | {"frozen": method.frozen}


@pytest.mark.parametrize("wrap", [cca, ddo])
@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_at_the_copy_itself_nothing_is_told_apart(wrap, weight):
    """ln 2 for each of the two, and the gradient of a share of them by hand."""
    method, params = made(wrap, weight=weight, label_dropout=0.0, beta=0.5)
    value, (metrics, _) = method.loss(params, BATCH, KEY, ())
    np.testing.assert_allclose(value, (1 + weight) * np.log(2), rtol=1e-6)
    assert metrics["log_ratio"] == metrics["log_ratio_negative"] == 0


def test_the_gradient_is_beta_half_of_that_of_the_likelihoods():
    method, params = made(cca, weight=0.0, label_dropout=0.0, beta=0.3)
    base = table(1e-2)

    def grad(loss):
        return jax.grad(lambda p: loss({**params, **p}, BATCH, KEY, ())[0])({"net": params["net"]})

    contrast, likelihood = grad(method.loss), grad(base.loss)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, 0.3 / 2 * b, atol=1e-7), contrast, likelihood
    )


def test_a_negative_label_is_never_the_images_own():
    """Shuffled labels would be, for one of three."""
    seen = []
    base = table(1e-2)

    def spied(params, x, labels, keys, draw, draws):
        seen.append(np.asarray(labels))
        return base.label_error(params, x, labels, keys, draw, draws)

    method = dataclasses.replace(base, label_error=spied)
    wrapped = cca(method, spec=SPEC, networks={"teacher": Trained(base)}, draws=1)
    params = wrapped.init(jax.random.key(0)).params | {"frozen": wrapped.frozen}
    with jax.disable_jit():
        wrapped.loss(params, BATCH, KEY, ())
    own, negative = seen
    told = own != SPEC.null_label
    assert 0.8 < told.mean() < 0.97  # a tenth dropped
    assert (negative[told] != own[told]).all() and (own[told] == BATCH["label"][told]).all()
    assert set(zip(own[told], negative[told], strict=True)) == {
        (a, b) for a in range(3) for b in range(3) if a != b
    }
    assert (negative[~told] == SPEC.null_label).all()


def test_rows_without_a_label_have_no_negative():
    """All but no label: the negatives' weight does not matter."""
    few = dict(label_dropout=0.999)
    one, two = (made(ddo, weight=w, **few) for w in (0.0, 5.0))
    batch = {**BATCH, "label": jnp.full(600, 0)}
    losses = [m.loss(p, batch, KEY, ())[0] for m, p in (one, two)]
    assert abs(losses[1] - losses[0]) < 5.0 * np.log(2) * 0.01


def test_the_copy_draws_anew_at_each_step_and_is_not_among_the_parameters():
    method, params = made(ddo, label_dropout=0.0)

    moved = {**params, "net": {"logits": params["net"]["logits"] + jnp.arange(10.0)}}
    one, two = (method.loss(moved, BATCH, jax.random.key(k), ())[0] for k in (0, 1))
    assert one != two
    assert "teacher" not in method.init(jax.random.key(0)).params


@pytest.mark.parametrize(
    "wrap", [cca, functools.partial(ddo, sample=dict(solver="euler", steps=2))]
)
def test_diffusion_is_contrasted_at_shared_noise(wrap):
    """At the copy itself the two errors are the same to the bit, whatever the noise."""
    other = toy_diffusion.teacher()
    method = wrap(toy_diffusion.build(1e-3), spec=toy_diffusion.SPEC, networks={"teacher": other})
    batch = placed(toy_diffusion.data(KEY), jnp.zeros((), jnp.int32))
    params = {**other.params, "frozen": {"teacher": other.params}}
    _, (metrics, _) = method.loss(params, batch, KEY, ())
    assert abs(metrics["log_ratio"]) < 1e-7 and abs(metrics["log_ratio_negative"]) < 1e-7


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(networks={}), "a network called 'teacher'"),
        (dict(beta=0.0), "beta > 0"),
        (dict(draws=0), "draws >= 1"),
        (dict(label_dropout=1.0), "label_dropout"),
    ],
)
@pytest.mark.parametrize("wrap", [cca, ddo])
def test_bad_input_is_named(wrap, change, words):
    base = table(1e-2)
    with pytest.raises(UsageError, match=words):
        wrap(base, **{"spec": SPEC, "networks": {"teacher": Trained(base)}} | change)


def test_a_method_that_cannot_be_contrasted_is_named():
    base = table(1e-2)
    silent = dataclasses.replace(base, label_error=None)
    with pytest.raises(UsageError, match="methods that classify"):
        cca(silent, spec=SPEC, networks={"teacher": Trained(base)})
    mute = Trained(dataclasses.replace(base, sampler=None))
    with pytest.raises(UsageError, match="one can sample"):
        ddo(base, spec=SPEC, networks={"teacher": mute}).training.check()
    unsure = Trained(silent)
    with pytest.raises(UsageError, match="networks.teacher.*a model that classifies"):
        cca(base, spec=SPEC, networks={"teacher": unsure}).training.check()
    with pytest.raises(UsageError, match="two classes"):
        one = dataclasses.replace(SPEC, num_classes=1)
        cca(base, spec=one, networks={"teacher": Trained(base)})
