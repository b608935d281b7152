"""The adversarial method: resume, devices, several steps, sampling, and what it refuses."""

import copy
import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

from jaxgen.errors import UsageError
from jaxgen.families.adversarial import head, latent, loss, regularisers
from jaxgen.families.adversarial.method import STANDING, adversarial
from jaxgen.families.adversarial.players import Discriminator, Players
from jaxgen.method import Spec
from jaxgen.method.learning import placed
from jaxgen.method.streams import LEARNERS
from jaxgen.nn import dcgan, stylegan2
from jaxgen.nn.gan import ConvGenerator, MLPDiscriminator, MLPGenerator
from jaxgen.run.setup import set_up
from jaxgen.testing import check_sampler
from jaxgen.training.ema import Averages
from jaxgen.training.sharding import batch_sharding, make_mesh, replicated, state_sharding
from tests.nn_kit import quick_jit

GENERATOR = MLPGenerator((8, 8, 1), 3, width=8, depth=1, label_width=4, batch_norm=True)
SPEC = Spec((8, 8, 1), 3, 17)
BATCH = {
    "image": jax.random.uniform(jax.random.key(5), (16, 8, 8, 1), minval=-1),
    "label": jnp.arange(16) % 3,
}
FULL = dict(
    head=dict(name="projection", spectral=True),
    loss="hinge",
    augmentation=dict(name="differentiable", policy=("translation", "flip")),
    regularisers=(dict(name="orthogonal"), dict(name="r1", weight=0.1), "consistency"),
    latent=dict(name="normal", size=8),
)


@functools.cache
def full(**changes):
    """Batch norm in the generator, spectral norm in the discriminator, all kinds of penalties."""
    return make(**{**FULL, **changes})


def make(*, generator=None, discriminator=None, optimizer=None, **options):
    model = {
        "generator": generator or GENERATOR,
        "discriminator": discriminator or MLPDiscriminator(16, 1, spectral=True),
    }
    tx = optimizer or optax.adam(1e-2, b1=0.5)
    return adversarial(SPEC, model, tx, Averages(half_life=(100,)), **options)


def run(method, steps, state=None, batch=BATCH):
    update = quick_jit(method.update)
    state = quick_jit(method.init)(jax.random.key(0)) if state is None else state
    for _ in range(steps):
        state, metrics = update(state, batch, jax.random.fold_in(jax.random.key(1), state.step))
    return state, metrics


@pytest.fixture(scope="module")
def whole():
    return run(full(), 4)


def assert_same_bits(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_two_steps_saved_and_two_more_are_four(whole):
    half, _ = run(full(), 2)
    leaves, tree = jax.tree.flatten(half)
    saved = [np.asarray(leaf).tobytes() for leaf in leaves]
    loaded = [
        np.frombuffer(b, leaf.dtype).reshape(leaf.shape)
        for b, leaf in zip(saved, leaves, strict=True)
    ]
    again, _ = run(full(), 2, jax.tree.unflatten(tree, loaded))
    assert_same_bits(again, whole[0])


def test_everything_moves_and_the_average_is_of_the_generator(whole):
    state, metrics = whole
    start = quick_jit(full().init)(jax.random.key(0))
    for name in ("generator", "discriminator", "statistics"):
        moved = jax.tree.map(lambda a, b: (a != b).any(), state.params[name], start.params[name])
        assert any(jax.tree.leaves(moved)), name
    assert jax.tree.leaves(state.extra) and set(state.ema["half_life_100"]) == {
        "generator",
        "statistics",
    }
    assert {
        "loss",
        "d_loss",
        "g_loss",
        "d_real",
        "d_fake",
        "r1",
        "orthogonal",
        "consistency",
    } <= set(metrics)
    np.testing.assert_allclose(metrics["loss"], metrics["d_loss"] + metrics["g_loss"], rtol=1e-5)


def test_a_step_on_eight_devices_is_the_step_on_one():
    # Batch norm's moments are of the whole batch: of a device's two images they would be others.
    method = full()
    found = []
    one = Mesh(np.asarray(jax.devices()[:1]).reshape(1, 1, 1), ("data", "fsdp", "tensor"))
    for mesh in (one, make_mesh(4, 2, 1)):
        shardings = state_sharding(mesh, jax.eval_shape(method.init, jax.random.key(0)))
        state = jax.device_put(quick_jit(method.init)(jax.random.key(0)), shardings)
        batch = jax.device_put(BATCH, batch_sharding(mesh))
        step = quick_jit(method.update, out_shardings=(shardings, replicated(mesh)))
        state, metrics = step(state, batch, jax.device_put(jax.random.key(1), replicated(mesh)))
        found.append(jax.device_get((state.params["statistics"], metrics)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=2e-4), *found)


def test_running_moments_are_averages_of_the_batches():
    method = make(latent=dict(name="normal", size=8), statistics_decay=0.75)
    start = quick_jit(method.init)(jax.random.key(0))
    state, _ = run(method, 1, start)
    keys = jax.vmap(
        lambda i: jax.random.fold_in(
            jax.random.fold_in(jax.random.fold_in(jax.random.key(1), 0), LEARNERS + 1), i
        )
    )(jnp.arange(16))
    z = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, 0), (8,)))(keys)
    _, new = GENERATOR.apply(
        {"params": start.params["generator"], **start.params["statistics"]},
        z,
        BATCH["label"],
        train=True,
        mutable=["batch_stats"],
    )
    found = state.params["statistics"]["batch_stats"]["norm0"]
    moments = new["batch_stats"]["norm0"]
    np.testing.assert_allclose(found["mean"], 0.25 * moments["mean"], atol=1e-5)
    np.testing.assert_allclose(found["var"], 0.75 + 0.25 * moments["var"], atol=1e-5)


def small(**options):
    nets = dict(generator=MLPGenerator((8, 8, 1), 3, 8, 1), discriminator=MLPDiscriminator(8, 1))
    return make(**nets, latent=dict(name="normal", size=4), **options)


def test_microbatches_are_the_batch():
    carried = dict(regularisers=("lecam",))
    a, b = (run(small(accumulate=n, **carried), 1)[0] for n in (1, 4))
    for of in (lambda s: s.params, lambda s: s.extra):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), of(a), of(b))
    assert all(float(abs(value)) > 0 for value in a.extra["rules"]["lecam"].values())


def test_several_discriminator_steps_see_their_shares_and_schedules_count_updates():
    def rate(count):
        return 0.1 / (1 + count)

    method = small(
        discriminator_steps=4,
        optimizer=optax.chain(optax.scale_by_adam(), optax.scale_by_schedule(rate)),
    )
    state, _ = run(method, 3)
    counts = {
        jax.tree_util.keystr(path): int(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state)
        if "count" in jax.tree_util.keystr(path)
    }
    assert sorted(counts.values()) == [3, 3, 3, 12], counts  # Adam's own count goes by steps
    # One step after the other, each on its share: the same as four updates of the discriminator
    # alone on the shares would be if the noise were the same; here, that every share is seen.
    for share in range(4):
        bad = {**BATCH, "image": BATCH["image"].at[share].set(jnp.nan)}
        _, metrics = run(small(discriminator_steps=4), 1, batch=bad)
        assert not np.isfinite(metrics["d_loss"]), share


def test_a_fake_image_passes_for_a_real_one_with_probability_p():
    bad = {**BATCH, "image": jnp.full_like(BATCH["image"], jnp.nan)}
    method = small(augmentation=dict(name="pseudo", first=0.0))
    state = quick_jit(method.init)(jax.random.key(0))
    loss = quick_jit(method.training.learners["discriminator"].loss)
    for p in (0.0, 1.0):
        extra = {"augmentation": {**state.extra["augmentation"], "p": jnp.float32(p)}}
        value, _ = loss(state.params, placed(bad, state.step), jax.random.key(1), extra)
        assert bool(jnp.isnan(value)) == (p == 0)


def test_p_follows_the_images_and_frozen_layers_keep_their_bits():
    augmentation = dict(name="adaptive", policy=("flip",), target=-0.99, images=64, first=0.25)
    method = small(augmentation=augmentation, freeze=r"^backbone\.hidden0")
    start = quick_jit(method.init)(jax.random.key(0))
    state, metrics = run(method, 3, start)
    # All are above the target: p grows by 16 / 64 an update, as images had been seen by then.
    assert metrics["p"] == 0.5 and float(state.extra["augmentation"]["p"]) == 0.75
    new, old = (s.params["discriminator"] for s in (state, start))
    assert_same_bits(new["backbone"], old["backbone"])
    assert (new["head"]["out"]["kernel"] != old["head"]["out"]["kernel"]).any()


def test_a_discriminator_that_looks_at_the_batch_sees_real_and_fake_apart():
    """A batch in which all are alike has no deviation, whatever the fake images are."""
    method = small(regularisers=("minibatch_deviation",), head="unconditional")
    state = quick_jit(method.init)(jax.random.key(0))
    weights = jax.tree.map(jnp.zeros_like, state.params["discriminator"]["head"])
    weights["out"]["kernel"] = weights["out"]["kernel"].at[-1].set(1.0)
    params = {**state.params, "discriminator": {**state.params["discriminator"], "head": weights}}
    alike = {**BATCH, "image": jnp.broadcast_to(BATCH["image"][:1], BATCH["image"].shape)}
    loss = method.training.learners["discriminator"].loss
    _, (metrics, _) = quick_jit(loss)(params, placed(alike, state.step), jax.random.key(1), ())
    assert float(metrics["real_logit"]) < 2e-4 < 1e-3 < float(metrics["fake_logit"])


def test_clipping_holds_from_the_start():
    method = small(loss="wasserstein", regularisers=(dict(name="clip", bound=0.01),))
    state, _ = run(method, 2)
    for params in (quick_jit(method.init)(jax.random.key(0)).params, state.params):
        assert (
            max(float(jnp.abs(w).max()) for w in jax.tree.leaves(params["discriminator"])) <= 0.01
        )


def test_sampler(whole):
    method, params = full(), whole[0].ema["half_life_100"]
    labels = jnp.array([0, 1, 2, 3, 0, 1])
    sampler = method.sampler()
    assert sampler.calls == 1
    check_sampler(quick_jit(sampler.fn), params, labels, atol=1e-5)
    keys = jax.random.split(jax.random.key(0), 64)
    # No label is one of the labels, by chance.
    sample = quick_jit(sampler.fn)
    given = np.stack([sample(params, keys, jnp.full(64, c)) for c in range(3)])
    none = np.asarray(sample(params, keys, jnp.full(64, 3)))
    chosen = np.isclose(given, none, atol=1e-5).all((2, 3, 4))
    assert (chosen.sum(0) == 1).all() and (chosen.sum(1) > 5).all()


def test_truncation_and_standing_statistics(whole):
    method, params = full(), whole[0].params
    keys, labels = jax.random.split(jax.random.key(0), 4), jnp.array([0, 1, 2, 0])
    check_sampler(
        quick_jit(method.sampler(truncation=0.5, standing=32).fn), params, labels, atol=1e-5
    )
    # A bound of almost 0 leaves one image a label.
    still = quick_jit(method.sampler(truncation=1e-4).fn)(params, keys, labels)
    np.testing.assert_allclose(still[0], still[3], atol=1e-3)
    assert np.abs(still[0] - still[1]).max() > 1e-2
    # Standing statistics are the moments of such latents: in training mode on them, the same image.
    standing = quick_jit(method.sampler(standing=16).fn)(params, keys, labels)
    many = jax.random.split(jax.random.key(STANDING), 16)
    fold = jax.vmap(jax.random.fold_in, (0, None))
    z = jax.vmap(lambda k: jax.random.normal(k, (8,)))(fold(many, 0))
    y = jax.vmap(lambda k: jax.random.randint(k, (), 0, 3))(fold(many, 1))
    variables = {"params": params["generator"], **params["statistics"]}
    images, new = GENERATOR.apply(variables, z, y, train=True, mutable=["batch_stats"])
    mine = method.sampler().fn({**params, "statistics": new}, many, y)
    np.testing.assert_allclose(mine, images, atol=1e-4)
    again = method.sampler().fn({**params, "statistics": new}, keys, labels)
    np.testing.assert_allclose(standing, again, atol=1e-4)


CONFIG = dict(
    data=dict(source="digits.digits", batch_size=16),
    model=dict(
        generator=dict(name="gan.MLPGenerator", width=8, depth=1),
        discriminator=dict(name="gan.MLPDiscriminator", width=8, depth=1),
    ),
    method=dict(name="adversarial.adversarial", latent=dict(name="normal", size=4)),
    optimizer=dict(name="adam"),
    train=dict(images=100),
)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(loss="wasserstein"), ["method.loss", "clip", "spectral"]),
        (dict(loss="non_saturated"), ["method.loss", "non_saturating"]),
        (dict(head="projections"), ["method.head", "projection"]),
        (dict(head=dict(name="projection", width=3)), ["method.head.width"]),
        (dict(regularisers=("consistency",)), ["method.augmentation"]),
        (dict(regularisers=("r1", dict(name="r1", weight=2.0))), ["r1 once"]),
        (dict(regularisers=("r3",)), ["method.regularisers", "r1"]),
        (dict(regularisers=("consistency",), augmentation="pseudo"), ["changes images"]),
        (dict(regularisers=("r1", "minibatch_deviation")), ["looks at the batch"]),
        (dict(loss="multi_hinge"), ["head multi_hinge"]),
        (dict(freeze="no_such_layer"), ["method.freeze", "backbone.hidden0.kernel"]),
        (dict(discriminator_steps=0), ["discriminator_steps"]),
        (dict(latent=dict(name="normal", size=0)), ["latent.size"]),
        (dict(statistics_decay=1.0), ["statistics_decay"]),
        (dict(sample=dict(truncation=0.0)), ["truncation"]),
        (dict(sample=dict(standing=8)), ["standing", "no batch norm"]),
        (dict(latent="uniform", sample=dict(truncation=1.0)), ["truncation", "not normal"]),
        (dict(sample=dict(guidance=2.0)), ["sample.guidance", "truncation"]),
        (dict(model=dict(name="gan.MLPGenerator")), ["config.model", "discriminator"]),
        (dict(model=dict(generator=dict(name="biggan.Generator"))), ["image size", "128"]),
        (dict(optimizer=dict(generator=dict(name="adam"))), ["config.optimizer"]),
    ],
)
def test_what_does_not_fit_is_refused_when_built(change, words):
    config = copy.deepcopy(CONFIG)
    top = {k: change[k] for k in ("sample", "model", "optimizer") if k in change}
    config["method"].update({k: v for k, v in change.items() if k not in top})
    if "generator" in top.get("model", ()):
        top["model"] = {**config["model"], **top["model"]}
    config.update(top)
    with pytest.raises(UsageError) as error:
        set_up(ml_collections.ConfigDict(config))
    for word in words:
        assert word in str(error.value), str(error.value)


def test_tokens_and_batches_that_steps_do_not_divide_are_refused():
    with pytest.raises(UsageError, match="config.data.source"):
        adversarial(Spec((4, 4), 2, 8, tokens=True), {}, optax.adam(1e-3), Averages((10,)))
    with pytest.raises(UsageError, match="multiple of 3"):
        run(small(discriminator_steps=3), 1)


def test_an_optimizer_for_each_network():
    config = copy.deepcopy(CONFIG)
    config["optimizer"] = dict(
        generator=dict(name="adam", learning_rate=1e-30), discriminator=dict(name="adam")
    )
    method = set_up(ml_collections.ConfigDict(config)).method
    batch = {"image": BATCH["image"], "label": BATCH["label"]}
    state, _ = run(method, 1, batch=batch)
    start = quick_jit(method.init)(jax.random.key(0))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-25),
        state.params["generator"],
        start.params["generator"],
    )
    moved = jax.tree.map(
        lambda a, b: (a != b).any(), state.params["discriminator"], start.params["discriminator"]
    )
    assert any(jax.tree.leaves(moved))
    assert method.label_error is None and method.log_prob is None


def test_a_deviation_among_neighbours_is_of_real_or_of_fake_images_and_has_slopes():
    """A batch that is no multiple of the group: judged apart, as by halves, and R1 is taken."""
    judge = Discriminator(stylegan2.Discriminator(base=16, most=4), head.unconditional())
    assert judge.sloped and not judge.single
    assert not Discriminator(dcgan.Discriminator(8), head.unconditional()).sloped
    assert Discriminator(stylegan2.Discriminator(base=16, most=4, group=0), judge.head).single
    spec = Spec((8, 8, 1), 3)
    generator = ConvGenerator((8, 8, 1), 3, width=4, batch_norm=False)
    players = Players(
        spec=spec, generator=generator, judge=judge, loss=loss.hinge(), latent=latent.normal(4),
        regularisers=(regularisers.r1(),), augment=None, statistics_decay=0.9,
    )  # fmt: skip
    params, _ = jax.jit(players.fresh)(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (2, 6, 8, 8, 1))
    labels = jnp.zeros(6, jnp.int32)
    both = players._judgements(params["discriminator"], {}, list(x), labels)[0].logits
    own = [judge.apply({"params": params["discriminator"]}, a, labels).logits for a in x]
    np.testing.assert_allclose(both, jnp.concatenate(own), atol=1e-6)
