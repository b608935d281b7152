"""Launching: the commands are what was asked for, and a run goes on through what happens to it."""

import itertools
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxgen.cli import main
from jaxgen.launch import life, tpu
from jaxgen.launch.accelerator import parse
from jaxgen.plan.machine import devices_of
from tests.running import TINY, start, wait_for

GCLOUD = shutil.which("gcloud")
BASE = ["launch", "tpu-vm", "--name", "demo", "--zone", "us-west4-a", "--config", TINY]
RELEASE = ["--install", "jaxgen[tpu]"]
POD = [*BASE, *RELEASE, "--accelerator", "v5litepod-16", "--workdir", "gs://my-bucket/runs/tiny"]
NASTY = [
    "data.source.path=/data/my images/{split} (new)",
    'model.name=it\'s "quoted" $HOME `x` \\ *',
    "train.images=(1, 2)",
]


class World:
    """A fake gcloud, first on PATH, and what it was told."""

    def __init__(self, folder: Path):
        self.folder = folder
        program = folder / "bin" / "gcloud"
        program.parent.mkdir()
        fake = Path(__file__).parents[1] / "fake_gcloud.py"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -S {fake} "$@"\n')
        program.chmod(0o755)

    def starts(self, runs: list, *, node=None, workers=4, **more) -> None:
        world = {"node": node, "queue": None, "workers": workers, "runs": runs, **more}
        (self.folder / "world.json").write_text(json.dumps(world))

    @property
    def now(self) -> dict:
        return json.loads((self.folder / "world.json").read_text())

    @property
    def calls(self) -> list[list[str]]:
        return [json.loads(x) for x in (self.folder / "calls.jsonl").read_text().splitlines()]

    @property
    def verbs(self) -> list[str]:
        """What was done, in a word each; looks at the state left out."""
        words = []
        for call in self.calls:
            command = next((w for w in call if w.startswith("--command=")), "")
            kinds = {"jaxgen train": "run", "uv venv": "install", "cat jaxgen_train.log": "logs"}
            found = [kind for text, kind in kinds.items() if text in command]
            words.append(found[0] if found else call[3])
        return [w for w in words if w != "describe"]


@pytest.fixture
def world(tmp_path, monkeypatch) -> World:
    made = World(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_GCLOUD", str(tmp_path))
    return made


def launched(world: World, *more: str) -> list[str]:
    return [*POD, "--poll", "0.05", "--logs", str(world.folder / "logs"), *more]


CYCLE = ["create", "scp", "install", "run"]


def test_one_command_from_nothing_to_nothing(world, capfd):
    world.starts([[0, 0, 0, 0]])
    override = "--config.train.images=3200"
    assert main(launched(world, override, "--json")) == 0
    assert world.verbs == [*CYCLE, "logs", "delete"] and world.now["node"] is None
    found = json.loads(capfd.readouterr().out)
    assert (found["ended"], found["runs"], found["workers"]) == ("finished", 1, 4)
    assert [c[1:] for c in found["commands"] if c[0] == "gcloud"] == world.calls
    for worker in range(4):
        assert (world.folder / "logs" / f"{worker}.log").read_text() == "trained\n"


def test_after_a_preemption_the_same_command_runs_on_a_new_machine(world):
    world.starts(["preempted", [0, 0, 0, 0]])
    assert main(launched(world, "--spot")) == 0
    assert world.verbs == [*CYCLE, "delete", *CYCLE, "logs", "delete"]
    first, second = (c for c in world.calls if any("jaxgen train" in w for w in c))
    assert first == second


def test_a_machine_that_goes_without_a_word_is_noticed(world):
    world.starts(["hangs", [0, 0, 0, 0]])
    begin = time.monotonic()
    assert main(launched(world, "--spot")) == 0
    assert time.monotonic() - begin < 50  # the connection itself would hang for 60 s
    assert world.verbs == [*CYCLE, "delete", *CYCLE, "logs", "delete"]


def test_a_queued_resource_is_waited_for_and_asked_for_again(world):
    states = ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    world.starts(["preempted", [0, 0, 0, 0]], coming=states)
    assert main(launched(world, "--queued", "--spot", "--valid_until", "6h")) == 0
    assert world.verbs == [*CYCLE, "delete", *CYCLE, "logs", "delete"]
    create, delete = world.calls[1], world.calls[-1]
    assert create[2:5] == ["queued-resources", "create", "demo"]
    assert {"--node-id=demo", "--spot", "--valid-until-duration=6h"} < set(create)
    assert delete[2:5] == ["queued-resources", "delete", "demo"] and "--force" in delete


def test_saved_and_stopped_without_losing_the_machine_runs_again_on_it(world):
    world.starts([[143, 143, 143, 143], [0, 0, 0, 0]])
    assert main(launched(world)) == 0
    assert world.verbs == [*CYCLE, "run", "logs", "delete"]


@pytest.mark.parametrize(
    ("codes", "code", "words"),
    [
        ([2, 2, 2, 2], 2, "refused"),
        # gcloud ends with the first worker's 134; the third one says why.
        ([134, 134, 1, 134], 1, "failed"),
    ],
)
def test_an_error_is_not_tried_again_and_the_machine_is_left(world, capfd, codes, code, words):
    world.starts([codes, [0, 0, 0, 0]])
    assert main(launched(world)) == code
    assert world.verbs == [*CYCLE, "logs"] and world.now["node"] == "READY"
    err = capfd.readouterr().err
    assert words in err and "Traceback" not in err
    assert "gcloud compute tpus tpu-vm delete demo --quiet --zone=us-west4-a" in err.splitlines()


def test_attempts_end(world, capfd):
    world.starts([[143] * 4] * 5)
    assert main(launched(world, "--attempts", "2")) == 1
    assert world.verbs == [*CYCLE, "run", "logs"]
    assert "stopped 2 times" in capfd.readouterr().err


def test_no_capacity_is_one_message_that_names_the_queue(world, capfd):
    world.starts([], no_capacity=True)
    assert main(launched(world)) == 1
    assert "--queued" in capfd.readouterr().err


def test_a_machine_that_is_there_is_used_and_kept_if_asked(world):
    world.starts([[0, 0, 0, 0]], node="READY")
    assert main(launched(world, "--keep")) == 0
    assert world.verbs == ["scp", "install", "run", "logs"]


def test_ctrl_c_says_how_to_delete(world):
    world.starts(["wait"])
    process = start(*launched(world))
    wait_for((world.folder / "waiting").exists, 60, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err, err
    assert "gcloud compute tpus tpu-vm delete demo --quiet --zone=us-west4-a" in err.splitlines()
    assert world.now["node"] == "READY"


def test_single_steps(world):
    world.starts([[0, 0, 0, 0]])
    for step in ("create", "install", "run", "logs", "delete"):
        assert main(launched(world, "--only", step)) == 0
    assert world.verbs == [*CYCLE, "logs", "delete"]


def test_a_local_checkout_is_copied(world, tmp_path):
    source = tmp_path / "checkout"
    (source / "jaxgen").mkdir(parents=True)
    (source / "pyproject.toml").write_text("")
    (source / "jaxgen" / "__init__.py").write_text("")
    world.starts([[0, 0, 0, 0]])
    arguments = launched(world, "--source", str(source), "--keep")
    at = arguments.index("--install")
    del arguments[at : at + 2]
    assert main(arguments) == 0
    assert (world.folder / "worker3" / "jaxgen_source" / "jaxgen" / "__init__.py").exists()
    assert any("./jaxgen_source[tpu]" in word for call in world.calls for word in call)


def test_the_checkout_is_installed_where_nothing_else_is_said(capsys, monkeypatch):
    pod = [*BASE, "--accelerator", "v5litepod-16", "--workdir", "gs://my-bucket/x", "--dry_run"]
    assert main(pod) == 0
    out = capsys.readouterr().out
    root = Path(tpu.__file__).parents[2]
    copied = "pyproject.toml" if Path.cwd() == root else str(root / "pyproject.toml")
    assert f"scp {copied} " in out and "'./jaxgen_source[tpu]'" in out.replace("'\"'\"'", "'")
    assert main([*pod, "--source", ".", "--install", "jaxgen[tpu]"]) == 2
    assert "--install" in capsys.readouterr().err
    assert main([*pod, "--source", "/nowhere"]) == 2
    assert "pyproject.toml" in capsys.readouterr().err
    # An installed package is no checkout, and there is no release to install in its place.
    monkeypatch.setattr(tpu, "__file__", "/nowhere/site-packages/jaxgen/launch/tpu.py")
    assert main(pod) == 2
    assert "No release of jaxgen" in capsys.readouterr().err


def test_gcloud_that_is_missing_is_named(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(POD) == 2
    assert "https://cloud.google.com/sdk/docs/install" in capsys.readouterr().err


def test_the_workers_get_every_override_through_both_shells(world, monkeypatch):
    # What a config may hold is checked elsewhere; here, that nothing changes on the way.
    monkeypatch.setattr("jaxgen.cli.launch._check_config", lambda *_: None)
    world.starts([[0, 0, 0, 0]], node="READY")
    overrides = [f"--config.{text}" for text in NASTY]
    assert main(launched(world, "--keep", *overrides)) == 0
    told = (world.folder / "worker2" / "told.txt").read_text().splitlines()
    assert told[-len(NASTY) :] == overrides


def test_a_dry_run_prints_lines_to_paste_and_runs_nothing(world, capsys, monkeypatch):
    monkeypatch.setattr("jaxgen.cli.launch._check_config", lambda *_: None)
    overrides = [f"--config.{text}" for text in NASTY]
    arguments = launched(world, "--dry_run", "--setup", "echo 'a b'", *overrides)
    assert main(arguments) == 0
    printed = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["commands"] == printed and not (world.folder / "calls.jsonl").exists()
    assert found["steps"][0] == "create" and found["steps"][-1] == "delete"
    (line,) = (w for c in printed for w in c if w.startswith("--command=") and " train " in w)
    words = shlex.split(line.removeprefix("--command="))
    assert [w for w in words if w.startswith("--config.")] == overrides
    assert "--workdir" in words and "gs/my-bucket/runs/tiny" in words


def test_an_earlier_run_is_ended_before_the_next(tmp_path):
    # gcloud runs the command again by itself where a connection broke.
    job = tpu.Job("demo", "a", parse("v4-8"), TINY, "gs://my-bucket/x")
    line = tpu.run(job)[-1].removeprefix("--command=")
    python = tmp_path / tpu.PYTHON
    python.parent.mkdir(parents=True)
    python.write_text(
        "#!/bin/bash\ntrap 'echo saved; exit 143' TERM\necho begun\n"
        "[ -e second ] && exit 0\ntouch second\nwhile true; do sleep 0.05; done\n"
    )
    python.chmod(0o755)
    first = subprocess.Popen(["bash", "-c", line], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    wait_for((tmp_path / "second").exists, 20)
    second = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True)
    out, _ = first.communicate(timeout=20)
    assert first.returncode == 143 and out.splitlines()[-1].endswith("ended with 143")
    assert second.returncode == 0 and second.stdout.splitlines()[-1].endswith("ended with 0")
    assert (tmp_path / tpu.LOG).read_text().splitlines() == ["begun", "saved", "begun"]
    assert not (tmp_path / tpu.PROCESS).exists()


@pytest.mark.parametrize(
    ("name", "chips", "devices", "workers"),
    [
        ("v2-8", 4, 8, 1),
        ("v3-32", 16, 32, 4),
        ("v4-8", 4, 4, 1),
        ("v4-64", 32, 32, 8),
        ("v5p-128", 64, 64, 16),
        ("v5litepod-8", 8, 8, 1),
        ("v5litepod-64", 64, 64, 16),
        ("v6e-256", 256, 256, 64),
    ],
)
def test_names_mean_chips_and_workers(name, chips, devices, workers):
    found = parse(name)
    assert (found.chips, found.devices, found.workers) == (chips, devices, workers)


@pytest.mark.parametrize("name", ["v5litepod-64", "v6e-32", "v4-64", "v5p-256"])
def test_libtpu_knows_the_topology_of_a_name(name):
    pytest.importorskip("libtpu")
    found = parse(name)
    # Two devices a chip on v4, where libtpu's topologies list cores.
    per_chip = 2 if name.startswith("v4") else 1
    assert len(devices_of(found.topology)[0]) == found.chips * per_chip


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--accelerator", "v5e-64"], ["--accelerator", "v5litepod-N"]),
        (["--accelerator", "v5litepod-65"], ["--accelerator", "64"]),
        (["--accelerator", "v4-4"], ["multiple of 8"]),
        (["--workdir", "runs/dit"], ["--workdir", "gs://", "4 workers"]),
        (["--workdir", "/mnt/nfs/run"], ["--workdir", "--setup"]),
        (["--workdir", "gs://bucket"], ["gs://BUCKET/PATH"]),
        (["--workdir", "run", "--accelerator", "v4-8", "--keep", "--spot"], ["deleted"]),
        (["--name", "Demo"], ["--name", "lower-case"]),
        (["--only", "launch"], ["--only", "install"]),
        (["--attempts", "0"], ["--attempts"]),
        (["--poll", "0"], ["--poll"]),
        (["--valid_until", "6h"], ["--queued"]),
        (["--source", "/nowhere", "--install", "x"], ["--install", "left out"]),
        (["--config", "nothing.py"], ["--config"]),
        (["--config.train.image=1"], ["images"]),
        (["--config.data.batch_size=8"], ["batch_size", "16"]),
        (["--config.mesh.fsdp=3"], ["mesh", "16 devices"]),
        (["--queue"], ["--queue"]),
    ],
)
def test_what_would_be_refused_there_is_refused_here(world, capsys, options, words):
    assert main([*POD, "--dry_run", *options]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("jaxgen: error") == 1 and "Traceback" not in err
    for word in words:
        assert word in err, err
    assert not (world.folder / "calls.jsonl").exists()


def test_one_kept_worker_may_use_its_own_disk(capsys):
    here = [*BASE, "--accelerator", "v6e-4", "--workdir", "runs/x", "--keep", "--dry_run"]
    assert main(here) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "gcsfuse" not in "".join(lines) and "delete" not in lines[-1]


def test_configs_that_say_what_their_data_hold_are_checked_whole(capsys):
    at = BASE.index("--config")
    base = [*BASE[:at], "--config", "configs/imagenet256_dit.py:XL/2", *BASE[at + 2 :]]
    pod = [*base, "--accelerator", "v5litepod-64", "--workdir", "gs://my-bucket/dit", "--dry_run"]
    assert main(pod) == 0
    assert "jaxgen plan" in (err := capsys.readouterr().err) and "v5e:8x8" in err
    assert main([*pod, "--config.model.patch=5"]) == 2
    assert "patch" in capsys.readouterr().err


def test_every_life_ends_or_waits():
    # In no situation does deciding fail, and after a last word nothing is done.
    nodes = (None, "READY", "PREEMPTED", "NEW", "STOPPING")
    queues = (None, "ACTIVE", "SUSPENDED", "FAILED", "NEW")
    seen = itertools.product(nodes, queues, (True, False))
    phases = [life.phase(node, queue, queued=queued) for node, queue, queued in seen]
    assert set(phases) == {"absent", "between", "ready", "lost", "failed"}
    lasts = (None, "finished", "refused", "failed", "stopped")
    for phase, installed, runs, last in itertools.product(phases, (0, 1), (0, 3), lasts):
        action = life.decide(life.Situation(phase, bool(installed), runs, last), attempts=3)
        if last in ("finished", "refused", "failed"):
            assert action == last
        elif runs == 3:
            assert action in ("spent", "unobtainable", "removed")
        else:
            assert (action == "run") == (phase == "ready" and bool(installed))


@pytest.mark.parametrize(
    ("node", "queue", "expected"),
    [
        ("READY", None, "ready"),
        ("PREEMPTED", None, "lost"),
        ("TERMINATED", None, "lost"),
        ("CREATING", None, "between"),
        ("REPAIRING", None, "between"),
        (None, None, "absent"),
        ("READY", "ACTIVE", "ready"),
        ("PREEMPTED", "ACTIVE", "lost"),
        (None, "ACTIVE", "lost"),
        (None, "WAITING_FOR_RESOURCES", "between"),
        ("PREEMPTED", "SUSPENDING", "between"),
        (None, "SUSPENDED", "lost"),
        (None, "FAILED", "failed"),
    ],
)
def test_phases(node, queue, expected):
    assert life.phase(node, queue, queued=queue is not None) == expected


@pytest.mark.parametrize(
    ("status", "codes", "phase", "expected"),
    [
        (0, [0, 0], "ready", "finished"),
        (0, [], "ready", "finished"),
        (255, [0, 0], "ready", "stopped"),
        (134, [134, 2], "ready", "refused"),
        (2, [2, 143], "lost", "refused"),
        (134, [134, 1], "ready", "failed"),
        (1, [], "ready", "failed"),
        (1, [], "lost", "stopped"),
        (-9, [], "lost", "stopped"),
        (143, [143, 143], "ready", "stopped"),
        (75, [75, 143], "between", "stopped"),
    ],
)
def test_verdicts(status, codes, phase, expected):
    assert life.verdict(status, codes, phase) == expected


@pytest.mark.parity
@pytest.mark.skipif(GCLOUD is None, reason="needs the Google Cloud CLI")
def test_gcloud_itself_takes_every_command(tmp_path, capsys):
    # It reads the command line before it looks for credentials, of which there are none.
    env = {
        **{"PATH": os.environ["PATH"], "CLOUDSDK_CONFIG": str(tmp_path)},
        **{"CLOUDSDK_CORE_ACCOUNT": "nobody@example.invalid", "CLOUDSDK_CORE_PROJECT": "none"},
        **{"CLOUDSDK_CORE_CHECK_GCE_METADATA": "false", "CLOUDSDK_CORE_DISABLE_PROMPTS": "1"},
    }
    commands = []
    place = POD.index("--install")
    of_checkout = [*POD[:place], *POD[place + 2 :], "--source", "."]
    for words in ([*POD, "--spot"], [*of_checkout, "--queued", "--valid_until", "6h"]):
        assert main([*words, "--dry_run", "--json"]) == 0
        commands += json.loads(capsys.readouterr().out)["commands"]
    wrong = [*commands[0], "--no-such-flag"]
    different = {tuple(c): c for c in commands if c[0] == "gcloud"}.values()
    (tmp_path / "logs" / "demo").mkdir(parents=True)  # looked for even before credentials

    def answer(command: list[str]) -> str:
        done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path)
        return done.stderr

    for command in different:
        assert "does not have any valid credentials" in answer(command), command
    assert "unrecognized arguments" in answer(wrong)


SLURM = ["launch", "slurm", "--config", TINY, "--workdir", "/scratch/run", "--nodes", "2"]


def sbatch(folder: Path, monkeypatch, code: int) -> None:
    """Programs of a cluster: sbatch runs the script at once, srun's task ends with `code`."""
    programs = {
        "sbatch": "bash -s ; echo 7",
        "srun": f'printf "%s\\n" "$@" > {folder}/told ; exit {code}',
        "scontrol": f"echo $@ > {folder}/requeued",
    }
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")


@pytest.mark.parametrize("code", [0, 2, 143])
def test_slurm_runs_the_command_and_queues_again_only_what_was_stopped(
    tmp_path, monkeypatch, capsys, code
):
    monkeypatch.setattr("jaxgen.cli.launch._check_config", lambda *_: None)
    sbatch(tmp_path, monkeypatch, code)
    overrides = [f"--config.{text}" for text in NASTY]
    assert main([*SLURM, *overrides, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["job"] == "7"
    told = (tmp_path / "told").read_text().splitlines()
    assert told[:4] == ["python", "-m", "jaxgen", "train"] and told[-len(NASTY) :] == overrides
    assert (tmp_path / "requeued").exists() == (code == 143)


def test_slurm_script(capsys):
    options = ["--time", "1-00:00:00", "--partition", "gpu", "--account", "lab"]
    assert main([*SLURM, *options, "--activate", "source env/bin/activate", "--dry_run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for line in ("--nodes=2", "--gpus-per-node=8", "--ntasks-per-node=8", "--time=1-00:00:00",
                 "--partition=gpu", "--account=lab", "--requeue", "--signal=TERM@120"):  # fmt: skip
        assert f"#SBATCH {line}" in lines
    assert lines[0] == "#!/bin/bash" and "source env/bin/activate" in lines


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--nodes", "0"], ["--nodes"]),
        (["--time", "soon"], ["--time", "HOURS"]),
        (["--partition", "a b"], ["--partition"]),
        (["--name", "a/b"], ["--name"]),
        (["--workdir", "gs://b/x"], ["--workdir"]),
        (["--config.data.batch_size=8"], ["batch_size"]),
    ],
)
def test_slurm_refuses(capsys, options, words):
    assert main([*SLURM, "--dry_run", *options]) == 2
    err = capsys.readouterr().err
    assert all(word in err for word in words), err


def test_sbatch_that_is_missing_is_named(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(SLURM) == 2
    assert "sbatch is not installed" in capsys.readouterr().err
