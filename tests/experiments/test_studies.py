"""Studies of a trained model: what was drawn is kept, and not drawn again."""

import math
from types import SimpleNamespace

import numpy as np

from experiments.studies.guidance import STUDIED, study
from experiments.studies.trained import write, written


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
