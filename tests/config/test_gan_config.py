"""`configs/gan.py`: every combination is built or refused for a reason, and those built step."""

import functools
import importlib.util
import itertools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import config as configs
from jaxgen.errors import UsageError
from jaxgen.families.adversarial.players import Discriminator, _check_parts
from jaxgen.run.setup import set_up
from tests.nn_kit import quick_jit

_FOUND = importlib.util.spec_from_file_location("gan_config", "configs/gan.py")
gan = importlib.util.module_from_spec(_FOUND)
_FOUND.loader.exec_module(gan)

SIZE = 8
SLOPES = {"gp", "maxgp", "dragan", "r1", "lazy_r1", "r2", "r1r2", "logan"}
BOUNDS = {"gp", "maxgp", "clip"}


def means_nothing(backbone, head, loss, rule, augmentation):
    """Whether a combination is to be refused, in words of its own."""
    return (
        (backbone == "dcgan" and rule in SLOPES)
        or (rule in ("cr", "bcr") and augmentation in ("none", "apa"))
        or (loss == "mh" and head != "mh")
        or (loss == "wgan" and not backbone.startswith("sn_") and rule not in BOUNDS)
        or (rule == "smooth" and loss in ("hinge", "wgan", "mh"))
    )


@functools.cache
def parts(backbone="mlp", rule="none", loss="ns", head="none", augmentation="none"):
    """The method's pieces by these names."""
    room, made = "jaxgen.families.adversarial", {}
    for key, value in dict(
        loss=gan.LOSSES[loss],
        head=gan.HEADS[head],
        regularisers=gan.REGULARISERS[rule],
        augmentation=gan.AUGMENTATIONS[augmentation],
    ).items():
        if value:
            made[key] = configs.part(value, f"{room}.{key}", key, num_classes=10)
    (family, width), options = gan.BACKBONES[backbone]
    section = dict(name=f"{family}Discriminator", width=width, **options)
    return made | {"backbone": configs.build(section, configs.ROOMS["model"], "model")}


def test_all_combinations_are_built_or_refused():
    refused = 0
    for names in itertools.product(*gan.AXES):
        backbone, head, loss, rule, augmentation = names
        if rule == "smooth" and loss not in gan.SMOOTHED:
            found = True  # by the config itself: below
        else:
            rules = [parts(rule=rule)["regularisers"]] if gan.REGULARISERS[rule] else []
            layers = tuple(r.layer for r in rules if r.layer is not None)
            judge = Discriminator(parts(backbone)["backbone"], parts(head=head)["head"], layers)
            augment = parts(augmentation=augmentation).get("augmentation")
            try:
                found = _check_parts(parts(loss=loss)["loss"], rules, augment, judge) is not None
            except UsageError:
                found = True
        assert found == means_nothing(*names), names
        refused += found
    assert 0 < refused < np.prod([len(axis) for axis in gan.AXES]) / 2


@pytest.mark.parametrize(
    ("combination", "words"),
    [
        ("mlp-pd-ns", "BACKBONE-HEAD-LOSS-REG-AUG"),
        ("mlp-pd-ns-r3-none", "r3"),
        ("mlp-pd-hinge-r1+smooth-none", "target"),
        ("dcgan-pd-ns-r1-none", "looks at the batch"),
        ("mlp-pd-ns-r1+mbstd-none", "looks at the batch"),
        ("mlp-pd-ns-bcr-apa", "augmentation"),
        ("mlp-pd-wgan-r1-none", "slope"),
        ("mlp-pd-mh-none-none", "head multi_hinge"),
    ],
)
def test_the_reason_is_said(combination, words):
    with pytest.raises(UsageError, match=words):
        set_up(configs.load(f"configs/gan.py:{combination}"), data=False)


@functools.cache
def spec():
    return set_up(gan.get_config()).spec


def method(combination):
    return set_up(gan.get_config(combination), spec=spec()).method


def steps(combination):
    """A step in abstract changes no shape and no type of the state."""
    made, key = method(combination), jax.random.key(0)
    state = jax.eval_shape(made.init, key)
    batch = {
        "image": jax.ShapeDtypeStruct((SIZE, 8, 8, 1), jnp.float32),
        "label": jax.ShapeDtypeStruct((SIZE,), jnp.int32),
    }
    after, metrics = jax.eval_shape(made.update, state, batch, key)
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), after, state)
    assert all(jax.tree.leaves(same)), combination
    assert all(m.shape == () for m in metrics.values()), combination


MANY = (
    "mlp-ac-ns-gp+bcr+lecam+topk+hist-ada",
    "sn_mlp-adc-hinge-r1r2+logan+zcr-apa",
    "dcgan-2c-ls-fm+mbdisc+ortho-cutout",
    "conv-mh-mh-mbstd+cr-diffaug",
    "sn_dcgan-tac-wgan-dragan+lazy_r1+clip-none",
    "sn_conv-d2dce-minimax-maxgp+smooth+r2-none",
)


@pytest.mark.parametrize("combination", MANY)
def test_many_pieces_at_once_step_in_abstract(combination):
    steps(combination)


def pairs(names):
    return set(itertools.combinations(enumerate(names), 2))


@functools.cache
def covering():
    """Combinations with every pair of names of two axes that has a meaning together."""
    rng, every = (
        random.Random(0),
        [n for n in itertools.product(*gan.AXES) if not means_nothing(*n)],
    )
    rng.shuffle(every)
    left, chosen = set().union(*map(pairs, every)), []
    while left:
        best = max(rng.sample(every, 300), key=lambda names: len(pairs(names) & left))
        if not pairs(best) & left:
            best = next(names for names in every if pairs(names) & left)
        left -= pairs(best)
        chosen.append(best)
    return chosen


@pytest.mark.parametrize("backbone", gan.BACKBONES)
def test_every_pair_of_pieces_steps_in_abstract(backbone):
    for names in covering():
        if names[0] == backbone:
            steps("-".join(names))


REAL = (
    "mlp-tac-ns-lazy_r1+lecam-ada",
    "sn_mlp-adc-hinge-logan+topk-apa",
    "dcgan-2c-ls-fm+mbdisc-cutout",
    "sn_conv-mh-mh-bcr+zcr-diffaug",
    "conv-d2dce-wgan-gp+hist-none",
)


@pytest.mark.parametrize("combination", REAL)
def test_pairs_of_axes_step_for_real(combination):
    made = method(combination)
    state = quick_jit(made.init)(jax.random.key(0))
    batch = {
        "image": jax.random.uniform(jax.random.key(1), (SIZE, 8, 8, 1), minval=-1),
        "label": jnp.arange(SIZE) % 10,
    }
    update, start = quick_jit(made.update), state.params
    for n in range(2):
        state, metrics = update(state, batch, jax.random.key(n))
    assert all(np.isfinite(value) for value in metrics.values()), metrics
    for name in ("generator", "discriminator"):
        moved = jax.tree.map(lambda a, b: (a != b).any(), state.params[name], start[name])
        assert any(jax.tree.leaves(moved)), name
