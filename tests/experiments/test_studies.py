"""Studies of a trained model: what was drawn is kept, and not drawn again."""

import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments.studies import (
    classifiers,
    controls,
    distillation,
    few_steps,
    further,
    gallery,
    generators,
    guidance,
    sequences,
    strips,
    students,
    subjects,
    tuning,
    unlearning,
)
from experiments.studies.guidance import STUDIED, study
from experiments.studies.trained import write, written
from jaxgen import api
from tests import base_run


class Drawn:
    """Stands for a trained model; remembers what was asked of it."""

    def __init__(self):
        self.classes = 3
        self.guide = SimpleNamespace(params={})
        self.model = SimpleNamespace(weights=lambda ema: {})
        self.asked = []

    def draw(self, count, *, params, **options):
        self.asked.append(options["guidance"])
        return np.zeros((count, 2, 2, 1)), math.nan

    def scores(self, images):
        return {"frechet": float(len(self.asked))}


def test_what_is_known_is_not_drawn_and_comes_in_its_place(tmp_path):
    whole = list(study(Drawn(), 2, weak={"net": {}}))
    assert [(r["guidance"], r["scale"]) for r in whole] == [
        (name, scale) for name, (_, scales) in STUDIED.items() for scale in scales
    ]
    write(whole[3:7], tmp_path / "a.png")
    known = written(tmp_path / "a.png")
    assert math.isnan(known[0]["calls"])
    it = Drawn()
    again = list(study(it, 2, weak={"net": {}}, known=known))
    assert len(it.asked) == len(whole) - 4 and again[3:7] == known
    assert [r["scale"] for r in again] == [r["scale"] for r in whole]

    it = Drawn()
    some = list(study(it, 2, names=["apg"], known=known))
    assert len(it.asked) == 4 and len(some) == 8
    assert not written(tmp_path / "b.png")


def test_without_a_worse_model_autoguidance_is_left_out():
    assert "autoguidance" not in {row["guidance"] for row in study(Drawn(), 2)}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A small diffusion model of the digits, with random parameters."""
    folder = tmp_path_factory.mktemp("studies") / "run"
    return base_run.write(
        folder,
        "data.source=" + repr(dict(name="digits.digits")),
        "model=" + repr(dict(name="dit.DiT", patch=4, width=16, depth=2, heads=2)),
    )


def of_digits(folder, **sections):
    """A workdir of a small model of the digits, with random parameters; sections of its config."""
    told = {"data.source": dict(name="digits.digits"), "sample": {}} | sections
    return str(base_run.write(folder, *(f"{key}={value!r}" for key, value in told.items())))


@pytest.fixture(scope="module")
def gans(tmp_path_factory):
    """Two small GANs, of labels and of none."""
    folder = tmp_path_factory.mktemp("gans")
    made = []
    for name, head in (("gan", "projection"), ("plain", "unconditional")):
        generator = dict(name="gan.MLPGenerator", width=16, depth=2, conditional=name == "gan")
        networks = dict(generator=generator, discriminator="gan.MLPDiscriminator")
        latent = dict(name="normal", size=8)
        method = dict(name="adversarial.adversarial", head=head, latent=latent)
        made.append(of_digits(folder / name, model=networks, method=method))
    return made


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A small autoregressive model."""
    return of_digits(
        tmp_path_factory.mktemp("llama") / "run",
        model=dict(name="llama.Llama", width=16, depth=1, heads=2, multiple=16),
        method=dict(name="autoregressive.autoregressive"),
    )


@pytest.mark.parametrize(
    "module",
    [few_steps, guidance, classifiers, unlearning, distillation],
    ids=lambda m: m.__name__,
)
def test_studies_run_in_miniature(module, workdir, tmp_path, capsys):
    out = tmp_path / "figure.png"
    module.main(["--workdir", str(workdir), "--tiny", "--out", str(out)])
    assert out.stat().st_size > 1000 and out.with_suffix(".json").stat().st_size > 50
    assert "| " in capsys.readouterr().out


@pytest.mark.parametrize(
    "module, part",
    [(module, part) for module in (tuning, students) for part in module.PARTS],
    ids=lambda m: m if isinstance(m, str) else m.__name__.rpartition(".")[2],
)
def test_parts_run_in_miniature(module, part, workdir, tmp_path, capsys):
    out = tmp_path / "part.json"
    module.main(["--workdir", str(workdir), "--tiny", "--part", part, "--out", str(out)])
    assert len({row["way"] for row in written(out)}) >= 2
    assert "| way |" in capsys.readouterr().out


@pytest.mark.parametrize("part", generators.PARTS)
def test_parts_of_generators_run_in_miniature(part, gans, tmp_path, capsys):
    out, (workdir, plain) = tmp_path / "figure.png", gans
    command = ["--workdir", workdir, "--plain", plain, "--tiny", "--part", part, "--out", str(out)]
    generators.main(command)
    assert len(written(out)) >= 3 and out.stat().st_size > 1000
    assert "| way |" in capsys.readouterr().out


@pytest.mark.parametrize("part", sequences.PARTS)
def test_parts_of_sequences_run_in_miniature(part, llama, tmp_path, capsys):
    out = tmp_path / "sequences.json"
    sequences.main(["--workdir", llama, "--tiny", "--part", part, "--out", str(out)])
    assert len(written(out)) >= 4
    assert "| way |" in capsys.readouterr().out


def test_new_domains_are_undone_and_their_distance_is_of_laws():
    x = np.random.default_rng(0).normal(size=(400, 3, 3, 1))
    for turn, back in generators.TURNS.values():
        np.testing.assert_array_equal(back(turn(x)), x)
        assert not np.array_equal(turn(x), x)
    one, other = (generators.by_class(a, 2) for a in (x[:200], x[200:]))
    np.testing.assert_array_equal(one[1, 3], x[7].ravel())
    # Of two sets of one law it is 0 up to chance, which 200 images of 9 numbers leave below 0.1.
    assert abs(generators.apart(one, other)) < 0.1 < 1 < generators.apart(one, other + 2)
    # The distance of two standard normal numbers is 2 / sqrt(pi) in the mean.
    lines = np.random.default_rng(1).normal(size=(500, 1))
    np.testing.assert_allclose(generators.variety(lines), 2 / np.pi**0.5, rtol=0.1)


@pytest.mark.parametrize("part", subjects.PARTS)
def test_parts_of_subjects_run_in_miniature(part, workdir, tmp_path, capsys):
    out = tmp_path / "subjects.png"
    write([dict(part="another", way="a", seed=0), dict(part=part, way="old", seed=0)], out)
    subjects.main(["--workdir", str(workdir), "--tiny", "--part", part, "--out", str(out)])
    rows = written(out)
    assert [row["part"] for row in rows] == ["another"] + [part] * (len(rows) - 1)
    ways = [row["way"] for row in rows[1:]]
    assert len(set(ways)) >= 2 and "old" not in ways
    # What is said to be untouched is, whatever was learnt.
    assert all(row.get("untold", 1.0) == 1.0 for row in rows)
    assert "| way |" in capsys.readouterr().out and out.stat().st_size > 1000


def test_strips_are_the_images_as_text():
    images = np.random.default_rng(0).integers(0, 17, (7, 8, 8, 1)) / 8 - 1
    whole = strips.tiled(strips.strip(images)["strip"])
    assert whole.shape == (17, 44)
    np.testing.assert_allclose(whole[9:17, 9:17], (images[6, ..., 0] + 1) / 2)
    assert np.isnan(whole[8]).all() and np.isnan(whole[9:, 18:]).all()


def test_looks_in_closed_form():
    image = np.full((1, 8, 8, 1), -1.0, np.float32)
    image[0, :, 3] = 1.0
    np.testing.assert_allclose(subjects.contrast(subjects.faded(image, 0.4)), 0.4, rtol=1e-6)
    np.testing.assert_allclose(subjects.restored(subjects.faded(image, 0.4)), image, atol=1e-6)
    slanted = np.full((1, 8, 8, 1), -1.0, np.float32)
    slanted[0, range(8), range(8)] = 1.0
    both = np.concatenate([image, slanted, slanted[:, :, ::-1]])
    seen = controls.look(mean=(0.0, 0.0), std=(1.0, 1.0))(both)
    np.testing.assert_allclose(seen[:, 0], 1 / 8, atol=2e-3)
    np.testing.assert_allclose(seen[:, 1], [0, 1, -1], atol=0.05)
    fours = np.arange(64.0).reshape(1, 8, 8, 1)
    assert controls.coarse(fours)[0, :2, :2, 0].tolist() == [[4.5, 4.5], [4.5, 4.5]]
    labels = np.array([0, 0, 0, 1, 1])
    points = np.array([[0.0], [1.0], [2.0], [5.0], [7.0]])
    np.testing.assert_allclose(subjects.variety(points, labels), (4 / 3 + 2) / 2)


def test_rows_of_an_earlier_run_stay(workdir, tmp_path):
    out = tmp_path / "figure.png"
    old = dict(way="another", calls=2, seed=0, images=1, frechet=1.0, apart=1.0, precision=1.0)
    write([old | dict(recall=1.0, accuracy=1.0)], out)
    command = ["--workdir", str(workdir), "--tiny", "--only", "consistency", "--out", str(out)]
    distillation.main(command)
    assert {row["way"] for row in written(out)} == {"another", "teacher", "consistency"}


def test_the_gallery_has_a_panel_for_each_solver_and_for_each_guidance_that_needs_no_network(
    tmp_path, capsys
):
    gallery.main(["--tiny", "--out", str(tmp_path)])
    assert "gallery_solvers.png: 1 panels" in capsys.readouterr().out
    (points,) = gallery.guidance_panels(["no guidance"]).values()
    np.testing.assert_allclose(points.mean(0), gallery.MEANS[0], atol=0.1)
    x, t = np.array([[-1.5, 0.3], [0.4, -1.1]], np.float32), np.float32(0.0)
    assert list(gallery.logits(x, t).argmax(-1)) == [0, 2]


def test_every_way_of_forgetting_fits_the_model(workdir):
    it = SimpleNamespace(model=api.load(workdir))
    for name, wrap in unlearning.methods(3, 8).items():
        setup = unlearning.setup(it, str(workdir), wrap, 256)
        method, params = setup.method, it.model.weights(None)
        state = further.begun(setup, 0)
        for group in params:
            jax.tree.map(np.testing.assert_array_equal, state.params[group], params[group])
        assert (name == "(as trained)") == (wrap is None)
        assert (method.label_error is None) == (name == "student")


def test_means_of_seeds_and_what_never_came_back():
    row = dict(method="a", instead=0.5, interval=[1.0, 3.0], member=0.5, seconds=1.0)
    rows = [
        row | dict(method="(as trained)", forgotten=1.0, frechet=2.0, back=0.0),
        row | dict(forgotten=0.1, frechet=3.0, back=512.0),
        row | dict(forgotten=0.3, frechet=5.0, back=math.nan),
    ]
    first, second = unlearning.shown(rows)
    assert first["over the trained model's"] == 1 and second["over the trained model's"] == 2
    assert second["still called by it"] == "20.0 %" and second["back after"] == "512 (1 not)"
    assert second["frechet, the rest"] == "4.000 (1.000 to 3.000)"
    np.testing.assert_allclose(second["spread of seeds"], 2**0.5)
