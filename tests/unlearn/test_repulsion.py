"""Repulsion: by hand, of the one group that is asked for, and away from the adapted parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen.api import train
from jaxgen.errors import UsageError
from jaxgen.run.model import load
from jaxgen.unlearn.repulsion import repulsion
from tests import base_run, toy_diffusion
from tests.nn_kit import random_like
from tests.toy_diffusion import Teacher
from tests.unlearn.test_redact import gan

KEY = jax.random.key(0)
FORMULAS = {
    "inverse": lambda square, a: 1 / square,
    "negative": lambda square, a: -square,
    "exponential": lambda square, a: np.exp(-a * square),
}


def made(base, **options):
    """(the wrapped method, parameters with the adapted ones frozen, a batch)."""
    adapted = random_like(jax.eval_shape(base.init, KEY).params, 0.1)
    method = repulsion(
        base, spec=base.spec, networks={"adapted": Teacher(base, adapted)}, **options
    )
    params = jax.tree.map(lambda a: 2 * a, adapted)
    image = jax.random.normal(KEY, (8, *base.spec.shape))
    batch = {"image": image, "label": jnp.arange(8) % 3, "index": jnp.arange(8)}
    batch |= {"microbatch": jnp.int32(0), "seen": jnp.zeros(8)}
    return method, {**params, "frozen": {"adapted": adapted}}, batch


def values(method, params, batch, extra=()):
    return {
        name: it.loss(params, batch, KEY, extra)[0] for name, it in method.training.learners.items()
    }


@pytest.mark.parametrize("kind", FORMULAS)
def test_it_is_added_to_the_generators_loss_alone(kind):
    base = gan()
    method, params, batch = made(base, kind=kind, weight=0.7, a=0.3)
    with_it, without = values(method, params, batch), values(base, params, batch)
    # Parameters are twice the adapted ones: off by as much as those are.
    square = sum((a**2).sum() for a in jax.tree.leaves(params["frozen"]["adapted"]["generator"]))
    expected = 0.7 * FORMULAS[kind](np.float64(square), 0.3)
    np.testing.assert_allclose(with_it["generator"] - without["generator"], expected, rtol=1e-4)
    assert with_it["discriminator"] == without["discriminator"]
    loss = method.training.learners["generator"].loss
    metrics = loss(params, batch, KEY, ())[1][0]
    np.testing.assert_allclose(metrics["distance"], np.sqrt(square), rtol=1e-5)


@pytest.mark.parametrize("kind", FORMULAS)
def test_a_step_along_it_leads_away(kind):
    base = gan()
    method, params, batch = made(base, kind=kind, a=0.3)

    def away(method):
        loss = method.training.learners["generator"].loss
        grads = jax.grad(lambda g: loss({**params, "generator": g}, batch, KEY, ())[0])
        return grads(params["generator"])

    push = jax.tree.map(lambda a, b: a - b, away(method), away(base))
    off = params["frozen"]["adapted"]["generator"]
    along = sum((a * b).sum() for a, b in zip(*map(jax.tree.leaves, (push, off)), strict=True))
    assert along < 0


def test_any_family_by_the_name_of_its_group():
    base = toy_diffusion.build(1e-3)
    method, params, batch = made(base, kind="negative", group="net")
    with_it, without = (values(m, params, batch, {"times": ()})["net"] for m in (method, base))
    square = sum((a**2).sum() for a in jax.tree.leaves(params["frozen"]["adapted"]["net"]))
    np.testing.assert_allclose(with_it - without, -square, rtol=1e-4)
    assert set(method.frozen) == {"adapted"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(kind="inverted"), "Did you mean 'inverse'"),
        (dict(weight=0.0), "weight > 0"),
        (dict(a=-1.0), "a > 0"),
        (dict(group="net"), "unlearn.repulsion.group.*discriminator, generator"),
        (dict(adapted="other"), "a network called 'other'"),
        (dict(networks={"adapted": Teacher(gan(conditional=False), {})}), "same generator"),
    ],
)
def test_bad_input_is_named(options, words):
    base = gan()
    networks = {"adapted": Teacher(base, {})}
    with pytest.raises(UsageError, match=words):
        repulsion(base, **{"spec": base.spec, "networks": networks} | options).training.check()


def test_a_run_leads_away_from_the_adapted_one(tmp_path):
    """Further from its parameters at the end than at the start, and than without the wrap."""
    other = base_run.write(tmp_path / "adapted", seed=1)
    wrap = dict(name="unlearn.repulsion", group="net", kind="negative", weight=0.1)
    told = (f"start={base_run.base()}", f"networks.adapted={other}")
    train(base_run.config(*told, "wrap=" + repr([wrap])), tmp_path / "run")
    train(base_run.config(*told), tmp_path / "plain")
    ours, theirs, adapted, first = (
        load(w).params[name]["net"]
        for w, name in (
            (tmp_path / "run", "params"),
            (tmp_path / "plain", "params"),
            (other, "half_life_500"),
            (base_run.base(), "half_life_500"),
        )
    )
    far = lambda params: optax.tree.norm(optax.tree.sub(params, adapted))
    assert far(ours) > max(far(theirs), far(first))
