"""The matrix of adversarial pieces: each against a closed form, or NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.families.adversarial import augmentation, classifiers, contrastive, head, loss
from jaxgen.families.adversarial import regularisers as rules
from jaxgen.families.adversarial.judgement import Judgement
from jaxgen.families.adversarial.regularisers import Case
from jaxgen.nn.gan_layers import MinibatchDeviation, MinibatchDiscrimination
from tests.nn_kit import quick_jit

RNG = np.random.default_rng(0)
LABELS = np.array([0, 2, 1, 1, 0, 2])
KEYS = jax.random.split(jax.random.key(3), 6)


def live(module, *args):
    shapes = jax.eval_shape(lambda k: module.init(k, *args), jax.random.key(0))
    return jax.tree.map(lambda a: jnp.asarray(RNG.normal(size=a.shape), jnp.float32), shapes)


def log_softmax(x):
    x = np.asarray(x, np.float64)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_one_sided_smoothing_has_the_papers_optimum():
    """D = a p_data / (p_data + p_model): there the loss of 6 real and 4 fake is stationary."""
    best = 0.9 * 6 / 10

    @quick_jit
    def slopes(logit):
        real = jax.grad(lambda x: loss.non_saturating(0.1).discriminator(x, -jnp.inf))(logit)
        both = jax.grad(lambda x: loss.non_saturating(0.1).discriminator(x, x))(logit)
        return real, both - real

    real, fake = slopes(jnp.log(best / (1 - best)))
    assert abs(6 * real + 4 * fake) < 1e-5 < abs(real)
    ones = jnp.full(2, 0.9)
    assert loss.least_squares(0.1).discriminator(ones, 0 * ones) < 1e-12


def test_auxiliary_classifiers():
    real, fake = (RNG.normal(size=(2, 6, 3)) for _ in range(2))
    said = [Judgement(jnp.zeros(6), classes=tuple(jnp.asarray(a))) for a in (real, fake)]
    ce = lambda logits: -log_softmax(logits)[np.arange(6), LABELS].mean()
    for twin in (False, True):
        for on_fakes in (False, True):
            module = classifiers.Auxiliary(3, 2.0, on_fakes, twin)
            wanted = 2 * (ce(real[0]) + on_fakes * ce(fake[0]) + twin * ce(fake[1]))
            np.testing.assert_allclose(module.discriminator_term(*said, LABELS), wanted, rtol=1e-5)
            wanted = 2 * (ce(fake[0]) - twin * ce(fake[1]))
            np.testing.assert_allclose(module.generator_term(said[1], LABELS), wanted, rtol=1e-5)


def test_the_discriminative_classifier_tells_real_labels_from_fake_ones():
    real, fake = RNG.normal(size=(2, 6, 6))
    said = [Judgement(jnp.zeros(6), classes=jnp.asarray(a)) for a in (real, fake)]
    module, rows = classifiers.Discriminative(3, 2.0), np.arange(6)
    of_fake = log_softmax(fake)
    wanted = -2 * (log_softmax(real)[rows, LABELS] + of_fake[rows, LABELS + 3]).mean()
    np.testing.assert_allclose(module.discriminator_term(*said, LABELS), wanted, rtol=1e-5)
    wanted = 2 * (of_fake[rows, LABELS + 3] - of_fake[rows, LABELS]).mean()
    np.testing.assert_allclose(module.generator_term(said[1], LABELS), wanted, rtol=1e-5)


def test_contrastive_losses_by_loops():
    f, v = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in RNG.normal(size=(2, 6, 4)))
    for t in (1.0, 0.3):
        total = 0.0
        for i in range(6):
            proxy = np.exp(f[i] @ v[i] / t)
            each = {k: np.exp(f[i] @ f[k] / t) for k in range(6) if k != i}
            same = sum(e for k, e in each.items() if LABELS[k] == LABELS[i])
            total -= np.log((proxy + same) / (proxy + sum(each.values()))) / 6
        found = contrastive.conditional_contrastive(*map(jnp.asarray, (f, v)), LABELS, t)
        np.testing.assert_allclose(found, total, rtol=1e-5)
        total = 0.0
        for i in range(6):
            easy = np.exp(min(f[i] @ v[i] - 0.9, 0) / t)
            hard = [max(f[i] @ f[k] - 0.1, 0) for k in range(6) if LABELS[k] != LABELS[i]]
            total -= np.log(easy / (easy + np.exp(np.array(hard) / t).sum())) / 6
        found = contrastive.data_to_data(*map(jnp.asarray, (f, v)), LABELS, t, 0.9, 0.1)
        np.testing.assert_allclose(found, total, rtol=1e-5)
    # Where all labels are one there is no negative, and no loss.
    one = contrastive.data_to_data(jnp.asarray(f), jnp.asarray(v), 0 * LABELS, 1.0, 0.9, 0.1)
    assert abs(float(one)) < 1e-6


def test_margins_of_the_multi_hinge():
    h = jnp.asarray(RNG.normal(size=(6, 4)), jnp.float32)
    module = head.multi_hinge(num_classes=3)
    variables = live(module, h, LABELS)
    found = module.apply(variables, h, LABELS)
    kernel, bias = (
        np.asarray(variables["params"]["out"][k], np.float64) for k in ("kernel", "bias")
    )
    c = np.asarray(h, np.float64) @ kernel + bias
    margin = lambda row, k: c[row, k] - np.delete(c[row], k).max()
    own = np.array([margin(i, y) for i, y in enumerate(LABELS)])
    fake = np.array([margin(i, 3) for i in range(6)])
    np.testing.assert_allclose(found.logits, own, rtol=1e-4)
    np.testing.assert_allclose(found.counter, -fake, rtol=1e-4)
    rule = loss.multi_hinge()
    wanted = np.maximum(0, 1 - own).mean() + np.maximum(0, 1 - fake).mean()
    np.testing.assert_allclose(rule.discriminator(found.logits, found.counter), wanted, rtol=1e-4)
    np.testing.assert_allclose(
        rule.generator(found.logits), np.maximum(0, 1 - own).mean(), rtol=1e-4
    )
    # One class, whose logit is D beside a "fake" of 0: the hinge.
    several = head.several(num_classes=3)
    variables = live(several, h, LABELS)
    c = h @ variables["params"]["out"]["kernel"] + variables["params"]["out"]["bias"]
    np.testing.assert_allclose(several.apply(variables, h, LABELS).logits, c[np.arange(6), LABELS])


def test_terms_of_heads_have_gradients_of_both_players():
    h = jnp.asarray(RNG.normal(size=(6, 4)), jnp.float32)
    names = ("auxiliary", "twin_auxiliary", "discriminative", "contrastive", "data_to_data")
    made = {name: getattr(head, name)(num_classes=3) for name in names}
    variables = {name: live(module, h, LABELS) for name, module in made.items()}

    @quick_jit
    def slopes(variables, h):
        def of(variables, h, fake):
            total = jnp.zeros(())
            for name, module in made.items():
                said = module.apply(variables[name], h, LABELS)
                more = module.apply(variables[name], fake, LABELS)
                total += module.discriminator_term(said, more, LABELS)
                total += 2 * module.generator_term(more, LABELS)
            return total

        return jax.grad(of, (0, 2))(variables, h, 2 * h)

    of_d, of_g = slopes(variables, h)
    for path, slope in jax.tree_util.tree_leaves_with_path(of_d):
        # The logit's own layer is the loss's, not the term's.
        assert bool(jnp.abs(slope).max() > 0) == ("out" not in str(path)), path
    assert np.isfinite(of_g).all() and float(jnp.abs(of_g).min()) > 0


def case(judge, shape=(3,), **more):
    real, fake = (jnp.asarray(RNG.normal(size=(6, *shape)), jnp.float32) for _ in range(2))
    return Case(judge, real, fake, jnp.asarray(LABELS), KEYS, **({"augment": None} | more))


SLOPES = {
    "r1": lambda r, f, b, n: (r**2).sum(1).mean() / 2,
    "r2": lambda r, f, b, n: (f**2).sum(1).mean() / 2,
    "zero_centred": lambda r, f, b, n: ((r**2).sum(1) + (f**2).sum(1)).mean() / 2,
    "gradient_penalty": lambda r, f, b, n: (np.linalg.norm(b, axis=1) - 1) ** 2,
    "max_gradient_penalty": lambda r, f, b, n: (b**2).sum(1).max(),
}


@pytest.mark.parametrize("name", ["r1", "r2", "zero_centred", "max_gradient_penalty"])
def test_slopes_of_a_quadratic_and_their_derivative(name):
    """D(x) = a |x|^2 / 2 has the slope a |x|; the penalty a^2 P(x), its derivative in a 2 a P."""
    a = 1.5
    given = case(None)
    share = np.asarray(jax.vmap(jax.random.uniform)(KEYS), np.float64)[:, None]
    real, fake = (np.asarray(x, np.float64) for x in (given.real, given.fake))
    between = share * real + (1 - share) * fake
    wanted = SLOPES[name](real, fake, between, None)
    rule = getattr(rules, name)(1.0)
    of = lambda a: rule.penalty(given._replace(judge=lambda x, y: a * jnp.square(x).sum(-1) / 2))
    np.testing.assert_allclose(of(a), a**2 * wanted, rtol=1e-5)
    np.testing.assert_allclose(jax.grad(of)(a), 2 * a * wanted, rtol=1e-5)


def test_second_order_of_penalties_with_a_target_against_differences():
    """In float64, of a network that is neither linear nor quadratic."""
    with jax.enable_x64(True):
        given, step = case(None), 1e-5
        given = given._replace(real=given.real.astype(float), fake=given.fake.astype(float))
        w, move = (jnp.asarray(a) for a in RNG.normal(size=(2, 3, 4)))

        def of(w):
            judge = lambda x, y: jnp.sin(x @ w).sum(-1)
            here = given._replace(judge=judge)
            two = rules.gradient_penalty(2.0), rules.dragan(2.0)
            return jnp.stack([rule.penalty(here) for rule in two])

        slope = quick_jit(lambda w: jax.jvp(of, (w,), (move,))[1])(w)
        value = quick_jit(of)
        wanted = (value(w + step * move) - value(w - step * move)) / (2 * step)
        np.testing.assert_allclose(slope, wanted, rtol=1e-6)


def test_dragan_is_around_real_images():
    # |slope| of D = |x|^2 / 2 is |x|. Far from 0 the noise of a deviation of 0 moves nothing.
    given = case(lambda x, y: jnp.square(x).sum(-1) / 2)
    still = given._replace(real=jnp.full((6, 3), 2.0), fake=given.fake + 100)
    wanted = (np.sqrt(12) - 1) ** 2
    np.testing.assert_allclose(rules.dragan(1.0).penalty(still), wanted, rtol=1e-5)
    assert abs(rules.dragan(1.0).penalty(given) - rules.dragan(1.0, 5.0).penalty(given)) > 1e-3


def test_lazy_r1_is_r1_on_average():
    given, eager = case(lambda x, y: jnp.square(x).sum(-1)), rules.r1(1.0)
    rule = rules.r1(1.0, every=4)
    state, found = rule.start(None), []
    for _ in range(8):
        found.append(float(rule.penalty(given._replace(state=state))))
        state = rule.follow(state, {}, None)
    np.testing.assert_allclose(np.mean(found), eager.penalty(given), rtol=1e-6)
    assert sum(value > 0 for value in found) == 2


def test_consistencies():
    given = case(lambda x, y: x[:, 0], augment=lambda x, keys: 3 * x)
    real, fake = (4 * np.square(x[:, 0]).mean() for x in (given.real, given.fake))
    rule = rules.balanced_consistency(0.5, 2.0)
    np.testing.assert_allclose(rule.penalty(given), 0.5 * real + 2 * fake, rtol=1e-5)
    # zCR of G(z) = 2 z and D(x) = x_0: both terms are of the same normal e.
    z = jnp.asarray(RNG.normal(size=(6, 3)), jnp.float32)
    given = given._replace(fake=2 * z, z=z, generate=lambda z: 2 * z)
    rule = rules.latent_consistency(3.0, 0.5, deviation=0.1)
    e = 0.1 * np.asarray(jax.vmap(lambda k: jax.random.normal(k, (3,)))(KEYS))
    np.testing.assert_allclose(rule.penalty(given), 3 * 4 * np.square(e[:, 0]).mean(), rtol=1e-3)
    np.testing.assert_allclose(rule.generator(given), -0.5 * 4 * np.square(e).mean(), rtol=1e-3)


def test_lecam_is_anchored_to_the_other_sides_average():
    rule, real, fake = rules.lecam(0.5, decay=0.75), jnp.array([1.0, 3.0]), jnp.array([-2.0, 0.0])
    state = rule.follow(rule.start(None), {"real_logit": 2.0, "fake_logit": -1.0}, None)
    assert (float(state["real"]), float(state["fake"])) == (0.5, -0.25)
    given = case(None)._replace(logits=(real, fake), state=state)
    wanted = 0.5 * ((1.25**2 + 3.25**2) / 2 + (2.5**2 + 0.5**2) / 2)
    np.testing.assert_allclose(rule.penalty(given), wanted, rtol=1e-6)


def test_feature_matching_is_of_means():
    given = case(None)._replace(features=lambda x, y: 2 * x)
    wanted = 3 * 4 * np.square(np.asarray(given.real.mean(0) - given.fake.mean(0))).sum()
    np.testing.assert_allclose(rules.feature_matching(3.0).generator(given), wanted, rtol=1e-5)


def test_top_k_keeps_the_best_and_falls_to_its_share():
    logits, rule = jnp.array([0.3, -1.0, 2.0, 0.5]), rules.top_k(0.5, images=100, decay=0.7)
    for seen, kept in ((0, [1, 1, 1, 1]), (100, [1, 0, 1, 1]), (900, [0, 0, 1, 1])):
        wanted = np.array(kept) / sum(kept)
        np.testing.assert_allclose(rule.select(logits, jnp.float32(seen)), wanted, rtol=1e-6)


def test_latent_optimisation_is_the_natural_step_and_is_differentiated():
    """D(G(z)) = a |z|^2 / 2: g = a z, so z (1 + r a / (b + a^2 |z|^2)), and its derivative in a."""
    rule, z = rules.latent_optimisation(0.9, 5.0), jnp.asarray(RNG.normal(size=(6, 3)), jnp.float32)
    of = lambda a: rule.latent(z, lambda z: a * jnp.square(z).sum(-1) / 2)
    z64 = np.asarray(z, np.float64)
    exact = lambda a: z64 * (1 + 0.9 * a / (5 + a**2 * np.square(z64).sum(1, keepdims=True)))
    found, slope = quick_jit(lambda a: jax.jvp(of, (a,), (1.0,)))(1.5)
    np.testing.assert_allclose(found, exact(1.5), rtol=1e-5)
    np.testing.assert_allclose(slope, (exact(1.5 + 1e-5) - exact(1.5 - 1e-5)) / 2e-5, atol=1e-5)


def test_historical_averaging_is_of_the_mean_so_far():
    rule = rules.historical_averaging(0.5, networks=("generator",))
    path = [jnp.array([1.0, 2.0]), jnp.array([2.0, 0.0]), jnp.array([6.0, 1.0])]
    state = rule.start({"generator": {"w": path[0]}})
    for w in path[1:]:
        state = rule.follow(state, {}, {"generator": {"w": w}})
    np.testing.assert_allclose(state["generator"]["w"], np.mean(path, 0), rtol=1e-6)
    found = rule.weights({"w": path[-1]}, state["generator"])
    np.testing.assert_allclose(found, 0.5 * 9, rtol=1e-6)


def test_layers_that_look_at_the_batch_by_loops():
    h = jnp.asarray(RNG.normal(size=(5, 4)), jnp.float32)
    module = MinibatchDiscrimination(3, 2)
    variables = live(module, h)
    m = (np.asarray(h) @ np.asarray(variables["params"]["tensor"]["kernel"])).reshape(5, 3, 2)
    wanted = [
        [sum(np.exp(-np.abs(m[i, b] - m[j, b]).sum()) for j in range(5)) for b in range(3)]
        for i in range(5)
    ]
    found = module.apply(variables, h)
    np.testing.assert_array_equal(found[:, :4], h)
    np.testing.assert_allclose(found[:, 4:], wanted, rtol=1e-4)
    found = MinibatchDeviation().apply({}, h)
    np.testing.assert_allclose(found[:, 4], np.asarray(h).std(0).mean(), rtol=1e-4)
    # A batch of one image: no deviation, and a finite slope.
    slope = jax.grad(lambda h: MinibatchDeviation().apply({}, h).sum())(h[:1])
    assert np.isfinite(slope).all()


def test_colours_are_scaled_about_the_mean_and_rotations_are_quarter_turns():
    x = RNG.uniform(-1, 1, size=(6, 4, 4, 3)).astype(np.float32)
    for name, axes in (("contrast", (1, 2, 3)), ("saturation", 3)):
        y = np.asarray(quick_jit(augmentation.differentiable((name,)))(x, KEYS))
        mean = x.mean(axes, keepdims=True)
        np.testing.assert_allclose(y.mean(axes, keepdims=True), mean, atol=1e-6)
        gain = (y - mean) / (x - mean)
        each = gain.reshape(6, -1)
        np.testing.assert_allclose(each, np.broadcast_to(each[:, :1], each.shape), rtol=2e-3)
        assert 0 < each[:, 0].min() < each[:, 0].max() < 2 and np.ptp(each[:, 0]) > 0.1
    turned = np.asarray(quick_jit(augmentation.differentiable(("rotation",)))(x, KEYS))
    found = {n for i in range(6) for n in range(4) if (turned[i] == np.rot90(x[i], n)).all()}
    assert len(found) > 1


def test_adaptive_augmentation_happens_with_its_probability():
    x = jax.random.uniform(jax.random.key(0), (400, 4, 4, 1), minval=-1)
    keys = jax.random.split(jax.random.key(1), 400)
    augment = augmentation.adaptive(("brightness",))
    show = quick_jit(augment)
    np.testing.assert_array_equal(show(x, keys, 0.0), x)
    for p in (0.3, 1.0):
        share = float((np.asarray(show(x, keys, p)) != np.asarray(x)).any((1, 2, 3)).mean())
        assert abs(share - p) <= 4 * (p * (1 - p) / 400) ** 0.5, p
    # Twice differentiable in the images: the slope at what is shown goes back whole.
    cube = lambda x: (augment(x, keys, 1.0) ** 3).sum()
    slope = quick_jit(jax.grad(lambda x: jax.grad(cube)(x).sum()))(x)
    np.testing.assert_allclose(slope, 6 * show(x, keys, 1.0), rtol=1e-4, atol=1e-5)


def test_the_controller_reaches_its_target():
    """Where the mean sign falls by 1 as p grows by 1, from 1: p = 1 - target holds it there."""
    controller = augmentation.Controller(target=0.6, images=1000, first=0.0)

    def step(state, n):
        sign = 1 - state["p"] + 0.1 * jnp.sin(n)  # a batch's sign is noisy
        return controller.follow(state, {"d_sign": sign, "seen": 10 * n}), state["p"]

    _, path = quick_jit(lambda: jax.lax.scan(step, controller.start(), jnp.arange(200.0)))()
    # Up by 0.01 a step, until the noise of 0.1 reaches over the target.
    np.testing.assert_allclose(path[:30], 0.01 * np.maximum(np.arange(30) - 1, 0), atol=1e-5)
    assert np.abs(np.asarray(path[60:]) - 0.4).max() < 0.12
    assert abs(float(path[60:].mean()) - 0.4) < 0.01
