"""Schedules, noise, bounds and samplers of the discrete family against exact posteriors."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.data.bars_and_stripes import entropy
from jaxgen.errors import UsageError
from jaxgen.families.discrete import schedules
from jaxgen.families.discrete.bounds import bound, places, remaining
from jaxgen.families.discrete.core import Bits, Core, Tokens
from jaxgen.families.discrete.sampler import build_sampler, build_steps
from jaxgen.method import Spec
from tests.discrete_kit import Counter, bars, exact_core, frequencies, total_variation

SCHEDULES = {
    "linear": schedules.linear(),
    "cosine": schedules.cosine(),
    "arccos": schedules.arccos(),
    "cubic": schedules.power(3.0),
}
PLAIN = dict(
    schedule=schedules.linear(),
    temperature=1.0,
    final_temperature=None,
    choice_temperature=4.5,
    guidance=1.0,
    guidance_schedule="constant",
    guided=True,
)


def sample(core, count, seed=0, **options):
    sampler = build_sampler(core, **{**PLAIN, **options})
    keys = jax.random.split(jax.random.key(seed), count)
    out = jax.jit(sampler.fn)({"net": {}}, keys, jnp.zeros(count, jnp.int32))
    return np.asarray(out).reshape(count, -1)


@pytest.mark.parametrize("way", SCHEDULES.values(), ids=SCHEDULES)
def test_schedules(way):
    t = jnp.linspace(0.0, 1.0, 101)
    share = way.share(t)
    np.testing.assert_allclose(share[jnp.array([0, -1])], [0, 1], atol=1e-6)
    assert (jnp.diff(share) > 0).all()
    np.testing.assert_allclose(way.time(share), t, atol=2e-3)
    inner = t[1:-1]
    slope = jax.jit(jax.vmap(jax.grad(lambda t: way.share(t))))(inner)
    np.testing.assert_allclose(way.slope(inner), slope, rtol=1e-4)


def test_schedules_are_the_papers():
    r = np.linspace(0, 1, 11)  # progress, in their words
    np.testing.assert_allclose(SCHEDULES["cosine"].share(1 - r), np.cos(np.pi * r / 2), atol=1e-6)
    np.testing.assert_allclose(
        SCHEDULES["arccos"].share(1 - r), np.arccos(r) / np.pi * 2, atol=1e-3
    )
    np.testing.assert_allclose(SCHEDULES["cubic"].share(1 - r), 1 - r**3, atol=1e-6)
    with pytest.raises(UsageError, match="exponent"):
        schedules.power(0.0)


def test_counts_fall_by_at_least_one():
    np.testing.assert_array_equal(remaining(SCHEDULES["linear"], 9, 3), [9, 6, 3, 0])
    # floor(64 cos(pi r / 2)) at r = 1/4, 1/2, 3/4, by hand.
    np.testing.assert_array_equal(remaining(SCHEDULES["cosine"], 64, 4), [64, 59, 45, 24, 0])
    for way, steps in itertools.product(SCHEDULES.values(), (1, 5, 16)):
        counts = remaining(way, 16, steps)
        assert counts[0] == 16 and counts[-1] == 0 and (np.diff(counts) < 0).all()


@pytest.mark.parametrize(("bits", "groups"), [(1, 1), (6, 1), (6, 2), (6, 6)])
def test_bits_and_numbers_are_the_same(bits, groups):
    codec = Bits(bits, groups)
    tokens = jnp.arange(2**bits)[None]
    elements = codec.split(tokens)
    assert elements.shape == (1, groups * 2**bits) and int(elements.max()) == codec.values - 1
    np.testing.assert_array_equal(codec.join(elements), tokens)
    inputs = np.asarray(codec.inputs(elements))[0]
    written = [[2 * int(b) - 1 for b in format(n, f"0{bits}b")] for n in range(2**bits)]
    np.testing.assert_array_equal(inputs, written)
    # A masked group is zeros, and only it.
    masked = elements.at[0, 0].set(codec.values)
    changed = np.asarray(codec.inputs(masked))[0]
    assert (changed[0, : bits // groups] == 0).all()
    np.testing.assert_array_equal(changed[0, bits // groups :], inputs[0, bits // groups :])
    np.testing.assert_array_equal(changed[1:], inputs[1:])


def test_one_group_of_bits_is_masked_as_a_token_is():
    codec = Bits(3, 1)
    assert codec.values == Tokens(8).values and codec.per_token == Tokens(8).per_token
    tokens = jnp.arange(8)[None]
    np.testing.assert_array_equal(codec.split(tokens), Tokens(8).split(tokens))


@pytest.mark.parametrize("noise", ["mask", "uniform"])
def test_noise_falls_on_the_chosen_alone(noise):
    core = Core(
        Spec(shape=(1, 2000), num_classes=1, levels=4, tokens=True),
        None,
        Tokens(4),
        SCHEDULES["linear"],
        noise,
        timed=False,
    )
    x = jnp.ones((1, 2000), jnp.int32)
    chosen = jnp.arange(2000)[None] < 1600
    out = np.asarray(core.noised(jax.random.split(jax.random.key(0), 1), x, chosen))[0]
    assert (out[1600:] == 1).all()
    if noise == "mask":
        assert (out[:1600] == 4).all()
    else:
        share = np.bincount(out[:1600], minlength=4) / 1600
        assert len(share) == 4 and np.abs(share - 0.25).max() < 0.04


@pytest.mark.parametrize(
    ("size", "steps", "divergence"),
    [
        (2, 1, 0.980829),
        (2, 2, 0.518731),
        (2, 4, 0.0),
        (3, 1, 3.599267),
        (3, 3, 0.719957),
        (3, 9, 0.0),
    ],
)
def test_bounds_of_parallel_decoding_are_the_known_ones(size, steps, divergence):
    states = bars(size)
    core = exact_core(states)
    draws = 4000
    x = jnp.asarray(np.repeat(states, draws, 0))
    keys = jax.random.split(jax.random.key(1), len(x))
    counts = remaining(SCHEDULES["linear"], core.size, steps)

    @jax.jit
    def run(keys):
        place = places(keys, 0)
        return bound(core, {}, x, jnp.zeros(len(x), jnp.int32), keys, place, counts)

    found = np.asarray(run(keys), np.float64)
    error = found.std() / len(found) ** 0.5
    assert error < 0.013
    np.testing.assert_allclose(found.mean(), entropy(size) + divergence, atol=5 * error + 1e-5)


def test_bound_of_uniform_noise_is_one_and_has_a_known_value():
    """The path's own divergence, integrated by enumeration over all noised states."""
    states = bars(2)
    core = exact_core(states, noise="uniform")
    draws = 20_000
    x = jnp.asarray(np.repeat(states, draws, 0))
    keys = jax.random.split(jax.random.key(1), len(x))
    run = jax.jit(lambda k: bound(core, {}, x, jnp.zeros(len(x), jnp.int32), k, places(k, 0)))
    found = np.asarray(run(keys), np.float64)
    error = found.std() / len(found) ** 0.5

    # The same integral, by enumeration of the 16 noised states on a fine grid of shares.
    noised = np.array(list(itertools.product((0, 1), repeat=4)))
    shares = np.linspace(1e-4, 1, 4001)
    same = noised[:, None] == states[None]
    terms = []
    for m in shares:
        chance = np.where(same, 1 - m + m / 2, m / 2).prod(-1)  # [16, S]
        posterior = chance / chance.sum(1, keepdims=True)
        p = np.einsum("as,sn->an", posterior, states)
        p = np.stack([1 - p, p], -1)
        at_x = np.take_along_axis(p[:, None].repeat(len(states), 1), states[None, ..., None], -1)
        at_z = np.take_along_axis(p, noised[..., None], -1)
        value = np.where(same, 1 - at_z[:, None, :, 0], -at_z[:, None, :, 0] - np.log(at_x[..., 0]))
        terms.append((chance * value.sum(-1)).sum(0).mean() / m)
    expected = np.trapezoid(terms, shares)
    np.testing.assert_allclose(found.mean(), expected, atol=5 * error + 1e-3)
    # A bound: above the entropy, and below that of independent pixels and one step.
    assert entropy(2) - 5 * error < found.mean() < 2.772589


def test_one_by_one_in_any_order_is_the_law_itself():
    states = bars(3)
    found = sample(exact_core(states), 40_000, solver="random", steps=9)
    # The floor of 14 equal states: sqrt(2 K / (pi n)) / 2 = .0075.
    assert total_variation(found, states) < 0.015


@pytest.mark.parametrize(
    ("size", "steps", "divergence"), [(2, 1, 0.980829), (2, 2, 0.287682), (3, 3, 0.407857)]
)
def test_parallel_decoding_samples_with_the_divergence_of_its_mixture(size, steps, divergence):
    """ln 1/K - mean ln P(x), with P the mean over all ways to cut into equal groups, enumerated."""
    states = bars(size)
    found = sample(exact_core(states), 200_000, solver="random", steps=steps)
    share, _ = frequencies(found, states)
    assert -np.log(len(states)) - np.log(share).mean() == pytest.approx(divergence, abs=0.01)


@pytest.mark.parametrize("noise", ["mask", "uniform"])
@pytest.mark.parametrize("solver", ["ancestral", "euler"])
def test_jump_processes_reach_the_law(noise, solver):
    states = bars(2)
    many, few = (
        total_variation(
            sample(exact_core(states, noise=noise), 20_000, solver=solver, steps=steps), states
        )
        for steps in (64, 1)
    )
    # An error of order one over the steps, and the floor of six states, .006.
    assert many < 0.03 and few > 0.3


def test_every_element_is_revealed_once_in_scheduled_numbers():
    size, values = 12, 14
    spec = Spec(shape=(3, 4), num_classes=1, levels=values, tokens=True)
    core = Core(spec, Counter(values), Tokens(values), SCHEDULES["cosine"], "mask", False)
    for solver, noise in (("confidence", 0.0), ("confidence", 50.0), ("random", 0.0)):
        found = sample(
            core,
            20,
            solver=solver,
            steps=5,
            schedule=SCHEDULES["cosine"],
            choice_temperature=noise,
            temperature=0.05,
        )
        counts = remaining(SCHEDULES["cosine"], size, 5)
        # A revealed element says how many were masked when it came.
        expected = np.repeat(counts[:-1], counts[:-1] - counts[1:])
        np.testing.assert_array_equal(np.sort(found, 1), np.sort(expected)[None].repeat(20, 0))
        if solver == "confidence" and noise == 0:
            cold = sample(
                core,
                20,
                solver=solver,
                steps=5,
                schedule=SCHEDULES["cosine"],
                choice_temperature=0.0,
            )
            # Surest first, where the network draws what it is sure of.
            share = (cold == expected[None]).mean()
            assert share > 0.95


def test_guidance_moves_logits_and_one_is_the_label_itself():
    values = (1.2, 0.4)  # ln odds of the label, of "no label"

    class Net:
        def apply(self, variables, x, labels, **options):
            odds = jnp.where(labels == 0, *values)
            return jnp.stack([jnp.zeros_like(odds), odds], -1)[:, None].repeat(x.shape[1], 1)

    spec = Spec(shape=(1, 1), num_classes=1, levels=2, tokens=True)
    core = Core(spec, Net(), Tokens(2), SCHEDULES["linear"], "mask", False)
    for w in (0.0, 1.0, 3.0):
        found = sample(core, 40_000, solver="confidence", steps=1, guidance=w).mean()
        expected = 1 / (1 + np.exp(-(values[1] + w * (values[0] - values[1]))))
        assert found == pytest.approx(expected, abs=0.01)
    # A ramp begins at the label's own model: one step never sees the weight.
    ramp = sample(core, 500, solver="random", steps=1, guidance=9.0, guidance_schedule="linear")
    np.testing.assert_array_equal(ramp, sample(core, 500, solver="random", steps=1))


def test_samples_depend_on_their_own_key_alone():
    core = exact_core(bars(3))
    sampler = build_sampler(core, **PLAIN, solver="confidence", steps=4)
    keys = jax.random.split(jax.random.key(0), 8)
    labels = jnp.zeros(8, jnp.int32)
    every = sampler({"net": {}}, keys, labels)
    one = sampler({"net": {}}, keys[5:6], labels[:1])
    np.testing.assert_array_equal(one[0], every[5])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(solver="confidense"), "Did you mean 'confidence'"),
        (dict(steps=0), "sample.steps"),
        (dict(steps=10), "1 to 9"),
        (dict(temperature=0.0), "sample.temperature"),
        (dict(final_temperature=-1.0), "sample.final_temperature"),
        (dict(choice_temperature=-1.0), "sample.choice_temperature"),
        (dict(guidance_schedule="sometimes"), "sample.guidance_schedule"),
        (dict(guidance=2.0, guided=False), "label_dropout"),
    ],
    ids=str,
)
def test_bad_options_of_samplers_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        build_sampler(
            exact_core(bars(3)), **{**PLAIN, "solver": "confidence", "steps": 3, **options}
        )
    with pytest.raises(UsageError, match="sample.solver"):
        core = exact_core(bars(3), noise="uniform")
        build_sampler(core, **PLAIN, solver="confidence", steps=3)


def test_ramps_of_a_sampler_end_where_they_should():
    """Temperatures begin at the first and near the last; the choice ends at confidence alone."""
    options = dict(solver="confidence", steps=4, schedule=schedules.linear(), temperature=2.0,
                   final_temperature=1.0, choice_temperature=8.0, guidance=3.0,
                   guidance_schedule="linear", guided=True)  # fmt: skip
    rows = build_steps(exact_core(bars(2)), **options).rows
    np.testing.assert_allclose(rows["choice"], [6, 4, 2, 0])
    np.testing.assert_allclose(rows["temperature"], [2, 1.75, 1.5, 1.25])
    assert rows["weight"][0] < rows["weight"][-1] <= 3.0
