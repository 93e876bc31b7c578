"""One job as a RayJob: a copy of a template of k8s/base, the one source of such manifests.

In a cluster, the templates are the RayJobTemplates `train`, `encode` and `cpu`, as `kubectl
apply -k` left them, with that cluster's node selectors, tolerations and images; elsewhere, the
files. They are of a kind that no controller knows, so that neither KubeRay nor a queue can start
one.

What KubeRay or the API server refuses is theirs to say: the creation is tried by a server-side dry
run, and `ValidationFailed` ends a job. Here stands what neither of them would: see `_refuse`.
"""

import copy
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from pathlib import Path

import yaml

from pipeline import storage
from pipeline.errors import ConfigError
from pipeline.submission.kept_log import CONTAINER, VARIABLE
from pipeline.submission.objects import (
    QUEUE,
    ClusterSpec,
    Container,
    Metadata,
    PodSpec,
    RayJob,
    RayJobSpec,
    RayJobTemplate,
    WorkerGroup,
)
from pipeline.submission.place import Served

GPU = "nvidia.com/gpu"
NAME_CHARACTERS = 47
"""Of a RayJob's name at most: KubeRay appends to it, and would fail the job only once it is there.
MaxRayJobNameLength in its constant.go."""
OURS = "vae-pipeline.internal"
"""Of labels and annotations that k8s/ knows."""
SCALES = f"{OURS}/scales"
"""On heads with an autoscaler, which speaks with the API server."""
EXEC = "exec "
"""Ray starts a shell. When it stops a job, it waits until shell and driver are gone, and a driver
that outlives its shell stays as a zombie: for all of RAY_JOB_STOP_WAIT_TIME_S."""
_QUEUES = (QUEUE, "volcano.sh/queue-name", "kai.scheduler/queue")
_KUEUE_PRIORITY = "kueue.x-k8s.io/priority-class"
_RAY_PRIORITY = "ray.io/priority-class-name"
_RUN_A_MODEL = frozenset({"encode", "evaluate", "decode"})
_FILES = {"train": "train.yaml", "encode": "encode/encode.yaml", "cpu": "encode/encode.yaml"}
"""`cpu` is made of `encode` by k8s/base/cpu."""
_OF_ARGO_CD = frozenset({"app.kubernetes.io/instance", "argocd.argoproj.io/instance"})
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_BASE = Path(__file__).parents[2] / "k8s" / "base"


def pool_of(command: Sequence[str]) -> str:
    """The template whose copy `command` runs as, unless another one is asked for."""
    job = command[2].removeprefix("jobs.") if command[1:2] == ("-m",) and len(command) > 2 else ""
    return "train" if job == "train" else "encode" if job in _RUN_A_MODEL else "cpu"


def base_template(name: str) -> RayJobTemplate:
    """A template as k8s/base has it; raises `ConfigError` where only `pipeline` is installed."""
    if name not in _FILES:
        raise ConfigError(f"--pool {name}: k8s/base has {', '.join(_FILES)}.")
    path = _BASE / _FILES[name]
    try:
        template: RayJobTemplate = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}. The manifests come with source and image; elsewhere "
            "apply k8s/overlays to the cluster, whose own templates are then used."
        ) from None
    labels = template["metadata"].get("labels", {}) | {f"{OURS}/pool": name}
    template["metadata"] = {"name": name, "labels": labels}
    return template


@dataclass(frozen=True)
class Wishes:
    """What a submission asks for beyond its template; None leaves it as it is there.

    `workers` (ranks or actors) get a pod each, or as many pods as have a GPU for each; where there
    are `gpus`, one GPU each, up to `gpus_per_node` in a pod, with as many times the cores and the
    memory. A training that may begin with the `fewest` workers gets an autoscaler for the others.
    What it `serves` is written on its head, for Prometheus.
    """

    workers: int | None = None
    fewest: int | None = None
    gpus: int | None = None
    gpus_per_node: int = 8
    image: str | None = None
    queue: str | None = None
    priority: str | None = None
    deadline_hours: float | None = None
    retries: int | None = None
    namespace: str | None = None
    serves: Served | None = None


def render_rayjob(
    command: Sequence[str],
    *,
    name: str,
    template: RayJobTemplate | None = None,
    wishes: Wishes | None = None,
) -> RayJob:
    """A RayJob called `name` that runs `command`, ready to be created.

    `template` is a RayJobTemplate read from the cluster; None: the file. Raises `ConfigError` for
    what must not be made.
    """
    start = base_template(pool_of(command)) if template is None else template
    wishes = wishes or Wishes()
    # A copy is no part of what made the template: Argo CD prunes what bears its label.
    labels = {k: v for k, v in start["metadata"].get("labels", {}).items() if k not in _OF_ARGO_CD}
    metadata: Metadata = {"name": name, "labels": labels}
    if wishes.namespace is not None:
        metadata["namespace"] = wishes.namespace
    spec = copy.deepcopy(start["spec"])
    spec["entrypoint"] = f"{EXEC}{shlex.join(command)}"
    cluster = spec["rayClusterSpec"]
    if wishes.queue is not None:
        labels[queue_label(labels)] = wishes.queue
    _set_size(cluster, wishes)
    if QUEUE in labels:
        _fix_size(cluster)
    if not cluster.get("enableInTreeAutoscaling"):
        _take_autoscaler(cluster)
    _set_priority(cluster, labels, wishes.priority)
    if wishes.deadline_hours is not None:
        spec["activeDeadlineSeconds"] = ceil(3600 * wishes.deadline_hours)
    if wishes.retries is not None:
        spec["backoffLimit"] = wishes.retries
    if wishes.serves is not None:
        _write_on_head(cluster, {f"{OURS}/serves": "run-metrics"})
        head = cluster["headGroupSpec"]["template"].setdefault("metadata", {})
        said = {f"{OURS}/{wishes.serves.label}": wishes.serves.name}
        head["annotations"] = head.get("annotations", {}) | said
    if wishes.image is not None:
        for container in (each for pod in _pods(cluster) for each in _containers(pod)):
            container["image"] = wishes.image
    _name_log(cluster, name)
    _refuse(name, spec)
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": metadata, "spec": spec}


def queue_label(labels: Mapping[str, str]) -> str:
    """By what a job is queued, of what KubeRay works with: as the template says, else by Kueue."""
    return next((each for each in _QUEUES if each in labels), QUEUE)


def _set_priority(cluster: ClusterSpec, labels: dict[str, str], priority: str | None) -> None:
    if priority is None:
        return
    if QUEUE in labels:
        labels[_KUEUE_PRIORITY] = priority
        return
    labels[_RAY_PRIORITY] = priority  # What gang schedulers read.
    for pod in _pods(cluster):
        pod["priorityClassName"] = priority


def _pods(cluster: ClusterSpec) -> list[PodSpec]:
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def _containers(pod: PodSpec) -> list[Container]:
    return [*pod.get("initContainers", ()), *pod["containers"]]


def _write_on_head(cluster: ClusterSpec, labels: dict[str, str]) -> None:
    head = cluster["headGroupSpec"]["template"].setdefault("metadata", {})
    head["labels"] = head.get("labels", {}) | labels


def _take_autoscaler(cluster: ClusterSpec) -> None:
    """Without one, no policy needs to let the head speak with the API server."""
    cluster.pop("enableInTreeAutoscaling", None)
    cluster.pop("autoscalerOptions", None)
    cluster["headGroupSpec"]["template"].get("metadata", {}).get("labels", {}).pop(SCALES, None)


def _name_log(cluster: ClusterSpec, name: str) -> None:
    """Where the template keeps logs, this job's get a folder of its own."""
    for container in _containers(cluster["headGroupSpec"]["template"]["spec"]):
        for variable in container.get("env", ()) if container["name"] == CONTAINER else ():
            if variable["name"] == VARIABLE and "value" in variable:
                variable["value"] = storage.join(variable["value"], name)


def _refuse(name: str, spec: RayJobSpec) -> None:
    """Raises `ConfigError` for what a server would take, and ends badly."""
    if len(name) > NAME_CHARACTERS or not _NAME.fullmatch(name):
        raise ConfigError(
            f"the RayJob's name {name!r}: give at most {NAME_CHARACTERS} lower-case letters, "
            "digits and -, beginning with a letter"
        )
    if spec.get("submissionMode") != "HTTPMode":
        raise ConfigError(
            "the template's submissionMode is not HTTPMode: the others take the end of a log "
            "stream for the job's (kuberay#4921). Apply the overlay again."
        )
    if spec["rayClusterSpec"].get("authOptions", {}).get("mode") != "token":
        raise ConfigError(
            "the template's authOptions.mode is not token: anyone who reaches the dashboard could "
            "run code. Apply the overlay again."
        )


def _set_size(cluster: ClusterSpec, wishes: Wishes) -> None:
    (group,) = cluster["workerGroupSpecs"]
    if wishes.gpus:
        if wishes.workers is not None and wishes.workers != wishes.gpus:
            raise ConfigError(
                f"{wishes.gpus} GPUs for {wishes.workers} workers: each worker uses one"
            )
        _set_gpus(group, wishes.gpus, wishes.gpus_per_node)
    elif wishes.workers:
        _set_pods(group, ceil(wishes.workers / _gpus_of(group)))
    if wishes.workers is None or wishes.fewest in (None, wishes.workers):
        return
    fewest = ceil((wishes.fewest or 0) / _gpus_of(group))
    if fewest < group["maxReplicas"]:
        # KubeRay begins once all pods that are asked for are there, so these are the fewest.
        cluster["enableInTreeAutoscaling"] = True
        group["replicas"] = group["minReplicas"] = fewest
        _write_on_head(cluster, {SCALES: "yes"})


def _set_pods(group: WorkerGroup, pods: int) -> None:
    """All of them, or, where the autoscaler decides, at most so many."""
    if group["minReplicas"] == group["maxReplicas"]:
        group["replicas"] = group["minReplicas"] = pods
    group["maxReplicas"] = pods


def _fix_size(cluster: ClusterSpec) -> None:
    """All pods from the start: Kueue admits what is asked for, and refuses an autoscaler."""
    cluster["enableInTreeAutoscaling"] = False
    (group,) = cluster["workerGroupSpecs"]
    group["replicas"] = group["minReplicas"] = group["maxReplicas"]


def _set_gpus(group: WorkerGroup, gpus: int, gpus_per_node: int) -> None:
    per_pod = min(gpus, gpus_per_node)
    if gpus % per_pod:
        raise ConfigError(f"{gpus} GPUs on nodes of {gpus_per_node}: give a multiple")
    _set_pods(group, gpus // per_pod)
    pod = group["template"]["spec"]
    container = pod["containers"][0]
    before = _gpus_of(group)
    resources = container["resources"]
    for amounts in (resources.get("requests", {}), resources["limits"]):
        for resource in ("cpu", "memory", "ephemeral-storage"):
            if resource in amounts:
                amounts[resource] = _times(amounts[resource], Fraction(per_pod, before))
    resources["limits"][GPU] = str(per_pod)
    for volume in pod["volumes"]:
        shared = volume.get("emptyDir", {})
        if shared.get("medium") == "Memory":
            shared["sizeLimit"] = _times(shared["sizeLimit"], Fraction(per_pod, before))
    # With one GPU for each rank, the cores need not say how many ranks fit.
    group["rayStartParams"].pop("num-cpus", None)


def _gpus_of(group: WorkerGroup) -> int:
    """GPUs of a pod; 1 where it has none."""
    container = group["template"]["spec"]["containers"][0]
    return int(container["resources"]["limits"].get(GPU, 1))


def _times(quantity: str | int, factor: Fraction) -> str:
    """Kubernetes' quantity, such as 8Gi, times `factor`, rounded up."""
    number, unit = re.fullmatch(r"(\d+)(\D*)", str(quantity)).groups()  # type: ignore[union-attr]
    return f"{ceil(int(number) * factor)}{unit}"
