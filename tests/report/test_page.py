"""The report page: whole, self-contained, and with what each score and family brings."""

from __future__ import annotations

import base64
import functools
import html
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import jax
import matplotlib
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import confusion_matrix

from jaxgen import files
from jaxgen.families.gflownet import flows
from jaxgen.metrics.receipt import Sampling, receipt
from jaxgen.metrics.scores import calibration
from jaxgen.metrics.scores.confusion import MOST, confusion
from jaxgen.metrics.scores.table import SCORES, Floor, Pair, Side, compute
from jaxgen.report import exhibits, page, report
from jaxgen.report.page import ARROWS
from jaxgen.report.pictures import cut, grid, save_png, told
from jaxgen.run.model import Model
from tests.every_family import built
from tests.nn_kit import live_params

VOID = {"meta", "img", "input", "br", "wbr"}
NASTY = ("<b>&\"'", "cat", "</main><script>x</script>")


class Parsed(HTMLParser):
    """A page taken apart. Raises AssertionError where tags do not nest."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(source)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        if self.open[-1] not in ("style", "script"):
            self.text += f" {data}"

    def all(self, tag, kind=None):
        found = [attrs for name, attrs in self.tags if name == tag]
        return [a for a in found if kind is None or kind in (a.get("class") or "").split()]


def parsed(path: Path) -> Parsed:
    """A report, checked as every one is: whole, nothing from elsewhere, every picture readable."""
    source = path.read_text()
    found = Parsed(source)
    assert source.startswith("<!doctype html>") and "width=device-width" in source
    for _, attrs in found.tags:
        assert not {"href", "srcset", "action", "onclick", "onload"} & set(attrs)
        assert attrs.get("src", "data:").startswith("data:")
    assert "@import" not in source and "url(" not in source and "http" not in source
    for attrs in found.all("img"):
        assert attrs["alt"]
        image = Image.open(io.BytesIO(base64.b64decode(attrs["src"].partition(",")[2])))
        assert min(image.size) > 0
    return found


def content(classes=NASTY, **results) -> dict:
    """What `report.json` holds of a run that took no time."""
    return {
        "config": {"method": {"name": "diffusion.denoising"}, "data": {"source": "<i>"}},
        "classes": list(classes),
        "images_seen": 640,
        "parameters": 12345,
        "ema": "half_life_<1>",
        "gflop_per_training_image": 0.1,
        "timings": {"total": 1.5, "images_per_second": 10.0},
        "results": results,
        "missing": {},
        "device": "1 x cpu",
        "versions": {"jaxgen": "0"},
        "written": "now",
    }


def written(workdir: Path, held: dict, receipts: dict | None = None) -> Parsed:
    """The page of a workdir with this report and these receipts."""
    workdir.mkdir(exist_ok=True)
    (workdir / report.FILE).write_text(files.json_text(held))
    (workdir / "receipts").mkdir(exist_ok=True)
    for name, each in (receipts or {}).items():
        (workdir / "receipts" / f"{name}.json").write_text(files.json_text(each))
    report.rewrite(workdir)
    return parsed(workdir / "report.html")


@functools.cache
def scored() -> dict:
    """A receipt with every score that there is."""
    rng = np.random.default_rng(0)

    def side() -> Side:
        p = rng.dirichlet(np.ones(3), 120)
        x = rng.normal(size=(120, 2))
        return Side(x, rng.integers(0, 3, 120), spatial=x + 1, probabilities=p)

    pair = Pair(side(), side(), side())
    floor = lambda score: Floor(Pair(pair.real, pair.train, pair.train), "train half")
    found = compute(pair, ["all"], floor=floor, intervals=2)
    assert set(found) == set(SCORES)
    pairs = [[0, 2, 3], [2, 1, 1], [0, 0, 17]]
    accuracy = {"value": 0.9, "floor": None, "better": "higher", "also": {"confusion": pairs}}
    extra = {"guidance": None, "samples": {"count": 60}, "cautions": ["beware <of>"]}
    return receipt({**found, "accuracy_classifier": accuracy}, Sampling(), data={}, extra=extra)


def test_every_score_brings_its_sentence_arrow_interval_and_floor(tmp_path):
    found = written(tmp_path / "run", content(), {"evaluate": scored()})
    blocks = (tmp_path / "run" / "report.html").read_text().split('<article class="score">')[1:]
    by_name = {re.search("<h3>(.*?)</h3>", block)[1]: block for block in blocks}
    assert set(by_name) == {*SCORES, "accuracy_classifier"}
    for name, score in SCORES.items():
        # One sentence of its own, in the page as it is at the score.
        assert score.says.endswith(".") and len(score.says) < 200 and html.escape(score.says)
        block, said = by_name[name], next(s for s in scored()["scores"] if s["name"] == name)
        assert html.escape(score.says) in block and ARROWS[score.better] in block
        assert html.escape(page.number(said["value"])) in block
        low, high = said["interval"]
        assert f"{low:.3g} to {high:.3g}" in block and 'class="span"' in block
        assert "real images (train half)" in block and page.number(said["floor"]) in block
        assert block.count('class="least"') == 2
    assert len({score.says for score in SCORES.values()}) == len(SCORES)
    assert "beware <of>" in found.text


def test_other_families_scores_bring_theirs_too(tmp_path):
    for meanings in (flows.MEANINGS, calibration.MEANINGS):
        assert all(says.endswith(".") for _, says in meanings.values())
        assert {better for better, _ in meanings.values()} <= {"lower", "higher", None}
    summary = calibration.summary(np.eye(3), np.array([0, 1, 1]))
    assert set(calibration.MEANINGS) < set(summary)
    tempered = {**summary, "ece": 0.125}
    likelihood = {"bits_per_dim": 2.0, "bits_per_dim_standard_error": 0.1, "seed": 0}
    results = {"classify": {**summary, "tempered": tempered}, "likelihood": likelihood}
    found = written(tmp_path / "run", content(**results))
    for _, says in calibration.MEANINGS.values():
        assert says in found.text
    assert "1.8 to 2.2" in found.text and "0.125" in found.text and "if calibrated" in found.text


def test_names_are_text(tmp_path):
    workdir = tmp_path / "<i>run & co"
    picture = grid(np.zeros((6, 4, 4, 1)), 2)
    rows = {"rows": list(NASTY), "columns": ["0", "<2>"], "first": "<2>", "each": 1}
    for name in ("guidance", "trajectory", "real"):
        save_png(workdir / "samples" / f"{name}.png", picture, told(rows))
    save_png(workdir / "samples" / "final_a.png", picture, told({"what": "<x>", **rows}))
    found = written(workdir, content(), {"evaluate": {**scored(), "guidance": 2.0}})
    for name in NASTY:
        # In the samples, the real images, the guidance, the trajectory; and in the confusion.
        assert found.text.count(name) >= 5
    assert "<i>run & co" in found.text and "half_life_<1>" in found.text
    assert not found.all("b", "") or all(tag != "i" for tag in found.open)
    assert len(found.all("script")) == 1 and "x</script>" not in found.text.replace(NASTY[2], "")
    for attrs in found.all("input"):
        assert json.loads(attrs["data-names"]) in (list(NASTY), ["0", "<2>"])


def test_a_run_without_anything_is_a_page(tmp_path):
    found = written(tmp_path / "run", content(classes=("0",)))
    assert not found.all("img") and not found.all("script") and "one class" in found.text


def test_pictures_of_before_are_shown_and_white_ones_have_edges(tmp_path):
    white = grid(np.ones((4, 4, 4, 1)), 2)
    assert (white == 255).any() and (white[:, 0] == white[0, 0]).all() and white[0, 0, 0] < 200
    np.testing.assert_array_equal(cut(white, 4, 4), np.full((0, 4, 4, 3), 255))
    save_png(tmp_path / "run" / "samples" / "final_samples.png", white)
    found = written(tmp_path / "run", content())
    assert len(found.all("img")) == 1 and "samples: samples" in found.text


def test_a_large_picture_is_made_light():
    noise = np.random.default_rng(0).integers(0, 255, (700, 700, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, format="PNG")
    assert len(buffer.getvalue()) > page.LIGHT
    address = page.inline(buffer.getvalue())
    assert address.startswith("data:image/webp") and len(address) < 0.7 * len(buffer.getvalue())
    shown = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))
    assert shown.size == (700, 700)


def test_confusion_is_scikit_learns_and_keeps_the_mistakes(tmp_path):
    rng = np.random.default_rng(0)
    asked = rng.integers(0, 5, 500)
    found = np.where(rng.random(500) < 0.7, asked, rng.integers(0, 5, 500))
    pairs = confusion(asked, found)
    counts = np.zeros((5, 5), int)
    for y, z, n in pairs:
        counts[y, z] = n
    np.testing.assert_array_equal(counts, confusion_matrix(asked, found))
    wrong = [n for y, z, n in pairs if y != z]
    assert wrong == sorted(wrong, reverse=True) and pairs[len(wrong)][0] == pairs[len(wrong)][1]
    # Of many classes, the mistakes.
    many = np.arange(1000)
    pairs = confusion(many, np.where(many < 100, many + 1, many))
    assert len(pairs) == MOST and [y != z for y, z, _ in pairs] == [True] * 100 + [False] * 300
    shown = page.confusion(pairs, [f"<{i}>" for i in range(1000)])
    assert shown.count("<tr>") == page.MOST + 1 and "&lt;1&gt;" in shown


@functools.cache
def model(name: str) -> Model:
    """A family's tiny model with random parameters."""
    setup = built(name, "train.preview_per_label=2", "evaluate.batch_size=40")
    # A flow with wild parameters gives no numbers; tame ones of MaskGIT do not heed the label.
    params = live_params(setup.method, {"tarflow": 0.05, "maskgit": 1.0}.get(name, 0.2))
    return Model(setup, {"params": params}, images=64, step=2)


# Whether there is guidance, a way from noise, and real images beside samples.
WHAT = {
    "diffusion": ("guidance", "trajectory", "real"),
    "maskgit": ("guidance", "trajectory", "real"),
    "llamagen": ("guidance", "real"),
    "tarflow": ("guidance", "real"),
    "gan": ("real",),
    "cvae": ("real",),
    "jem": ("real",),
    "vqgan": (),
    "gflownet": (),
}


@pytest.mark.parametrize("name", WHAT)
def test_every_family_has_a_page_that_says_what_it_cannot_show(name, tmp_path, monkeypatch):
    monkeypatch.setattr(exhibits, "LABELS", 3)
    monkeypatch.setattr(exhibits, "WEIGHTS", (0.0, 2.0))
    (tmp_path / "samples").mkdir()
    stale = grid(np.zeros((1, 4, 4, 1)), 1)
    save_png(tmp_path / "samples" / "trajectory.png", stale, told({"rows": [], "columns": []}))
    made, missing = exhibits.exhibits(model(name))
    assert set(made) == set(WHAT[name]) and set(missing) == set(exhibits.NAMES) - set(made)
    exhibits.save(tmp_path, made)
    report.write(tmp_path, model(name), {}, {"total": 1.0}, missing, 1.0)
    found = parsed(tmp_path / "report.html")
    assert len(found.all("img")) == len(made) - ("real" in made)
    assert all(why.endswith(".") and why in found.text for why in missing.values())
    sliders = found.all("input")
    assert len(sliders) == (2 if "guidance" in made else 0)
    assert len(found.all("script")) == len(sliders) // 2
    if "guidance" not in made:
        return
    weights, labels = (json.loads(s["data-names"]) for s in sliders)
    assert labels == ["0", "4", "9"] and {"0", "2"} <= set(weights)
    # Every cell that the sliders can ask for is there: rows of classes, columns of weights.
    height, width, _ = made["guidance"].picture.shape
    each = made["guidance"].about["each"]
    assert width % (len(weights) * each) == 0 and height % len(labels) == 0
    assert [int(s["max"]) for s in sliders] == [len(weights) - 1, len(labels) - 1]


GUIDED = [name for name, what in WHAT.items() if "guidance" in what]


@pytest.mark.parametrize("name", [*GUIDED, "lora"])
def test_weights_in_an_array_are_weights_in_turn(name):
    labels, count = np.array([1, 5, 7, 2] * 4), 16
    weights = np.repeat([2.0, 3.0], count // 2)
    found = model(name).by_weight(labels, weights, np.arange(count))
    apart = model(name).sample(labels, guidance=2.0).images
    mine = weights == 2.0
    # Discrete draws may fall on another side by rounding, seldom.
    assert np.isclose(found[mine], apart[mine], atol=2e-4).mean() > 0.99
    assert not np.isclose(found[~mine], apart[~mine], atol=2e-4).all()
    # The same noise is the same image, wherever it stands.
    again = model(name).by_weight(labels[::-1], weights[::-1], np.arange(count)[::-1])
    assert np.isclose(again[::-1], found, atol=2e-4).mean() > 0.99


@pytest.mark.parametrize("name", ["diffusion", "maskgit"])
def test_a_trajectory_ends_at_the_sample(name):
    labels = np.array([3, 1, 4])
    found = model(name).trajectory(labels, frames=3)
    assert found.steps[0] == 0 and len(found.steps) == found.states.shape[1] == 3
    made = model(name).sample(labels).images
    np.testing.assert_allclose(found.expected[:, -1], made, atol=1e-4)
    np.testing.assert_allclose(found.states[:, -1], made, atol=1e-4)
    assert np.abs(found.states[:, 0] - made).max() > 0.1
    assert np.abs(found.states[:, 1] - found.states[:, 0]).max() > 0.01
    if name == "diffusion":
        # At first, noise: the path's own, of the keys that samples have.
        root = jax.random.key(0)
        keys = jax.vmap(lambda i: jax.random.fold_in(root, i))(np.arange(3))
        sampler, _ = model(name).program(model(name).sample(labels).options)
        start = sampler.chain(model(name).weights(None), np.int32(0)).start(keys)[0]
        np.testing.assert_allclose(found.states[:, 0], start, atol=1e-6)


def test_a_figure_leaves_the_readers_backend():
    """A notebook's plots show nothing once something has switched it."""
    before = matplotlib.get_backend()
    try:
        matplotlib.use("svg")
        assert page.png(page.plot(1, 1))[:4] == b"\x89PNG"
        assert matplotlib.get_backend() == "svg"
    finally:
        matplotlib.use(before)
