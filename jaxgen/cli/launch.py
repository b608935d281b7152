"""Train on a Cloud TPU, a Slurm or a Kubernetes cluster: compose the commands and run them.

jaxgen launch tpu-vm --name demo --zone Z --accelerator v5litepod-64 --spot --queued \\
    --config configs/imagenet256_dit.py:XL/2 --workdir gs://my-bucket/runs/dit --dry_run

Keys of the config are passed on as they are: --config.data.batch_size=1024. With --dry_run the
exact commands are printed, one a line, and nothing runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import subprocess
from typing import Any

from jaxgen.cli import Help

GCLOUD = "https://cloud.google.com/sdk/docs/install"
SLURM = "https://slurm.schedmd.com/quickstart_admin.html"
KUBECTL = "https://kubernetes.io/docs/tasks/tools/"


PLACES = ()
"""Its paths are of other machines."""
PREFIXES = ("--config.",)
"""Free options: `--config.KEY=VALUE`."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `jaxgen launch tpu-vm`, `slurm` and `k8s`."""
    where = parser.add_subparsers(dest="where", required=True, metavar="WHERE")
    helps = {
        "tpu-vm": "a Cloud TPU, through gcloud",
        "slurm": "a Slurm cluster, through sbatch",
        "k8s": "a Kubernetes cluster with JobSet, through kubectl: TPU slices of GKE, or GPUs",
    }
    for name, add in (("tpu-vm", _tpu_options), ("slurm", _slurm_options), ("k8s", _k8s_options)):
        sub = where.add_parser(
            name,
            help=helps[name],
            description=helps[name],
            allow_abbrev=False,
            formatter_class=Help,
        )
        add(sub)
        sub.add_argument("--config", required=True, help="a Python file with get_config()")
        sub.add_argument("--workdir", required=True, help="where all workers see the same files")
        sub.add_argument("--dry_run", action="store_true", help="print what would be done")
        # The parser above has one too: say nothing where this one is not given.
        sub.add_argument("--json", action="store_true", default=argparse.SUPPRESS,
                         help="print one JSON object on stdout")  # fmt: skip


def _tpu_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--name", required=True, help="of the machine, and of its queued resource")
    sub.add_argument("--zone", required=True, help="e.g. us-central2-b")
    sub.add_argument("--accelerator", required=True, help="v5litepod-64, v5p-128, v6e-16, v4-32")
    sub.add_argument("--project", help="gcloud's own unless given")
    sub.add_argument("--version", help="runtime version (by the accelerator unless given)")
    sub.add_argument("--spot", action="store_true", help="cheaper, and may be taken away")
    sub.add_argument("--queued", action="store_true", help="wait in the queue for capacity")
    sub.add_argument("--valid_until", metavar="DURATION", help="leave the queue after, as 6h")
    sub.add_argument("--install", help="what workers pip install in the place of a checkout")
    sub.add_argument("--source", metavar="DIR", help="checkout to install (default: this one)")
    sub.add_argument("--setup", metavar="LINE", help="a shell line that workers run first")
    sub.add_argument("--attempts", type=int, default=10, help="runs at most (default 10)")
    sub.add_argument("--poll", type=float, default=60.0, help="seconds between looks at the state")
    sub.add_argument("--logs", metavar="DIR", help="of the workers' logs (default logs/NAME)")
    sub.add_argument("--keep", action="store_true", help="do not delete the machine at the end")
    sub.add_argument("--only", metavar="STEP", help="create, install, run, logs or delete")


def _slurm_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--name", default="jaxgen", help="of the job")
    sub.add_argument("--nodes", type=int, default=1, help="machines")
    sub.add_argument("--gpus_per_node", type=int, default=8, help="of a machine")
    sub.add_argument("--time", help="limit, as 1-00:00:00")
    sub.add_argument("--partition", help="of the cluster")
    sub.add_argument("--account", help="that is charged")
    sub.add_argument("--activate", metavar="LINE", help="as 'source ~/jaxgen/bin/activate'")


def _k8s_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--name", required=True, help="of the JobSet")
    sub.add_argument("--image", required=True, help="container image with jaxgen in it")
    sub.add_argument("--accelerator", help="a TPU slice, as v5litepod-64 (default: GPUs)")
    sub.add_argument("--nodes", type=int, default=1, help="machines with GPUs")
    sub.add_argument("--gpus_per_node", type=int, default=8, help="of a machine")
    sub.add_argument("--claim", metavar="CLAIM:/path", help="a PersistentVolumeClaim, mounted")
    sub.add_argument("--bucket", metavar="BUCKET:/path", help="a Cloud Storage bucket, mounted")
    sub.add_argument("--namespace", help="kubectl's own unless given")
    sub.add_argument("--queue", help="of Kueue")
    sub.add_argument(
        "--selector",
        action="append",
        default=None,
        metavar="LABEL=VALUE",
        help="of nodes, e.g. cloud.google.com/gke-accelerator=nvidia-h100-80gb",
    )
    sub.add_argument("--spot", action="store_true", help="cheaper nodes, which may be taken away")
    sub.add_argument("--setup", metavar="LINE", help="a shell line that pods run first")
    sub.add_argument("--attempts", type=int, default=10, help="starts at most")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Check the config, then print or run."""
    return {"tpu-vm": _tpu, "slurm": _slurm, "k8s": _k8s}[args.where](args)


def _tpu(args: argparse.Namespace) -> dict[str, Any]:
    from jaxgen.errors import invalid, unknown
    from jaxgen.launch import accelerator
    from jaxgen.launch.drive import STEPS, commands, drive, need, step
    from jaxgen.launch.tpu import Job
    from jaxgen.training.log import say

    machine = accelerator.parse(args.accelerator)
    if args.only is not None and args.only not in STEPS:
        raise unknown("--only", args.only, STEPS)
    if args.attempts < 1:
        raise invalid("--attempts", args.attempts, "a number >= 1")
    if not args.poll > 0:
        raise invalid("--poll", args.poll, "seconds > 0")
    fields = {f.name: getattr(args, f.name) for f in dataclasses.fields(Job)}
    job = Job(**{**fields, "accelerator": machine, "overrides": tuple(args.overrides)})
    _check_config(args, machine.devices)
    logs = args.logs or f"logs/{args.name}"
    plan = ["jaxgen", "plan", "--config", args.config, "--topology", machine.topology or ""]
    plan += [f"--config.{assignment}" for assignment in args.overrides]
    say(f"{machine.name}: {machine.chips} chips, {machine.workers} workers; mesh and batch fit.")
    if machine.topology:
        say(f"What a step takes there: {shlex.join(plan)}")
    told = {"chips": machine.chips, "workers": machine.workers, "topology": machine.topology}
    if args.dry_run:
        pairs = commands(job, logs, args.only)
        if not args.json:
            print("\n".join(shlex.join(command) for _, command in pairs))
        if args.only is None:
            say(f"If it is taken away: delete, create, install, run again (at most {args.attempts} "
                "runs); the same training command resumes.")  # fmt: skip
        return {**told, "steps": [s for s, _ in pairs], "commands": [c for _, c in pairs]}
    need("gcloud", GCLOUD)
    if args.only is not None:
        return {**told, **step(job, args.only, logs=logs, say=say)}
    return {**told, **drive(job, attempts=args.attempts, poll=args.poll, logs=logs, say=say)}


def _submitted(text: str, command: list[str], page: str) -> str:
    """What a program says that was given a job's text. Raises Failure where it refuses it.

    page: where to get the program.
    """
    from jaxgen.errors import Failure
    from jaxgen.launch.drive import need

    need(command[0], page)
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        why = f"{command[0]} ended with {done.returncode}: {done.stderr.strip()}"
        raise Failure(f"launch: {why}")
    return done.stdout.strip()


def _slurm(args: argparse.Namespace) -> dict[str, Any]:
    from jaxgen.launch.slurm import Batch, script
    from jaxgen.training.log import say

    fields = {f.name: getattr(args, f.name) for f in dataclasses.fields(Batch)}
    batch = Batch(**{**fields, "overrides": tuple(args.overrides)})
    _check_config(args, batch.nodes * batch.gpus_per_node)
    say(f"{batch.nodes} nodes with {batch.gpus_per_node} GPUs each; mesh and batch fit.")
    text, command = script(batch), ["sbatch", "--parsable"]
    found: dict[str, Any] = {"script": text, "commands": [command]}
    if args.dry_run:
        if not args.json:
            print(text, end="")
        return found
    job = _submitted(text, command, SLURM).partition(";")[0]
    if not args.json:
        print(f"Job {job}; its log is {batch.name}-{job}.log")
    return {**found, "job": job}


def _k8s(args: argparse.Namespace) -> dict[str, Any]:
    from jaxgen.launch import accelerator
    from jaxgen.launch.k8s import Work, manifest
    from jaxgen.training.log import say

    machine = None if args.accelerator is None else accelerator.parse(args.accelerator)
    args.selectors = tuple(args.selector or ())
    fields = {f.name: getattr(args, f.name) for f in dataclasses.fields(Work)}
    work = Work(**{**fields, "accelerator": machine, "overrides": tuple(args.overrides)})
    devices = work.nodes * work.gpus_per_node if machine is None else machine.devices
    _check_config(args, devices)
    kind = "GPUs" if machine is None else "TPU devices"
    say(f"{work.processes} pods, {devices} {kind}; mesh and batch fit.")
    text, command = manifest(work), ["kubectl", "apply", "-f", "-"]
    found: dict[str, Any] = {"manifest": text, "commands": [command], "pods": work.processes}
    if args.dry_run:
        if not args.json:
            print(text, end="")
        return found
    said = _submitted(text, command, KUBECTL)
    where = [] if work.namespace is None else ["-n", work.namespace]
    follow = shlex.join(["kubectl", *where, "logs", "-f", f"job/{work.name}-workers-0"])
    if not args.json:
        print(f"{said}; its log: {follow}")
    return found


@dataclasses.dataclass(frozen=True)
class _Device:
    """A device that is not here: enough of one for a mesh."""

    id: int
    process_index: int = 0


def _check_config(args: argparse.Namespace, devices: int) -> None:
    """Raise UsageError for what the workers would refuse: the config, its mesh, its batch.

    All that `jaxgen train` checks, where the config says what its data hold; else what needs no
    data.
    """
    from jaxgen import config as configs
    from jaxgen.run.setup import SECTIONS, TOP, set_up
    from jaxgen.training.sharding import check_batch, make_mesh

    config = configs.load(args.config)
    configs.override(config, args.overrides, TOP)
    those = [_Device(i) for i in range(devices)]
    if config.get("data", {}).get("holds") is not None:
        set_up(config, devices=those, data=False)
        return
    options = {
        key: cls(**configs.check(cls, dict(config[key]), f"config.{key}"))
        for key, cls in SECTIONS.items()
        if key in config
    }
    sizes = configs.check(make_mesh, dict(config.get("mesh", {})), "config.mesh", {"devices"})
    mesh = make_mesh(**sizes, devices=those)
    if "data" in options and "train" in options:
        check_batch(options["data"].batch_size, mesh, options["train"].accumulate)
