"""What each guidance does in closed form, to a network's labels, and what it refuses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen import testing
from jaxgen.errors import UsageError
from jaxgen.families.diffusion import solvers
from jaxgen.families.diffusion.core.denoiser import Denoiser, Network
from jaxgen.families.diffusion.core.prediction import Prediction
from jaxgen.families.diffusion.core.sampler import integrate
from jaxgen.families.diffusion.guidance.adaptive import adaptive_guidance
from jaxgen.families.diffusion.guidance.apg import apg
from jaxgen.families.diffusion.guidance.cads import cads
from jaxgen.families.diffusion.guidance.cfg import cfg
from jaxgen.families.diffusion.guidance.cfg_zero import cfg_zero, zero_init
from jaxgen.families.diffusion.guidance.cfgpp import cfgpp
from jaxgen.families.diffusion.guidance.composition import mixture
from jaxgen.families.diffusion.guidance.concepts import compose as of_concepts
from jaxgen.families.diffusion.guidance.dynamic_cfg import dynamic_cfg
from jaxgen.families.diffusion.guidance.event import equals
from jaxgen.families.diffusion.guidance.interval import limit
from jaxgen.families.diffusion.guidance.multi import sine, spatext
from jaxgen.families.diffusion.guidance.pag import pag
from jaxgen.families.diffusion.guidance.pair import Guided
from jaxgen.families.diffusion.guidance.refine import refine
from jaxgen.families.diffusion.guidance.rescale import rescale
from jaxgen.families.diffusion.guidance.sag import sag
from jaxgen.families.diffusion.guidance.semantic import content, language, style
from jaxgen.families.diffusion.guidance.stitch import early, stitch
from jaxgen.families.diffusion.guidance.universal import backward, universal
from jaxgen.families.diffusion.methods import branches
from jaxgen.families.diffusion.methods.denoising import denoising
from jaxgen.method import Spec
from jaxgen.nn.mlp import MLP
from jaxgen.training.ema import Averages
from tests.guidance_kit import (
    COND,
    GRID,
    LABELS,
    MEANS,
    OTHER,
    PATH,
    SHAPE,
    SIZE,
    STEPS,
    UNCOND,
    at,
    estimate,
    goal,
    total,
)
from tests.nn_kit import live_params, live_variables, quick_jit


def test_rescale_gives_back_the_conditional_contrast():
    for kind in ("x0", "eps", "v"):
        p = estimate(rescale(cfg(COND, UNCOND, 5.0), share=1.0, kind=kind))
        t = jnp.float32(0.6)

        def output(p, kind=kind, t=t):
            return {"x0": p.x0, "eps": p.eps, "v": p.v(PATH, t)}[kind]

        np.testing.assert_allclose(output(p).std(1), output(estimate(COND)).std(1), rtol=1e-4)
        plain = estimate(cfg(COND, UNCOND, 5.0))
        assert jnp.abs(output(plain).std(1) - output(estimate(COND)).std(1)).max() > 0.1


def test_cfg_zero_does_not_care_for_the_scale_of_the_bad_velocity():
    """The optimal scale undoes any factor of the unconditional velocity; CFG does not."""
    _, x, t = at(0.6)

    def scaled(factor):
        def call(keys, x, t, memory):
            v = factor * UNCOND(keys, x, t)[0].velocity(PATH, t)
            # Linear path: v = eps - x0 and x = (1 - t) x0 + t eps.
            return Prediction(x - t * v, x + (1 - t) * v), memory

        return Denoiser(call, path=PATH)

    for wrap, same in ((cfg_zero, True), (lambda g: g, False)):
        one, other = (estimate(wrap(cfg(COND, scaled(f), 3.0))).x0 for f in (1.0, 1.7))
        assert (jnp.abs(one - other).max() < 1e-4) == same


def test_zero_init_waits_and_then_starts_from_the_same_noise():
    keys, x, _ = at(1.0)
    held = integrate(
        solvers.euler(PATH), zero_init(COND, above=0.5), x, jnp.array([1.0, 0.8]), keys
    )
    np.testing.assert_allclose(held, x, atol=1e-6)
    # By what it is told, for one time and for a time for each image.
    for above in (0.5, 0.9):
        waiting = zero_init(COND, above=above)
        for t in (jnp.float32(0.7), jnp.full(len(x), 0.7)):
            p, _ = waiting(keys, x, t, waiting.init(x))
            q, _ = COND(keys, x, t, COND.init(x))
            wanted = jnp.zeros_like(x) if above < 0.7 else q.velocity(PATH, t)
            np.testing.assert_allclose(p.velocity(PATH, t), wanted, atol=1e-5)


def test_universal_guidance_by_a_likelihood_is_the_posterior():
    """log p(y | x_t) through E[x0 | x_t] alone, for a Gaussian: the posterior's own denoiser."""
    seen, noise, std = 1.2, 0.6, 0.5
    prior_denoiser = testing.gaussian_denoiser(PATH, 0.3, std)

    def log_prob(x0, t):
        rest = std**2 * t**2 / ((1 - t) ** 2 * std**2 + t**2)
        return -0.5 * ((seen - x0) ** 2).sum(-1) / (noise**2 + rest)

    precision = 1 / std**2 + 1 / noise**2
    mean = (0.3 / std**2 + seen / noise**2) / precision
    exact = testing.gaussian_denoiser(PATH, mean, precision**-0.5)
    for t in (0.1, 0.5, 0.9):
        p, q = estimate(universal(prior_denoiser, log_prob), t), estimate(exact, t)
        np.testing.assert_allclose(p.x0, q.x0, atol=1e-4)
        assert jnp.abs(estimate(prior_denoiser, t).x0 - q.x0).max() > 0.05


def test_backward_guidance_climbs_to_the_known_point():
    """Each step of rate r on -|x0 - g|^2 shrinks the distance by 1 - 2 r."""
    p, q = estimate(COND), estimate(backward(COND, goal, rate=0.1, steps=5))
    np.testing.assert_allclose(q.x0 - 0.4, (p.x0 - 0.4) * 0.8**5, atol=1e-6)


def test_similarities_are_best_at_their_reference():
    key = jax.random.key(4)
    reference = jax.random.normal(key, (4, 4, 2))
    x = jax.random.normal(jax.random.key(5), (3, 4, 4, 2)).at[1].set(reference)
    zero = jnp.float32(0)

    def code(x, t):
        return x.reshape(x.shape[0], -1)

    for similarity in (
        language(code, reference.ravel()),
        content(code, reference, PATH, key),
        style(lambda x, t: x, reference, PATH, key),
    ):
        value = similarity(x, zero)
        assert value.argmax() == 1 and value[1] - jnp.delete(value, 1).max() > 0.05
    # A Gram matrix knows no places: turned by 180 degrees, the style is the same.
    turned = style(lambda x, t: x, reference, PATH, key)(x[:, ::-1, ::-1], zero)
    assert abs(float(turned[1])) < 1e-6


def test_cads_reaches_the_label_embedding_of_a_network():
    model = MLP(num_classes=3, out_channels=3, width=16, depth=1)
    keys, x, t = at(0.8)
    params = live_variables(model, SHAPE, 0.3)["params"]
    network = Network(model, PATH, "velocity")
    plain = network.denoiser(params, LABELS)
    swapped = plain.recondition(
        lambda y: jnp.broadcast_to(params["labels"]["embedding"][2], y.shape)
    )
    other = network.denoiser(params, jnp.full(SIZE, 2))
    np.testing.assert_allclose(swapped(keys, x, t)[0].x0, other(keys, x, t)[0].x0, atol=1e-6)
    quiet, noisy = (cads(plain, low=0.5, high=1.0, scale=s, mix=0.0) for s in (0.0, 2.0))
    assert jnp.abs(quiet(keys, x, t)[0].x0 - noisy(keys, x, t)[0].x0).max() > 1e-2
    below = jnp.float32(0.3)
    np.testing.assert_allclose(noisy(keys, x, below)[0].x0, plain(keys, x, below)[0].x0, atol=1e-6)


def test_guidance_by_a_network_is_one_batch():
    """A rule on a pair of one network's labels calls the network once, on both."""
    sizes = []

    class Spy:
        def apply(self, params, x, noise, labels, **_):
            sizes.append(x.shape[0])
            return x * labels[:, None]

    network = Network(Spy(), PATH, "velocity")
    params = {}
    pair = cfg(network.denoiser(params, LABELS), network.denoiser(params, LABELS + 1), 3.0)
    estimate(apg(cfg_zero(pair)))
    assert sizes == [2 * SIZE]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: apg(COND), "what cfg or autoguidance returns"),
        (lambda: limit(COND, 0.2, 0.8), "what cfg or autoguidance returns"),
        (lambda: apg(cfg(COND, UNCOND, 3.0), radius=0.0), "radius > 0"),
        (lambda: cfgpp(cfg(COND, UNCOND, 3.0)), "0 <= weight <= 1"),
        (lambda: rescale(cfg(COND, UNCOND, 3.0), kind="velocity"), "v, x0"),
        (lambda: cads(Denoiser(COND.call)), "condition vector"),
        (lambda: cads(COND, low=0.9, high=0.1), "low <= high"),
        (lambda: dynamic_cfg(cfg(COND, UNCOND), goal, weights=()), "at least one"),
        (lambda: universal(Denoiser(COND.call), goal), "path"),
        (lambda: mixture([COND], [], [1.0]), "as many denoisers"),
        (lambda: equals(COND, total, noise=0.0), "a deviation > 0"),
        (lambda: zero_init(COND, above=2.0), "0 <= above <= 1"),
        (lambda: of_concepts(Denoiser(COND.call), UNCOND, MEANS, jnp.ones(2)), "condition vector"),
        (lambda: of_concepts(COND, UNCOND, MEANS, jnp.ones(3)), "one for each of 2 vectors"),
        (lambda: pag(Denoiser(COND.call), layers=(0,)), "DiT or a UNet"),
        (lambda: spatext(UNCOND, [COND], weights=(1.0, 2.0)), "as many weights as denoisers"),
        (lambda: sine(COND, UNCOND, OTHER, share=1.5), "0 <= share <= 1"),
        (lambda: pag(COND, layers=()), "at least one layer"),
        (lambda: sag(COND, blur=0.0), "blur > 0"),
        (lambda: sag(Denoiser(COND.call, path=PATH), layer=0), "no self-attention"),
        (lambda: stitch([(COND, 0.4), (UNCOND, 0.4)], GRID), "add up to 1"),
        (lambda: refine(COND, goal, PATH, GRID, last=STEPS), "fewer than the steps"),
        (lambda: early(COND, {"tiny": UNCOND}, GRID), "tiny"),
    ],
)
def test_wrong_guidance_says_what_is_allowed(build, message):
    with pytest.raises(UsageError, match=message):
        build()


def test_pairs_stay_pairs():
    """What wraps a pair's rule is a pair, so that more can follow."""
    pair = cfg(COND, UNCOND, 0.7)
    for wrap in (apg, cfgpp, rescale, cfg_zero, cads, adaptive_guidance):
        assert isinstance(wrap(pair), Guided), wrap.__name__


def coherent(levels, classes=4):
    model = MLP(num_classes=classes, out_channels=3, width=16, depth=1)
    return denoising(Spec(SHAPE, classes), model, optax.sgd(0.1), Averages((10,)), coherence=levels)


def test_coherence_is_a_second_condition_of_its_label():
    """Labels y * levels + c are told as y and c; with no label no coherence is told either."""
    method = coherent(2)
    inner = MLP(num_classes=2, out_channels=3, width=16, depth=1)
    model = inner.clone(conditions=(("coherence", "label", 2),))
    network = Network(model, PATH, "velocity", told=branches.coherent(2, 2))
    _, x, t = at(0.5)
    params = live_params(method)["net"]
    same = live_variables(model, SHAPE, 0.3)["params"]
    assert jax.tree.structure(params) == jax.tree.structure(same)
    table = params["conditions"]["coherence"]["table"]
    table["embedding"] = table["embedding"].at[jnp.array([0, 2])].set(0.0)
    labels = jnp.array([0, 1, 2, 3, 4, 4, 0, 3])
    predict = quick_jit(lambda p, y: network.predict(p, x, t, y).x0)
    plain = Network(inner, PATH, "velocity")
    want = quick_jit(lambda p: plain.predict(p, x, t, labels // 2).x0)(params)
    gap = jnp.abs(predict(params, labels) - want).max(1)
    assert (gap[labels % 2 == 0] < 1e-6).all() and (gap[labels % 2 == 1] > 1e-3).all()
    loud = jax.tree.map(lambda a: a, params)
    loud["conditions"]["coherence"]["table"]["embedding"] = table["embedding"].at[2].set(9.0)
    moved = jnp.abs(predict(loud, labels) - predict(params, labels)).max(1) > 1e-3
    np.testing.assert_array_equal(moved, labels == 4)


def test_coherence_samples_at_the_highest_and_needs_levels():
    method = coherent(2)
    params = live_params(method)
    keys = jax.random.split(jax.random.key(2), 4)
    section = [dict(name="coherence.coherence", weight=2.0)]
    draw = method.sampler(solver="euler", steps=3, guidance=section)
    assert draw.calls == 6
    low, high = (draw(params, keys, jnp.array(y)) for y in ([0, 2, 0, 2], [1, 3, 1, 3]))
    np.testing.assert_array_equal(low, high)
    assert (
        jnp.abs(low - method.sampler(solver="euler", steps=3)(params, keys, jnp.arange(4)))[0].max()
        > 1e-4
    )
    with pytest.raises(UsageError, match="coherence=2 or more"):
        coherent(1).sampler(solver="euler", steps=3, guidance=section)
    with pytest.raises(UsageError, match="a divisor of the 4 classes"):
        coherent(3)


def test_a_method_offers_its_labels_and_its_other_classes():
    """Sections reach a network's own labels, embeddings and classes: here of one that is random."""
    model = MLP(num_classes=3, out_channels=3, width=16, depth=1)
    method = denoising(Spec(SHAPE, 3), model, optax.sgd(0.1), Averages((10,)))
    params = live_params(method)
    branches = {"logits": lambda params, labels: lambda x0, t: x0}
    sections = [
        dict(name="cfg.cfg", weight=2.0),
        dict(name="cads.cads", low=0.3),
        dict(name="gfcg.gfcg", weight=2.0),
    ]
    keys, labels = jax.random.split(jax.random.key(2), 4), jnp.array([0, 1, 2, 0])
    out = []
    for guidance, calls in ((sections[:1], 2), (sections[:2], 2), (sections, 3)):
        draw = method.sampler(
            solver="euler", steps=4, grid="uniform", guidance=guidance, branches=branches
        )
        assert draw.calls == 4 * calls
        out.append(np.asarray(draw(params, keys, labels)))
    assert np.isfinite(out).all()
    assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(out, out[1:], strict=False))
