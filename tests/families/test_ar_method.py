"""The autoregressive method: exact likelihood, sampling laws, guidance, training on any mesh."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen import config as configs
from jaxgen.data.bars_and_stripes import bars_and_stripes, entropy
from jaxgen.errors import UsageError
from jaxgen.families.autoregressive import autoregressive
from jaxgen.families.autoregressive.heads import LogisticMixture
from jaxgen.families.autoregressive.sampler import build_sampler
from jaxgen.method import Spec
from jaxgen.nn.dit import DiT
from jaxgen.nn.llama import Llama
from jaxgen.run.setup import spec_of
from jaxgen.testing import check_compiles_once, check_sampler
from jaxgen.training.ema import Averages
from tests.nn_kit import first_state, quick_jit

LLAMA = dict(depth=2, width=16, heads=2, multiple=8)
BINARY = jnp.asarray(list(itertools.product((-1.0, 1.0), repeat=9)), jnp.float32)


def method(spec, module, **options):
    return autoregressive(spec, module, optax.adam(1e-2), Averages(half_life=(1000,)), **options)


def llama(spec, **fields):
    return Llama(spec.num_classes, spec.levels, spec.shape, **{**LLAMA, **fields})


def live(parts, scale=0.4):
    """Random parameters, far from the uniform start."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(parts.init, jax.random.key(0)).params
    return jax.tree.map(lambda a: jnp.asarray(scale * rng.normal(size=a.shape), a.dtype), shapes)


def keys(count, seed=0):
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(count))


def test_probabilities_of_all_binary_images_sum_to_one_and_samples_follow_them():
    spec = Spec((3, 3, 1), 2, levels=2)
    parts = method(spec, llama(spec))
    params, x = live(parts, 0.6), BINARY.reshape(-1, 3, 3, 1)
    log = quick_jit(parts.log_prob())
    for label in (0, 1, 2):
        found = log(params, x, jnp.full(512, label), keys(512))
        assert float(jnp.exp(found).sum()) == pytest.approx(1, abs=1e-5)
    sample = quick_jit(parts.sampler().fn)
    count, label = 20_000, 1
    drawn = np.asarray(sample(params, keys(count), jnp.full(count, label)))
    assert set(np.unique(drawn)) == {-1.0, 1.0} and drawn.shape == (count, 3, 3, 1)
    code = ((drawn.reshape(count, 9) > 0) * 2 ** np.arange(8, -1, -1)).sum(1)
    p = np.exp(np.asarray(log(params, x, jnp.full(512, label), keys(512))))
    off = np.abs(np.bincount(code, minlength=512) / count - p).sum() / 2
    # The mean of the distance of n exact draws is at most sum sqrt(p (1 - p) / n) / 2.
    floor = np.sqrt(p * (1 - p) / count).sum() / 2
    assert off < 1.2 * floor
    other = np.exp(np.asarray(log(params, x, jnp.full(512, 0), keys(512))))
    assert np.abs(np.bincount(code, minlength=512) / count - other).sum() / 2 > 3 * floor


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_samples_depend_on_their_key_and_label_alone(guidance):
    spec = Spec((3, 3, 1), 4, levels=9)
    parts = method(spec, llama(spec))
    params, made = live(parts), parts.sampler(guidance=guidance, top_k=6, typical=0.9)
    assert made.calls == 9 * (1 if guidance == 1 else 2)
    fn = quick_jit(made.fn)
    check_sampler(fn, params, jnp.array([0, 1, 2, 3, 1, 1]))
    check_compiles_once(fn, params, keys(4), jnp.zeros(4, jnp.int32))


def test_kept_keys_and_the_whole_network_draw_the_same():
    spec = Spec((2, 3, 2), 4, levels=9)
    net = llama(spec)
    parts = method(spec, net)
    params, labels = live(parts), jnp.arange(16) % 4
    net, head = net.clone(outputs=9), configs.build("softmax", HEADS, "head", levels=9, group=1)
    made = [
        quick_jit(build_sampler(net, head, spec, guidance=2.0, cached=c).fn) for c in (True, False)
    ]
    np.testing.assert_array_equal(*(fn(params, keys(16), labels) for fn in made))


HEADS = "jaxgen.families.autoregressive.heads"


def test_guidance_mixes_logits():
    # With one element the law of a sample is the softmax of the mixed logits.
    spec = Spec((1, 1, 1), 2, levels=5)
    parts = method(spec, llama(spec))
    params, count = live(parts, 0.5), 20_000
    every = parts.spec.from_tokens(jnp.arange(5).reshape(5, 1, 1, 1))
    log = [parts.log_prob()(params, every, jnp.full(5, y), keys(5)) for y in (0, 2)]

    def law(w):
        fn = quick_jit(parts.sampler(guidance=w).fn)
        drawn = spec.to_tokens(fn(params, keys(count), jnp.zeros(count, jnp.int32)))
        return np.bincount(np.asarray(drawn).ravel(), minlength=5) / count

    for w in (0.0, 1.0, 3.0):
        want = np.asarray(jax.nn.softmax(log[1] + w * (log[0] - log[1])))
        np.testing.assert_allclose(law(w), want, atol=4 * 0.5 / np.sqrt(count))
    assert np.abs(np.exp(log[0]) - np.exp(log[1])).max() > 0.1


def test_tokens_come_back_as_tokens_and_truncation_is_applied():
    spec = Spec((2, 2), 3, levels=6, tokens=True)
    parts = method(spec, llama(spec))
    params, labels = live(parts), jnp.arange(8) % 3
    greedy = quick_jit(parts.sampler(top_k=1).fn)(params, keys(8), labels)
    assert greedy.dtype == jnp.int32 and greedy.shape == (8, 2, 2)
    np.testing.assert_array_equal(greedy[0], greedy[3])
    out = llama(spec).apply({"params": params["net"]}, greedy.reshape(8, -1), labels)
    np.testing.assert_array_equal(out.argmax(-1), greedy.reshape(8, -1))
    cold = quick_jit(parts.sampler(temperature=1e-3).fn)(params, keys(8), labels)
    np.testing.assert_array_equal(cold, greedy)


def test_the_classifier_is_bayes_rule():
    spec = Spec((3, 3, 1), 2, levels=2)
    parts = method(spec, llama(spec))
    params, x = live(parts), BINARY[::50].reshape(-1, 3, 3, 1)
    assert not parts.label_noise and parts.likelihood.exact and parts.likelihood.mass
    for y in (0, 1):
        labels = jnp.full(len(x), y)
        error = parts.label_error(params, x, labels, keys(len(x)), jnp.zeros(len(x), int), 1)
        log = parts.log_prob()(params, x, labels, keys(len(x), 7))
        np.testing.assert_array_equal(error, -log)


@pytest.mark.parametrize("size", [2, 3])
def test_training_reaches_the_entropy_of_bars_and_stripes_and_not_below(size):
    source = bars_and_stripes(size=size)
    spec = spec_of(source)
    optimizer = optax.adam(optax.cosine_decay_schedule(5e-3, 300), b2=0.95)
    parts = autoregressive(spec, llama(spec, width=32), optimizer, Averages((1000,)))
    state, update = quick_jit(parts.init)(jax.random.key(0)), jax.jit(parts.update)
    images = jnp.asarray(source.images(np.arange(len(source))))
    copies = 56 // len(images)
    batch = {"image": jnp.tile(images, (copies, 1, 1, 1))}
    batch["label"] = jnp.zeros(copies * len(images), jnp.int32)
    for i in range(300):
        state, metrics = update(state, batch, jax.random.fold_in(jax.random.key(1), i))
    nats = -parts.log_prob()(state.params, images, batch["label"][: len(images)], None).mean()
    assert entropy(size) <= float(nats) <= entropy(size) + 0.05
    assert float(metrics["loss"]) * spec.size == pytest.approx(float(nats), abs=0.1)


def test_labels_are_dropped_at_the_share_asked_for():
    # A label's row of the table gets a gradient only when the label is seen.
    spec = Spec((2, 2), 1, levels=3, tokens=True)
    batch = {"image": jnp.zeros((4, 2, 2), jnp.int32), "label": jnp.zeros(4, jnp.int32)}
    seen = []
    for share in (0.0, 0.999):
        parts = method(spec, llama(spec), label_dropout=share)
        state = first_state(parts).replace(params=live(parts))
        after, _ = quick_jit(parts.update)(state, batch, jax.random.key(0))
        moved = [a["net"]["labels"]["embedding"] for a in (after.params, state.params)]
        seen.append((np.abs(moved[0] - moved[1]).max(1) > 0).tolist())
    assert seen == [[True, False], [False, True]]


def test_bad_options_name_themselves():
    spec = Spec((3, 3, 1), 2, levels=2)
    net = llama(spec)
    for module, options, message in (
        (net, {"label_dropout": 1.0}, "method.label_dropout"),
        (net, {"head": "softmix"}, "method.head.name.*softmax"),
        (net, {"head": {"name": "logistic_mixture", "components": 0}}, "head.components"),
        (net.clone(causal=False), {}, "model.causal"),
        (DiT(2, 1), {}, "config.model.name.*DiT"),
    ):
        with pytest.raises(UsageError, match=message):
            method(spec, module, **options)
    with pytest.raises(UsageError, match="config.data.source"):
        method(Spec((3, 3, 1), 2, levels=None), net)
    parts = method(spec, net, label_dropout=0.0)
    with pytest.raises(UsageError, match="label_dropout=0.1"):
        parts.sampler(guidance=2.0)
    parts.sampler(guidance=1.0)
    with pytest.raises(UsageError, match="sample.top_k"):
        parts.sampler(top_k=3)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_logistic_masses_sum_to_one_and_agree_with_their_conditionals(levels):
    head = LogisticMixture(levels, group=2, components=3)
    rng = np.random.default_rng(0)
    # Means far outside, scales from sharper than the least allowed to flat.
    out = jnp.asarray(rng.normal(size=(8, head.outputs)) * 4, jnp.float32)
    first = head.logits(out, [])
    np.testing.assert_allclose(jnp.exp(first).sum(-1), 1, atol=2e-5)
    for level in (0, levels // 2, levels - 1):
        a = jnp.full(8, level)
        second = head.logits(out, [a])
        # p(first) is what is left when the second channel is summed out.
        total = jax.nn.logsumexp(second, axis=-1)
        np.testing.assert_allclose(total, first[:, level], atol=2e-4, rtol=1e-4)
        b = jnp.arange(8) % levels
        joint = head.log_prob(out[:, None], jnp.stack([a, b], -1)[:, None])[:, 0]
        np.testing.assert_allclose(joint, second[jnp.arange(8), b], atol=2e-4, rtol=1e-4)


def test_logistic_masses_are_scipys():
    stats = pytest.importorskip("scipy.stats")
    head = LogisticMixture(17, group=1, components=1)
    mean, log_scale = 0.3, -1.2
    out = jnp.array([[0.0, mean, log_scale]])
    edges = np.concatenate([[-np.inf], np.arange(-1, 1, 2 / 16) + 1 / 16, [np.inf]])
    want = np.diff(stats.logistic(mean, np.exp(log_scale)).cdf(edges))
    np.testing.assert_allclose(np.exp(head.logits(out, []))[0], want, rtol=1e-4)
