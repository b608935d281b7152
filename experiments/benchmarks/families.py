"""Every family on the digits at an equal wall-clock budget: one table, one picture a family.

    python -m experiments.benchmarks.families --seconds 60 --out /tmp/families

Each config trains in a process of its own for as many images as its measured rate allows in the
budget (a short run first finds the rate; compilation is not counted), then scores, bounds the
likelihood and classifies as its config says. Where two configs are given, the first is a tokenizer:
each gets half of the budget. Writes table.md, table.json, a PNG a family and all of them in
families.png.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from experiments.benchmarks import machine

CONFIGS = {
    "diffusion (DiT, flow matching)": ("digits.py",),
    "autoregressive (Llama on pixels)": ("digits_llamagen.py",),
    "autoregressive (Gated PixelCNN)": ("digits_pixelcnn.py",),
    "autoregressive (PixelCNN++)": ("digits_pixelcnn.py:pp",),
    "masked (MaskGIT on pixels)": ("digits_maskgit.py",),
    "masked (MaskGIT on a VQGAN's codes)": ("digits_vqgan.py", "digits_maskgit.py:codes"),
    "adversarial (projection GAN)": ("digits_gan.py",),
    "flow (TarFlow)": ("digits_tarflow.py",),
    "flow (Glow)": ("digits_glow.py",),
    "variational (CVAE)": ("digits_vae.py",),
    "variational (IWAE, two layers)": ("digits_vae.py:iwae",),
}


TINY = ("evaluate.samples=200", "classify.limit=20", "likelihood.limit=20")


def run(command: str, *arguments: str) -> dict[str, Any]:
    """What a `jaxgen` command prints as JSON. Raises CalledProcessError if it fails."""
    line = [sys.executable, "-m", "jaxgen", command, "--json", *arguments]
    done = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True)
    timings: dict[str, Any] = json.loads(done.stdout)
    return timings


def train(config: str, workdir: Path, seconds: float, probe: int, *overrides: str) -> dict:
    """Train for a time, as many images as the rate of a run over `probe` images allows."""
    shared = ["--config", f"configs/{config}", *(f"--config.{o}" for o in overrides)]
    off = [f"{s}.at_end=False" for s in ("evaluate", "classify", "likelihood")]
    off += [f"train.images={probe}", "train.log_every=1_000_000_000"]
    first = workdir.parent / "probe"
    for stale in (workdir, first):
        shutil.rmtree(stale, ignore_errors=True)
    report = run("train", *shared, "--workdir", str(first), *(f"--config.{o}" for o in off))
    images = max(int(report["timings"]["images_per_second"] * seconds), probe)
    last = [f"train.images={images}", "train.sample_every=0", "checkpoint.every=0"]
    return run("train", *shared, "--workdir", str(workdir), *(f"--config.{o}" for o in last))


def row(name: str, report: dict[str, Any]) -> dict[str, Any]:
    """What the table shows of a report: its scores are those of the last guidance."""
    results = report["results"]
    receipt = results["evaluate"]["receipts"][-1]
    scores = {s["name"]: s for s in receipt["scores"]}
    likelihood, classify = results.get("likelihood"), results.get("classify")
    return {
        "family": name,
        "parameters": report["parameters"],
        "images_per_second": report["timings"]["images_per_second"],
        "images": report["images_seen"],
        "accuracy": scores["accuracy_classifier"]["value"],
        "fd": scores["fd_classifier"]["value"],
        "precision": scores["precision_k3_classifier"]["value"],
        "recall": scores["recall_k3_classifier"]["value"],
        "samples_per_second": receipt["images_per_second"],
        "bits_per_dim": likelihood and likelihood["bits_per_dim"],
        "kind": likelihood and likelihood["kind"],
        "classified": classify and classify["accuracy"],
        "guidance": receipt["guidance"],
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table."""
    head = (
        "| family | parameters | trains, images/s | samples/s | label agrees | Frechet | precision "
        "| recall | bits/dim | classifies |"
    )
    lines = [head, "|-|" + "-:|" * 9]
    for r in rows:
        bits = "none"
        if r["bits_per_dim"] is not None:
            bits = f"{'' if r['kind'] == 'exact' else '<= '}{r['bits_per_dim']:.3f}"
        right = "none" if r["classified"] is None else f"{100 * r['classified']:.1f} %"
        lines.append(
            f"| {r['family']} | {r['parameters'] / 1e6:.2f} M | {r['images_per_second']:,.0f} | "
            f"{r['samples_per_second']:,.0f} | {100 * r['accuracy']:.1f} % | {r['fd']:.2f} | "
            f"{r['precision']:.2f} | {r['recall']:.2f} | {bits} | {right} |"
        )
    return "\n".join(lines) + "\n"


def slug(config: str) -> str:
    """A config's name as a file's."""
    return config.replace(".py", "").replace(":", "_")


def montage(out: Path) -> Path:
    """The families' pictures side by side with their names, as families.png."""
    from matplotlib import pyplot

    shown = [
        (name, out / f"{slug(stages[-1])}.png")
        for name, stages in CONFIGS.items()
        if (out / f"{slug(stages[-1])}.png").is_file()
    ]
    columns = min(6, len(shown))
    lines = -(-len(shown) // columns)
    figure, axes = pyplot.subplots(
        lines, columns, figsize=(2.1 * columns, 3.1 * lines), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.axis("off")
    for axis, (name, path) in zip(axes.flat, shown, strict=False):
        axis.imshow(pyplot.imread(path), cmap="gray", interpolation="nearest")
        axis.set_title(name.replace(" (", "\n("), fontsize=8)
    figure.savefig(out / "families.png", dpi=110)
    pyplot.close(figure)
    return out / "families.png"


def main() -> None:
    """Train all or some families and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="training time of each")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="", help="a word that the family's name contains")
    parser.add_argument("--probe", type=int, default=10_240, help="images that find the rate")
    parser.add_argument("--tiny", action="store_true", help="a moment of one family")
    args = parser.parse_args()
    if args.tiny:
        args.seconds, args.probe, args.only = 0.01, 256, args.only or "CVAE"
    print(machine.line())
    args.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, stages in CONFIGS.items():
        if args.only not in name:
            continue
        overrides: list[str] = []
        for config in stages:
            workdir = args.out / slug(config)
            quick = TINY if args.tiny else ()
            report = train(
                config, workdir, args.seconds / len(stages), args.probe, *overrides, *quick
            )
            if config != stages[-1]:
                codes = workdir / "codes"
                run("tokenize", "--workdir", str(workdir), "--out", str(codes))
                overrides = [f"data.source.path={codes.absolute()}"]
        rows.append(row(name, report))
        if len(stages) > 1:
            # Of codes: no bound on the images.
            rows[-1]["bits_per_dim"] = None
        picture = sorted((workdir / "samples").glob("final_*.png"))[-1]
        shutil.copy(picture, args.out / f"{workdir.name}.png")
        print(markdown(rows[-1:]), flush=True)
    (args.out / "table.json").write_text(json.dumps(rows, indent=2) + "\n")
    (args.out / "table.md").write_text(markdown(rows))
    montage(args.out)
    print(markdown(rows))


if __name__ == "__main__":
    main()
