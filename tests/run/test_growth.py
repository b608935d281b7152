"""New classes on a trained model: old ones' images to the bit, new ones as their parents."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import config as configs
from jaxgen.api import train
from jaxgen.errors import UsageError
from jaxgen.method import Spec
from jaxgen.run import start
from jaxgen.run.growth import Growth, growth
from jaxgen.run.model import load
from jaxgen.run.setup import TOP, set_up
from tests.base_run import config, write
from tests.every_family import FAMILIES
from tests.nn_kit import first_state, live_params, quick_jit
from tests.run.test_record import write_folder

OLD = tuple("0123456789")
NEW = ("fish", *OLD[5:], "seven", *OLD[:5])
"""Two more and all in another order: "seven" begins as "7", "fish" as nothing."""
PARENTS = {"seven": "7"}
SPEC = Spec((8, 8, 1), 10, levels=17, classes=OLD)
UNET = dict(name="unet.UNet", channels=8, multipliers=(1, 1), blocks=1, attention_sizes=(8,))
EDM2 = dict(name="edm2.EDM2", channels=8, multipliers=(1, 2), blocks=1, head_channels=8)
NETWORKS = {
    "unet": ["model=" + repr(UNET)],
    "adm": ["model=" + repr(UNET | dict(labels_first=False))],
    "mlp": ["model=" + repr(dict(name="mlp.MLP", width=16, depth=1))],
    "edm2": ["model=" + repr(EDM2)],
}


def built(name, spec):
    config, narrow = FAMILIES.get(name, FAMILIES["diffusion"])
    loaded = configs.load(config)
    configs.override(loaded, [*narrow, *NETWORKS.get(name, []), "data.batch_size=16"], TOP)
    return set_up(loaded, spec=spec)


def grown(monkeypatch, name, parents=PARENTS, classes=NEW, ema=None):
    """(the old setup, its parameters, the new setup, its first state, what was said)."""
    old = built(name, SPEC)
    new = built(name, dataclasses.replace(SPEC, num_classes=len(classes), classes=classes))
    params = live_params(old.method, 0.05 if name in ("tarflow", "glow") else 0.3)
    monkeypatch.setattr(start, "source_of", lambda *_: (params, "there", OLD))
    options = start.StartOptions(workdir="there", parents=parents)
    begin, _ = start.initial(new.method, options, classes, new.modules)
    return old, params, new, begin(first_state(new.method))


@pytest.mark.parametrize(
    "name",
    ["diffusion", "mlp", "unet", "adm", "uvit", "jem", "llamagen", "pixelcnn", "maskgit", "gan",
     "tarflow", "glow"],
)  # fmt: skip
def test_old_classes_make_the_same_to_the_bit_and_a_new_one_what_its_parent_does(
    monkeypatch, capsys, name
):
    """With U-Nets whose one-hot labels are scaled by the number of classes, to rounding."""
    old, params, new, state = grown(monkeypatch, name)
    options = {} if name in ("gan", "jem", "glow") else {"guidance": 1.0}
    keys = jax.random.split(jax.random.key(1), 4)
    before = quick_jit(old.method.sampler(**options).fn)
    after = quick_jit(new.method.sampler(**options).fn)
    named = ["0", "7", "9", "7"]
    labels = jnp.array([OLD.index(n) for n in named])
    there = np.asarray(before(params, keys, labels))
    labels = jnp.array([NEW.index(n) for n in [*named[:3], "seven"]])
    here = np.asarray(after(state.params, keys, labels))
    assert np.isfinite(there).all() and (there[0] != there[1]).any()
    if name == "unet":
        np.testing.assert_allclose(here, there, atol=1e-5)
    else:
        np.testing.assert_array_equal(here, there)
    err = capsys.readouterr().err
    assert "New classes: 'fish' (fresh), 'seven' (as '7'). With rows more: " in err


def test_averages_grow_too_and_no_label_stays_the_last(monkeypatch):
    _, params, new, state = grown(monkeypatch, "mlp")
    table = np.asarray(state.params["net"]["labels"]["embedding"])
    for average in state.ema.values():
        np.testing.assert_array_equal(average["net"]["labels"]["embedding"], table)
    theirs = params["net"]["labels"]["embedding"]
    assert table.shape[0] == len(NEW) + 1
    np.testing.assert_array_equal(table[-1], theirs[-1])
    fresh = first_state(new.method).params["net"]["labels"]["embedding"]
    np.testing.assert_array_equal(table[0], fresh[0])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cvae", r"of the same shapes.*net\.\S*kernel: \(\d+, \d+\) there, \(\d+, \d+\) here"),
        ("edm2", "new classes of EDM2.*do not depend on each other"),
    ],
)
def test_a_network_whose_classes_hang_together_is_refused_by_name(monkeypatch, name, words):
    with pytest.raises(UsageError, match=words):
        grown(monkeypatch, name)


@pytest.mark.parametrize(
    ("parents", "classes", "words"),
    [
        ({"sevn": "7"}, NEW, r"config\.start\.parents: got 'sevn'.*Did you mean 'seven'"),
        ({"7": "1"}, NEW, r"config\.start\.parents: got '7'; allowed: fish, seven"),
        ({"seven": "77"}, NEW, r"config\.start\.parents\['seven'\]: got '77'"),
        (PARENTS, OLD, r"config\.start\.parents: .*none"),
        ({}, OLD[::-1], "another order"),
        ({}, (*OLD[1:], "ten"), "Only here: 0. Only there: ten"),
    ],
)
def test_bad_input_is_one_message(monkeypatch, parents, classes, words):
    with pytest.raises(UsageError, match=words):
        grown(monkeypatch, "mlp", parents, classes)


def test_where_classes_lie_is_the_one_axis_that_grows_by_them():
    it = Growth((1, -1, 0, 1), 2)
    assert it.axis((2, 5), (4, 5)) == 0 and it.axis((7, 3, 2), (7, 5, 2)) == 1
    assert it.axis((5,), (7,)) is None and it.axis((2, 3), (4, 5)) is None
    assert it.axis((2,), (2, 4)) is None and it.axis((2, 2), (2, 2)) is None
    theirs, fresh = np.arange(6.0).reshape(2, 3), -np.ones((2, 5))
    found = it.grown(theirs, fresh)
    np.testing.assert_array_equal(found, [[1, -1, 0, 1, 2], [4, -1, 3, 4, 5]])
    assert growth(("a", "b"), ("b", "a"), None) is None
    assert growth((), ("b", "a"), None) is None
    assert growth(("a", "b"), ("b", "c", "a"), {"c": "a"}).rows == (1, 0, 0)


def test_a_run_of_more_classes_begins_at_a_run(tmp_path, capsys):
    """Through the loop: two classes, and a third as one of them."""

    def source(name, classes):
        path = str(write_folder(tmp_path / name, classes, each=8))
        folder = dict(name="folder.folder", path=path, image_size=8, channels=1)
        return f"data.source={folder!r}"

    still = "optimizer=" + repr(dict(name="sgd", learning_rate=1e-30))
    first = write(tmp_path / "first", source("two", ("ant", "dog")))
    begin = dict(workdir=str(first), parents={"bee": "ant"})
    three = source("three", ("ant", "bee", "dog"))
    told = (three, still, "train.images=32", f"start={begin!r}")
    train(config(*told), tmp_path / "second")
    assert "'bee' (as 'ant')" in capsys.readouterr().err
    old, new = load(first), load(tmp_path / "second")
    drawn = old.sample([0, 1, 0], seed=1, guidance=2.0).images
    found = new.sample([0, 2, 1], seed=1, guidance=2.0).images
    np.testing.assert_array_equal(found, drawn)
    # Resumed, it does not look at the other run again.
    shutil.rmtree(first)
    train(config(*told, "train.images=48"), tmp_path / "second")
    with pytest.raises(UsageError, match="first"):
        train(config(*told), tmp_path / "third")
