"""Losses, heads, regularisers, augmentations, latents: golden values, closed forms, laws."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.errors import UsageError
from jaxgen.families.adversarial import augmentation, head, latent, loss, regularisers
from jaxgen.families.adversarial.regularisers import Case
from jaxgen.method import normal
from jaxgen.nn.gan import maxout
from jaxgen.nn.gan_layers import BatchNorm, Conv, Dense, SelfAttention, spectral_norm
from tests.nn_kit import quick_jit


def live(module, *args, **kwargs):
    """Random variables, without compiling an initialisation."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda k: module.init(k, *args, **kwargs), jax.random.key(0))
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), jnp.float32), shapes)


KEYS = jax.random.split(jax.random.key(7), 64)
REAL, FAKE = jnp.array([2, -1, 0.5]), jnp.array([0.5, -0.3, 1.2])


@pytest.mark.parametrize(
    ("name", "d", "g"),
    [
        ("non_saturating", 1.635327, 0.530572),
        ("least_squares", 1.171667, 0.33),
        ("hinge", 2.3, -0.466667),
        ("wasserstein", -0.033333, -0.466667),
    ],
)
def test_losses_on_fixed_logits(name, d, g):
    game = getattr(loss, name)()
    np.testing.assert_allclose(game.discriminator(REAL, FAKE), d, atol=1e-6)
    np.testing.assert_allclose(game.generator(FAKE), g, atol=1e-6)


def test_saturating_is_the_minimax_value():
    game, d = loss.saturating(), jax.nn.sigmoid(FAKE)
    np.testing.assert_allclose(game.generator(FAKE), jnp.log(1 - d).mean(), atol=1e-6)
    # At D = 1/2 everywhere the value is -log 4.
    np.testing.assert_allclose(-game.discriminator(0 * REAL, 0 * FAKE), -math.log(4), atol=1e-6)


def case(judge, seed=0, size=5, shape=(2,), augment=None):
    keys = jax.random.split(jax.random.key(seed), size)
    real, fake = jax.random.normal(jax.random.key(1), (2, size, *shape))
    return Case(judge, real, fake, jnp.zeros(size, jnp.int32), keys, augment)


def test_penalties_of_a_linear_discriminator():
    linear = case(lambda x, y: 3 * x[:, 0] + 4 * x[:, 1])
    np.testing.assert_allclose(regularisers.r1(1.0).penalty(linear), 12.5, rtol=1e-6)
    np.testing.assert_allclose(regularisers.gradient_penalty(1.0).penalty(linear), 16, rtol=1e-5)


def test_gradient_penalty_is_taken_between_real_and_fake():
    # The slope of x^2 / 2 is |x|: the penalty is that of points drawn along each pair's segment.
    given = case(lambda x, y: 0.5 * jnp.square(x).sum(-1), size=40_000)
    found = regularisers.gradient_penalty(1.0, target=0.0).penalty(given)
    # E |u a + (1 - u) b|^2 for independent standard normals in the plane: 2 * 2/3.
    np.testing.assert_allclose(found, 4 / 3, atol=6 * 2 / 40_000**0.5)


def test_consistency_compares_with_the_augmented():
    given = case(lambda x, y: x[:, 0], augment=lambda x, keys: x + 2)
    np.testing.assert_allclose(regularisers.consistency(0.5).penalty(given), 2.0, rtol=1e-6)


def test_clip_projects_and_orthogonal_sees_angles_only():
    params = {"a": {"kernel": jnp.array([[3.0, 0.0], [0.0, -0.2]])}}
    clipped = regularisers.clip(0.5).project(params)["a"]["kernel"]
    np.testing.assert_array_equal(clipped, jnp.array([[0.5, 0], [0, -0.2]]))
    rule = regularisers.orthogonal(1.0)
    assert float(rule.weights(params)) == 0
    leaning = {"a": {"kernel": jnp.array([[3.0, 1.0], [0.0, -0.2]])}}
    np.testing.assert_allclose(rule.weights(leaning), 2 * 9, rtol=1e-6)
    assert float(rule.weights({"a": {"embedding": leaning["a"]["kernel"]}})) == 0


@pytest.mark.parametrize("gamma", [0.3, 4.0])
def test_r1_damps_the_dirac_gan(gamma):
    """Data at 0, a generator at theta, D(x) = psi x: eigenvalues -g/2 +- sqrt(g^2/4 - 1/4)."""
    game, rule = loss.non_saturating(), regularisers.r1(gamma)

    def field(point):
        def of_psi(psi):
            judge = lambda x, y: psi * x[:, 0]
            real, fake = jnp.zeros((1, 1)), point[0].reshape(1, 1)
            given = Case(judge, real, fake, jnp.zeros(1, int), None, None)
            return game.discriminator(judge(real, 0), judge(fake, 0)) + rule.penalty(given)

        def of_theta(theta):
            return game.generator(point[1] * theta[None])

        return jnp.stack([-jax.grad(of_theta)(point[0]), -jax.grad(of_psi)(point[1])])

    found = np.linalg.eigvals(np.asarray(quick_jit(jax.jacobian(field))(jnp.zeros(2)), np.float64))
    root = np.sqrt(complex(gamma**2 / 4 - 1 / 4))
    np.testing.assert_allclose(
        np.sort_complex(found), np.sort_complex([-gamma / 2 - root, -gamma / 2 + root]), atol=1e-3
    )


def test_spectral_norm_against_svd():
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 5, 7))
    u = jnp.ones(7) / 7**0.5
    step = quick_jit(spectral_norm)
    for _ in range(100):
        normed, u = step(kernel, u)
    top = np.linalg.svd(np.asarray(normed).reshape(-1, 7), compute_uv=False)[0]
    np.testing.assert_allclose(top, 1.0, atol=1e-2)
    # The gradient of a function of W / |W|_2 has no part along W.
    gradient = jax.grad(lambda k: jnp.sin(spectral_norm(k, u)[0]).sum())(kernel)
    assert abs(float((gradient * kernel).sum())) < 1e-3 * float(
        jnp.linalg.norm(gradient) * jnp.linalg.norm(kernel)
    )


@pytest.mark.parametrize("layer", [Dense(6, True), Conv(6, 3, True)], ids=["dense", "conv"])
def test_layers_iterate_only_where_mutable(layer):
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 5))
    variables = live(layer, x)
    kernel = 3 * jax.random.normal(jax.random.key(2), variables["params"]["kernel"].shape)
    variables["params"]["kernel"] = kernel
    step = quick_jit(lambda v: {**v, **layer.apply(v, x, mutable=["spectral"])[1]})
    for _ in range(60):
        variables = step(variables)
    size = np.linalg.svd(np.asarray(kernel).reshape(-1, 6), compute_uv=False)[0]
    plain = type(layer)(**{"features": 6, "spectral": False})
    expected = plain.apply({"params": {**variables["params"], "kernel": kernel / size}}, x)
    np.testing.assert_allclose(layer.apply(variables, x), expected, atol=2e-2)


def test_batch_norm_by_class():
    x = 3 + 2 * jax.random.normal(jax.random.key(0), (64, 4, 4, 3))
    condition = jnp.eye(2)[jnp.arange(64) % 2]
    module = BatchNorm()
    variables = live(module, x, condition, train=True)
    y, new = module.apply(variables, x, condition, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(new["batch_stats"]["mean"], x.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(new["batch_stats"]["var"], x.var((0, 1, 2)), rtol=1e-4)
    plain = (x - x.mean((0, 1, 2))) / jnp.sqrt(x.var((0, 1, 2)) + 1e-5)
    gain, bias = (variables["params"][k]["kernel"] for k in ("gain", "bias"))
    pick = condition[:, None, None]
    np.testing.assert_allclose(y, plain * (1 + pick @ gain) + pick @ bias, atol=1e-4)
    # With the batch's own moments as the stored ones, both modes agree.
    again = module.apply({**variables, **new}, x, condition, train=False)
    np.testing.assert_allclose(again, y, atol=1e-5)


def test_attention_starts_as_identity_and_sees_all_places():
    x = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))
    module = SelfAttention()
    variables = live(module, x)
    variables["params"]["gain"] = jnp.zeros(())  # as at initialisation
    np.testing.assert_array_equal(module.apply(variables, x), x)
    variables["params"]["gain"] = jnp.ones(())
    moved = module.apply(variables, x.at[0, 3, 3].add(1.0)) - module.apply(variables, x)
    assert (np.abs(np.asarray(moved)).max(-1) > 0).all()


def test_heads():
    h = jax.random.normal(jax.random.key(0), (6, 4))
    labels = jnp.arange(6) % 3
    module = head.projection(num_classes=3)
    variables = live(module, h, labels)
    params = variables["params"]
    expected = (
        (h @ params["out"]["kernel"])[:, 0]
        + (params["labels"]["embedding"][labels] * h).sum(-1)
        + params["out"]["bias"]
    )
    np.testing.assert_allclose(module.apply(variables, h, labels).logits, expected, rtol=1e-4)
    for name in ("projection", "concatenation", "normalised"):
        module = getattr(head, name)(num_classes=3)
        variables = live(module, h, labels)
        found = module.apply(variables, h, labels).logits
        assert not np.allclose(found, module.apply(variables, h, (labels + 1) % 3).logits), name
    module = head.unconditional()
    variables = live(module, h, labels)
    np.testing.assert_array_equal(
        module.apply(variables, h, labels).logits, module.apply(variables, h, labels * 0).logits
    )


def test_san_splits_the_gradients_and_its_direction_has_length_one():
    h = jax.random.normal(jax.random.key(0), (6, 4))
    labels = jnp.arange(6) % 3
    module = head.normalised(num_classes=3)
    variables = live(module, h, labels)
    scaled = jax.tree.map(lambda w: 5 * w, variables)
    a, b = module.apply(variables, h, labels), module.apply(scaled, h, labels)
    np.testing.assert_allclose(a.logits, b.logits, rtol=1e-5)
    np.testing.assert_array_equal(a.logits, a.direction)
    # |w| = 1: the most that the logit can be over features of length 1 is 1.
    w = jax.jacobian(lambda h: module.apply(variables, h, labels).logits)(h)[
        jnp.arange(6), jnp.arange(6)
    ]
    np.testing.assert_allclose(jnp.linalg.norm(w, axis=-1), 1, rtol=1e-5)
    for field, of_weights, of_features in ((0, False, True), (1, True, False)):
        gw, gh = jax.grad(
            lambda v, h, f=field: jnp.sin(module.apply(v, h, labels)[f]).sum(), (0, 1)
        )(variables, h)
        assert bool(jnp.abs(jax.tree.leaves(gw)[0]).max() > 0) == of_weights
        assert bool(jnp.abs(gh).max() > 0) == of_features


def test_maxout():
    x = jnp.array([[1.0, 5, 2, 7, 3, 0]])
    np.testing.assert_array_equal(maxout(x, 3), [[5, 7]])
    np.testing.assert_array_equal(maxout(x, 2), [[5, 7, 3]])


def test_truncated_latents():
    law, bound = latent.normal(16), 0.7
    z = np.asarray(law.truncated(bound)(jax.random.split(jax.random.key(0), 4000)))
    assert np.abs(z).max() <= bound
    density, mass = math.exp(-(bound**2) / 2) / math.sqrt(2 * math.pi), math.erf(bound / 2**0.5)
    variance = 1 - 2 * bound * density / mass
    # The variance's standard error is below that of uniform variables on the interval.
    np.testing.assert_allclose(z.var(), variance, atol=5 * bound**2 * (4 / 45 / z.size) ** 0.5)
    assert abs(variance - 1) > 0.5  # a bound that is not applied would show
    u = np.asarray(latent.uniform(16).draw(jax.random.split(jax.random.key(0), 4000)))
    assert np.abs(u).max() <= 1
    np.testing.assert_allclose(u.var(), 1 / 3, atol=5 * (4 / 45 / u.size) ** 0.5)


@pytest.mark.parametrize("name", ["brightness", "cutout", "flip", "translation"])
def test_augmentations(name):
    x = jax.random.uniform(jax.random.key(0), (64, 8, 6, 2), minval=0.1)
    keys = jax.random.split(jax.random.key(1), 64)
    augment = augmentation.differentiable((name,), fill=-5.0)
    y = augment(x, keys)
    assert y.shape == x.shape
    # Each image depends on its own key alone, and images differ in what happens to them.
    np.testing.assert_array_equal(augment(x[::-1], keys[::-1])[::-1], y)
    same = np.asarray(augment(jnp.broadcast_to(x[:1], x.shape), keys))
    assert len(np.unique(same.reshape(64, -1), axis=0)) > 1
    # Linear in the image, up to a constant: the gradient moves each pixel's weight to one place.
    weight = jax.random.uniform(jax.random.key(2), x.shape)
    gradient = jax.grad(lambda x: (weight * augment(x, keys)).sum())(x)
    kept = np.asarray(y) != -5.0
    np.testing.assert_allclose(gradient.sum(), (np.asarray(weight) * kept).sum(), rtol=1e-4)
    if name == "translation":
        assert (np.asarray(y) == -5).any() and np.isin(
            np.asarray(y), [-5.0, *np.asarray(x).ravel()]
        ).all()
    elif name == "cutout":
        holes = (np.asarray(y)[..., 0] == -5).sum((1, 2))
        assert holes.max() == 4 * 3 and holes.min() >= 1
    elif name == "flip":
        flipped = (np.asarray(y) == np.asarray(x)[:, :, ::-1]).all((1, 2, 3))
        assert (
            0 < flipped.sum() < 64
            and (flipped | (np.asarray(y) == np.asarray(x)).all((1, 2, 3))).all()
        )
    else:
        change = np.asarray(y - x).reshape(64, -1)
        assert np.ptp(change, axis=1).max() < 1e-5 and np.abs(change).max() <= 0.25 + 1e-5


@pytest.mark.parametrize(
    "build",
    [
        lambda: regularisers.r1(0.0),
        lambda: regularisers.clip(-1.0),
        lambda: augmentation.differentiable(("rotations",)),
        lambda: augmentation.differentiable(()),
        lambda: augmentation.differentiable(hole=1.5),
        lambda: latent.normal(0),
        lambda: augmentation.adaptive(images=0),
        lambda: augmentation.differentiable(("rotation",))(jnp.zeros((1, 4, 6, 1)), KEYS[:1]),
        lambda: regularisers.r1(every=0),
        lambda: regularisers.top_k(share=0.0),
        lambda: regularisers.lecam(decay=1.0),
        lambda: loss.non_saturating(0.6),
        lambda: head.auxiliary(num_classes=1),
        lambda: head.data_to_data(num_classes=2, margin=0.3),
    ],
)
def test_values_out_of_range_are_refused(build):
    with pytest.raises(UsageError, match="method."):
        build()


def test_r1_is_of_real_images_alone():
    """A quadratic discriminator has the slope 2 x: weight / 2 E |2 x|^2 over the real ones."""
    rng = np.random.default_rng(0)
    real, fake = (jnp.asarray(rng.normal(size=(6, 3)), jnp.float32) for _ in range(2))
    judge = lambda x, labels: jnp.square(x).sum(-1)
    case = Case(judge, real, fake, jnp.zeros(6, jnp.int32), None, None)
    wanted = 3.0 / 2 * (4 * np.square(real).sum(1)).mean()
    np.testing.assert_allclose(regularisers.r1(3.0).penalty(case), wanted, rtol=1e-5)


def test_path_length_of_a_linear_generator():
    """g(w) = A w: E (|A^T y| - a)^2; a, followed, comes to E |A^T y|, 4.409009 for diag(3, 4)."""
    a, keys = jnp.diag(jnp.array([3.0, 4.0])), jax.random.split(jax.random.key(0), 20_000)
    paint = lambda styles: (styles[:, 0] @ a)[:, None, None]
    rule = regularisers.path_length(weight=2.0, every=3, decay=0.5)
    state = {"mean": jnp.float32(4.0), "count": jnp.int32(3)}
    z = jnp.ones((len(keys), 1, 2))
    nothing = jnp.zeros(())
    case = regularisers.Case(nothing, nothing, nothing, nothing, keys, None, z=z, state=state,
                             styled=lambda z: (z, paint))  # fmt: skip
    value, metrics = rule.generator(case)
    lengths = jnp.linalg.norm(normal(keys, (1, 1, 2))[:, 0, 0] * jnp.array([3.0, 4.0]), axis=1)
    goal = 0.5 * 4 + 0.5 * lengths.mean()
    np.testing.assert_allclose(value, 3 * 2 * jnp.square(lengths - goal).mean(), rtol=1e-5)
    # The mean of 20,000 lengths of deviation 2.4 is within 4 of its deviations.
    np.testing.assert_allclose(metrics["path"], 4.409009, atol=4 * 2.4 / 20_000**0.5)
    new = rule.follow(state, metrics, None)
    np.testing.assert_allclose(new["mean"], goal, rtol=1e-6)
    value, metrics = rule.generator(case._replace(state=new))  # the next step is none
    assert value == 0 and rule.follow(new, metrics, None)["mean"] == new["mean"]
    with pytest.raises(UsageError, match="without styles"):
        rule.generator(case._replace(styled=None))


@pytest.mark.parametrize("options", [dict(weight=0.0), dict(every=0), dict(decay=1.0)])
def test_bad_path_lengths_are_named(options):
    with pytest.raises(UsageError, match="path_length"):
        regularisers.path_length(**options)
