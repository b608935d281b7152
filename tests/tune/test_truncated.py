"""A model that learns its own samples: cut short where, noised to where, drawn to what."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.shared.tabular import Trained, table
from jaxgen.errors import UsageError
from jaxgen.method import Chain, Sampler
from jaxgen.method.learning import placed
from jaxgen.nn.flops import count
from jaxgen.tune.truncated import truncated
from tests import toy_diffusion
from tests.nn_kit import first_state

STEPS = 4
BATCH = placed({"label": jnp.arange(6) % 3}, jnp.zeros((), jnp.int32))


def counting(**options):
    """A chain that counts its steps in tens, and says where it is noised to in units."""

    def chain(params, labels):
        def estimate(keys, state, n):
            return params["net"]["logits"].sum() * (100.0 * n + state)

        return Chain(
            start=lambda keys: jnp.zeros(len(keys)), step=lambda keys, state, n: state + 10,
            sample=lambda state: state, steps=STEPS, step_calls=np.ones(STEPS), estimate=estimate,
            estimate_calls=np.ones(STEPS), back=lambda keys, state, n, m: state + m,
        )  # fmt: skip

    return Sampler(lambda *_: None, calls=1, chain=chain)


def made():
    base = dataclasses.replace(table(1e-2), sampler=counting)
    method = truncated(base, spec=base.spec, networks={"teacher": Trained(base)})
    one = lambda value: {"net": {"logits": jnp.full((1,), value)}}
    return method, {**one(2.0), "frozen": {"teacher": one(3.0)}}


def test_what_is_said_at_more_noise_is_drawn_to_what_was_expected_at_less():
    """Of n steps and m < n: ours is 2 (100 m + 10 n + m), the frozen model's 3 (100 n + 10 n)."""
    method, params = made()
    wanted = {
        float((2 * (101 * m + 10 * n) - 330 * n) ** 2): (n, m)
        for n in range(1, STEPS + 1)
        for m in range(n)
    }
    seen = [wanted[float(method.loss(params, BATCH, jax.random.key(k), ())[0])] for k in range(80)]
    assert set(seen) == set(wanted.values())


def test_only_the_model_learns():
    method, params = made()
    key = jax.random.key(0)
    of = lambda name, p: method.loss({**params, name: p}, BATCH, key, ())[0]
    assert jax.grad(lambda p: of("frozen", p))(params["frozen"])["teacher"]["net"]["logits"] == 0
    assert jax.grad(lambda p: of("net", p))(params["net"])["logits"] != 0


def test_a_copy_of_diffusion_learns_without_data():
    build = lambda: toy_diffusion.build(3e-3)
    other = toy_diffusion.Teacher(build(), first_state(build()).params)
    live = jax.tree.map(
        lambda a: a + 0.2 * jax.random.normal(jax.random.key(a.size), a.shape), other.params
    )
    other.params = live
    method = truncated(
        build(), spec=toy_diffusion.SPEC, networks={"teacher": other},
        sample=dict(solver="ancestral.ddim", steps=4, guidance=0.0),
    )  # fmt: skip
    state = first_state(method).replace(params=live)
    labels = {"label": jnp.arange(64) % 3}
    update = lambda s, k: method.update(s, labels, k, {"teacher": live})
    # A program whose cost is known, which a loop of so many steps as are drawn has not.
    assert count(jax.make_jaxpr(update)(state, jax.random.key(0)).jaxpr) > 0
    step = jax.jit(update)
    for n in range(3):
        state, metrics = step(state, jax.random.key(n))
        assert jnp.isfinite(metrics["loss"]) and metrics["grad_norm"] > 0


@pytest.mark.parametrize("sampler", [None, lambda **_: Sampler(lambda *_: None, calls=1)])
def test_a_sampler_that_cannot_go_back_is_named(sampler):
    base = table(1e-2)
    with pytest.raises(UsageError, match="diffusion with Gaussian noise"):
        method = dataclasses.replace(base, sampler=sampler)
        truncated(method, spec=base.spec, networks={"teacher": Trained(method)})
    with pytest.raises(UsageError, match="a network called 'teacher'"):
        truncated(base, spec=base.spec, networks={})
