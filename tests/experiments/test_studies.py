"""Studies of a trained model: what was drawn is kept, and not drawn again."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.studies import classifiers, few_steps, gallery, guidance
from experiments.studies.guidance import STUDIED, study
from experiments.studies.trained import write, written
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


@pytest.mark.parametrize("module", [few_steps, guidance, classifiers], ids=lambda m: m.__name__)
def test_studies_run_in_miniature(module, workdir, tmp_path, capsys):
    out = tmp_path / "figure.png"
    module.main(["--workdir", str(workdir), "--tiny", "--out", str(out)])
    assert out.stat().st_size > 1000 and out.with_suffix(".json").stat().st_size > 50
    assert "| " in capsys.readouterr().out


def test_the_gallery_has_a_panel_for_each_solver_and_for_each_guidance_that_needs_no_network(
    tmp_path, capsys
):
    gallery.main(["--tiny", "--out", str(tmp_path)])
    assert "gallery_solvers.png: 1 panels" in capsys.readouterr().out
    (points,) = gallery.guidance_panels(["no guidance"]).values()
    np.testing.assert_allclose(points.mean(0), gallery.MEANS[0], atol=0.1)
    x, t = np.array([[-1.5, 0.3], [0.4, -1.1]], np.float32), np.float32(0.0)
    assert list(gallery.logits(x, t).argmax(-1)) == [0, 2]
