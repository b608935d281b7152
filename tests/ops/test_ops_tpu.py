"""Every TPU kernel through the TPU compiler, for three chips; no TPU is needed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from jaxgen.plan.machine import environment
from tests.tpu_kernels import FUSED, HEADS

CHIPS = ("v5e:2x2", "v5p:2x2x1", "v6e:2x2")


@pytest.fixture(scope="module")
def compiled(request):
    """What the compiler made for one chip, asked in a process of its own."""
    chip = request.param
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: the TPU kernels were not compiled")
    done = subprocess.run(
        [sys.executable, "-m", "tests.tpu_kernels", chip],
        env=environment(chip, os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {name.removeprefix(f"{chip} "): a for name, a in json.loads(done.stdout).items()}


@pytest.mark.parametrize("compiled", CHIPS, indirect=True)
@pytest.mark.parametrize("name", [*HEADS, *FUSED])
def test_kernels_compile(compiled, name):
    """Chosen for the chip, not by name; forward (again in the backward pass) and backward."""
    found = compiled[name]
    long = name.startswith("flash")
    assert found["kernels"] == (4 if long else 2)
    # Two products forward and five backward; in two backward kernels, scores are computed twice.
    # 8 by 8 blocks of 512, each row of blocks up to the diagonal's, or one beyond where the mask's
    # block of 48 crosses the edge: all but when 512 i is a multiple of 48.
    products = 2 + 2 + 3 + 4 if long else 2 + 5
    if name == "flash":
        products *= sum(min(8, i + (512 * i % 48 > 0)) for i in range(1, 9)) / 64
    assert found["flops"] == pytest.approx(2 * products * found["products"], rel=1e-3)


@pytest.mark.parametrize("compiled", CHIPS, indirect=True)
def test_the_plan_counts_what_a_kernel_moves(compiled):
    found = compiled["traffic"]
    assert found["bytes"] == found["moved"]
