"""Guidance distillation: the targets exactly, and students on three Gaussians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.distill import guidance
from jaxgen.distill.student import Asked
from jaxgen.errors import UsageError
from jaxgen.families.diffusion import solvers
from jaxgen.families.diffusion.core.path import linear
from jaxgen.families.diffusion.core.sampler import integrate, prior
from jaxgen.method import with_frozen
from tests.nn_kit import quick_jit
from tests.toy_diffusion import BATCH, SPEC, build, data, teacher, trained

TOLD = (("w", "number"),)
X = 1.5 * jax.random.normal(jax.random.key(0), (BATCH, 2))
LABELS = jnp.arange(BATCH) % 3
W = jnp.linspace(1.0, 4.0, BATCH)


@pytest.fixture
def target(monkeypatch):
    """What `guided` or `progressive` hands to `student`."""
    seen = {}
    monkeypatch.setattr(
        guidance, "student", lambda method, spec, target, *a, **k: seen.update(target=target, **k)
    )
    return seen


def asked(t, n=None):
    return Asked(X, t, LABELS, W, jnp.zeros_like(X), n, LABELS)


def denoisers(method, params, labels):
    return [method.sampler(guidance=w).denoiser(params, labels) for w in (1.0, 0.0)]


def test_stage_one_is_taught_what_guidance_says(target):
    """With weights [B], one each, against `cfg` at each of them."""
    other = teacher()
    guidance.guided(build(1e-3, conditions=TOLD), spec=SPEC, networks={"teacher": other})
    t = jnp.linspace(0.05, 0.95, BATCH)
    params = {"frozen": {"teacher": other.params}}
    found = target["target"](params, asked(t), linear())
    for i in (0, 40, 127):
        d = other.method.sampler(guidance=float(W[i])).denoiser(other.params, LABELS[i : i + 1])
        p, _ = d(jnp.zeros(1), X[i : i + 1], t[i : i + 1], d.init(X[:1]))
        np.testing.assert_allclose(found[i], p.v(linear(), t[i : i + 1])[0], atol=2e-5)


def test_states_of_a_trajectory_are_those_that_the_guided_sampler_visits(target):
    """With one weight for all: after k of four DDIM steps of the teacher, each k as often."""
    other, path, keys = teacher(), linear(), jax.random.split(jax.random.key(7), BATCH)
    told = dict(spec=SPEC, networks={"teacher": other}, trajectory=4)
    guidance.guided(build(1e-3, conditions=TOLD), **told)
    here = asked(jnp.ones(BATCH))._replace(w=jnp.full(BATCH, 3.0))
    found = target["states"]({"frozen": {"teacher": other.params}}, here, keys)
    d = other.method.sampler(guidance=3.0).denoiser(other.params, LABELS)
    done = np.round(4 * (1 - np.asarray(found.t))).astype(int)
    assert np.bincount(done).tolist() == pytest.approx(4 * [BATCH / 4], abs=2 * BATCH**0.5)
    x = prior(path, keys, SPEC.shape)
    for k in range(4):
        np.testing.assert_allclose(found.x[done == k], x[done == k], atol=1e-4)
        grid = jnp.array([1 - k / 4, 1 - (k + 1) / 4])
        x = integrate(solvers.ddim(path), d, x, grid, keys)


@pytest.mark.parametrize("n", [1.0, 4.0])
def test_stage_twos_target_is_two_steps_of_ddim(target, n):
    """One step with the target's x0 lands where the teacher's two do, t = 1 and t = 1 / n too."""
    other, path = teacher(), linear()
    method = build(1e-3)
    guidance.progressive(method, spec=SPEC, steps=8)
    params = {**other.params, "teacher": other.params["net"]}
    d, ddim = denoisers(method, other.params, LABELS)[0], solvers.ddim(path)
    for t in {1.0, 1 / n}:
        v = target["target"](params, asked(jnp.full(BATCH, t), n), path)
        # On the linear path v = alpha eps - sigma x0 and x = alpha x0 + sigma eps.
        alpha, sigma = 1 - t, t
        scale = alpha**2 + sigma**2
        x0, eps = (alpha * X - sigma * v) / scale, (alpha * v + sigma * X) / scale
        once = (1 - t + 1 / n) * x0 + (t - 1 / n) * eps
        grid = jnp.array([t, t - 0.5 / n, t - 1 / n])
        twice = integrate(ddim, d, X, grid, jax.random.split(jax.random.key(1), BATCH))
        np.testing.assert_allclose(once, twice, atol=5e-6)


def drawn(method, params, **options):
    keys = jax.random.split(jax.random.key(5), 300)
    fn = method.sampler(solver="ddim", **options).fn
    return np.asarray(jax.jit(fn)(params, keys, jnp.arange(300) % 3))


def test_a_student_in_one_call_is_the_guided_teacher_and_halves_its_steps():
    """Deterministic samples of the same noise: distances are of pairs."""
    other = teacher()
    net = build(1e-3, conditions=TOLD)
    first = guidance.guided(net, spec=SPEC, networks={"teacher": other}, low=1.0, high=3.0)
    state = quick_jit(first.init)(jax.random.key(1))
    begun = {**state.params["net"], **other.params["net"]}
    state, _ = trained(first, state.replace(params={"net": begun}), 700)
    both = other.method.sampler(solver="ddim", steps=8, guidance=2.0).calls
    assert 2 * first.sampler(solver="ddim", steps=8).calls == 16 == both
    for w in (1.0, 2.5):
        goal = drawn(other.method, other.params, steps=8, guidance=w)
        found = drawn(first, with_frozen(first, state.params), steps=8, guidance=w)
        spread = ((drawn(other.method, other.params, steps=8, guidance=1.0) - goal) ** 2).mean()
        assert ((found - goal) ** 2).mean() < (0.02 if w == 1 else 0.25 * spread)
    # 8 steps become 4, 2 and 1, 200 updates each at least.
    second = guidance.progressive(
        net, spec=SPEC, low=1.0, high=3.0, steps=8, last=1, images=200 * BATCH
    )
    start = quick_jit(second.init)(jax.random.key(1)).replace(params=state.params)
    done, _ = trained(second, start, 700)
    goal = drawn(first, state.params, steps=8, guidance=2.0)
    before = ((drawn(first, state.params, steps=1, guidance=2.0) - goal) ** 2).mean()
    after = ((drawn(second, done.params, steps=1, guidance=2.0) - goal) ** 2).mean()
    assert after < 0.2 * before, (after, before)


def test_the_teacher_of_a_phase_is_the_student_at_its_beginning():
    method = guidance.progressive(build(1e-2), spec=SPEC, steps=4, images=3 * BATCH)
    # A network that says 0 has nothing to learn from itself.
    state = quick_jit(method.init)(jax.random.key(0)).replace(params=teacher().params)
    update = quick_jit(method.update)
    seen = []
    for n in range(6):
        if n in (0, 3):
            seen.append(state.params["net"])
        state, _ = update(state, data(jax.random.key(n)), jax.random.key(n))
        jax.tree.map(np.testing.assert_array_equal, state.extra["teacher"], seen[-1])
    one, two = (np.concatenate([np.ravel(a) for a in jax.tree.leaves(tree)]) for tree in seen)
    assert np.abs(one - two).max() > 1e-3


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda m: guidance.progressive(m, spec=SPEC, steps=6), "steps = last 2"),
        (lambda m: guidance.progressive(m, spec=SPEC, steps=4, last=4), "steps = last 2"),
        (lambda m: guidance.guided(m, spec=SPEC, networks={}), "config.networks.teacher"),
        (lambda m: guidance.guided(m, spec=SPEC, networks={"teacher": None}), '"w", "number"'),
        (
            lambda m: guidance.guided(m, spec=SPEC, networks={"teacher": None}, trajectory=-1),
            "trajectory >= 0",
        ),
        (
            lambda m: guidance.progressive(
                build(1e-3, conditions=TOLD), spec=SPEC, steps=4
            ).sampler(guidance=9.0),
            "1 to 4",
        ),
    ],
)
def test_bad_input_is_named(make, words):
    with pytest.raises(UsageError, match=words):
        make(build(1e-3))
