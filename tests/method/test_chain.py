"""What a chain says of the probabilities of its steps, against the noise that it drew."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.families.diffusion import solvers
from jaxgen.families.diffusion.core import grids
from jaxgen.families.diffusion.core.path import linear
from jaxgen.families.diffusion.core.sampler import as_chain as diffusion_chain
from jaxgen.families.diffusion.solvers.renoise import renoise
from jaxgen.families.discrete.sampler import as_chain, build_steps
from jaxgen.method import Spec, fold, normal
from jaxgen.method.streams import NOISE, STEPS
from jaxgen.testing import gaussian_denoiser
from tests.discrete_kit import exact_core
from tests.families.test_ar_method import BINARY, keys, live, llama, method

PATH, GRID = linear(), grids.uniform(4, linear())
DRAWING = {
    "ddpm": solvers.ddpm(PATH, "large"),
    "ddim": solvers.ddim(PATH, 0.5),
    "euler_maruyama": solvers.euler_maruyama(PATH),
    "renoise": renoise(PATH),
}


@pytest.mark.parametrize("name", DRAWING)
def test_a_gaussian_step_is_as_likely_as_the_noise_that_it_drew(name):
    """The density of the noise, over the step's deviation: found from two keys' steps."""
    chain = diffusion_chain(DRAWING[name], gaussian_denoiser(PATH, 0.7, 0.5), GRID, (3,), PATH)
    own, others = keys(5), keys(5, 1)
    states = chain.states(own)
    np.testing.assert_array_equal(states[0][:, -1], chain.run(own))
    found = jax.jit(chain.log_probs)(own, states)
    for n in range(4):
        before = jax.tree.map(lambda a, n=n: a[:, n], states)
        one, two = (chain.step(k, before, jnp.int32(n))[0] for k in (own, others))
        drawn, other = (normal(fold(fold(fold(k, STEPS), n), NOISE), (3,)) for k in (own, others))
        std = ((one - two) / (drawn - other)).mean()
        if n == 3:
            assert (found[:, n] == 0).all() and abs(std) < 1e-5
            continue
        wanted = (-(drawn**2) / 2 - jnp.log(std) - jnp.log(2 * jnp.pi) / 2).sum(1)
        np.testing.assert_allclose(found[:, n], wanted, rtol=1e-3, atol=1e-3)


def test_a_step_without_noise_is_no_draw():
    chain = diffusion_chain(solvers.euler(PATH), gaussian_denoiser(PATH), GRID, (3,), PATH)
    assert chain.log_prob is None


STATES = np.array([[0, 0, 0], [0, 1, 1], [1, 1, 0], [1, 1, 1], [1, 0, 1]])


def steps(solver, noise):
    core = exact_core(STATES, noise=noise)
    return build_steps(
        core, solver=solver, steps=3, schedule=core.schedule, temperature=0.8,
        final_temperature=None, choice_temperature=0.0, guidance=1.0,
        guidance_schedule="constant", guided=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("solver", "noise"),
    # "random" reveals masks, and is refused for uniform noise.
    [("random", "mask"), *itertools.product(("ancestral", "euler"), ("mask", "uniform"))],
)
def test_a_step_of_tokens_goes_where_it_says(solver, noise):
    """Of all states after a step, the share of many draws; for masks given which are revealed."""
    chain = as_chain(steps(solver, noise), {"net": {}}, 0)
    levels = 3 if noise == "mask" else 2
    every = jnp.array(list(itertools.product(range(levels), repeat=3)), jnp.int32)
    count, number = 20_000, jnp.int32(1)
    before = jnp.array([1, 2, 2] if noise == "mask" else [1, 0, 0], jnp.int32)
    tiled = lambda n: (jnp.tile(before, (n, 1)), jnp.zeros(n, jnp.int32))
    after = np.asarray(jax.jit(chain.step)(keys(count), tiled(count), number)[0])
    seen = np.array([(after == state).all(1).mean() for state in np.asarray(every)])
    log = chain.log_prob(keys(len(every)), tiled(len(every)), (every, None), number)
    said = np.exp(np.asarray(log))
    if noise == "mask":
        revealed = [tuple(state == 2) for state in np.asarray(every)]
        share = {r: seen[[r == other for other in revealed]].sum() for r in revealed}
        said = said * [share[r] for r in revealed]
        said[np.asarray(every)[:, 0] != 1] = 0  # what is seen stays
    np.testing.assert_allclose(seen, said, atol=4 * 0.5 / count**0.5)


def test_by_confidence_the_probability_is_not_known():
    assert as_chain(steps("confidence", "mask"), {"net": {}}, 0).log_prob is None


def test_an_autoregressive_sampler_says_each_token_and_only_of_itself():
    spec = Spec((3, 3, 1), 2, levels=2)
    parts = method(spec, llama(spec))
    params, x, labels = live(parts, 0.6), BINARY.reshape(-1, 3, 3, 1), jnp.ones(512, jnp.int32)
    each = parts.sampler().log_probs(params, x, labels)
    assert each.shape == (512, 9)
    np.testing.assert_allclose(each.sum(1), parts.log_prob()(params, x, labels, None), rtol=1e-5)
    for options in (dict(temperature=0.5), dict(top_k=1), dict(guidance=2.0)):
        assert parts.sampler(**options).log_probs is None
