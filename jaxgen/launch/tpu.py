"""The command lines of a run on a Cloud TPU: argument lists for gcloud, and what workers run.

After gcloud's reference: `compute tpus tpu-vm` {create, describe, scp, ssh, delete} and
`compute tpus queued-resources` {create, describe, delete}. Two habits of `tpu-vm ssh --worker=all`
matter here: it ends with the code of the first worker that failed, whatever the others said, and
where a connection breaks (255) it runs the command on that worker again, up to ten times. So every
worker says its own code on a line of its own, and the training command first ends what an earlier
one left running.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path

from jaxgen.errors import invalid
from jaxgen.launch.accelerator import Accelerator

Command = list[str]

PYTHON = "jaxgen_env/bin/python"
CONFIG = "jaxgen_config.py"
SOURCE = "jaxgen_source"
LOG = "jaxgen_train.log"
PROCESS = "jaxgen_train.pid"
# The images' Python is 3.10, too old for JAX: uv brings its own.
ENVIRONMENT = (
    "python3 -m pip install --user --quiet uv && "
    ".local/bin/uv venv --quiet --allow-existing --python 3.12 jaxgen_env && "
    f".local/bin/uv pip install --quiet --python {PYTHON} "
)
# Cloud Storage FUSE's documented installation. No cached metadata: workers must see at once what
# another one wrote (on TPU machines the default is to cache for ever); folders are renamed whole.
GCSFUSE = (
    "{ command -v gcsfuse > /dev/null || { "
    "curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg | "
    "sudo tee /usr/share/keyrings/cloud.google.asc > /dev/null && "
    'echo "deb [signed-by=/usr/share/keyrings/cloud.google.asc] '
    'https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -c -s) main" | '
    "sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null && "
    "sudo apt-get update -qq && sudo apt-get install -y -qq gcsfuse; }; }"
)
MOUNT = "gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --rename-dir-limit=200000"
ENDED = re.compile(rb"^jaxgen: worker \S+ ended with (\d+)\s*$")


@dataclasses.dataclass(frozen=True)
class Job:
    """A run on a TPU: everything that its command lines say.

    config: a local file, copied to every worker, with its `:ARG`. overrides: `a.b=value`, passed on
    as they are. workdir: gs://BUCKET/PATH, or a path on the workers. source: a local checkout to
    install, or install: what to pip install in its place; neither: the checkout that this jaxgen
    runs from, since no release is on the package index. setup: a shell line that workers run first.
    """

    name: str
    zone: str
    accelerator: Accelerator
    config: str
    workdir: str
    overrides: tuple[str, ...] = ()
    install: str | None = None
    source: str | None = None
    setup: str | None = None
    project: str | None = None
    version: str | None = None
    spot: bool = False
    queued: bool = False
    valid_until: str | None = None
    keep: bool = False

    def __post_init__(self) -> None:
        """Refuse what would only be refused after the machine is paid for."""
        for option in ("name", "zone"):
            if not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", getattr(self, option)):
                allowed = "lower-case letters, digits and hyphens, a letter first"
                raise invalid(f"--{option}", getattr(self, option), allowed)
        if self.valid_until is not None and not self.queued:
            raise invalid("--valid_until", self.valid_until, "only with --queued")
        if self.source is not None and self.install is not None:
            raise invalid("--install", self.install, "left out where there is a --source")
        if self.source is None and self.install is None:
            object.__setattr__(self, "source", _checkout())
        if self.source is not None:
            for part in ("pyproject.toml", "jaxgen"):
                if not (Path(self.source) / part).exists():
                    allowed = f"a checkout of jaxgen (there is no {part} in it)"
                    raise invalid("--source", self.source, allowed)
        _check_workdir(self)

    @property
    def bucket(self) -> str | None:
        """The bucket of a gs:// workdir."""
        return self.workdir.split("/")[2] if self.workdir.startswith("gs://") else None

    @property
    def remote_workdir(self) -> str:
        """Where the workers see the workdir: a bucket is mounted on gs/BUCKET in their home."""
        return self.workdir.replace("gs://", "gs/", 1) if self.bucket else self.workdir


def _checkout() -> str:
    """The checkout that this jaxgen runs from. UsageError where it is an installed package."""
    root = Path(__file__).parents[2]
    if not (root / "pyproject.toml").exists():
        raise invalid(
            "--install",
            None,
            "a wheel's address for pip, or --source CHECKOUT",
            "No release of jaxgen is on the package index, and this one is not a checkout.",
        )
    return "." if root == Path.cwd() else str(root)


def _check_workdir(job: Job) -> None:
    """A run outlives its machines: its workdir lies elsewhere, or the one machine is kept."""
    text = job.workdir
    if text.startswith("gs://"):
        if not re.fullmatch(r"gs://[a-z0-9][a-z0-9._-]+[a-z0-9]/[^/].*", text):
            raise invalid("--workdir", text, "gs://BUCKET/PATH")
        return
    shared = text.startswith("/mnt/") and job.setup is not None
    alone = job.accelerator.workers == 1 and job.keep and not (job.spot or job.queued)
    if not shared and not alone:
        why = (
            f"{job.accelerator.workers} workers do not see each other's disks"
            if job.accelerator.workers > 1
            else "a disk is deleted with its machine"
        )
        raise invalid(
            "--workdir",
            text,
            "gs://BUCKET/PATH, or a path in /mnt/ of what --setup mounts on every worker",
            f"A worker's own disk will not do: {why}. (It will for one worker with --keep and "
            "neither --spot nor --queued.)",
        )


def _gcloud(job: Job, *words: str) -> Command:
    place = [f"--zone={job.zone}"] + ([f"--project={job.project}"] if job.project else [])
    return ["gcloud", "compute", "tpus", *words, *place]


def create(job: Job) -> Command:
    """Ask for the machine: at once, or by a queued resource of the same name."""
    kind, version = f"--accelerator-type={job.accelerator.name}", job.version
    version = version or job.accelerator.runtime
    spot = ["--spot"] if job.spot else []
    if not job.queued:
        words = ("tpu-vm", "create", job.name, kind, f"--version={version}")
        return _gcloud(job, *words, *spot)
    until = [f"--valid-until-duration={job.valid_until}"] if job.valid_until else []
    words = ("queued-resources", "create", job.name, f"--node-id={job.name}", kind)
    return _gcloud(job, *words, f"--runtime-version={version}", *spot, *until)


def node_state(job: Job) -> Command:
    """Prints the machine's state, as READY or PREEMPTED."""
    return _gcloud(job, "tpu-vm", "describe", job.name, "--format=value(state)")


def queue_state(job: Job) -> Command:
    """Prints the queued resource's state, as WAITING_FOR_RESOURCES or ACTIVE."""
    return _gcloud(job, "queued-resources", "describe", job.name, "--format=value(state.state)")


def delete(job: Job) -> Command:
    """Delete the machine, and its queued resource where there is one."""
    if job.queued:
        return _gcloud(job, "queued-resources", "delete", job.name, "--force", "--quiet")
    return _gcloud(job, "tpu-vm", "delete", job.name, "--quiet")


def on_workers(job: Job, command: str, *flags: str) -> Command:
    """A shell line on every worker at once, in their home."""
    words = ("tpu-vm", "ssh", job.name, "--worker=all", "--quiet", *flags)
    return [*_gcloud(job, *words), f"--command={command}"]


def install(job: Job) -> list[Command]:
    """jaxgen, the config and the bucket on every worker; again does no harm."""
    steps = []
    if job.setup:
        steps.append(on_workers(job, job.setup))
    wanted = job.install or ""
    if job.source is not None:
        folder = Path(job.source)
        parts = [
            folder / n for n in ("pyproject.toml", "README.md", "LICENSE", "jaxgen", "configs")
        ]
        there = [str(p) for p in parts if p.exists()]
        steps.append(on_workers(job, f"mkdir -p {SOURCE}"))
        steps.append(_copy(job, *there, f"{job.name}:{SOURCE}/", "--recurse"))
        wanted = f"./{SOURCE}[tpu]"
    steps.append(_copy(job, job.config.partition(":")[0], f"{job.name}:{CONFIG}"))
    line = ENVIRONMENT + shlex.quote(wanted)
    if job.bucket:
        folder_of = f"gs/{job.bucket}"
        mount = f"mountpoint -q {folder_of} || {MOUNT} {job.bucket} {folder_of}"
        line += f" && mkdir -p {folder_of} && {GCSFUSE} && {{ {mount}; }}"
    return [*steps, on_workers(job, line)]


def _copy(job: Job, *words: str) -> Command:
    return _gcloud(job, "tpu-vm", "scp", *words, "--worker=all", "--quiet")


def train_arguments(job: Job) -> list[str]:
    """What every worker runs, each the same: `python -m jaxgen train ...`."""
    _, colon, argument = job.config.partition(":")
    arguments = [PYTHON, "-m", "jaxgen", "train", "--config", f"{CONFIG}{colon}{argument}"]
    arguments += ["--workdir", job.remote_workdir]
    return arguments + [f"--config.{assignment}" for assignment in job.overrides]


def run(job: Job) -> Command:
    """Train on every worker, following its log; each says at the end with which code.

    The training process writes to the log alone, so that a broken connection does not end it.
    """
    line = (
        # A number from before a reboot may be another process's by now.
        f"old=$(cat {PROCESS} 2>/dev/null) ; if grep -qs jaxgen /proc/$old/cmdline ; "
        "then kill $old ; tail --pid=$old -f /dev/null ; fi ; "
        f"{shlex.join(train_arguments(job))} >> {LOG} 2>&1 < /dev/null & "
        f"echo $! > {PROCESS} ; tail -n 0 --pid=$! -f {LOG} ; wait $! ; code=$? ; "
        f"rm -f {PROCESS} ; "
        'echo "jaxgen: worker $(hostname) ended with $code" ; exit $code'
    )
    return on_workers(job, line, "--ssh-flag=-oServerAliveInterval=30")


def logs(job: Job, folder: str) -> list[Command]:
    """Every worker's whole log, as FOLDER/WORKER.log."""
    fetch = on_workers(job, f"cat {LOG}", f"--output-directory={folder}")
    return [["mkdir", "-p", folder], fetch]
