"""What the pods run: flags that the jobs know, images that we make, addresses that exist."""

import configparser
import fnmatch
import functools
import importlib
import re
import shlex
import tomllib
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from jobs.command import parse_flags, validate
from pipeline.config import EncodeConfig, SubmitConfig, TrainConfig
from pipeline.errors import ConfigError
from pipeline.submission.rayjob import GPU
from tests.k8s.kuberay_rules import broken_rules
from tests.k8s.manifests import RAY, ROOT, Object, Pod, called, find, of_kind
from tests.k8s.manifests import pods as every_pod

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
OURS = {f"vae-pipeline:{VERSION}{variant}" for variant in ("", "-gpu", "-slim")}
_DIGEST = "@sha256:[0-9a-f]{64}"
_PINNED = re.compile(rf"[a-z0-9./-]+({_DIGEST}|:[\w.-]*\d[\w.-]*({_DIGEST})?)")
_POD_ADDRESSES = ("10.244.1.2:5000", "100.64.3.210:5000", "[fd00:10:244::5]:5000")
"""By these Prometheus comes, on clusters of each kind."""
_OF_OTHERS = (
    "evil.example:5000",
    "10.evil.example:5000",
    "172.evil.example",
    "192.168.evil.example:5000",
)
"""Names that a page of somebody else's may have lead to a pod (DNS rebinding)."""
_DRAIN = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"


def dockerfile() -> str:
    return (ROOT / "Dockerfile").read_text()


def parsed(command: Sequence[str]) -> Any:
    """A job's validated config; raises `ConfigError`, or `SystemExit` for unknown flags."""
    assert list(command[:2]) == ["python", "-m"], command
    return _parsed(tuple(command))


@functools.cache
def _parsed(command: tuple[str, ...]) -> Any:
    hints = typing.get_type_hints(importlib.import_module(command[2]).main)
    config_type = hints["config"]
    values, _ = parse_flags(config_type, command[3:], command[2])
    return validate(config_type, values)


def command_of(rayjob: Object) -> list[str]:
    """What it runs, without the shell around it."""
    return shlex.split(rayjob["spec"]["entrypoint"].removeprefix("exec "))


def entrypoints(objects: Sequence[Object]) -> Iterator[str]:
    """Each command line is one that its job understands, and fits the pods around it."""
    understood = True
    for where, command in _commands(objects):
        try:
            config = parsed(command)
            if isinstance(config, SubmitConfig):
                command = list(config.command)
                config = parsed(command)
        except (ConfigError, SystemExit, ModuleNotFoundError, AttributeError) as error:
            yield f"{where}: {shlex.join(command)}: {error}"
            understood = False
            continue
        if command[2] in ("jobs.encode", "jobs.pack") and config.bad_fraction < 1:
            yield f"{where}: without --bad-fraction 1 a finished job would be run again"
    for job in of_kind(objects, *RAY):
        yield from (f"{called(job)}: {broken}" for broken in broken_rules(job))
        yield from _drains(job)
        if understood and job["kind"] == "RayJob":
            yield from _sizes(job)


def images(objects: Sequence[Object]) -> Iterator[str]:
    """Ours have the version of pyproject.toml and the user of the Dockerfile; others are pinned."""
    (user,) = re.findall(r"^USER (\d+):(\d+)$", dockerfile(), flags=re.M)
    for pod in every_pod(objects):
        for container in pod.containers:
            image, where = container["image"], f"{pod.owner}/{container['name']}"
            if image.split(":")[0].endswith("vae-pipeline"):
                if image not in OURS:
                    yield f"{where}: {image} is none that the Dockerfile makes ({OURS})"
                context = pod.spec["securityContext"]
                if (str(context["runAsUser"]), str(context["runAsGroup"])) != user:
                    yield f"{where}: runs as another user than the image's"
            elif not _PINNED.fullmatch(image):
                yield f"{where}: {image} is not pinned"


def pools(objects: Sequence[Object]) -> Iterator[str]:
    """CUDA where there are GPUs and nowhere else; what needs none gets no node that has some."""
    by_owner = {pod.owner: pod for pod in every_pod(objects)}
    for owner, pod in by_owner.items():
        for container in pod.containers:
            gpus = GPU in container.get("resources", {}).get("limits", {})
            if gpus != container["image"].endswith("-gpu"):
                yield f"{owner}/{container['name']}: {container['image']} on {gpus or 'no'} GPU"
    for owner, pod in by_owner.items():
        tolerated = pod.spec.get("tolerations", [])
        if not all(each.get("key") for each in tolerated):
            yield f"{owner}: tolerates every node, also those that are to be left"
        if owner.endswith("/head") and tolerated:
            yield f"{owner}: a driver may land on nodes that are kept for others, or taken away"
        if pod.spec.get("priorityClassName", "").startswith("system-"):
            yield f"{owner}: pushes out what a cluster needs"
    worker = by_owner.get("RayJobTemplate/cpu/workers")
    if worker is not None and any(GPU in str(each) for each in (worker.spec, worker.labels)):
        yield "RayJobTemplate/cpu: asks for GPUs, or may take their nodes"


def addresses(objects: Sequence[Object]) -> Iterator[str]:
    """Each http://NAME:PORT that a pod is told is a service's."""
    have = {
        f"{service['metadata']['name']}:{port['port']}"
        for service in of_kind(objects, "Service")
        for port in service["spec"]["ports"]
    }
    for where, text in _told(objects):
        for address in re.findall(r"http://([^/\s]+)", text):
            if address not in have:
                yield f"{where}: there is no service {address}"


def nightly(objects: Sequence[Object]) -> Iterator[str]:
    """The night's steps work on the same dataset and store, and nights never overlap."""
    job = find(objects, "CronJob", "nightly")
    spec = job["spec"]
    if spec.get("concurrencyPolicy") != "Forbid":
        yield "CronJob/nightly: two nights may overlap"
    for key in ("startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"):
        if key not in spec:
            yield f"CronJob/nightly: {key} is missing"
    longest = spec["jobTemplate"]["spec"].get("activeDeadlineSeconds", 24 * 3600)
    if spec.get("startingDeadlineSeconds", 0) + longest >= 24 * 3600:
        yield "CronJob/nightly: a night that begins late may last until the next one"
    policy = spec["jobTemplate"]["spec"]["podFailurePolicy"]["rules"]
    final = [rule["onExitCodes"]["values"] for rule in policy if rule["action"] == "FailJob"]
    # Wrong usage stays wrong, and what was stopped was meant to end (exit codes of jobs.submit).
    if final != [[2, 5]]:
        yield f"CronJob/nightly: exit codes {final} end the night, not 2 and 5"
    (pod,) = every_pod([job])
    steps = {each["name"]: each for each in pod.containers}
    if list(steps) != ["append", "encode", "verify"]:
        yield f"CronJob/nightly: its steps are {list(steps)}"
        return
    submitted = parsed(["python", "-m", "jobs.submit", *steps["encode"]["args"][1:]])
    assert isinstance(submitted, SubmitConfig)
    pack = parsed(["python", "-m", "jobs.pack", *steps["append"]["args"][1:]])
    encode = parsed(submitted.command)
    verify = parsed(["python", "-m", "jobs.verify", *steps["verify"]["args"][1:]])
    if encode.data not in (pack.output, f"{pack.output}/train"):
        yield f"CronJob/nightly: packs {pack.output}, encodes {encode.data}"
    if verify.store != encode.output:
        yield f"CronJob/nightly: encodes {encode.output}, verifies {verify.store}"


def tracking(objects: Sequence[Object]) -> Iterator[str]:
    """MLflow answers to the name that the jobs call it by; Prometheus finds the run's port."""
    uri = find(objects, "ConfigMap", "pipeline-settings")["data"]["MLFLOW_TRACKING_URI"]
    (container,) = find(objects, "Deployment", "mlflow")["spec"]["template"]["spec"]["containers"]
    (allowed,) = [a for a in container["args"] if a.startswith("--allowed-hosts=")]
    hosts = allowed.partition("=")[2].split(",")
    namespace = find(objects, "Deployment", "mlflow")["metadata"]["namespace"]
    names = (f"mlflow.{namespace}.svc:5000", f"mlflow.{namespace}.svc.cluster.local:5000")
    for host in (uri.removeprefix("http://"), *names, *_POD_ADDRESSES):
        if not _answers(hosts, host):
            yield f"Deployment/mlflow: answers 403 to those who call it {host}"
    for host in _OF_OTHERS:
        if _answers(hosts, host):
            yield f"Deployment/mlflow: answers those who call it {host}, a name of somebody else"
    users = configparser.ConfigParser()
    users.read_string(find(objects, "ConfigMap", "mlflow-authentication")["data"]["basic_auth.ini"])
    if users["mlflow"]["default_permission"] != "READ":
        yield "ConfigMap/mlflow-authentication: whoever has a password may change what others made"
    if f"--port={container['ports'][0]['containerPort']}" not in container["args"]:
        yield "Deployment/mlflow: listens on another port than it declares"
    for job, command in _on_ray(objects):
        config = parsed(command)
        head = next(pod for pod in every_pod([job]) if pod.owner.endswith("/head"))
        if config.tracking.metrics_port != head.port_of("run-metrics"):
            yield f"{called(job)}: serves /metrics on another port than its head declares"
        if config.tracking.metrics_host != "0.0.0.0":
            yield f"{called(job)}: serves /metrics where Prometheus can't reach it"


def _answers(allowed: Sequence[str], host: str) -> bool:
    """is_allowed_host_header in MLflow's security_utils.py."""
    return any(fnmatch.fnmatch(host, a) if "*" in a else host == a for a in allowed)


def _on_ray(objects: Sequence[Object]) -> Iterator[tuple[Object, Sequence[str]]]:
    """Each job that runs on Ray, with its command; the night's as it is submitted."""
    for job in of_kind(objects, "RayJob"):
        yield job, command_of(job)
    (pod,) = every_pod([find(objects, "CronJob", "nightly")])
    for step in pod.containers:
        if step["args"][0] == "submit":
            config = parsed(["python", "-m", "jobs.submit", *step["args"][1:]])
            yield find(objects, "RayJobTemplate", "encode"), config.command


def _commands(objects: Sequence[Object]) -> Iterator[tuple[str, list[str]]]:
    for job in of_kind(objects, "RayJob"):
        yield called(job), command_of(job)
    for pod in every_pod(objects):
        for container in pod.containers:
            ours = container["image"].split(":")[0].endswith("vae-pipeline")
            # KubeRay starts its own pods; a `command` replaces the image's entry.
            if ours and "RayJob" not in pod.owner and "command" not in container:
                name, *arguments = container["args"]
                where = f"{pod.owner}/{container['name']}"
                yield where, ["python", "-m", f"jobs.{name}", *arguments]


def _told(objects: Sequence[Object]) -> Iterator[tuple[str, str]]:
    for item in of_kind(objects, "ConfigMap"):
        if item["metadata"]["name"] == "pipeline-settings":
            yield called(item), "\n".join(item["data"].values())
    for job in of_kind(objects, "RayJob"):
        yield called(job), job["spec"]["entrypoint"]
    for pod in every_pod(objects):
        for container in pod.containers:
            yield pod.owner, "\n".join(container.get("args", []))
            for variable in container.get("env", []):
                yield pod.owner, variable.get("value", "")


def _sizes(job: Object) -> Iterator[str]:
    """As many ranks or actors as there is room for, once all pods are there."""
    config = parsed(command_of(job))
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    gpus = int(limits.get(GPU, 0))
    if isinstance(config, TrainConfig):
        each = gpus or int(group["rayStartParams"].get("num-cpus", 0))
        room = group["replicas"] * each, group["maxReplicas"] * each
        if (config.min_workers, config.max_workers) != room:
            yield f"{called(job)}: {config.workers} workers, and room for {room}"
        scales = job["spec"]["rayClusterSpec"].get("enableInTreeAutoscaling", False)
        if scales != (config.min_workers < config.max_workers):
            yield f"{called(job)}: DDP has one size, unless it is elastic"
    if isinstance(config, EncodeConfig):
        by_cores = int(int(limits["cpu"]) // config.cores)
        each = min(by_cores, int(gpus // config.gpus)) if config.gpus else by_cores
        if not each or config.actors > group["maxReplicas"] * each:
            yield f"{called(job)}: no room for {config.actors} actors"
    if (config.gpus if isinstance(config, EncodeConfig) else gpus) and not gpus:
        yield f"{called(job)}: asks for GPUs that its pods do not have"
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]
    if head["rayStartParams"].get("num-cpus") != "0":
        yield f"{called(job)}: its head would work"


def _drains(job: Object) -> Iterator[str]:
    for pod in every_pod([job]):
        drain = _variable(pod, _DRAIN)
        if drain is None or not int(drain) < pod.spec["terminationGracePeriodSeconds"]:
            yield f"{pod.owner}: is killed while it drains"
        memory = [v for v in pod.spec["volumes"] if v.get("emptyDir", {}).get("medium")]
        mounts = {m["mountPath"]: m["name"] for m in pod.spec["containers"][0]["volumeMounts"]}
        if mounts.get("/dev/shm") not in [volume["name"] for volume in memory]:
            yield f"{pod.owner}: /dev/shm is not memory of its own"


def _variable(pod: Pod, name: str) -> str | None:
    for variable in pod.spec["containers"][0].get("env", []):
        if variable["name"] == name:
            return str(variable["value"])
    return None
