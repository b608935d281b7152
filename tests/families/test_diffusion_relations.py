"""DomainStudio's terms: Haar bands, relations against a frozen source, details of the data."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen.api import train
from jaxgen.errors import UsageError
from jaxgen.families.diffusion import denoising
from jaxgen.families.diffusion.terms.relations import (
    detail,
    details,
    divergence,
    haar,
    relations,
    similarities,
)
from jaxgen.method import Spec
from jaxgen.method.learning import placed
from jaxgen.nn.mlp import MLP
from jaxgen.run.model import load
from jaxgen.training.ema import Averages
from tests.base_run import base, config
from tests.nn_kit import live_params, quick_jit
from tests.toy_diffusion import Teacher

SPEC = Spec((4, 4, 1), 2, levels=None)
KEY = jax.random.key(1)
IMAGES = jax.random.normal(KEY, (6, 4, 4, 1))
BATCH = placed({"image": IMAGES, "label": jnp.arange(6) % 2}, jnp.zeros((), jnp.int32))


def build(terms=(), networks=None, **options):
    net = MLP(2, 1, width=16, depth=1)
    return denoising(
        SPEC, net, optax.adam(1e-3), Averages((100,)), terms=terms, networks=networks, **options
    )


def terms_of(params, terms=("relations.relations",), source=None, **batch):
    """(metrics of the loss, the loss) with a source of these parameters."""
    plain = build()
    teacher = Teacher(plain, params if source is None else source)
    method = build(terms, {"teacher": teacher})
    held = {**params, "frozen": method.frozen}
    value, (metrics, _) = quick_jit(method.loss)(held, {**BATCH, **batch}, KEY, {"times": ()})
    return metrics, value


def test_haar_is_orthonormal_and_known_on_a_checkerboard():
    x, y = IMAGES, jax.random.normal(jax.random.key(2), IMAGES.shape)
    flat = lambda bands: jnp.stack(bands).ravel()
    np.testing.assert_allclose(flat(haar(x)) @ flat(haar(y)), x.ravel() @ y.ravel(), rtol=1e-5)
    back = jax.linear_transpose(haar, x)(haar(x))[0]
    np.testing.assert_allclose(back, x, atol=1e-6)
    rows = jnp.tile(jnp.array([1.0, -1.0])[None, :, None, None], (1, 2, 4, 1))
    for image, band in ((jnp.ones((1, 4, 4, 1)), 0), (rows, 2), (rows.swapaxes(1, 2), 1),
                        (rows * rows.swapaxes(1, 2), 3)):  # fmt: skip
        energies = [float((b**2).sum()) for b in haar(image)]
        np.testing.assert_allclose(energies, 16.0 * np.eye(4)[band], atol=1e-6)
    np.testing.assert_allclose(details(x), sum(haar(x)[1:]), rtol=1e-6)


def test_similarities_are_cosines_with_the_others_and_a_collapse_costs_the_kl_to_uniform():
    x = np.asarray(IMAGES.reshape(6, -1))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    rest = [[unit[i] @ unit[j] for j in range(6) if j != i] for i in range(6)]
    np.testing.assert_allclose(similarities(IMAGES), rest, atol=1e-6)
    same = jnp.broadcast_to(IMAGES[:1], IMAGES.shape)
    q = np.exp(rest) / np.exp(rest).sum(1, keepdims=True)
    expected = (np.log(1 / 5) - np.log(q)).mean(1)
    np.testing.assert_allclose(divergence(same, IMAGES), expected, atol=1e-6)
    np.testing.assert_allclose(divergence(IMAGES, 3.0 * IMAGES), 0.0, atol=1e-6)


def test_the_source_itself_costs_nothing_and_another_model_what_its_bands_do():
    params = live_params(build())
    metrics, _ = terms_of(params)
    assert abs(metrics["relations"]) < 1e-6
    other = live_params(build(), scale=0.5)
    values = {}
    for image, high in ((1.0, 0.0), (0.0, 1.0), (0.5, 2.0)):
        term = dict(name="relations.relations", image=image, high=high)
        values[image, high] = float(terms_of(params, (term,), other)[0]["relations"])
    assert values[1.0, 0.0] > 1e-4 and values[0.0, 1.0] > 1e-4
    both = 0.5 * values[1.0, 0.0] + 2.0 * values[0.0, 1.0]
    np.testing.assert_allclose(values[0.5, 2.0], both, rtol=1e-4)


def test_the_source_gets_no_gradient_and_is_not_among_the_parameters():
    params = live_params(build())
    teacher = Teacher(build(), live_params(build(), scale=0.5))
    method = build(("relations.relations", "relations.detail"), {"teacher": teacher})
    assert set(method.init(KEY).params) == {"net"}
    held = {**params, "frozen": method.frozen}
    grads = quick_jit(jax.grad(lambda p: method.loss(p, BATCH, KEY, {"times": ()})[0]))(held)
    assert all((g == 0).all() for g in jax.tree.leaves(grads["frozen"]))
    assert not method.separable


def test_details_are_compared_with_the_datas():
    """Flat images' predictions of velocity 0 have the noised image's own bands."""
    plain = build()
    zeros = jax.tree.map(jnp.zeros_like, live_params(plain))
    seen = []

    def spied(noised, params, frozen):
        seen.append(((details(noised.x) - details(noised.x0)) ** 2).reshape(6, -1).mean(1))
        return detail(0.3).of(noised, params, frozen)

    method = build([dataclasses.replace(detail(0.3), of=spied)])
    _, (metrics, _) = method.loss(zeros, BATCH, KEY, {"times": ()})
    np.testing.assert_allclose(metrics["detail"], 0.3 * seen[0].mean(), rtol=1e-5)


@pytest.mark.parametrize(
    ("term", "words"),
    [
        (dict(teacher="source"), "network called 'source'"),
        (dict(image=-1.0), "image >= 0"),
        (dict(hgih=1.0), "Did you mean 'high'"),
    ],
)
def test_bad_input_is_named(term, words):
    teacher = Teacher(build(), live_params(build()))
    with pytest.raises(UsageError, match=words):
        build((dict(name="relations.relations") | term,), {"teacher": teacher})


def test_what_has_no_relations_or_bands_is_named():
    params = live_params(build())
    two = {k: v[:2] if getattr(v, "ndim", 0) else v for k, v in BATCH.items()}
    with pytest.raises(UsageError, match=">= 3 per microbatch"):
        terms_of(params, **two)
    with pytest.raises(UsageError, match="even height and width"):
        details(jnp.zeros((2, 3, 4, 1)))
    with pytest.raises(UsageError, match="even height and width"):
        details(jnp.zeros((2, 4)))
    assert relations(spec=SPEC, networks={"teacher": Teacher(None, {})}).whole_batch


def test_from_a_config_through_the_loop(tmp_path):
    """From the source itself nothing is apart before the first step; then something is."""
    terms = ["relations.relations", dict(name="relations.detail", weight=0.1)]
    told = (f"method.terms={terms!r}", f"start={base()}", f"networks={dict(teacher=base())!r}")
    train(config(*told, "train.images=32", "train.log_every=16"), tmp_path / "run")
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    found = [line["relations"] for line in lines if "relations" in line]
    assert abs(found[0]) < 1e-6 < found[-1] and lines[0]["detail"] > 0
    assert set(load(tmp_path / "run").params["params"]) == {"net"}
