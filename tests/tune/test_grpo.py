"""GRPO: its gradient is that of the reward less the divergence, and what it takes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.shared.tabular import SPEC, Trained, table
from jaxgen.errors import UsageError
from jaxgen.method.learning import placed
from jaxgen.tune.grpo import advantages, grpo, surrogate
from tests import toy_diffusion
from tests.every_family import built
from tests.nn_kit import first_state

KEY = jax.random.key(3)
LABELS = placed({"label": jnp.arange(96) % 3}, jnp.zeros((), jnp.int32))


def high(x, labels):
    return x[:, 0].astype(jnp.float32)


def made(reward=high, **options):
    base = table(1e-2)
    given = dict(spec=SPEC, networks={"teacher": Trained(base)}, reward=reward, group=8)
    return grpo(base, **{**given, **options})


def chains(params):
    """ln p [9, 2] of the two draws of all pairs of three values."""
    first, second = jax.nn.log_softmax(params[0]), jax.nn.log_softmax(params[1:], axis=-1)
    a, b = jnp.arange(9) // 3, jnp.arange(9) % 3
    return jnp.stack([first[a], second[a, b]], axis=1)


def test_the_gradient_over_all_chains_is_that_of_reward_less_divergence():
    params, reference = (jax.random.normal(jax.random.key(k), (4, 3)) for k in (0, 1))
    reward, other, beta = jax.random.normal(KEY, (9,)), chains(reference), 0.7

    def exact(params):
        log = chains(params).sum(1)
        return -(jnp.exp(log) * (reward - beta * (log - other.sum(1)))).sum() / 2

    def ours(params):
        log = chains(params)
        p = jax.lax.stop_gradient(jnp.exp(log.sum(1)))
        old = jax.lax.stop_gradient(log)
        return (p * surrogate(log, old, other, reward - 0.3, clip=0.2, beta=beta)).sum()

    np.testing.assert_allclose(jax.grad(ours)(params), jax.grad(exact)(params), atol=1e-6)


def test_of_one_draw_the_divergence_is_k3_times_the_ratio():
    log, old, reference = (jax.random.normal(jax.random.key(k), (5, 1)) for k in range(3))
    k3 = lambda log: jnp.exp(log - old) * (jnp.exp(reference - log) - 1 + log - reference)
    ours = lambda log: surrogate(log, old, reference, jnp.zeros(5), clip=0.2, beta=1.0)
    wanted, found = (jax.grad(lambda log, f=f: f(log).sum())(log) for f in (k3, ours))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_beyond_the_clip_only_what_goes_back_has_a_gradient():
    log = jnp.log(jnp.array([[1.3], [1.3], [0.7], [0.7], [1.1]]))
    zero, own = jnp.zeros((5, 1)), jnp.array([1.0, -1.0, 1.0, -1.0, 1.0])
    slope = jax.grad(lambda log: surrogate(log, zero, zero, own, clip=0.2, beta=0.0).sum())(log)
    np.testing.assert_allclose(slope[:, 0], [0, 1.3, -0.7, 0, -1.1], rtol=1e-6)


def test_advantages():
    rewards = jnp.array(
        [[1.0, 2.0, 6.0], [1.1, 1.1, 1.1], [1.0, jnp.nan, 3.0], [jnp.inf, 2, -jnp.inf]]
    )
    plain, finite = advantages(rewards, False)
    np.testing.assert_allclose(plain[0], [1 - 4, 2 - 3.5, 6 - 1.5])  # less the mean of the others
    np.testing.assert_allclose(plain[2], [-2, 0, 2])
    scaled, _ = advantages(rewards, True)
    np.testing.assert_allclose(scaled[0], (np.array([1, 2, 6]) - 3) / np.std([1, 2, 6]), rtol=1e-6)
    np.testing.assert_allclose(scaled[2], [-1, 0, 1])
    for found in (plain, scaled):
        assert (found[1] == 0).all() and (found[3] == 0).all()
    assert finite.sum(1).tolist() == [3, 3, 2, 1]


def test_a_group_has_one_label_and_what_cannot_be_scored_is_counted():
    method = made(lambda x, labels: jnp.where(x[:, 0] == 0, jnp.nan, 1.0 * labels))
    state = method.init(jax.random.key(0))
    _, batch, metrics = method.training.prepare(state, LABELS, KEY, method.frozen)
    labels = np.asarray(batch["label"]).reshape(-1, 8)
    assert (labels == np.asarray(LABELS["label"])[::8, None]).all()
    share = (np.asarray(batch["draws"]) == 0).mean()
    assert share > 0 and metrics["unscored"] == pytest.approx(share)
    assert (batch["advantage"] == 0).all()  # one reward for each label
    state, metrics = jax.jit(method.update)(state, {"label": LABELS["label"]}, KEY, method.frozen)
    assert metrics["unscored"] > 0 and metrics["grad_norm"] < 1e-6 and metrics["kl"] < 1e-6


def test_several_steps_on_one_draw_leave_the_ratio_behind():
    """Two steps on the halves of one draw end elsewhere than one on all of it."""
    ends = []
    for steps in (1, 2):
        method = made(steps=steps, beta=0.0)
        state = method.init(jax.random.key(0))
        state, _ = jax.jit(method.update)(state, {"label": LABELS["label"]}, KEY, method.frozen)
        ends.append(np.asarray(state.params["net"]["logits"]))
    assert np.abs(ends[1] - ends[0]).max() > 5e-3


def test_diffusion_goes_where_the_reward_is():
    """By the steps of its sampler, from a network that says nothing."""
    build = lambda: toy_diffusion.build(3e-3)
    other = toy_diffusion.Teacher(build(), first_state(build()).params)
    method = grpo(
        build(), spec=toy_diffusion.SPEC, networks={"teacher": other}, normalise=False, group=16,
        reward=lambda x, labels: x[:, 0], beta=0.0, sample=dict(solver="ancestral.ddpm", steps=4),
    )  # fmt: skip

    def body(state, n):
        batch = {"label": jax.random.randint(jax.random.key(n), (64,), 0, 3)}
        return method.update(state, batch, jax.random.key(n), method.frozen)

    _, metrics = jax.jit(
        lambda s: jax.lax.scan(body, s, jnp.arange(40)),
        compiler_options={"xla_backend_optimization_level": 1},
    )(first_state(method))
    assert abs(metrics["kl"][0]) < 1e-5 and (metrics["kl"][-10:] > 0.01).all()
    assert metrics["reward"][-10:].mean() > metrics["reward"][:5].mean() + 0.5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(networks={}), "a network called 'teacher'"),
        (dict(group=1), "group >= 2"),
        (dict(beta=-1.0), "beta >= 0"),
        (dict(clip=0.0), "clip > 0"),
        (dict(steps=0), "steps >= 1"),
        (dict(reward="likenes"), "reward.*likeness"),
        (dict(reward=lambda x, labels: x), r"reward: got '\(2, 1\) for two samples'"),
        (dict(reward=lambda x, labels: 0.0), r"reward: got '\(\) for two samples'"),
    ],
)
def test_bad_input_is_named(change, words):
    with pytest.raises(UsageError, match=words):
        made(**change).training.check()


def test_a_sampler_without_probabilities_and_a_batch_of_no_groups_are_named():
    base = table(1e-2, normalised=False)
    with pytest.raises(UsageError, match=r"tune\.grpo\.sample: .*autoregressive without"):
        grpo(base, spec=SPEC, networks={"teacher": Trained(base)}, reward=high)
    mute = dataclasses.replace(table(1e-2), sampler=None)
    with pytest.raises(UsageError, match="diffusion with solver"):
        grpo(mute, spec=SPEC, networks={"teacher": Trained(mute)}, reward=high)
    other = toy_diffusion.teacher()
    with pytest.raises(UsageError, match="'euler'"):
        grpo(
            other.method, spec=toy_diffusion.SPEC, networks={"teacher": other},
            reward=lambda x, labels: x[:, 0], sample=dict(solver="euler"),
        )  # fmt: skip
    method = made()
    with pytest.raises(UsageError, match="batch_size.*a multiple of groups of 8"):
        method.update(method.init(KEY), {"label": jnp.zeros(12, jnp.int32)}, KEY, method.frozen)


@pytest.mark.parametrize(
    ("name", "sample", "draws"),
    [("llamagen", {}, 64), ("maskgit", dict(solver="random", steps=3), 3)],
)
def test_tokens_and_masks_are_tuned_too(name, sample, draws):
    """Traced: a reward of images, a probability for each token or step, a gradient everywhere."""
    parts = built(name)
    abstract = jax.eval_shape(parts.method.init, KEY)

    class Other:
        method = parts.method
        fitting = staticmethod(lambda spec: abstract.params)

    method = grpo(
        parts.method, spec=parts.spec, networks={"teacher": Other}, group=4, sample=sample,
        reward=lambda x, labels: x.mean((1, 2, 3)),
    )  # fmt: skip
    batch = placed({"label": jnp.zeros(8, jnp.int32)}, jnp.zeros((), jnp.int32))
    frozen = {"teacher": abstract.params}
    _, made, _ = jax.eval_shape(method.training.prepare, abstract, batch, KEY, frozen)
    assert made["old"].shape == made["reference"].shape == (8, draws)
    after, _ = jax.eval_shape(method.update, abstract, {"label": batch["label"]}, KEY, frozen)
    assert jax.tree.map(jnp.shape, after.params) == jax.tree.map(jnp.shape, abstract.params)
