"""A `gcloud` for tests: a world in a folder, whose workers are folders and run what they are told.

FAKE_GCLOUD is the folder. `calls.jsonl` in it gets every command line. `world.json` says: "node"
(the machine's state, or null), "queue" (its queued resource's states still to come, the last one
stays; or null), "workers", and "runs": what each training run in turn is to do, as "preempted" (the
connections break and the machine is gone), "hangs" (gone without a word), "wait" (for ever), or the
code with which each worker's training ends.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(os.environ["FAKE_GCLOUD"])
WORLD = ROOT / "world.json"
# A worker's Python: notes what it is told, says something, ends as it must.
PYTHON = """#!/bin/bash
printf '%s\\n' "$@" > told.txt ; echo "trained" ; exit $FAKE_CODE
"""


def option(name: str) -> str | None:
    """The value of --name=VALUE."""
    found = [w.partition("=")[2] for w in sys.argv if w.startswith(f"--{name}=")]
    return found[0] if found else None


def homes(world: dict) -> list[Path]:
    """The workers' home folders."""
    folders = [ROOT / f"worker{i}" for i in range(world["workers"])]
    for folder in folders:
        folder.mkdir(exist_ok=True)
    return folders


def missing() -> int:
    """As gcloud says it."""
    print("ERROR: (gcloud.compute.tpus) NOT_FOUND: Resource was not found", file=sys.stderr)
    return 1


def create(world: dict, queued: bool) -> int:
    """The machine is there, or the queued resource is; its first states are in `coming`."""
    if world.get("no_capacity"):
        print("ERROR: There is no more capacity in the zone", file=sys.stderr)
        return 1
    if queued:
        world["queue"] = list(world["coming"])
    if not queued or world["queue"] == ["ACTIVE"]:
        world["node"] = "READY"
    return 0


def scp(world: dict) -> int:
    """Files and folders to every worker."""
    sources = [w for w in sys.argv[5:] if not w.startswith("--")]
    target = sources.pop().partition(":")[2]
    for home in homes(world):
        for source in map(Path, sources):
            place = home / target / (source.name if target.endswith("/") else "")
            (shutil.copytree if source.is_dir() else shutil.copy)(source, place)
    return 0


def describe(world: dict, queued: bool) -> int:
    """One state a look: the last of the queued resource's stays."""
    if not queued:
        if world["node"] is None:
            return missing()
        print(world["node"])
        return 0
    if not world["queue"]:
        return missing()
    print(world["queue"][0])
    if len(world["queue"]) > 1:
        world["queue"].pop(0)
        if world["queue"][0] == "ACTIVE":
            world["node"] = "READY"
    return 0


def delete(world: dict) -> int:
    """The machine, its queued resource, and the workers' disks."""
    for folder in homes(world):
        shutil.rmtree(folder)
    world["node"], world["queue"] = None, None
    return 0


def ssh(world: dict) -> int:
    """Run on every worker at once; the first failing worker's code, as gcloud's."""
    command, folder = option("command"), option("output-directory")
    behaviour = None
    if "jaxgen train" in command:
        behaviour = world["runs"].pop(0)
        if behaviour in ("preempted", "hangs"):
            world["node"] = "PREEMPTED"
            world["queue"] = world["queue"] and ["SUSPENDED"]
    WORLD.write_text(json.dumps(world))
    if behaviour == "preempted":
        return 255
    if behaviour in ("hangs", "wait"):
        (ROOT / "waiting").touch()
        time.sleep(60)
    codes = behaviour if isinstance(behaviour, list) else [0] * world["workers"]
    if "uv venv" in command:
        for home in homes(world):
            (home / "jaxgen_env" / "bin").mkdir(parents=True, exist_ok=True)
            python = home / "jaxgen_env" / "bin" / "python"
            python.write_text(PYTHON)
            python.chmod(0o755)
        return 0
    running = []
    for i, (home, code) in enumerate(zip(homes(world), codes, strict=True)):
        env = {**os.environ, "FAKE_CODE": str(code)}
        running.append(subprocess.Popen(
            ["bash", "-c", command], cwd=home, env=env, text=True,
            stdout=subprocess.PIPE if folder else None,
        ))  # fmt: skip
        if folder:
            Path(folder, f"{i}.log").write_text(running[-1].communicate()[0])
    return next((code for code in [p.wait() for p in running] if code), 0)


def main() -> int:
    """Answer one command line."""
    world = json.loads(WORLD.read_text())
    with open(ROOT / "calls.jsonl", "a") as calls:
        calls.write(json.dumps(sys.argv[1:]) + "\n")
    group, verb = sys.argv[3:5]
    queued = group == "queued-resources"
    if verb == "ssh":
        return ssh(world) if world["node"] == "READY" else 1
    answers = {
        "create": lambda: create(world, queued),
        "describe": lambda: describe(world, queued),
        "scp": lambda: scp(world),
        "delete": lambda: delete(world),
    }
    code = answers[verb]()
    WORLD.write_text(json.dumps(world))
    return code


sys.exit(main())
