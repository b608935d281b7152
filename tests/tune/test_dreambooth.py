"""DreamBooth: what the prior is of, its own weight and noise, new classes by name."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.shared.tabular import SPEC, Trained, table
from jaxgen.api import train
from jaxgen.data.among import among
from jaxgen.errors import UsageError
from jaxgen.method.learning import placed
from jaxgen.run.model import load
from jaxgen.tune.dreambooth import dreambooth
from tests.base_run import config, write
from tests.run.test_record import write_folder

KEY = jax.random.key(3)
NAMED = dataclasses.replace(SPEC, classes=("dog", "cat", "mine"))
BATCH = {"image": jnp.arange(600)[:, None] % 10, "label": jnp.full(600, 2)}
BATCH = placed(BATCH, jnp.zeros((), jnp.int32))


def copy_of(classes):
    """The table as it was for these classes, in this order."""
    base = table(1e-2)
    spec = dataclasses.replace(SPEC, classes=classes, num_classes=len(classes))
    return Trained(dataclasses.replace(base, spec=spec))


def made(classes=("cat", "dog"), parents=None, **options):
    method = dreambooth(
        table(1e-2),
        spec=NAMED,
        networks={"teacher": copy_of(classes)},
        parents={"mine": "dog"} if parents is None else parents,
        **options,
    )
    return method, method.init(jax.random.key(0)).params | {"frozen": method.frozen}


def test_the_prior_is_the_loss_on_the_copys_samples_of_the_parent_and_nothing_else_changes():
    """ "dog" is label 0 here and 1 there; the copy's samples for it have its law there."""
    method, params = made(weight=0.5)
    value, (metrics, _) = jax.jit(method.loss)(params, BATCH, KEY, ())
    own = table(1e-2).loss(params, BATCH, KEY, ())[0]
    np.testing.assert_allclose(value, own + 0.5 * metrics["prior"], rtol=1e-6)
    p = jax.nn.softmax(params["frozen"]["teacher"]["net"]["logits"][1])
    expected = -(p * jax.nn.log_softmax(params["net"]["logits"][0])).sum()
    # Five standard errors of 600 samples.
    np.testing.assert_allclose(metrics["prior"], expected, atol=5 * 0.7 / 600**0.5)
    again = jax.jit(method.loss)(params, BATCH, jax.random.key(4), ())[1][0]["prior"]
    assert again != metrics["prior"]
    grads = jax.grad(lambda p: method.loss(p, BATCH, KEY, ())[0])(params)
    assert (grads["net"]["logits"][1] == 0).all() and (grads["net"]["logits"][0] != 0).any()
    assert (grads["frozen"]["teacher"]["net"]["logits"] == 0).all()


def test_columns_of_the_data_say_nothing_of_the_copys_samples():
    base, seen = table(1e-2), []

    def spied(params, batch, key, extra):
        seen.append(set(batch))
        return base.loss(params, batch, key, extra)

    learner = dataclasses.replace(base.training.learners["net"], loss=spied)
    training = dataclasses.replace(base.training, learners={"net": learner})
    method = dreambooth(
        dataclasses.replace(base, training=training),
        spec=NAMED,
        networks={"teacher": copy_of(("dog", "cat"))},
        parents={"mine": "dog"},
    )
    params = method.init(jax.random.key(0)).params | {"frozen": method.frozen}
    method.loss(params, {**BATCH, "weight": jnp.zeros(600)}, KEY, ())
    assert seen[0] - seen[1] == {"weight"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(teacher="guide"), "called 'guide'"),
        (dict(weight=-1.0), "weight >= 0"),
        (dict(parents={"mne": "dog"}), "parents: got 'mne'.*Did you mean 'mine'"),
        (dict(parents={"mine": "dg"}), "parents: got 'dg'.*Did you mean 'dog'"),
        (dict(parents={}), "classes dog, cat, mine.*frozen copy: cat, dog. Only here: mine"),
    ],
)
def test_bad_input_is_named(change, words):
    with pytest.raises(UsageError, match=words):
        method, params = made(**change)
        method.loss(params, BATCH, KEY, ())


def test_a_copy_without_a_sampler_is_named():
    other = copy_of(("dog", "cat"))
    other.method = dataclasses.replace(other.method, sampler=None)
    method = dreambooth(
        table(1e-2), spec=NAMED, networks={"teacher": other}, parents={"mine": "dog"}
    )
    with pytest.raises(UsageError, match="one can sample"):
        method.training.check()


def test_a_source_of_some_of_the_classes(tmp_path):
    write_folder(tmp_path / "data", ("dog", "ant"), each=4)
    of = dict(name="folder.folder", path=str(tmp_path / "data"), image_size=8, channels=1)
    source = among(of, ("cat", "dog", "ant"))
    assert source.class_names == ("cat", "dog", "ant") and set(source.labels.tolist()) == {1, 2}
    for index in range(len(source)):
        assert source.class_names[source.labels[index]] == source.files[index].split("/")[-2]
    with pytest.raises(UsageError, match="Only here: dog"):
        among(of, ("cat", "ant"))


def test_a_new_class_from_a_folder_of_it_alone(tmp_path):
    """Through the loop, with the teacher gone afterwards."""

    def folder(name, classes, each):
        path = str(write_folder(tmp_path / name, classes, each=each))
        return dict(name="folder.folder", path=path, image_size=8, channels=1)

    known = folder("known", ("ant", "dog"), 8)
    first = write(tmp_path / "first", f"data.source={known!r}")
    few = dict(name="among.among", of=folder("few", ("bee",), 3), classes=("ant", "bee", "dog"))
    begin = dict(workdir=str(first), parents={"bee": "ant"})
    wrap = dict(
        name="tune.dreambooth", parents={"bee": "ant"}, sample=dict(solver="euler", steps=2)
    )
    told = (f"data.source={few!r}", f"start={begin!r}", f"networks={dict(teacher=str(first))!r}")
    bad = wrap | dict(parents={"bee": "bee"})
    with pytest.raises(UsageError, match="Only here: bee"):
        train(config(*told, f"wrap={[bad]!r}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    train(config(*told, "train.images=32", f"wrap={[wrap]!r}"), tmp_path / "run")
    shutil.rmtree(first)
    model = load(tmp_path / "run")
    assert model.setup.spec.classes == ("ant", "bee", "dog")
    assert np.isfinite(model.sample([0, 1, 2]).images).all()
