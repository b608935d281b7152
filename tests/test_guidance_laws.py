"""Laws that every guidance obeys by being in the list, and what each does in closed form."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen import testing
from jaxgen.errors import UsageError
from jaxgen.families.diffusion import grids, solvers
from jaxgen.families.diffusion import path as paths
from jaxgen.families.diffusion.denoiser import Denoiser, Network
from jaxgen.families.diffusion.guidance.adaptive import Affine, adaptive_guidance, linear_ag
from jaxgen.families.diffusion.guidance.apg import apg
from jaxgen.families.diffusion.guidance.cads import cads
from jaxgen.families.diffusion.guidance.cfg import cfg
from jaxgen.families.diffusion.guidance.cfg_zero import cfg_zero, zero_init
from jaxgen.families.diffusion.guidance.cfgpp import cfgpp
from jaxgen.families.diffusion.guidance.coherence import coherence
from jaxgen.families.diffusion.guidance.composition import mixture, product
from jaxgen.families.diffusion.guidance.concepts import compose as of_concepts
from jaxgen.families.diffusion.guidance.dynamic_cfg import dynamic_cfg
from jaxgen.families.diffusion.guidance.elucd import elucd
from jaxgen.families.diffusion.guidance.event import above, equals
from jaxgen.families.diffusion.guidance.gfcg import gfcg
from jaxgen.families.diffusion.guidance.interval import limit
from jaxgen.families.diffusion.guidance.multi import sine, spatext
from jaxgen.families.diffusion.guidance.pag import pag
from jaxgen.families.diffusion.guidance.pair import Guided
from jaxgen.families.diffusion.guidance.refine import refine
from jaxgen.families.diffusion.guidance.rescale import rescale
from jaxgen.families.diffusion.guidance.sag import sag
from jaxgen.families.diffusion.guidance.semantic import content, language, sdg, style
from jaxgen.families.diffusion.guidance.stitch import early, stitch
from jaxgen.families.diffusion.guidance.universal import backward, universal
from jaxgen.families.diffusion.method import denoising
from jaxgen.families.diffusion.prediction import Prediction
from jaxgen.families.diffusion.sampler import build_sampler, integrate, prior
from jaxgen.method import Spec
from jaxgen.nn.coherence import Coherent
from jaxgen.nn.mlp import MLP
from jaxgen.training.ema import Averages

PATH = paths.linear()
SHAPE, SIZE = (3,), 8
STEPS = 5
SEEN = jnp.array([0.4, 1.9, 0.7])
GRID = grids.uniform(STEPS, PATH)
MEANS = jnp.array([[1.0, -0.5, 0.3], [-0.7, 0.2, 0.9]])
AMOUNTS = jnp.array([0.8, 0.6])
LABELS = jnp.zeros(SIZE, jnp.int32)


def of_mean(mean, std):
    """The exact denoiser of N(mean, std^2), mean its condition vector."""

    def changed(change):
        def call(keys, x, t, memory):
            y = change(jnp.broadcast_to(mean, x.shape))
            return testing.gaussian_denoiser(PATH, y, std)(keys, x, t, memory)

        def attend(layer):
            del layer
            return lambda *args: (*call(*args), jnp.tile(SEEN, (args[1].shape[0], 1)))

        alone = Denoiser(testing.gaussian_denoiser(PATH, 0.4 * mean, std).call, path=PATH)
        return Denoiser(
            call, path=PATH, recondition=changed, perturb=lambda layers: alone, attend=attend
        )

    return changed(lambda y: y)


def by_label(labels):
    return testing.gaussian_denoiser(PATH, MEANS[labels], 0.5)


def logits(x0, t):
    return -((x0[:, None] - MEANS) ** 2).sum(-1)


def goal(x0, t):
    return -((x0 - 0.4) ** 2).sum(-1)


def total(x0):
    return x0.sum(-1)


COND, UNCOND = of_mean(MEANS[0], 0.5), of_mean(jnp.zeros(3), 1.0)
OTHER = of_mean(MEANS[1], 0.5)
FIT = Affine([1.0, 0.8, 0.6, 0.4, 0.2], [False, True] * 2 + [False], [[0.6, -0.3, 0.7]] * 5)
BOTH = [lambda x, t: -(x**2).sum(-1), goal]

# name -> (cond, uncond, labels) -> (guidance that acts, itself at its identity, what that is).
TABLE = {
    "cfg": lambda c, u, y: (cfg(c, u, 3.0), cfg(c, u, 1.0), c),
    "apg": lambda c, u, y: (
        apg(cfg(c, u, 3.0), eta=0.2, momentum=-0.5, radius=1.0),
        apg(cfg(c, u, 3.0), eta=1.0),
        cfg(c, u, 3.0),
    ),
    "apg at w=1": lambda c, u, y: (apg(cfg(c, u, 3.0)), apg(cfg(c, u, 1.0)), c),
    "coherence": lambda c, u, y: (coherence(c, u, 3.0), coherence(c, u, 1.0), c),
    "cfgpp": lambda c, u, y: (cfgpp(cfg(c, u, 0.6)), cfgpp(cfg(c, u, 0.0)), u),
    "rescale": lambda c, u, y: (
        rescale(cfg(c, u, 3.0)),
        rescale(cfg(c, u, 3.0), share=0.0),
        cfg(c, u, 3.0),
    ),
    "cfg_zero": lambda c, u, y: (cfg_zero(cfg(c, u, 3.0)), cfg_zero(cfg(c, u, 1.0)), c),
    "zero_init": lambda c, u, y: (
        zero_init(cfg(c, u, 3.0), above=0.9),
        zero_init(cfg(c, u, 3.0), above=1.0),
        cfg(c, u, 3.0),
    ),
    "limit": lambda c, u, y: (
        limit(cfg(c, u, 3.0), 0.3, 0.7),
        limit(cfg(c, u, 3.0), 0.0, 1.0),
        cfg(c, u, 3.0),
    ),
    "cads": lambda c, u, y: (
        cads(cfg(c, u, 3.0), low=0.2, high=0.7),
        cads(cfg(c, u, 3.0), low=1.0, high=1.0),
        cfg(c, u, 3.0),
    ),
    "adaptive_guidance": lambda c, u, y: (
        adaptive_guidance(cfg(c, u, 3.0), threshold=0.8),
        adaptive_guidance(cfg(c, u, 1.0)),
        c,
    ),
    "linear_ag": lambda c, u, y: (
        linear_ag(cfg(c, u, 3.0), FIT),
        linear_ag(cfg(c, u, 3.0), FIT._replace(skip=[False] * 5)),
        cfg(c, u, 3.0),
    ),
    "dynamic_cfg": lambda c, u, y: (
        dynamic_cfg(cfg(c, u), goal),
        dynamic_cfg(cfg(c, u), goal, weights=(3.0,)),
        cfg(c, u, 3.0),
    ),
    "product": lambda c, u, y: (product(c, u, 0.5), product(c, u, 0.0), c),
    "negation": lambda c, u, y: (product(c, u, -0.5), product(c, u, 0.0), c),
    "mixture": lambda c, u, y: (
        mixture([c, u], BOTH, [0.3, 0.7]),
        mixture([c], BOTH[:1], [1.0]),
        c,
    ),
    "gfcg": lambda c, u, y: (
        gfcg(c, y, lambda _: u, logits),
        gfcg(c, y, lambda _: u, logits, weight=0.0),
        c,
    ),
    "gfcg on cfg": lambda c, u, y: (
        gfcg(cfg(c, u, 2.0), y, lambda _: u, logits),
        gfcg(cfg(c, u, 2.0), y, lambda _: u, logits, weight=0.0),
        cfg(c, u, 2.0),
    ),
    "sdg": lambda c, u, y: (sdg(c, PATH, goal), sdg(c, PATH, goal, weight=0.0), c),
    "refine": lambda c, u, y: (
        refine(cfg(c, u, 3.0), lambda x, v, t: 0.1 * v, PATH, GRID, last=3, cost=0.0),
        refine(cfg(c, u, 3.0), lambda x, v, t: 0.1 * v, PATH, GRID, last=0),
        cfg(c, u, 3.0),
    ),
    "stitch": lambda c, u, y: (
        stitch([(u, 0.4), (cfg(c, u, 3.0), 0.6)], GRID),
        stitch([(u, 0.0), (cfg(c, u, 3.0), 1.0)], GRID),
        cfg(c, u, 3.0),
    ),
    "universal": lambda c, u, y: (universal(c, goal), universal(c, goal, weight=0.0), c),
    "backward": lambda c, u, y: (backward(c, goal), backward(c, goal, steps=0), c),
    "equals": lambda c, u, y: (
        equals(c, total, 0.8, noise=0.3),
        equals(c, total, 0.8, weight=0.0),
        c,
    ),
    "above": lambda c, u, y: (above(c, total, 1.2), above(c, total, 1.2, weight=0.0), c),
    "elucd": lambda c, u, y: (
        elucd(c, y, logits, schedule="sine"),
        elucd(c, y, logits, weight=0.0),
        c,
    ),
    "concepts": lambda c, u, y: (
        of_concepts(c, u, MEANS, jnp.array([1.5, 0.7])),
        of_concepts(c, u, MEANS, jnp.zeros(2)),
        u,
    ),
    "pag": lambda c, u, y: (pag(c, layers=(1,)), pag(c, layers=(1,), scale=0.0), c),
    "pag on cfg": lambda c, u, y: (
        pag(cfg(c, u, 2.0), layers=(1,)),
        pag(cfg(c, u, 2.0), layers=(1,), scale=0.0),
        cfg(c, u, 2.0),
    ),
    "sag": lambda c, u, y: (sag(c, layer=1), sag(c, layer=1, threshold=2.0), c),
    "sag on cfg": lambda c, u, y: (
        sag(apg(cfg(c, u, 2.0), momentum=-0.5), layer=1),
        sag(apg(cfg(c, u, 2.0), momentum=-0.5), layer=1, scale=0.0),
        apg(cfg(c, u, 2.0), momentum=-0.5),
    ),
    "blur": lambda c, u, y: (sag(c), sag(c, scale=0.0), c),
    "spatext": lambda c, u, y: (
        spatext(u, [c, u], weights=(2.0, 0.5)),
        spatext(u, [c, u], weights=(1.0, 0.0)),
        c,
    ),
    "sine": lambda c, u, y: (
        sine(c, u, u, weight=2.0, above=0.7),
        sine(c, u, u, weight=2.0, share=0.0),
        cfg(c, u, 2.0),
    ),
    "the issue's line": lambda c, u, y: (
        limit(apg(cfg(c, u, 3.0)), 0.2, 0.8),
        limit(apg(cfg(c, u, 1.0)), 0.2, 0.8),
        c,
    ),
    "many": lambda c, u, y: (
        zero_init(limit(rescale(apg(cads(cfg(c, u, 3.0), low=0.2))), 0.1, 0.9), above=0.95),
        limit(rescale(apg(cads(cfg(c, u, 1.0), low=1.0, high=1.0))), 0.1, 0.9),
        c,
    ),
}
MOVES_X = {"cfgpp"}
"""Guidance after which x = alpha x0 + sigma eps need not hold."""
UNCOUNTABLE = {"adaptive_guidance"}


def at(t, size=SIZE):
    x = jax.random.normal(jax.random.key(0), (size, *SHAPE))
    return jax.random.split(jax.random.key(1), size), x, jnp.float32(t)


def estimate(denoiser, t=0.6):
    keys, x, t = at(t)
    return denoiser(keys, x, t, denoiser.init(x))[0]


@pytest.mark.parametrize("name", TABLE)
def test_the_identity_element_changes_no_bit(name):
    active, identity, same = TABLE[name](COND, UNCOND, LABELS)
    p, q = estimate(identity), estimate(same)
    np.testing.assert_array_equal(p.x0, q.x0)
    np.testing.assert_array_equal(p.eps, q.eps)
    # And elsewhere it does something.
    moved = [jnp.abs(estimate(active, t).x0 - estimate(same, t).x0).max() for t in (0.6, 0.8, 0.97)]
    assert max(moved) > 1e-3


@pytest.mark.parametrize("name", TABLE)
def test_x_stays_where_it_is(name):
    guided = TABLE[name](COND, UNCOND, LABELS)[0]
    for t in (0.3, 0.6, 0.9):
        p, x = estimate(guided, t), at(t)[1]
        gap = jnp.abs(p.mix(PATH, jnp.float32(t)) - x).max()
        assert (gap > 1e-3) if name in MOVES_X else (gap < 1e-4), float(gap)


@pytest.mark.parametrize("name", TABLE)
def test_calls_are_counted_before_running(name):
    """The number of calls is what the compiled program does, host callbacks counted."""
    seen = []

    def counting(denoiser):
        def call(keys, x, t, memory):
            # Per call, not per batch row: a batched pair of networks would count two.
            jax.debug.callback(lambda _: seen.append(1), t)
            return denoiser(keys, x, t, memory)

        def attend(layer):
            def seeing(keys, x, t, memory):
                jax.debug.callback(lambda _: seen.append(1), t)
                return denoiser.attend(layer)(keys, x, t, memory)

            return seeing

        change, perturb = denoiser.recondition, denoiser.perturb
        return Denoiser(
            call,
            path=PATH,
            recondition=change and (lambda f: counting(change(f))),
            perturb=perturb and (lambda layers: counting(perturb(layers))),
            attend=attend,
        )

    guided = TABLE[name](counting(COND), counting(UNCOND), LABELS)[0]
    grid = grids.uniform(STEPS, PATH)
    solver = solvers.heun(PATH)
    keys, x, _ = at(1.0)
    jax.block_until_ready(jax.jit(lambda x, k: integrate(solver, guided, x, grid, k))(x, keys))
    jax.effects_barrier()
    expected = solver.calls(guided, np.asarray(grid))
    if name in UNCOUNTABLE:
        assert math.isnan(expected)
        assert len(seen) < 2 * solver.calls(COND, np.asarray(grid))
    else:
        assert len(seen) == expected


@pytest.mark.parametrize("name", TABLE)
def test_one_program_and_images_of_their_own(name):
    grid = grids.uniform(STEPS, PATH)

    @jax.jit
    def draw(params, keys, labels):
        guided = TABLE[name](COND, UNCOND, labels)[0]
        return integrate(solvers.euler(PATH), guided, prior(PATH, keys, SHAPE), grid, keys)

    keys, labels = jax.random.split(jax.random.key(2), SIZE), LABELS
    testing.check_compiles_once(draw, {}, keys, labels)
    # A batch whose images all have switched takes the other branch, which XLA compiles apart.
    testing.check_sampler(draw, {}, labels, atol=1e-5)


@pytest.mark.parametrize("name", sorted(TABLE.keys() - UNCOUNTABLE - {"linear_ag", "refine"}))
def test_a_time_for_each_image(name):
    """[B] equal times are the one time: adaptive solvers give each image its own."""
    guided = TABLE[name](COND, UNCOND, LABELS)[0]
    keys, x, t = at(0.6)
    one, _ = guided(keys, x, t, guided.init(x))
    many, _ = guided(keys, x, jnp.full(SIZE, t), guided.init(x))
    np.testing.assert_allclose(many.x0, one.x0, atol=1e-5)
    np.testing.assert_allclose(many.eps, one.eps, atol=1e-5)


SECTIONS = [
    ([dict(name="apg.apg", radius=1.0, momentum=-0.5)],
     lambda g: apg(g, radius=1.0, momentum=-0.5)),
    ([dict(name="rescale.rescale", share=0.5)], lambda g: rescale(g, share=0.5)),
    (["cfg_zero.cfg_zero"], cfg_zero),
    ([dict(name="cfg_zero.zero_init", above=0.9)], lambda g: zero_init(g, above=0.9)),
    ([dict(name="cads.cads", low=0.2)], lambda g: cads(g, low=0.2)),
    (["adaptive.adaptive_guidance"], adaptive_guidance),
    ([dict(name="dynamic_cfg.dynamic_cfg", weights=(1.0, 4.0))],
     lambda g: dynamic_cfg(g, goal, weights=(1.0, 4.0))),
    ([dict(name="gfcg.gfcg", weight=2.0)], lambda g: gfcg(g, LABELS, by_label, logits, weight=2.0)),
    ([dict(name="semantic.sdg", weight=0.3)], lambda g: sdg(g, PATH, goal, weight=0.3)),
    ([dict(name="elucd.elucd", weight=0.3)], lambda g: elucd(g, LABELS, logits, weight=0.3)),
    ([dict(name="universal.universal", weight=0.3)], lambda g: universal(g, goal, weight=0.3)),
    ([dict(name="composition.product", weight=0.2)], lambda g: product(g, UNCOND, 0.2)),
    ([dict(name="multi.spatext", weights=(0.5, 2.0))],
     lambda g: spatext(UNCOND, [COND, OTHER], weights=(0.5, 2.0))),
    ([dict(name="multi.sine", weight=2.0, above=0.5)],
     lambda g: sine(COND, UNCOND, OTHER, weight=2.0, above=0.5)),
    (["concepts.compose"], lambda g: of_concepts(COND, UNCOND, MEANS, AMOUNTS)),
    ([dict(name="pag.pag", layers=[1], scale=0.3)], lambda g: pag(g, layers=(1,), scale=0.3)),
    ([dict(name="sag.sag", layer=1, blur=2.0)], lambda g: sag(g, layer=1, blur=2.0)),
    ([dict(name="stitch.early", models=(("other", 0.4),))],
     lambda g: stitch([(UNCOND, 0.4), (g, 0.6)], GRID)),
    (["apg.apg", dict(name="interval.limit", low=0.2, high=0.8)],
     lambda g: limit(apg(g), 0.2, 0.8)),
]  # fmt: skip


@pytest.mark.parametrize(("sections", "function"), SECTIONS, ids=[str(s)[:40] for s, _ in SECTIONS])
def test_a_section_is_the_function(sections, function):
    branches = {
        "cond": lambda params, labels: COND,
        "uncond": lambda params, labels: UNCOND,
        "other": lambda params, labels: UNCOND,
        "vectors": lambda params, labels: MEANS,
        "amounts": lambda params, labels: AMOUNTS,
        "tuned": lambda params, labels: OTHER,
        "parts": lambda params, labels: [COND, OTHER],
        "labels": lambda params, labels: labels,
        "by_label": lambda params, labels: by_label,
        "logits": lambda params, labels: logits,
        "evaluate": lambda params, labels: goal,
        "similarity": lambda params, labels: goal,
        "log_prob": lambda params, labels: goal,
    }
    guidance = [dict(name="cfg.cfg", weight=3.0), *sections]
    options = dict(solver="euler", grid="uniform", steps=STEPS)
    sampler = build_sampler(PATH, SHAPE, branches, guidance=guidance, **options)
    keys = jax.random.split(jax.random.key(3), SIZE)
    grid = grids.uniform(STEPS, PATH)
    guided = function(cfg(COND, UNCOND, 3.0))
    x = jax.jit(lambda k: integrate(solvers.euler(PATH), guided, prior(PATH, k, SHAPE), grid, k))
    np.testing.assert_allclose(sampler({}, keys, LABELS), x(keys), atol=1e-5)
    assert sampler.calls == pytest.approx(
        solvers.euler(PATH).calls(guided, np.asarray(grid)), nan_ok=True
    )


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
    noise = jnp.zeros(SIZE)
    params = model.init(jax.random.key(0), x, noise, LABELS)["params"]
    leaves, tree = jax.tree.flatten(params)
    random = jax.random.split(jax.random.key(1), len(leaves))
    moved = [a + 0.3 * jax.random.normal(k, a.shape) for a, k in zip(leaves, random, strict=True)]
    params = tree.unflatten(moved)
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
        (lambda: mixture([COND], [], [1.0]), "as many parts"),
        (lambda: equals(COND, total, noise=0.0), "a deviation > 0"),
        (lambda: zero_init(COND, above=2.0), "0 <= above <= 1"),
        (lambda: of_concepts(Denoiser(COND.call), UNCOND, MEANS, jnp.ones(2)), "condition vector"),
        (lambda: of_concepts(COND, UNCOND, MEANS, jnp.ones(3)), "one for each of 2 vectors"),
        (lambda: pag(Denoiser(COND.call), layers=(0,)), "DiT or a UNet"),
        (lambda: spatext(UNCOND, [COND], weights=(1.0, 2.0)), "as many weights as parts"),
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


def test_a_coherent_network_adds_its_embedding_to_the_labels():
    """Label y at coherence c is y with an embedding more; where that is 0, it is y alone."""
    inner = MLP(num_classes=2, out_channels=3, width=16, depth=1)
    model, (_, x, _), noise = Coherent(inner, 2), at(0.5), jnp.linspace(0.1, 0.9, SIZE)
    labels = jnp.array([0, 1, 2, 3, 4, 4, 0, 3])
    params = model.init(jax.random.key(0), x, noise, labels)["params"]
    leaves, tree = jax.tree.flatten(params)
    random = jax.random.split(jax.random.key(1), len(leaves))
    params = tree.unflatten(
        [a + 0.3 * jax.random.normal(k, a.shape) for a, k in zip(leaves, random, strict=True)]
    )
    params = {**params, "coherence": params["coherence"].at[0].set(0.0)}
    out = model.apply({"params": params}, x, noise, labels)
    plain = inner.apply({"params": params["inner"]}, x, noise, labels // 2)
    gap = jnp.abs(out - plain).max(1)
    assert (gap[labels % 2 == 0] < 1e-6).all() and (gap[labels % 2 == 1] > 1e-3).all()


def test_coherence_samples_at_the_highest_and_needs_levels():
    method = coherent(2)
    params = jax.tree.map(
        lambda a: a + 0.1 * jnp.sin(jnp.arange(a.size)).reshape(a.shape),
        method.init(jax.random.key(0)).params,
    )
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
    leaves, tree = jax.tree.flatten(method.init(jax.random.key(0)).params)
    random = jax.random.split(jax.random.key(1), len(leaves))
    params = tree.unflatten(
        [a + 0.3 * jax.random.normal(k, a.shape) for a, k in zip(leaves, random, strict=True)]
    )
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
