"""Guidance of sequences: identities, sources shared, the discriminative loss by hand, errors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.shared.tables import (
    EVERY,
    SPEC,
    Table,
    of_sequence,
    table,
)
from jaxgen.errors import UsageError
from jaxgen.families.autoregressive import autoregressive
from jaxgen.families.autoregressive.guidance import (
    Source,
    alone,
    build_guide,
    cfg,
    contrast,
    gedi,
    near_access,
)
from jaxgen.families.autoregressive.heads import Softmax
from jaxgen.families.autoregressive.sampler import build_sampler
from jaxgen.method import Spec
from jaxgen.nn.llama import Llama
from jaxgen.training.ema import Averages
from tests.families.test_ar_method import keys, live, method
from tests.nn_kit import first_state, quick_jit


class Known(Table):
    """A table that a method can start from."""

    def init(self, *_):
        return {"params": table()}


OWN, NULL, ANTI = Source(), Source("net", "null"), Source("net", 1)
FOUND = {s: jax.random.normal(jax.random.key(i), (4, 3)) for i, s in enumerate((OWN, NULL, ANTI))}
PLACE = jnp.int32(0)


def logits(guide):
    return guide.rule(FOUND, guide.start(4), PLACE)


def test_identities_change_no_bit_and_ask_for_nothing_more():
    plain = alone(OWN)
    for same in (
        cfg(plain, weight=1.0),
        gedi(plain, anti=1, weight=0.0),
        build_guide(1.0),
        build_guide([]),
    ):
        assert same.sources == (OWN,)
        np.testing.assert_array_equal(logits(same), FOUND[OWN])
    assert cfg(plain, weight=0.0).sources == (NULL,)
    np.testing.assert_array_equal(logits(build_guide(0.0)), FOUND[NULL])
    # Those that act do act, and each source is asked once.
    both = gedi(cfg(plain, weight=3.0), anti=1)
    assert both.sources == (OWN, NULL, ANTI)
    for acting in (cfg(plain, weight=3.0), gedi(plain, anti=1), both):
        assert jnp.abs(jax.nn.softmax(logits(acting)) - jax.nn.softmax(FOUND[OWN])).max() > 0.05


@pytest.mark.parametrize("divergence", ["max", "kl"])
def test_what_two_networks_agree_on_is_what_each_says_where_they_are_one(divergence):
    """And is bounded by both: ln of it over either is at most -ln(1 - TV) for the minimum."""
    plain, small = alone(OWN), Source("small")
    same = near_access(plain, other="net", divergence=divergence)
    np.testing.assert_allclose(jax.nn.softmax(logits(same)), jax.nn.softmax(FOUND[OWN]), rtol=1e-5)
    found = {OWN: FOUND[OWN], small: FOUND[ANTI]}
    guide = near_access(plain, other="small", divergence=divergence)
    assert guide.sources == (OWN, small)
    p, q, r = (
        np.asarray(jax.nn.softmax(a))
        for a in (found[OWN], found[small], guide.rule(found, (), PLACE))
    )
    tv = np.abs(p - q).sum(-1, keepdims=True) / 2
    over = np.log(r / np.minimum(p, q))
    assert (over <= -np.log(1 - tv) + 1e-5).all() == (divergence == "max")
    mean = np.sqrt(p * q)
    expected = np.minimum(p, q) if divergence == "max" else mean
    np.testing.assert_allclose(r, expected / expected.sum(-1, keepdims=True), rtol=1e-4)


def test_a_contrast_is_of_what_is_plausible():
    found = {
        OWN: jnp.log(jnp.array([[0.5, 0.3, 0.2]])),
        ANTI: jnp.log(jnp.array([[0.5, 0.1, 0.4]])),
    }
    found[Source("other")] = found[ANTI]
    for alpha, kept in ((0.1, [True] * 3), (0.5, [True, True, False]), (1.0, [True, False, False])):
        guide = contrast(alone(OWN), other="other", alpha=alpha)
        said = np.asarray(guide.rule(found, (), PLACE))[0]
        np.testing.assert_allclose(
            said[kept], np.log([1.0, 3.0, 0.5])[np.array(kept)], rtol=1e-5, atol=1e-6
        )
        assert np.isneginf(said[~np.array(kept)]).all()
    assert guide.sources == (OWN, Source("other"))


def test_the_filter_keeps_the_surest_and_whoever_is_sure_enough():
    # Posteriors of .9, .6 and .1, a base of .1, .3 and .6; of so small a weight the mass is its.
    share, base = np.array([0.9, 0.6, 0.1]), np.array([0.1, 0.3, 0.6])
    found = {OWN: jnp.log(share / share.sum())[None], NULL: jnp.log(base)[None]}
    found[ANTI] = jnp.log((1 - share) / (1 - share).sum())[None]
    # prior * share / 1.6 against (1 - prior) * (1 - share) / 1.4 is share where prior = 8 / 15.
    options = dict(anti=1, prior=8 / 15, weight=1e-6)

    def kept(**more):
        guide = gedi(alone(NULL), **options, **more)
        return np.isfinite(np.asarray(guide.rule(found, guide.start(1), PLACE)))[0].tolist()

    assert kept() == [True, True, True]
    assert kept(mass=0.05) == [True, False, False]
    assert kept(mass=0.3) == [True, True, False]
    assert kept(mass=0.05, sure=0.5) == [True, True, False]
    assert kept(mass=0.5) == [True, True, True]


def test_one_network_is_one_batch_and_kept_keys_draw_the_same():
    spec = Spec((2, 3), 4, levels=5, tokens=True)
    net = Llama(4, 5, (2, 3), depth=1, width=16, heads=2, multiple=8)
    parts = method(spec, net)
    params = {**live(parts), "small": live(parts, 0.7)["net"]}
    sections = [dict(name="cfg", weight=2.0), dict(name="gedi", anti=3, model="small", weight=2.0)]
    made = parts.sampler(guidance=sections, models={"small": net}, top_k=4)
    assert made.calls == 6 * 4
    full = net.clone(outputs=5)
    whole = build_sampler(
        full, Softmax(5), spec, guidance=sections, models={"small": full}, top_k=4, cached=False
    )
    labels = jnp.arange(8) % 3
    drawn = [quick_jit(m.fn)(params, keys(8), labels) for m in (made, whole)]
    np.testing.assert_array_equal(*drawn)
    plain = quick_jit(parts.sampler(top_k=4).fn)(params, keys(8), labels)
    assert (np.asarray(drawn[0]) != np.asarray(plain)).any()


def test_the_discriminative_loss_by_hand():
    """lambda L_generative + (1 - lambda) L_discriminative of two known chains."""
    labels, alpha, share = np.arange(len(EVERY)) % 2, 3.0, 0.4
    joint = np.array([[of_sequence(tuple(x), c) for c in (0, 1)] for x in EVERY.tolist()])
    own = joint[np.arange(len(EVERY)), labels]
    scaled = joint ** (alpha / SPEC.size)
    posterior = scaled[np.arange(len(EVERY)), labels] / scaled.sum(1)
    want = (1 - share) * -np.log(own).mean() / SPEC.size + share * -np.log(posterior).mean()
    batch = {
        "image": jnp.asarray(EVERY)[:, None],
        "label": jnp.asarray(labels),
        "index": jnp.arange(len(EVERY)),
    }
    for discriminative in (share, 0.0):
        parts = autoregressive(
            SPEC, Known(), optax.sgd(0.0), Averages((10,)), label_dropout=0.0, alpha=alpha,
            discriminative=discriminative,
        )  # fmt: skip
        state = first_state(parts)
        found = float(jax.jit(parts.update)(state, batch, jax.random.key(1))[1]["loss"])
        if discriminative:
            assert found == pytest.approx(want, rel=1e-5)
        else:
            assert found == pytest.approx(-np.log(own).mean() / SPEC.size, rel=1e-5)


@pytest.mark.parametrize(
    ("guidance", "message"),
    [
        ([dict(name="cfgg")], "Did you mean 'cfg'"),
        ([dict(name="cfg", weight=2.0, uncond="lm")], "network: got 'lm'; allowed: net"),
        ([dict(name="gedi", anti=2)], "guidance.anti: got 2; allowed: a class, 0 to 1"),
        ([dict(name="gedi", anti=1, prior=1.0)], "guidance.prior"),
        ([dict(name="gedi", anti=1, mass=0.0)], "guidance.mass"),
        ([dict(name="gedi", anti=1, weight=-1.0)], "guidance.weight"),
        ([dict(name="gedi")], "also sets anti"),
        ([dict(name="near_access", other="net", divergence="tv")], "'max', 'kl'"),
        ([dict(name="contrast", other="net", alpha=0.0)], "0 < alpha <= 1"),
        (2.0, "label_dropout=0.1"),
    ],
)
def test_bad_guidance_says_what_is_allowed(guidance, message):
    with pytest.raises(UsageError, match=message):
        method(SPEC, Table(), label_dropout=0.0).sampler(guidance=guidance)


def test_a_bad_share_is_refused():
    with pytest.raises(UsageError, match="method.discriminative"):
        method(SPEC, Table(), discriminative=1.5)
