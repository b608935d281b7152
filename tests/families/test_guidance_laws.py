"""Laws that every guidance obeys by being in the list, and by being named in a section."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import testing
from jaxgen.families.diffusion import solvers
from jaxgen.families.diffusion.core import grids
from jaxgen.families.diffusion.core.denoiser import Denoiser
from jaxgen.families.diffusion.core.sampler import build_sampler, integrate, prior
from jaxgen.families.diffusion.guidance.adaptive import Affine, adaptive_guidance, linear_ag
from jaxgen.families.diffusion.guidance.apg import apg
from jaxgen.families.diffusion.guidance.cads import cads
from jaxgen.families.diffusion.guidance.cfg import cfg
from jaxgen.families.diffusion.guidance.cfg_zero import cfg_zero, zero_init
from jaxgen.families.diffusion.guidance.cfgpp import cfgpp
from jaxgen.families.diffusion.guidance.coherence import coherence
from jaxgen.families.diffusion.guidance.composition import mixture, product
from jaxgen.families.diffusion.guidance.concepts import compose as of_concepts
from jaxgen.families.diffusion.guidance.diffier import diffier
from jaxgen.families.diffusion.guidance.dynamic_cfg import dynamic_cfg
from jaxgen.families.diffusion.guidance.elucd import elucd
from jaxgen.families.diffusion.guidance.event import above, equals
from jaxgen.families.diffusion.guidance.gfcg import gfcg
from jaxgen.families.diffusion.guidance.interval import limit
from jaxgen.families.diffusion.guidance.multi import sine, spatext
from jaxgen.families.diffusion.guidance.pag import pag
from jaxgen.families.diffusion.guidance.refine import refine
from jaxgen.families.diffusion.guidance.rescale import rescale
from jaxgen.families.diffusion.guidance.sag import sag
from jaxgen.families.diffusion.guidance.semantic import sdg
from jaxgen.families.diffusion.guidance.stitch import stitch
from jaxgen.families.diffusion.guidance.universal import backward, universal
from tests.guidance_kit import (
    AMOUNTS,
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
    by_label,
    estimate,
    goal,
    logits,
    total,
)

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
    "diffier": lambda c, u, y: (
        diffier(cfg(c, u, 3.0), draws=2),
        diffier(cfg(c, u, 3.0), iterations=0),
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
            # Per call, not per batch row: a batched pair of networks would count two. The keys
            # keep it in a loop over draws, which all have the same t.
            jax.debug.callback(lambda *_: seen.append(1), t, jax.random.key_data(keys))
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
        "denoisers": lambda params, labels: [COND, OTHER],
        "labels": lambda params, labels: labels,
        "by_label": lambda params, labels: by_label,
        "logits": lambda params, labels: logits,
        "evaluate": lambda params, labels: goal,
        "similarity": lambda params, labels: goal,
        "log_prob": lambda params, labels: goal,
    }
    guidance = [dict(name="cfg.cfg", weight=3.0), *sections]
    options = dict(solver="euler", grid="uniform", steps=STEPS, clip="none")
    sampler = build_sampler(PATH, SHAPE, branches, guidance=guidance, **options)
    keys = jax.random.split(jax.random.key(3), SIZE)
    grid = grids.uniform(STEPS, PATH)
    guided = function(cfg(COND, UNCOND, 3.0))
    x = jax.jit(lambda k: integrate(solvers.euler(PATH), guided, prior(PATH, k, SHAPE), grid, k))
    np.testing.assert_allclose(sampler({}, keys, LABELS), x(keys), atol=1e-5)
    assert sampler.calls == pytest.approx(
        solvers.euler(PATH).calls(guided, np.asarray(grid)), nan_ok=True
    )
