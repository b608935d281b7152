"""Seconds and memory of FID, KID and PRDC from features, beside torch-fidelity's and prdc's own.

    python -m experiments.benchmarks.scores --images 50_000 --peer_images 20_000

Features float32 [N, d] with a decaying spectrum, positive as pooled ones are; each side in a
process of its own, one after the other, so that its peak memory is its own. prdc holds whole
matrices of distances (three of N x N in float64, and an argpartition), so at 50,000 images it needs
more memory than a laptop has: `--peer_images` is the number at which the two are compared, and
ours is timed at `--images` too. torch-fidelity asks for torchvision, which has no CPU build for
every PyTorch: its functions of features do not use it, and here it is replaced by nothing.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any
from unittest.mock import MagicMock

import numpy as np

from experiments.benchmarks import machine


def features(images: int, width: int, seed: int) -> np.ndarray:
    """Float32 [images, width]: half-rectified mixtures of fewer directions, seeded."""
    chance = np.random.default_rng(0)
    spread = (1.0 / np.arange(1, 257) ** 0.5).astype(np.float32)
    mixing = chance.normal(size=(256, width)).astype(np.float32) * spread[:, None]
    chance = np.random.default_rng(seed)
    hidden = chance.normal(size=(images, 256)).astype(np.float32)
    if seed > 1:
        hidden *= 1.05
    return np.maximum(hidden @ mixing * 0.3 + 0.2, 0)


def ours(score: str, real: np.ndarray, made: np.ndarray) -> Any:
    """The value of one score, by jaxgen."""
    from jaxgen.metrics.scores.frechet import frechet_distance, moments
    from jaxgen.metrics.scores.kernel import kid, kid_estimates
    from jaxgen.metrics.scores.manifold import manifolds, scores

    if score == "fid":
        return frechet_distance(moments(real), moments(made))
    if score == "kid":
        return kid(kid_estimates(real, made))[0]
    kinds = {kind: (5, True) for kind in ("precision", "recall", "density", "coverage")}
    return scores(manifolds(real, [5]), manifolds(made, [5]), kinds)


class _Nothing(MagicMock):
    __path__: list[str] = []


def theirs(score: str, real: np.ndarray, made: np.ndarray) -> Any:
    """The value of one score, by torch-fidelity or prdc."""
    if score == "prdc":
        import prdc

        return {k: float(v) for k, v in prdc.compute_prdc(real, made, nearest_k=5).items()}
    for name in ("", ".transforms", ".transforms.functional", ".datasets", ".models"):
        sys.modules.setdefault(f"torchvision{name}", _Nothing())
    import torch
    from torch_fidelity import metric_fid, metric_kid

    a, b = torch.from_numpy(real), torch.from_numpy(made)
    if score == "fid":
        statistics_ = [metric_fid.fid_features_to_statistics(x) for x in (a, b)]
        return metric_fid.fid_statistics_to_metric(*statistics_, False)[metric_fid.KEY_METRIC_FID]
    metrics = metric_kid.kid_features_to_metric(
        a, b, kid_subsets=100, kid_subset_size=1000, verbose=False, rng_seed=0
    )
    return metrics[metric_kid.KEY_METRIC_KID_MEAN]


def timed(side: str, score: str, images: int, width: int) -> dict[str, Any]:
    """Run one side's score in this process; seconds, value, and memory beyond the features."""
    real, made = features(images, width, 1), features(images, width, 2)
    run = ours if side == "ours" else theirs
    # Imports, compilation of nothing that has this size, and threads are not what is timed.
    run(score, real[:1100, :16].copy(), made[:1100, :16].copy())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, cpu_start = time.perf_counter(), time.process_time()
    value = run(score, real, made)
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu_start,
        "gib_beyond": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20,
        "value": value,
    }


def child(side: str, score: str, images: int, width: int) -> dict[str, Any]:
    """`one` in a process of its own."""
    words = [sys.executable, "-m", "experiments.benchmarks.scores", "--one", side, score]
    words += ["--images", str(images), "--width", str(width)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """Time each score on both sides and print a table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=lambda t: int(t.replace("_", "")), default=50_000)
    parser.add_argument("--peer_images", type=lambda t: int(t.replace("_", "")), default=20_000)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--scores", default="fid,kid,prdc")
    parser.add_argument("--one", nargs=2, default=None, metavar=("SIDE", "SCORE"))
    parser.add_argument("--tiny", action="store_true", help="ours, of a few images")
    args = parser.parse_args()
    if args.tiny:
        args.images, args.peer_images, args.width = 1200, 0, 32
    if args.one:
        print(json.dumps(timed(*args.one, args.images, args.width)))
        return
    print(machine.line())
    for score in args.scores.split(","):
        sizes = {args.images} if score != "prdc" else {args.peer_images, args.images} - {0}
        for images in sorted(sizes):
            peer = images <= args.peer_images or (score != "prdc" and not args.tiny)
            sides = ["ours", "theirs"] if peer else ["ours"]
            timings = {side: child(side, score, images, args.width) for side in sides}
            line = {"score": score, "images": images, "width": args.width, **timings}
            if len(timings) == 2:
                line["times_faster"] = timings["theirs"]["seconds"] / timings["ours"]["seconds"]
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
