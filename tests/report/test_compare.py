"""Receipts side by side: what is refused, what is marked, and that the page shows it all."""

from __future__ import annotations

import copy
import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxgen.cli import main
from jaxgen.data.digits import digits
from jaxgen.data.pixels import png
from jaxgen.errors import UsageError
from jaxgen.metrics.sets.quantise import quantise
from jaxgen.report import page, report
from jaxgen.report.compare import compare
from jaxgen.report.compare.figures import over_images, planes
from jaxgen.report.compare.likeness import best, differences
from jaxgen.report.compare.neighbours import nearest_training, pixels, search
from jaxgen.report.compare.receipts import entries
from jaxgen.report.exhibits import Exhibit
from jaxgen.report.pictures import cut, grid, save_png

DIGEST = "a" * 64


def score(name: str, value: float, better: str, **settings) -> dict:
    found = {"name": name, "value": value, "floor": 0.5, "better": better, "samples": 100}
    return (
        found | {"features": "classifier", "digest": DIGEST, "reference": 90, "seed": 0} | settings
    )


def made(fd: float = 2.0, precision: float = 0.8, recall: float = 0.6, **extra) -> dict:
    """A receipt in the form of `jaxgen.metrics.receipt`."""
    return {
        "scores": [
            score("fd_classifier", fd, "lower", ddof=1, interval=[fd - 0.1, fd + 0.1]),
            score("precision_k3", precision, "higher", k=3, strict=False),
            score("recall_k3", recall, "higher", k=3, strict=False),
            score("inception_score_classifier", 7.0, "higher", splits=1),
            score("kid_classifier", 0.01 * fd, "lower", subset_size=50, subsets=10, error=0.001),
        ],
        "sampling": {"labels": "balanced", "seed": 0, "solver": "heun", "steps": 10, "nfe": 19.0,
                     "guidance": None, "options": {"eta": 0.5}, "ema": "ema_1", "dtype": "float32"},
        "data": {"source": {"name": "digits.digits"}, "batch_size": 16},
        "versions": {"jax": "0.10.0"},
        "guidance": None,
        "images_seen": 1000,
        "time": "2026-01-01T00:00:00Z",
        **extra,
    }  # fmt: skip


def put(workdir: Path, found: dict, name: str = "evaluate") -> Path:
    """A run's folder with a receipt, a config and a grid of test images."""
    (workdir / "receipts").mkdir(parents=True, exist_ok=True)
    (workdir / "receipts" / f"{name}.json").write_text(json.dumps(found))
    config = {"data": {"source": {"name": "digits.digits"}, "batch_size": 16}}
    (workdir / "config.json").write_text(json.dumps(config))
    images = digits(split="test").images(np.arange(20))
    save_png(workdir / "samples" / "final_samples.png", grid(images, 5))
    return workdir


@pytest.fixture
def runs(tmp_path):
    other = made(1.0, 0.9, 0.5, versions={"jax": "0.11.0"}, images_seen=2000)
    other["sampling"] |= {"solver": "euler", "nfe": 40.0, "seed": 3, "ema": "ema_2"}
    return [str(put(tmp_path / "a", made())), str(put(tmp_path / "b", other))]


def change(run: str, edit) -> None:
    path = Path(run) / "receipts" / "evaluate.json"
    found = json.loads(path.read_text())
    edit(found)
    path.write_text(json.dumps(found))


def test_versions_seeds_and_samplers_may_differ_and_are_shown(runs, tmp_path):
    out = tmp_path / "pages" / "compare.html"
    found = compare(runs, out)
    assert found["differences"] == [] and found["notes"] == []
    assert found["made"]["a"]["solver"] == "heun" and found["made"]["b"]["solver"] == "euler"
    page = out.read_text()
    # Self-contained: pictures are inline and nothing is fetched.
    assert not re.search(r'(src|href)="(?!data:)', page) and "<script" not in page
    assert "@import" not in page and "url(" not in page and "width=device-width" in page
    for text in ("ema_2", "0.11.0", "euler", "1.9 to 2.1", "sampler eta"):
        assert text in page, text
    headings = re.findall("<h2>(.*?)</h2>", page)
    wanted = ["Scores", "Precision and recall", "Samples", "Nearest training images"]
    assert headings == [*wanted, "How they were made", "Receipts"]
    # One plane, two grids, two sets of neighbours.
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(pictures) == 5


def test_the_best_is_marked_by_each_score_s_direction(runs, tmp_path):
    found = compare(runs, tmp_path / "c.html")["scores"]
    assert found["fd_classifier"]["best"] == {"b": "best"}
    assert found["precision_k3"]["best"] == {"b": "best"}
    assert found["recall_k3"]["best"] == {"a": "best"}
    # Equal everywhere: nobody is best.
    assert found["inception_score_classifier"]["best"] == {}


def test_intervals_that_meet_are_tied_and_values_that_are_not_numbers_never_win(tmp_path):
    values = {"a": 1.0, "b": 1.15, "c": 1.25, "d": 0.5}
    runs = [put(tmp_path / k, made(v)) for k, v in values.items()]
    change(runs[3], lambda r: r["scores"][0].update(value="nan", interval=None))
    found = entries(runs)
    # Half widths 0.1: 1.0 meets 1.15, and not 1.25.
    assert best(found, "fd_classifier") == {"a": "best", "b": "tied"}
    # JSON has no NaN.
    values = compare(runs, tmp_path / "c.html")["scores"]["fd_classifier"]["values"]
    assert json.loads(json.dumps(values, allow_nan=False))["d"] == "nan"


SETTINGS = [
    ("digest", lambda r: r["scores"][0].update(digest="b" * 64), "fd_classifier"),
    ("features", lambda r: r["scores"][0].update(features="dinov2"), "fd_classifier"),
    ("samples", lambda r: r["scores"][1].update(samples=50), "precision_k3"),
    ("reference", lambda r: r["scores"][2].update(reference=50), "recall_k3"),
    ("k", lambda r: r["scores"][1].update(k=5), "precision_k3"),
    ("strict", lambda r: r["scores"][2].update(strict=True), "recall_k3"),
    ("ddof", lambda r: r["scores"][0].update(ddof=0), "fd_classifier"),
    ("splits", lambda r: r["scores"][3].update(splits=10), "inception_score_classifier"),
    ("subset_size", lambda r: r["scores"][4].update(subset_size=40), "kid_classifier"),
    ("never_heard_of", lambda r: r["scores"][4].update(never_heard_of=1), "kid_classifier"),
    ("sampling.dtype", lambda r: r["sampling"].update(dtype="bfloat16"), "fd_classifier"),
    ("sampling.labels", lambda r: r["sampling"].update(labels="random"), "fd_classifier"),
    ("samples.resizer", lambda r: r.update(samples={"resizer": "bicubic"}), "fd_classifier"),
    ("samples.quantiser", lambda r: r.update(samples={"quantiser": "floor"}), "fd_classifier"),
    ("data.source.name", lambda r: r["data"]["source"].update(name="idx.idx"), "fd_classifier"),
]


@pytest.mark.parametrize(("setting", "edit", "name"), SETTINGS, ids=[s[0] for s in SETTINGS])
def test_unlike_scores_are_refused_by_name_and_forced_on_request(
    runs, tmp_path, capsys, setting, edit, name
):
    change(runs[1], edit)
    for run in runs:
        # Without a config nothing but the receipts is read, which is quick.
        (Path(run) / "config.json").unlink()
    out = tmp_path / "c.html"
    assert main(["compare", *runs, "--out", str(out)]) == 2
    text = capsys.readouterr().err
    assert f"{name}" in text and f": {setting} is " in text and "--force" in text
    assert "Traceback" not in text and not out.exists()
    assert main(["compare", *runs, "--out", str(out), "--force", "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert f"{setting} is " in captured.err and f"{setting} is " in out.read_text()
    different = {n for each in found["differences"] for n in each["scores"]}
    assert name in different
    assert all(found["scores"][n]["best"] == {} for n in different)


def test_a_reference_is_compared_by_what_it_holds_and_not_by_where_it_lies(runs):
    for run, path in zip(runs, ("/x/ref.npz", "/y/ref.npz"), strict=True):
        reference = {"name": "cifar10", "sha256": "1" * 64, "images": 50000, "path": path}
        change(run, lambda r, reference=reference: r.update(reference=reference))
    # The data that a run was trained on are no matter where a reference is named.
    change(runs[1], lambda r: r["data"]["source"].update(name="idx.idx"))
    assert differences(entries(runs)) == []
    change(runs[1], lambda r: r["reference"].update(name="the same by another name"))
    assert differences(entries(runs)) == []
    for key, other in (("sha256", "2" * 64), ("images", 10000)):
        before = (Path(runs[1]) / "receipts" / "evaluate.json").read_text()
        change(runs[1], lambda r, key=key, other=other: r["reference"].update({key: other}))
        (found,) = differences(entries(runs))
        assert found.setting == f"reference.{key}" and len(found.scores) == 5
        (Path(runs[1]) / "receipts" / "evaluate.json").write_text(before)


def test_one_run_s_receipts_are_told_apart_and_drawn_over_images_seen(tmp_path):
    run = tmp_path / "run"
    for seen, fd in ((1000, 3.0), (2000, 2.0), (4000, 1.5)):
        put(run, made(fd, images_seen=seen), f"evaluate_{seen}")
    (run / "receipts" / "classify_test.json").write_text('{"split": "test", "accuracy": 0.5}')
    rows = [{"step": i, "images": 16.0 * i, "loss": 1 / i} for i in range(1, 9)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = compare([run], tmp_path / "c.html")
    assert found["receipts"] == ["run, 1,000 images", "run, 2,000 images", "run, 4,000 images"]
    page = (tmp_path / "c.html").read_text()
    captions = re.findall("<figcaption>(.*?)</figcaption>", page)
    curves = [c for c in captions if "over training images seen" in c]
    # What moves: two scores, and the loss that was logged.
    assert [c.split()[0] for c in curves] == ["fd_classifier", "kid_classifier", "loss"]


def test_a_lone_receipt_has_a_page_too(tmp_path):
    path = tmp_path / "other.library.json"
    path.write_text(json.dumps(made()))
    found = compare([path], tmp_path / "c.html")
    assert found["receipts"] == ["other.library"] and found["scores"]["fd_classifier"]["best"] == {}
    assert "Samples</h2>" not in (tmp_path / "c.html").read_text()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"scores": [', "not readable as JSON"),
        ("[1, 2]", "list, not an object"),
        ('{"scores": []}', "not a list of scores"),
        ('{"scores": [{"value": 1}]}', "no name"),
        ('{"scores": [{"name": "fd", "value": "good"}]}', "fd: value is 'good'"),
        ('{"scores": [{"name": "fd", "value": 1, "interval": [1]}]}', "not \\[low, high\\]"),
        ('{"scores": [{"name": "fd", "value": 1}], "sampling": 3}', "sampling is 3"),
        ('{"scores": [{"name": "fd", "value": 1}, {"name": "fd", "value": 2}]}', "fd: 2 scores"),
    ],
)
def test_a_corrupted_receipt_is_named(runs, tmp_path, text, words):
    (Path(runs[1]) / "receipts" / "evaluate.json").write_text(text)
    with pytest.raises(UsageError, match=f"evaluate.json: .*{words}"):
        compare(runs, tmp_path / "c.html")


def test_other_bad_input_is_one_message_and_code_2(runs, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    lone = tmp_path / "lone.json"
    lone.write_text(json.dumps(made() | {"scores": [score("other", 1.0, "lower")]}))
    cases = [
        ([runs[0], str(tmp_path / "nowhere")], ["RUN", "nowhere"]),
        ([runs[0], str(tmp_path / "empty")], ["empty", "no receipts/*.json"]),
        ([runs[0], runs[0]], ["given 2 times"]),
        ([runs[0], str(tmp_path / "bytes.json")], ["bytes.json", "not readable"]),
        ([runs[0], str(lone)], ["a score in common"]),
        ([*runs, "--out", str(tmp_path / "c.txt")], ["--out", ".html"]),
    ]
    for arguments, words in cases:
        assert main(["compare", *arguments]) == 2, arguments
        captured = capsys.readouterr()
        assert captured.err.count("jaxgen: error") == 1 and "Traceback" not in captured.err
        assert not captured.out and all(word in captured.err for word in words), captured.err


def test_what_cannot_be_shown_is_noted_and_stops_nothing(runs, tmp_path):
    (Path(runs[0]) / "samples" / "final_samples.png").write_bytes(b"no picture")
    source = {"name": "folder.folder", "path": str(tmp_path / "gone"), "image_size": 8}
    (Path(runs[1]) / "config.json").write_text(json.dumps({"data": {"source": source}}))
    found = compare(runs, tmp_path / "c.html")
    assert len(found["notes"]) == 2 and "PNG" in found["notes"][0] and "gone" in found["notes"][1]
    page = (tmp_path / "c.html").read_text()
    assert "Samples</h2>" in page and "Nearest training images</h2>" not in page


def test_the_table_on_the_terminal_marks_the_best(runs, tmp_path, capsys):
    assert main(["compare", *runs, "--out", str(tmp_path / "c.html")]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[:2] == ["1: a", "2: b"]
    (line,) = [row for row in rows if row.startswith("fd_classifier")]
    assert line.split() == ["fd_classifier", "(lower)", "2", "1*", "0.5"]


def test_a_grid_is_cut_into_the_images_that_it_shows():
    rng = np.random.default_rng(0)
    for shape, columns in (((7, 8, 8, 3), 3), ((4, 40, 48, 3), 2), ((5, 9, 5, 3), 5)):
        images = rng.uniform(-1, 1, shape)
        found = cut(grid(images, columns), *shape[1:3])
        np.testing.assert_array_equal(found, quantise(images.astype(np.float32)))
    with pytest.raises(UsageError, match="grid of images 9 x 8"):
        cut(grid(rng.uniform(-1, 1, (7, 8, 8, 3)), 3), 9, 8)


def test_neighbours_of_training_images_are_themselves(tmp_path, monkeypatch):
    train = digits(split="train")
    images = train.images(np.arange(100, 116))
    picture = grid(images, 8)
    near = nearest_training(put(tmp_path / "run", made()), picture)
    assert near.distance == 0 and near.fresh > 1 and near.searched == len(train)
    shown = cut(near.picture, *train.shape[:2])
    # Rows of samples, each above its neighbours.
    np.testing.assert_array_equal(shown[:8], shown[8:16])
    np.testing.assert_array_equal(shown[:8, ..., :1], quantise(images[:8]))
    # In parts as in one.
    test = quantise(digits(split="test").images(np.arange(30)))
    whole = search(test, train, len(train))
    monkeypatch.setattr("jaxgen.report.compare.neighbours.CHUNK", 64 * 100)
    parts = search(test, train, len(train))
    np.testing.assert_array_equal(whole[0], parts[0])
    others = quantise(train.images(np.arange(len(train)))).astype(float)
    apart = (test[:, None] - others).reshape(len(test), len(train), -1) / 127.5
    np.testing.assert_allclose(parts[1], np.sqrt((apart**2).sum(-1).min(1)), rtol=1e-9)


def test_pixels_of_a_broken_file_name_it(tmp_path):
    data = (put(tmp_path / "a", made()) / "samples" / "final_samples.png").read_bytes()
    assert pixels(data, "x.png").dtype == np.uint8
    with pytest.raises(UsageError, match="x.png"):
        pixels(data[: len(data) // 2], "x.png")
    assert Image.open(tmp_path / "a" / "samples" / "final_samples.png").size[0] > 5 * 32


def test_receipts_are_not_changed_by_being_compared(runs, tmp_path):
    files = [Path(run) / "receipts" / "evaluate.json" for run in runs]
    before = copy.deepcopy([file.read_bytes() for file in files])
    compare(runs, tmp_path / "c.html")
    assert [file.read_bytes() for file in files] == before


def of_files(name: str, fid: float, count: int) -> dict:
    """A receipt in the form of `jaxgen evaluate --samples --reference`: scores by name."""
    side = {"kind": "features", "count": count, "name": f"{name}.npy", "sha256": name * 16}
    known = {"kind": "features", "count": 60, "name": "reference.npy", "sha256": "f" * 64}
    common = {"features": "identity", "digest": None, "samples": count, "reference": 60, "seed": 0}
    spread = {"interval": [fid - 0.1, fid + 0.1], "interval_draws": 20, "interval_of": "halves"}
    return {
        "scores": {
            "fid": {"value": fid, "better": "lower", "floor": 0.2, "ddof": 1, **spread, **common},
            "cmmd": {"value": 1.0, "better": "lower", "floor": None, "sigma": 10.0, **common},
        },
        "samples": side,
        "reference": known,
        "real": None,
        "seconds": 1.5,
    }


def test_receipts_of_files_are_compared_too(tmp_path):
    receipts = []
    for name, fid, count in (("near", 0.5, 50), ("long", 3.0, 50), ("few_", 0.4, 40)):
        receipts.append(tmp_path / f"{name}.json")
        receipts[-1].write_text(json.dumps(of_files(name, fid, count)))
    found = compare(receipts[:2], tmp_path / "c.html")
    assert found["differences"] == [] and found["scores"]["fid"]["best"] == {"near": "best"}
    page = (tmp_path / "c.html").read_text()
    assert "near.npy" in page and "nearnearnear..." in page
    with pytest.raises(UsageError, match=r"fid, cmmd: samples is 50 \(near, long\); 40 \(few_\)"):
        compare(receipts, tmp_path / "c.html")
    # Beside a model's receipt: what only one of them says is a difference.
    model = put(tmp_path / "model", made())
    change(model, lambda r: r["scores"].append(score("fid", 0.6, "lower", features="identity")))
    with pytest.raises(UsageError, match="reference is reference.npy \\(near\\); not said"):
        compare([receipts[0], model], tmp_path / "c.html")


EVIL = "<script>alert(1)</script>"


def everywhere(value):
    """A receipt with something that is no text of ours in every word of it."""
    if isinstance(value, dict):
        return {f"{k}{EVIL}" if k in ("eta", "jax") else k: everywhere(v) for k, v in value.items()}
    if isinstance(value, list):
        return [everywhere(v) for v in value]
    return (
        f"{value}{EVIL}" if isinstance(value, str) and value not in ("lower", "higher") else value
    )


def test_words_of_somebody_elses_receipt_are_no_html_and_no_formulas(tmp_path):
    put(tmp_path / "<b>$\\frac$" / "x", everywhere(made()))
    put(tmp_path / "<b>$\\frac$" / "y", everywhere(made(images_seen=2000)))
    compare([tmp_path / "<b>$\\frac$" / name for name in "xy"], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "&lt;script&gt;" in page and EVIL not in page and "<script" not in page


def test_dollars_in_a_plot_are_dollars():
    figure = page.plot(2, 2)
    figure.subplots().plot([0, 1], label="runs/a$\\frac$b")
    figure.legend()
    assert page.png(figure).startswith(b"\x89PNG")


def test_names_of_classes_and_configs_are_no_html_in_a_report(tmp_path):
    workdir = tmp_path / "<b>$\\frac$"
    content = {
        "config": {"data": {"path": EVIL}, "model": {EVIL: EVIL}},
        "images_seen": 10, "steps": 1, "parameters": 5, "ema": EVIL, "classes": [EVIL, "cat"],
        "missing": {"guidance": EVIL},
        "gflop_per_training_image": 1.0, "timings": {"train": 1.0, EVIL: 2.0},
        "results": {
            "evaluate": {"receipts": [everywhere(made())]},
            "classify": {"accuracy": 0.5, "names": EVIL, EVIL: EVIL},
        },
        "device": EVIL, "versions": {"jaxgen": EVIL, "jax": EVIL}, "written": EVIL,
    }  # fmt: skip
    about = {"what": EVIL, "rows": [EVIL]}
    shown = {f"final_{EVIL}": Exhibit(np.zeros((8, 8, 3), np.uint8), about)}
    page = report._page(workdir, content, {EVIL: png(np.zeros((8, 8, 3), np.uint8))}, shown)
    assert "&lt;script&gt;" in page and "<script" not in page and "<b>$" not in page


@pytest.fixture
def many(tmp_path):
    """Two runs with strange names at two guidance scales and three numbers of images seen."""
    folders = [tmp_path / "a_$b&c", tmp_path / "ours ~^ {run}"]
    for i, run in enumerate(folders):
        for j, seen in enumerate((1000, 2000, 4000)):
            for scale in (1.0, 2.0):
                values = made(3 / (i + j + scale), 0.5 + 0.1 * j + 0.01 * i, 0.6 - 0.1 * j)
                put(run, values | dict(images_seen=seen, guidance=scale), f"e_{seen}_{scale:g}")
    return folders


def test_a_table_of_values_holds_every_score_of_every_receipt(runs, tmp_path):
    content = compare(runs, tmp_path / "c.csv")
    with (tmp_path / "c.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * len(content["scores"])
    for row in rows:
        score = content["scores"][row["score"]]
        assert float(row["value"]) == score["values"][row["receipt"]]
        interval = score["intervals"][row["receipt"]]
        assert [row["low"], row["high"]] == (
            ["", ""] if interval is None else [*map(str, interval)]
        )
        assert row["mark"] == score["best"].get(row["receipt"], "")


def test_a_tabular_escapes_names_and_marks_the_best(many, tmp_path):
    content = compare(many, tmp_path / "c.tex")
    text = (tmp_path / "c.tex").read_text()
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    # A head, a line a receipt, and the floor; as many cells as columns in each.
    assert len(body) == 1 + len(content["receipts"]) + 1
    columns = re.search(r"\\begin\{tabular\}\{(\w+)\}", text)[1]
    assert {len(re.split(r"(?<!\\)&", line)) for line in body} == {len(columns)}
    assert r"a\_\$b\&c" in text and r"ours \textasciitilde{}\textasciicircum{} \{run\}" in text
    bold = [line for line in body if line.split(" & ")[1].startswith(r"\textbf")]
    assert len(bold) == 1 and "ours" in bold[0] and "guidance 2, 4,000 images" in bold[0]
    # What is special to TeX stands nowhere by itself.
    cells = re.sub(
        r"\\[&%$#_{}]|\$\\(down|up)arrow\$|\\text\w+\{|\\underline\{|[{}]", "", "".join(body)
    )
    assert not re.search(r"[%$#_~^]", cells)


def test_a_pdf_has_a_page_for_the_table_and_one_for_each_plot(many, tmp_path):
    compare(many, tmp_path / "c.html")
    plots = (tmp_path / "c.html").read_text().count('<figure class="plot">')
    compare(many, tmp_path / "c.pdf")
    data = (tmp_path / "c.pdf").read_bytes()
    assert data.startswith(b"%PDF") and len(re.findall(rb"/Type /Page\b", data)) == 1 + plots
    compare(many, tmp_path / "again.pdf")
    assert (tmp_path / "again.pdf").read_bytes() == data


@pytest.mark.parametrize("draw", [lambda e: over_images(e, {}), planes], ids=["curves", "plane"])
def test_words_stand_in_the_plot_beside_what_they_are_of_and_on_no_other_words(draw, many):
    found = entries(many)
    drawn = draw(found)
    assert drawn
    for figure, _ in drawn:
        axis = figure.axes[0]
        figure.draw_without_rendering()
        texts = [t for t in axis.texts if t.get_text()]
        assert {t.get_text().replace("\n", " ") for t in texts} == {
            f"{run.name}, guidance {scale}" for run in many for scale in (1, 2)
        }
        assert not figure.legends and axis.get_legend() is None
        boxes = [t.get_window_extent() for t in texts]
        inside = axis.get_window_extent()
        assert all(inside.y0 - 1 <= b.y0 and b.y1 <= inside.y1 + 1 for b in boxes)
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
        assert len({t.get_color() for t in texts}) == len(texts)
