"""A JobSet for Kubernetes: what the published schema allows, and what the pods are told."""

import json
import shlex
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

from jaxgen.errors import UsageError
from jaxgen.launch import accelerator
from jaxgen.launch.k8s import Work, jobset, manifest
from jaxgen.training import hosts
from tests.running import run_here

SCHEMA = json.loads((Path(__file__).parent / "jobset_schema.json").read_text())["schema"]
COMMON = ("--config", "configs/digits.py", "--image", "me/jaxgen:1", "--name", "dit")


def closed(schema):
    """The schema with every object closed: the API drops what it does not know without a word."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {k: closed(v) for k, v in schema.items()}
    if "properties" in schema and schema.get("type") == "object":
        found["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    return found


STRICT = closed(SCHEMA)
# Metadata is Kubernetes' own, which a JobSet's schema leaves open.
STRICT["properties"]["metadata"] = {"type": "object"}


def work(**changes):
    usual = dict(name="dit", config="c.py", workdir="/data/run", image="me/jaxgen:1")
    return Work(**{**usual, "claim": "disk:/data", **changes})


def pod_of(found):
    (job,) = found["spec"]["replicatedJobs"]
    return job["template"]["spec"], job["template"]["spec"]["template"]["spec"]


CASES = {
    "gpus": dict(nodes=2, gpus_per_node=4, overrides=("train.images=1_000", "sample.solver=heun")),
    "one machine": dict(),
    "tpu": dict(accelerator=accelerator.parse("v5litepod-64"), spot=True, queue="lab"),
    "one worker": dict(accelerator=accelerator.parse("v6e-8")),
    "cube": dict(accelerator=accelerator.parse("v5p-128"), namespace="lab"),
    "bucket": dict(claim=None, bucket="mine:/data", selectors=("a.b/c=d",), setup="pip list"),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_what_the_published_schema_allows(name):
    job = work(**CASES[name])
    found = yaml.safe_load(manifest(job))
    assert found == jobset(job)
    jsonschema.Draft7Validator(STRICT).validate(found)
    spec, pod = pod_of(found)
    assert spec["completions"] == spec["parallelism"] == job.processes
    mounted = {m["name"] for m in pod["containers"][0]["volumeMounts"]}
    assert mounted == {v["name"] for v in pod["volumes"]} and mounted & {"claim", "bucket"}


def test_the_schema_notices_a_wrong_field():
    found = jobset(work())
    found["spec"]["replicatedJobs"][0]["template"]["spec"]["backOffLimit"] = 0
    with pytest.raises(jsonschema.ValidationError, match="backOffLimit"):
        jsonschema.Draft7Validator(STRICT).validate(found)


def test_a_slice_has_the_nodes_and_chips_that_gke_gives_it():
    spec, pod = pod_of(jobset(work(**CASES["tpu"])))
    assert spec["parallelism"] == 16
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}
    selector = pod["nodeSelector"]
    assert selector["cloud.google.com/gke-tpu-accelerator"] == "tpu-v5-lite-podslice"
    assert selector["cloud.google.com/gke-tpu-topology"] == "8x8"
    assert selector["cloud.google.com/gke-spot"] == "true" and pod["tolerations"]
    _, pod = pod_of(jobset(work(**CASES["one worker"])))
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 8}


def test_pods_with_gpus_find_each_other_as_the_run_looks_for_them(monkeypatch):
    spec, pod = pod_of(jobset(work(**CASES["gpus"])))
    env = {e["name"]: e for e in pod["containers"][0]["env"]}
    index = env.pop("JAX_PROCESS_ID")["valueFrom"]["fieldRef"]["fieldPath"]
    assert index == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert spec["completionMode"] == "Indexed"
    for name, entry in env.items():
        monkeypatch.setenv(name, entry["value"])
    monkeypatch.setenv("JAX_PROCESS_ID", "1")
    place = hosts._place(hosts.HostOptions())
    assert (place.coordinator, place.count, place.index) == ("dit-workers-0-0.dit:12321", 2, 1)


def test_bad_input_ends_it_and_anything_else_starts_it_again():
    spec = jobset(work(attempts=4))["spec"]
    policy = spec["failurePolicy"]
    assert policy["maxRestarts"] == 3
    (rule,) = policy["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    job, pod = pod_of({"spec": spec})
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == [2]
    assert pod["restartPolicy"] == "Never"  # which a pod failure policy asks for


def test_the_command_is_the_run_with_its_overrides():
    _, pod = pod_of(jobset(work(**CASES["gpus"])))
    shell, flag, line = pod["containers"][0]["command"]
    assert (shell, flag) == ("bash", "-c")
    assert shlex.split(line) == [
        *("exec", "python", "-m", "jaxgen", "train", "--config", "c.py", "--workdir", "/data/run"),
        *("--config.train.images=1_000", "--config.sample.solver=heun"),
    ]


def test_a_dry_run_prints_the_manifest_and_runs_nothing(monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("something ran"))
    where = ("--workdir", "/data/run", "--claim", "disk:/data", "--dry_run")
    code, out, err = run_here("launch", "k8s", *COMMON, *where)
    assert code == 0 and "mesh and batch fit" in err, err
    jsonschema.Draft7Validator(STRICT).validate(yaml.safe_load(out))
    code, out, _ = run_here("launch", "k8s", *COMMON, *where, "--json")
    assert yaml.safe_load(json.loads(out)["manifest"])["kind"] == "JobSet"


def test_it_is_applied_by_kubectl(tmp_path, monkeypatch):
    script = tmp_path / "kubectl"
    script.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\ncat > {tmp_path}/got\necho made\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    where = ("--workdir", "/data/run", "--claim", "disk:/data", "--namespace", "lab")
    code, out, err = run_here("launch", "k8s", *COMMON, *where)
    assert code == 0 and "kubectl -n lab logs -f job/dit-workers-0" in out, err
    assert (tmp_path / "asked").read_text().split() == ["apply", "-f", "-"]
    assert yaml.safe_load((tmp_path / "got").read_text())["metadata"]["namespace"] == "lab"
    script.write_text("#!/bin/sh\necho no such cluster >&2\nexit 1\n")
    code, _, err = run_here("launch", "k8s", *COMMON, *where)
    assert code == 1 and "no such cluster" in err


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(name="DiT"), "--name"),
        (dict(name="a" * 41), "--name"),
        (dict(name="-a"), "--name"),
        (dict(image="a b"), "--image"),
        (dict(nodes=0), "--nodes"),
        (dict(attempts=0), "--attempts"),
        (dict(claim=None), "--workdir.*own disk"),
        (dict(workdir="/other/run"), "--workdir"),
        (dict(workdir="gs://mine/run"), "--workdir"),
        (dict(claim="disk"), "--claim.*CLAIM:/path"),
        (dict(claim=None, bucket="gs://mine"), "--bucket.*BUCKET:/path"),
        (dict(selectors=("gpu",)), "--selector"),
        (dict(accelerator=accelerator.parse("v2-8")), "--accelerator.*slices that GKE has"),
    ],
)
def test_what_the_cluster_would_refuse_is_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        work(**changes)


def test_a_batch_that_does_not_fit_the_devices_is_said_before(tmp_path):
    where = ("--workdir", "/data/run", "--claim", "d:/data", "--dry_run", "--nodes", "3")
    code, out, err = run_here("launch", "k8s", *COMMON, *where)
    assert code == 2 and "batch" in err and not out
