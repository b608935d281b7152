"""Backbones in the place of a DiT: a config that names one trains and is drawn from."""

import pytest

from jaxgen.cli import main

BACKBONES = {
    "diffmoe": dict(name="diffmoe.DiffMoE", depth=1, experts=4),
    "can": dict(name="can.CAN", depth=1, rank=2),
    "diffit": dict(name="diffit.DiffiT", depth=1),
    "gsdm": dict(name="gsdm.GSDM", depth=1, edges=((0, 1), (1, 2))),
    "iwin": dict(name="iwin.Iwin", depth=1, window=2),
    "dit_moe": dict(name="dit_moe.DiTMoE", depth=1, experts=4),
    "lit": dict(name="lit.LiT", depth=1, kernel=3),
    "tread": dict(name="tread.TREAD", depth=3, routes=((1, 2, 0.5),)),
}
TERMS = {"diffmoe": ["capacity"], "dit_moe": ["balance"]}
OWN = {
    "ascan": dict(name="ascan.AsCAN", width=8, head_channels=4, stages=("C", "T", "C")),
    "dimr": dict(name="dimr.DiMR", depths=(1, 1), widths=(8, 8), heads=2),
    "dico": dict(name="dico.DiCo", width=8, depths=(1, 1, 1), mlp_ratio=2.0),
    "dis": dict(name="dis.DiS", patch=4, width=16, depth=3, states=2),
}
SMALL = dict(patch=4, width=16, heads=2)
FEW = (
    "data.batch_size=16",
    "train.images=32",
    "train.log_every=16",
    "ema.power_std=()",
)


@pytest.mark.parametrize("name", [*BACKBONES, *OWN])
def test_it_trains_through_the_loop_and_is_drawn_from(name, tmp_path, capsys):
    model = OWN.get(name) or SMALL | BACKBONES[name]
    terms = TERMS.get(name, [])
    told = [f"--config.{a}" for a in (*FEW, f"model={model!r}", f"method.terms={terms!r}")]
    run = str(tmp_path / "run")
    assert main(["train", "--config", "tests/tiny.py", "--workdir", run, *told]) == 0
    out = str(tmp_path / "x.png")
    assert main(["sample", "--workdir", run, "--labels", "0,1", "--out", out]) == 0
    assert "nan" not in capsys.readouterr().out
