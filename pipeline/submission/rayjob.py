"""One job as a RayJob: a copy of a template of k8s/base, the one source of such manifests.

In a cluster, the templates are the RayJobTemplates `train` and `encode`, as `kubectl apply -k` left
them, with that cluster's node selectors, tolerations and images; elsewhere, the files. They are of
a kind that no controller knows, so that neither KubeRay nor a queue can start one.

What KubeRay or the API server refuses is theirs to say: the creation is tried by a server-side dry
run, and `ValidationFailed` ends a job. Here stands what neither of them would: see `_refuse`.
"""

import copy
import re
import shlex
from collections.abc import Sequence
from fractions import Fraction
from math import ceil
from pathlib import Path

import yaml

from pipeline.errors import ConfigError
from pipeline.submission.objects import (
    QUEUE,
    ClusterSpec,
    Metadata,
    RayJob,
    RayJobSpec,
    RayJobTemplate,
    WorkerGroup,
)

GPU = "nvidia.com/gpu"
NAME_CHARACTERS = 47
"""Of a RayJob's name at most: KubeRay appends to it, and would fail the job only once it is there.
MaxRayJobNameLength in its constant.go."""
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_BASE = Path(__file__).parents[2] / "k8s" / "base"


def template_name(command: Sequence[str]) -> str:
    """Whose copy `command` runs as: `train`, or `encode` for every other job."""
    return "train" if "jobs.train" in command else "encode"


def base_template(name: str) -> RayJobTemplate:
    """A template as k8s/base has it; raises `ConfigError` where only `pipeline` is installed."""
    path = _BASE / f"{name}.yaml"
    try:
        template: RayJobTemplate = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}. The manifests come with source and image; elsewhere "
            "apply k8s/overlays to the cluster, whose own templates are then used."
        ) from None
    return template


def render_rayjob(
    command: Sequence[str],
    *,
    name: str,
    template: RayJobTemplate | None = None,
    image: str | None = None,
    workers: int | None = None,
    gpus: int | None = None,
    gpus_per_node: int = 8,
    namespace: str | None = None,
) -> RayJob:
    """A RayJob called `name` that runs `command`, ready to be created.

    `template` is a RayJobTemplate read from the cluster; None: the file. `workers` (ranks or
    actors) get a pod each, or as many pods as have a GPU for each; where there are `gpus`, one GPU
    each, up to `gpus_per_node` in a pod, with as many times the cores and the memory. None leaves
    image, pods and GPUs as the template has them. Raises `ConfigError` for what must not be made.
    """
    start = base_template(template_name(command)) if template is None else template
    labels = dict(start["metadata"].get("labels", {}))
    metadata: Metadata = {"name": name, "labels": labels}
    if namespace is not None:
        metadata["namespace"] = namespace
    spec = copy.deepcopy(start["spec"])
    spec["entrypoint"] = shlex.join(command)
    cluster = spec["rayClusterSpec"]
    (group,) = cluster["workerGroupSpecs"]
    if gpus:
        if workers is not None and workers != gpus:
            raise ConfigError(f"{gpus} GPUs for {workers} workers: each worker uses one")
        _set_gpus(group, gpus, gpus_per_node)
    elif workers:
        _set_pods(group, ceil(workers / _gpus_of(group)))
    if QUEUE in labels:
        _fix_size(cluster, group)
    if image is not None:
        for each in (cluster["headGroupSpec"], group):
            each["template"]["spec"]["containers"][0]["image"] = image
    _refuse(name, spec)
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": metadata, "spec": spec}


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


def _set_pods(group: WorkerGroup, pods: int) -> None:
    """All of them, or, where the autoscaler decides, at most so many."""
    if group["minReplicas"] == group["maxReplicas"]:
        group["replicas"] = group["minReplicas"] = pods
    group["maxReplicas"] = pods


def _fix_size(cluster: ClusterSpec, group: WorkerGroup) -> None:
    """All pods from the start: Kueue admits what is asked for, and refuses an autoscaler."""
    cluster.pop("enableInTreeAutoscaling", None)
    cluster.pop("autoscalerOptions", None)
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
        for resource in ("cpu", "memory"):
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
