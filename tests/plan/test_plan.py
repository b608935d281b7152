"""Costs of compiled programs against programs whose costs are known; plans by command."""

import importlib.util
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxgen import config as configs
from jaxgen.errors import UsageError
from jaxgen.nn import placement
from jaxgen.plan import plan
from jaxgen.plan.ask import ask, combinations, sweep
from jaxgen.plan.hlo import costs
from jaxgen.plan.machine import environment, split
from jaxgen.run.setup import TOP, set_up
from tests.running import run, run_here

TINY = ["--config", "tests/tiny.py"]


def of(fn, *arguments, devices=1):
    return costs(jax.jit(fn).lower(*arguments).compile().as_text(), devices)


@pytest.mark.parametrize("steps", [1, 7, 50])
def test_a_loop_counts_as_often_as_it_runs(steps):
    w, x = jnp.ones((64, 64)), jnp.ones((32, 64))

    def fn(x, w):
        return jax.lax.scan(lambda h, _: (jnp.tanh(h @ w), None), x, None, length=steps)[0]

    assert of(fn, x, w).flops == steps * 2 * 32 * 64 * 64


def test_loops_within_loops_and_gradients():
    w, x = jnp.ones((16, 16)), jnp.ones((8, 16))

    def fn(w):
        def outer(h, _):
            return jax.lax.scan(lambda h, _: (jnp.tanh(h @ w), None), h, None, length=3)[0], None

        return jax.lax.scan(outer, x, None, length=5)[0].sum()

    # Forward, and twice as much backward less the first product's, whose input needs no gradient.
    assert of(jax.grad(fn), w).flops == pytest.approx(3 * 15 * 2 * 8 * 16 * 16, rel=0.08)


@pytest.mark.parametrize(("stride", "padding"), [(1, "SAME"), (2, "SAME"), (1, "VALID")])
def test_convolutions_count_where_the_window_lies_on_numbers(stride, padding):
    x, k = jnp.ones((2, 9, 9, 3)), jnp.ones((3, 3, 3, 5))

    def fn(x, k):
        return jax.lax.conv_general_dilated(
            x, k, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    out = fn(x, k).shape[1]
    first = -1 if padding == "SAME" else 0
    ones = sum(0 <= first + stride * o + t < 9 for o in range(out) for t in range(3))
    assert of(fn, x, k).flops == 2 * 2 * 3 * 5 * ones**2


def test_traffic_is_what_is_read_and_written():
    x = jnp.ones((1024, 256))
    assert of(lambda x: 2 * x + 1, x).bytes == 2 * x.nbytes
    # Ten rows of a table written in place, not the table ten times.
    table = jnp.zeros((4096, 256))

    def fn(table):
        def body(i, table):
            return jax.lax.dynamic_update_slice(table, jnp.full((1, 256), i, jnp.float32), (i, 0))

        return jax.lax.fori_loop(0, 10, body, table)

    assert of(fn, table).bytes < 3 * table.nbytes


@pytest.mark.parametrize("kind", ["all-reduce", "all-gather", "reduce-scatter", "all-to-all"])
@pytest.mark.parametrize("group", [2, 8])
def test_collectives_are_found_with_their_groups_and_bytes(kind, group):
    mesh = Mesh(np.asarray(jax.devices()).reshape(8 // group, group), ("other", "own"))
    calls = {
        "all-reduce": lambda x: jax.lax.psum(x, "own"),
        "all-gather": lambda x: jax.lax.all_gather(x, "own", tiled=True),
        "reduce-scatter": lambda x: jax.lax.psum_scatter(x, "own", tiled=True),
        "all-to-all": lambda x: jax.lax.all_to_all(x, "own", 0, 0, tiled=True),
    }
    cut = PartitionSpec(("other", "own"))
    fn = jax.shard_map(calls[kind], mesh=mesh, in_specs=cut, out_specs=cut, check_vma=False)
    x = jax.device_put(jnp.ones((8 * 64, 32)), NamedSharding(mesh, cut))
    found = of(fn, x, devices=8)
    own = 64 * 32 * 4
    size = own * (group if kind == "all-gather" else 1)
    assert list(found.collectives) == [(kind, group)]
    count, total = found.collectives[kind, group]
    # XLA may cut an all-to-all into one a device.
    assert total == size and (count == 1 or kind == "all-to-all")
    share = (group - 1) / group
    assert found.wire == pytest.approx(size * share * (2 if kind == "all-reduce" else 1))


def test_topologies_are_read_and_wrong_ones_refused():
    assert split("v5e:8x8") == ("v5e", "8x8") and split("cpu:4") == ("cpu", "4")
    for wrong in ("v9:2x2", "v5e", "v5e:8xx8", "v5e:0x8", "h100:8", ""):
        with pytest.raises(UsageError, match="--topology"):
            split(wrong)
    there = environment("cpu:4", {"TPU_NAME": "mine", "HOME": "x"})
    assert "TPU_NAME" not in there and "device_count=4" in there["XLA_FLAGS"]


def test_combinations_of_a_sweep():
    assert combinations("a=1,2;b=(3,4),x") == [
        ["a=1", "b=(3,4)"],
        ["a=1", "b=x"],
        ["a=2", "b=(3,4)"],
        ["a=2", "b=x"],
    ]
    with pytest.raises(UsageError, match="--sweep"):
        combinations("a")


def test_command_line_plans_a_step_and_a_sampler_without_touching_the_disk(tmp_path):
    code, out, err = run("plan", *TINY, "--topology", "cpu:4", "--json", cwd=None)
    assert code == 0, err
    answer = json.loads(out)
    assert answer["devices"] == 4 and answer["mesh"]["data"] == 4 and answer["fits"]
    assert answer["compiled_flops"] >= 0.9 * answer["useful_flops"] > 0
    assert {c["kind"] for c in answer["collectives"]} == {"all-reduce"}
    # Gradients and means cross once: the parameters' bytes, and little else.
    total = sum(c["bytes"] for c in answer["collectives"])
    assert 4 * answer["parameters"] <= total <= 1.2 * 4 * answer["parameters"] + 1e4
    code, out, _ = run_here("plan", *TINY, "--topology", "cpu:2", "--what", "sample")
    assert code == 0 and "sample on cpu:2" in out and "memory" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--topology", "v9:2x2"], "--topology"),
        (["--topology", "cpu:3"], "multiple of 3"),
        (["--topology", "cpu:2", "--what", "rest"], "train, sample"),
        (["--topology", "cpu:2", "--config.model.widht=3"], "width"),
    ],
)
def test_bad_requests_are_one_message(arguments, words):
    code, out, err = run_here("plan", *TINY, *arguments)
    assert code == 2 and words in err and "Traceback" not in err and not out, err


def test_a_sweep_puts_what_fits_first_and_says_what_is_refused():
    rows = sweep("tests/tiny.py", [], "cpu:2", "train", "data.batch_size=15,16", lambda text: None)
    assert [row["change"] for row in rows] == [["data.batch_size=16"], ["data.batch_size=15"]]
    assert "multiple of 2" in rows[1]["error"]


def test_a_config_that_says_what_its_data_hold_needs_none_and_checks_them():
    config = configs.load("configs/imagenet256_dit.py:S/2")
    parts = set_up(config, data=False)
    assert parts.opened is None and parts.spec.shape == (32, 32, 4) and parts.spec.levels is None
    config = configs.load("tests/tiny.py")
    holds = dict(shape=(8, 8, 1), num_classes=11, levels=17)
    configs.override(config, [f"data.holds={holds!r}"], TOP)
    with pytest.raises(UsageError, match="data.holds"):
        set_up(config)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_a_tpu_program_is_compiled_and_costs_what_the_network_does():
    overrides = ["model.width=128", "model.depth=4", "data.batch_size=64", "mesh.fsdp=2"]
    answer = ask("tests/tiny.py", overrides, "v5e:2x2", "train")
    assert answer["fits"] and answer["memory_gib"]["chip"] == 16
    assert answer["compiled_flops"] == pytest.approx(answer["useful_flops"], rel=0.25)
    line = answer["roofline"]
    bounds = [f"mfu_bound_{n}" for n in ("nothing_overlaps", "serial", "overlapped")]
    assert 0 < line[bounds[0]] <= line[bounds[1]] <= line[bounds[2]] <= 1.05


def test_what_does_not_fit_is_tried_with_remedies_until_one_does(monkeypatch):
    from jaxgen.cli.plan import table
    from jaxgen.plan import ask as module

    asked = []

    def answer(config, overrides, topology, what):
        asked.append(overrides)
        if "model.remat=dots" in overrides:
            raise UsageError("config.model.remat: unknown")
        fits = "train.accumulate=2" in overrides
        peak = 12.0 if fits else 20.0
        memory = dict(peak=peak, chip=16.0, arguments=1.0, temporaries=peak - 1, code=0.0)
        return {
            "what": what, "topology": topology, "mesh": {"data": 4}, "fits": fits,
            "memory_gib": memory, "parameters": 10**6, "images": 8, "useful_flops": 1e12,
            "compiled_flops": 1e12, "kernels_not_counted": {"other": 3}, "hbm_bytes": 1e9,
            "collectives": [dict(kind="all-reduce", devices=4, count=2.0, bytes=1e6)],
            "compile_seconds": 1.0, "roofline": None,
        }  # fmt: skip

    monkeypatch.setattr(module, "ask", answer)
    first = answer("c", ["a=1"], "v5e:2x2", "train")
    tried = module.remedies("c", ["a=1"], "v5e:2x2", "train", lambda text: None)
    assert all(overrides[0] == "a=1" for overrides in asked)
    assert [row["fits"] for row in tried] == [False, False, False, True]
    assert "error" in tried[1] and tried[-1]["change"] == ["train.accumulate=2"]
    text = table({**first, "tried": tried})
    assert "DOES NOT FIT, 4.00 GiB too much" in text and "3 calls of other" in text
    assert "train.accumulate=2: fits, 12.00 GiB" in text and "model.remat: unknown" in text


def test_a_poor_step_is_said_with_what_helps(monkeypatch):
    from jaxgen.cli.plan import table
    from jaxgen.plan import ask as module

    asked = []

    def answer(config, overrides, topology, what):
        asked.append(overrides)
        bound = 0.3 + 0.2 * sum(o.startswith(("mesh.fsdp", "data.batch_size")) for o in overrides)
        memory = dict(peak=12.0, chip=16.0, arguments=1.0, temporaries=11.0, code=0.0)
        line = {f"mfu_bound_{n}": bound for n in ("overlapped", "serial", "nothing_overlaps")}
        line |= {"ms": {"interconnect": 2.0}, "binds": "interconnect"}
        return {
            "what": what, "topology": topology, "mesh": {"data": 4}, "fits": True,
            "memory_gib": memory, "parameters": 10**6, "images": 8, "useful_flops": 1e12,
            "compiled_flops": 1e12, "kernels_not_counted": {}, "hbm_bytes": 1e9,
            "collectives": [], "compile_seconds": 1.0,
            "roofline": {**line, "images_per_second_bound": 1e3 * bound},
        }  # fmt: skip

    monkeypatch.setattr(module, "ask", answer)
    first = answer("c", ["a=1"], "v5e:2x2", "train")
    assert module.poor(first) and not module.poor({**first, "what": "sample"})
    tried = module.improvements("c", ["a=1"], "v5e:2x2", first, lambda text: None)
    assert all(overrides[0] == "a=1" for overrides in asked)
    assert [row["change"][-1] for row in tried] == [
        "mesh.fsdp=8", "data.batch_size=32", "data.batch_size=32"
    ]  # fmt: skip
    assert not module.poor(tried[-1]) and all(map(module.poor, tried[:-1]))
    text = table({**first, "tried": tried})
    assert "POOR: bound by interconnect, MFU at most 30 %" in text
    assert "mesh.data=-1 mesh.fsdp=8 data.batch_size=32: fits" in text and "MFU 70 %" in text


def test_overlap_never_loses_to_less_overlap():
    """Where the wires take longest, what the others do one after the other does not matter."""
    from jaxgen.plan import _roofline
    from jaxgen.plan.machine import Chip

    chip = Chip(1.0, 1.0, 1.0, 1.0)
    for flops, memory, wire in ((1.0, 2.0, 9.0), (5.0, 1.0, 2.0), (2.0, 2.0, 3.0)):
        found = SimpleNamespace(flops=flops, bytes=memory, wire=wire)
        line = _roofline(chip, found, 1.0, 1)
        all_of, some, none = (
            line[f"mfu_bound_{n}"] for n in ("overlapped", "serial", "nothing_overlaps")
        )
        assert all_of == 1 / max(flops, memory, wire) and none == 1 / (flops + memory + wire)
        assert some == 1 / max(flops + memory, wire) and none < some <= all_of


def test_tokens_stay_on_the_devices_of_their_examples(monkeypatch):
    """What crosses grows with the batch by less than one layer's tokens (`nn.stack`).

    Left alone, XLA gathers activations of every layer. Conditioning vectors, one an image, do
    cross.
    """
    monkeypatch.setattr(placement, "SMALLEST", 2**6)
    crossed, batches, width, tokens = [], (64, 512), 64, 64
    for batch in batches:
        config = configs.load("tests/tiny.py")
        changes = ["mesh.data=1", "mesh.fsdp=8", "model.patch=1", f"model.width={width}"]
        changes += ["model.depth=2", f"data.batch_size={batch}"]
        configs.override(config, changes, TOP)
        crossed.append(sum(c["bytes"] for c in plan(config, "cpu:8")["collectives"]))
    growth = (crossed[1] - crossed[0]) / (batches[1] - batches[0])
    assert growth < 4 * tokens * width, crossed
