"""A batch script for Slurm: the same command in a task per GPU, queued again when stopped.

`jax.distributed` finds its peers in Slurm's environment variables, and there gives every process
one GPU. Options as in sbatch's manual.
"""

from __future__ import annotations

import dataclasses
import re
import shlex

from jaxgen.errors import invalid


@dataclasses.dataclass(frozen=True)
class Batch:
    """A job: nodes, GPUs on each, Slurm's own limits, and what to train.

    time: as sbatch's --time, as 1-00:00:00. activate: a shell line that makes `python` the one with
    jaxgen. workdir: on a file system that all nodes see.
    """

    name: str
    config: str
    workdir: str
    overrides: tuple[str, ...] = ()
    nodes: int = 1
    gpus_per_node: int = 8
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    activate: str | None = None

    def __post_init__(self) -> None:
        """Refuse what sbatch would, or what would break the script."""
        if not re.fullmatch(r"[\w.-]+", self.name):
            raise invalid("--name", self.name, "letters, digits, '_', '.' and '-'")
        for option in ("nodes", "gpus_per_node"):
            if getattr(self, option) < 1:
                raise invalid(f"--{option}", getattr(self, option), "a number >= 1")
        for option in ("partition", "account"):
            given = getattr(self, option)
            if given is not None and not re.fullmatch(r"[\w.,-]+", given):
                raise invalid(f"--{option}", given, "a name that sbatch knows")
        if self.time is not None and not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", self.time):
            raise invalid("--time", self.time, "minutes, or [DAYS-]HOURS:MINUTES:SECONDS")
        if self.workdir.startswith("gs://"):
            raise invalid("--workdir", self.workdir, "a path that all nodes see")


def train_arguments(batch: Batch) -> list[str]:
    """What every task runs."""
    arguments = ["python", "-m", "jaxgen", "train", "--config", batch.config]
    arguments += ["--workdir", batch.workdir]
    return arguments + [f"--config.{assignment}" for assignment in batch.overrides]


def script(batch: Batch) -> str:
    """The text for sbatch.

    Slurm sends SIGTERM to the tasks two minutes before the time is over, and where a job is
    preempted with a grace time; `jaxgen train` then saves and ends with 143, srun ends with the
    highest code of its tasks, and the job goes back into the queue under its own number.
    """
    limits = {
        "job-name": batch.name,
        "nodes": batch.nodes,
        "ntasks-per-node": batch.gpus_per_node,
        "gpus-per-node": batch.gpus_per_node,
        "time": batch.time,
        "partition": batch.partition,
        "account": batch.account,
        "signal": "TERM@120",
        "open-mode": "append",
        "output": f"{batch.name}-%j.log",
    }
    lines = ["#!/bin/bash"]
    lines += [f"#SBATCH --{key}={value}" for key, value in limits.items() if value is not None]
    lines += ["#SBATCH --requeue", ""]
    lines += [batch.activate] if batch.activate else []
    lines += [
        f"srun {shlex.join(train_arguments(batch))}",
        "code=$?",
        'if [ "$code" -eq 143 ]; then scontrol requeue "$SLURM_JOB_ID"; fi',
        'exit "$code"',
    ]
    return "\n".join(lines) + "\n"
