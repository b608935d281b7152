"""A job for Kubernetes: a JobSet of one slice of TPUs on GKE, or of machines with GPUs.

Every process runs the same command; where one fails the JobSet starts all of them again, and the
command resumes. GKE tells the workers of a TPU slice who they are; those with GPUs are told here,
by the names that JobSet gives its pods. Fields as in the JobSet API v1alpha2 and in GKE's
documentation of TPUs.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import PurePosixPath
from typing import Any

import yaml

from jaxgen.errors import invalid
from jaxgen.launch.accelerator import Accelerator

PORT = 12321
GRACE = 180
"""Seconds between SIGTERM and the end, in which `jaxgen train` saves."""

TPUS = {
    "v4": "tpu-v4-podslice",
    "v5litepod": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
}
"""GKE's names of TPUs, by ours."""

USAGE = 2
"""The exit code after which another try would end the same way: bad input."""


@dataclasses.dataclass(frozen=True)
class Work:
    """A job: what to train, in which image, on which nodes, and where its files are.

    accelerator: a slice of TPUs; None: `nodes` machines with `gpus_per_node` GPUs each. claim:
    "CLAIM:/path" of a PersistentVolumeClaim that all pods may write, bucket: "BUCKET:/path" of a
    Cloud Storage bucket that GKE mounts; the workdir lies in one of them. selectors: "LABEL=VALUE"
    of nodes. queue: of Kueue. setup: a shell line that comes first. attempts: starts at most.
    """

    name: str
    config: str
    workdir: str
    image: str
    overrides: tuple[str, ...] = ()
    accelerator: Accelerator | None = None
    nodes: int = 1
    gpus_per_node: int = 8
    claim: str | None = None
    bucket: str | None = None
    namespace: str | None = None
    queue: str | None = None
    selectors: tuple[str, ...] = ()
    spot: bool = False
    setup: str | None = None
    attempts: int = 10

    def __post_init__(self) -> None:
        """Refuse what the cluster would, or what would lose the run. Raises UsageError."""
        for option in ("name", "namespace", "queue"):
            given, most = getattr(self, option), 40 if option == "name" else 63
            if given is not None and not (
                re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", given) and len(given) <= most
            ):
                allowed = f"at most {most} small letters, digits and '-', which stands inside"
                raise invalid(f"--{option}", given, allowed)
        if not self.image or re.search(r"\s", self.image):
            raise invalid("--image", self.image, "a container image with jaxgen in it")
        for option in ("nodes", "gpus_per_node", "attempts"):
            if getattr(self, option) < 1:
                raise invalid(f"--{option}", getattr(self, option), "a number >= 1")
        kind = None if self.accelerator is None else self.accelerator.name.partition("-")[0]
        if self.accelerator is not None and (kind not in TPUS or self.accelerator.topology is None):
            allowed = f"slices that GKE has: {', '.join(TPUS)}"
            raise invalid("--accelerator", self.accelerator.name, allowed)
        for selector in self.selectors:
            if not re.fullmatch(r"[\w./-]+=[\w.-]*", selector):
                raise invalid("--selector", selector, "LABEL=VALUE")
        places = [place for _, place in self.mounts()]
        workdir = PurePosixPath(self.workdir)
        if not any(workdir.is_relative_to(place) for place in places):
            raise invalid(
                "--workdir",
                self.workdir,
                "a path below that of --claim CLAIM:/path or --bucket BUCKET:/path",
                "A pod's own disk is lost with it.",
            )

    def mounts(self) -> list[tuple[str, str]]:
        """(what, where) of the volumes: "claim", "bucket"."""
        found = []
        for option in ("claim", "bucket"):
            given = getattr(self, option)
            if given is not None:
                if not re.fullmatch(r"[\w.-]+:/[^\s:]+", given):
                    raise invalid(f"--{option}", given, f"{option.upper()}:/path")
                found.append((option, given.partition(":")[2]))
        return found

    @property
    def processes(self) -> int:
        """Pods: workers of the slice, or machines."""
        return self.nodes if self.accelerator is None else self.accelerator.workers


def train_arguments(work: Work) -> list[str]:
    """What every pod runs."""
    arguments = ["python", "-m", "jaxgen", "train", "--config", work.config]
    arguments += ["--workdir", work.workdir]
    return arguments + [f"--config.{assignment}" for assignment in work.overrides]


def manifest(work: Work) -> str:
    """The JobSet as YAML, for `kubectl apply`."""
    return str(yaml.safe_dump(jobset(work), sort_keys=False, width=100))


def jobset(work: Work) -> dict[str, Any]:
    """The JobSet: all pods or none, started again together, ended at once by bad input."""
    about: dict[str, Any] = {"name": work.name}
    if work.namespace is not None:
        about["namespace"] = work.namespace
    if work.queue is not None:
        about["labels"] = {"kueue.x-k8s.io/queue-name": work.queue}
    if work.accelerator is not None:
        pool = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
        about["annotations"] = pool
    job = {
        "parallelism": work.processes,
        "completions": work.processes,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": "train",
                        "operator": "In",
                        "values": [USAGE],
                    },
                }
            ]
        },
        "template": _pod(work),
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": about,
        "spec": {
            "failurePolicy": {
                "maxRestarts": work.attempts - 1,
                "rules": [
                    {
                        "name": "badInput",
                        "action": "FailJobSet",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "replicatedJobs": [{"name": "workers", "replicas": 1, "template": {"spec": job}}],
        },
    }


def _pod(work: Work) -> dict[str, Any]:
    selectors = dict(selector.split("=", 1) for selector in work.selectors)
    tolerations: list[dict[str, str]] = []
    if work.spot:
        selectors["cloud.google.com/gke-spot"] = "true"
        tolerations.append(
            {
                "key": "cloud.google.com/gke-spot",
                "operator": "Equal",
                "value": "true",
                "effect": "NoSchedule",
            }
        )
    if work.accelerator is not None:
        assert work.accelerator.topology is not None
        kind = work.accelerator.name.partition("-")[0]
        selectors["cloud.google.com/gke-tpu-accelerator"] = TPUS[kind]
        selectors["cloud.google.com/gke-tpu-topology"] = work.accelerator.topology.partition(":")[2]
    volumes, mounts = _volumes(work)
    command = shlex.join(train_arguments(work))
    container = {
        "name": "train",
        "image": work.image,
        "command": [
            "bash",
            "-c",
            f"{work.setup} && exec {command}" if work.setup else f"exec {command}",
        ],  # fmt: skip
        "env": _environment(work),
        "resources": {"limits": _devices(work)},
        "volumeMounts": mounts,
    }
    if work.accelerator is None:
        container["ports"] = [{"containerPort": PORT}]
    spec = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE,
        **({"nodeSelector": selectors} if selectors else {}),
        **({"tolerations": tolerations} if tolerations else {}),
        "containers": [container],
        "volumes": volumes,
    }
    pod: dict[str, Any] = {"spec": spec}
    if work.bucket is not None:
        pod["metadata"] = {"annotations": {"gke-gcsfuse/volumes": "true"}}
    return pod


def _devices(work: Work) -> dict[str, int]:
    if work.accelerator is None:
        return {"nvidia.com/gpu": work.gpus_per_node}
    return {"google.com/tpu": work.accelerator.chips // work.accelerator.workers}


def _environment(work: Work) -> list[dict[str, Any]]:
    """Who a pod is among those with GPUs; `jaxgen.training.hosts` reads these names."""
    said: list[dict[str, Any]] = [{"name": "PYTHONUNBUFFERED", "value": "1"}]
    if work.accelerator is not None or work.processes == 1:
        return said
    first = f"{work.name}-workers-0-0.{work.name}"
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    return [
        *said,
        {"name": "JAX_COORDINATOR_ADDRESS", "value": f"{first}:{PORT}"},
        {"name": "JAX_NUM_PROCESSES", "value": str(work.processes)},
        {"name": "JAX_PROCESS_ID", "valueFrom": {"fieldRef": {"fieldPath": index}}},
    ]


def _volumes(work: Work) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Volumes of the pod and where its container has them."""
    volumes: list[dict[str, Any]] = []
    mounts = [{"name": what, "mountPath": place} for what, place in work.mounts()]
    if work.claim is not None:
        claim = {"claimName": work.claim.partition(":")[0]}
        volumes.append({"name": "claim", "persistentVolumeClaim": claim})
    if work.bucket is not None:
        attributes = {"bucketName": work.bucket.partition(":")[0], "mountOptions": "implicit-dirs"}
        driver = {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}
        volumes.append({"name": "bucket", "csi": driver})
    if work.accelerator is None:  # NCCL's transport between the GPUs of a machine
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory"}})
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})
    return volumes, mounts
