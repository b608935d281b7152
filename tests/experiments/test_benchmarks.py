"""The benchmarks' arithmetic: a timeline as a table, and two libraries' samplers that are one."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.benchmarks import gpu_dit, machine, traces
from tests import base_run

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("loop_add_fusion.3", "element-wise"),
        ("input_reduce_fusion", "reductions and norms"),
        ("gemm_fusion_dot.12", "matrix products"),
        ("nvjet_tst_128x256_64x4_2x1_v_bz_TNT", "matrix products"),
        ("sm90_xmma_gemm_bf16bf16", "matrix products"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop", "attention"),
        ("ncclDevKernel_AllReduce", "communication"),
        ("MemcpyD2D", "copies and layout"),
        ("loop_convert_fusion", "element-wise"),
        ("while.5", "loops and calls"),
    ],
)
def test_kinds_of_operations(name, expected):
    assert traces.kind(name) == expected


def test_time_inside_counts_once_and_idle_time_is_what_no_line_fills():
    one = [("while.1", 0.0, 10.0), ("dot.1", 1.0, 4.0), ("loop_fusion", 4.0, 9.0),
           ("copy.1", 5.0, 6.0)]  # fmt: skip
    two = [("dot.2", 9.0, 11.0), ("dot.3", 14.0, 15.0)]
    found = traces.summarise([one, [], two])
    assert found["kinds"] == {
        "matrix products": 6.0,
        "element-wise": 4.0,
        "loops and calls": 2.0,
        "copies and layout": 1.0,
    }
    assert found["wall"] == 15.0 and found["idle"] == 3.0


PROFILED = """
import json, jax
from experiments.benchmarks import traces
x = jax.numpy.ones((256, 256))
step = jax.jit(lambda x: jax.lax.scan(lambda h, _: (h @ x, None), x, None, length=20)[0])
step(x).block_until_ready()
found = traces.profile(lambda: step(x).block_until_ready(), 2)
print(json.dumps([found, traces.table(found)]))
"""


def test_a_profile_names_what_was_run():
    """In a process of its own: where libtpu has compiled something, JAX's profiler crashes."""
    done = subprocess.run(
        [sys.executable, "-c", PROFILED], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found, table = json.loads(done.stdout.splitlines()[-1])
    # 40 products of 256^3 and nothing else to speak of.
    assert found["kinds"]["matrix products"] > 0.5 * found["wall"] > 0
    assert len(table) >= 4


@pytest.mark.parity
def test_both_sides_draw_the_same_images():
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    from experiments.benchmarks import dit_peers, dit_samplers
    from experiments.benchmarks.gpu_dit import TINY as size

    peer = size.torch().eval()
    labels, params = dit_peers.batch(size)["label"], dit_peers.weights(size, peer)
    options = {"solver": "dpmpp_2m", "steps": 20, "scale": 1.5}
    ours = dit_samplers.jaxgen_sampling(size.jaxgen(), size, params, labels, **options)()
    theirs = dit_samplers.torch_sampling(peer, size, labels, **options)()
    # float32 through 20 steps.
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


TINY = {
    "ar_decode": ("torch", "transformers"),
    "attention": (),
    "cpu_dit": ("torch", "diffusers"),
    "data": (),
    "families": (),
    "gflownet": ("torch", "gfn"),
    "gpu_dit": ("torch", "diffusers"),
    "guidance_overhead": (),
    "orders": (),
    "plans": ("libtpu",),
    "scores": (),
    "steering": (),
    "wraps": (),
}
"""Every benchmark that is run by itself, and what it needs beside jaxgen."""


def test_the_list_of_benchmarks_is_whole():
    files = (ROOT / "experiments/benchmarks").glob("*.py")
    assert {p.stem for p in files if '__name__ == "__main__"' in p.read_text()} == set(TINY)


@pytest.mark.parametrize("name", TINY)
def test_benchmarks_run_in_miniature(name, tmp_path):
    for package in TINY[name]:
        pytest.importorskip(package)
    command = [sys.executable, "-m", f"experiments.benchmarks.{name}", "--tiny"]
    command += ["--out", str(tmp_path)] if name in ("families", "steering") else []
    if name == "wraps":
        source = "data.source='digits.digits'"
        command += ["--workdir", str(base_run.write(tmp_path / "run", source))]
    command += ["--eager"] if name == "gpu_dit" else []
    environment = {**os.environ, "TPU_SKIP_MDS_QUERY": "1", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=600, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.splitlines()) >= 3, done.stdout
    if name in ("ar_decode", "cpu_dit", "data", "families", "gflownet", "scores"):
        assert machine.machine()["processor"] in done.stdout


def gpu_all(out, *arguments, **environment):
    return subprocess.run(
        ["bash", "experiments/benchmarks/gpu_all.sh", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=900,
        env={**os.environ, "OUT": str(out), "CACHE": str(out.parent / "cache"),
             "PYTHON": sys.executable, **environment},
    )  # fmt: skip


def test_all_of_a_gpu_is_written_as_it_is_made_and_goes_on_where_it_was_cut(tmp_path):
    out = tmp_path / "out"
    late = gpu_all(out, "--tiny", MINUTES="0")
    assert late.returncode == 1, late.stderr[-2000:]
    summary = (out / "summary.md").read_text()
    assert "| attention | no time left |" in summary and "| done |" not in summary
    whole = gpu_all(out, "--tiny", MINUTES="14")
    assert whole.returncode == 0, (out / "log.txt").read_text()[-3000:]
    summary = (out / "summary.md").read_text()
    assert summary.count("| done |") >= 6 and "| reference | both |" in summary
    found = json.loads((out / "gpu_dit.json").read_text())
    tasks = {row["task"] for row in found["rows"] if row["images_per_s"] > 0}
    assert tasks == {"train", "sample, dpmpp_2m, 4 steps", "sample, ddpm, 4 steps"}
    assert found["profile"]["wall"] > 0 and (out / "train_xl.xplane.pb").stat().st_size > 1000
    assert json.loads((out / "attention.json").read_text())["rows"]
    with tarfile.open(out / "cache.tar") as packed:
        assert any("jax/" in name for name in packed.getnames())
    before = found["rows"]
    again = gpu_all(out, "--tiny", MINUTES="0")
    assert again.returncode == 0 and "attention: done before" in again.stdout
    assert json.loads((out / "gpu_dit.json").read_text())["rows"] == before


def test_all_of_a_gpu_takes_one_option(tmp_path):
    done = gpu_all(tmp_path / "out", "--small")
    assert done.returncode == 2 and "allowed: --tiny" in done.stderr
    assert not (tmp_path / "out").exists()


def test_rows_measured_anew_replace_those_of_their_task_and_failures_do_not():
    ours, theirs = (dict(task="train", size="B/2", side=s) for s in ("jaxgen", "torch.compile"))
    failed = dict(task="train", size="B/2", error="no memory")
    other = dict(task="train", size="L/2", side="jaxgen")
    assert gpu_dit.merged([ours, other], [ours, theirs]) == [other, ours, theirs]
    assert gpu_dit.merged([ours, other], [failed]) == [ours, other, failed]
    assert gpu_dit.merged([ours, failed], [failed]) == [ours, failed]
    assert gpu_dit.merged([failed], [ours]) == [ours]


X86 = """processor\t: 0
model name\t: Some CPU @ 2 GHz
flags\t\t: fpu sse avx2 {}

processor\t: 1
model name\t: another
"""


def test_a_machine_is_said_with_its_instruction_sets_and_versions(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    machine.CPUINFO.write_text(X86.format("avx512f"))
    assert machine.machine()["instruction_sets"] == ["AVX2", "AVX-512"]
    machine.CPUINFO.write_text(X86.format("bmi2"))
    line = machine.line()
    assert line.startswith("Some CPU @ 2 GHz (AVX2, no AVX-512)") and "another" not in line
    assert f"jax {jax.__version__}" in line and f"numpy {np.__version__}" in line
    machine.CPUINFO.write_text("CPU implementer : 0x41\nFeatures : fp asimd sve\n")
    assert machine.machine()["instruction_sets"] == ["NEON", "SVE"]
    machine.CPUINFO.unlink()
    assert machine.machine()["instruction_sets"] == [] and machine.line()
