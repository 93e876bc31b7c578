"""What KubeRay refuses although its schema allows it: no manifest of ours may break it.

From `validation.go` of KubeRay 1.7.0, as far as our RayJobs can break it, and what we add;
tests/cluster/test_rules.py hears KubeRay 1.6 itself. The product has no copy: there, a job that
KubeRay refuses ends with its own sentence.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

NAME_CHARACTERS = 47
"""Of a RayJob's name at most: KubeRay appends to it. MaxRayJobNameLength in constant.go."""

_GATED = ("networkPolicy", "tlsOptions", "historyServerOptions")


def broken_rules(rayjob: Mapping[str, Any]) -> list[str]:
    """One sentence for each rule that this RayJob breaks."""
    return [*_of_the_job(rayjob["metadata"]["name"], rayjob["spec"]), *_of_the_cluster(rayjob)]


def _of_the_job(name: str, spec: Mapping[str, Any]) -> Iterator[str]:
    if len(name) > NAME_CHARACTERS or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield (
            f"the RayJob's name {name!r}: give at most {NAME_CHARACTERS} lower-case letters, "
            "digits and -, beginning with a letter"
        )
    ends = spec.get("shutdownAfterJobFinishes", False)
    if spec.get("suspend") and not ends:
        yield "suspend needs shutdownAfterJobFinishes"
    if spec.get("ttlSecondsAfterFinished") and not ends:
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    if ends and "deletionStrategy" in spec:
        yield "deletionStrategy and shutdownAfterJobFinishes exclude each other"
    for key in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(key, 1) <= 0:
            yield f"{key} must be above 0"
    for key in ("backoffLimit", "ttlSecondsAfterFinished"):
        if spec.get(key, 0) < 0:
            yield f"{key} must not be below 0"
    if "clusterSelector" in spec and (spec.get("suspend") or spec.get("backoffLimit")):
        yield "clusterSelector allows neither suspend nor backoffLimit"
    if "clusterSelector" not in spec and "rayClusterSpec" not in spec:
        yield "rayClusterSpec is missing"
    if spec.get("submissionMode") != "HTTPMode":
        yield (
            "submissionMode is not HTTPMode: the others take the end of a log stream for the "
            "job's (kuberay#4921)"
        )


def _of_the_cluster(rayjob: Mapping[str, Any]) -> Iterator[str]:
    cluster = rayjob["spec"].get("rayClusterSpec", {})
    groups = cluster.get("workerGroupSpecs", [])
    scales = cluster.get("enableInTreeAutoscaling", False)
    for name, group in [("head", cluster.get("headGroupSpec", {})), *_named(groups)]:
        yield from _of_a_group(name, group)
    for name, group in _named(groups):
        low, high = group.get("minReplicas"), group.get("maxReplicas")
        if not scales and (low is None or high is None):
            # The API server would fill in its kind's default: any number of pods.
            yield f"{name}: without autoscaling, minReplicas and maxReplicas must be given"
        elif low is not None and high is not None and not 0 <= low <= high:
            yield f"{name}: minReplicas {low} and maxReplicas {high}"
    yield from _of_autoscaling(cluster, scales, is_template=rayjob.get("kind") != "RayJob")
    options = cluster.get("authOptions", {})
    version = tuple(int(part) for part in re.findall(r"\d+", cluster.get("rayVersion", "")))
    if options.get("mode") != "token":
        yield "authOptions.mode is not token: anyone who reaches the dashboard may run code"
    elif version < (2, 52):
        yield "authOptions.mode token needs a rayVersion of 2.52 or later"
    if options.get("enableK8sTokenAuth"):
        yield "authOptions.enableK8sTokenAuth is refused for RayJobs"
    for key in _GATED:
        if key in cluster:
            yield f"{key} needs a feature gate that is off by default"


def _of_a_group(name: str, group: Mapping[str, Any]) -> Iterator[str]:
    parameters = group.get("rayStartParams", {})
    if not group.get("template", {}).get("spec", {}).get("containers"):
        yield f"{name}: no container"
    if group.get("resources") and set(parameters) & {"num-cpus", "num-gpus", "memory", "resources"}:
        yield f"{name}: resources stand in rayStartParams as well as in the group"
    if "labels" in parameters:
        yield f"{name}: labels belong to the group, not to rayStartParams"


def _of_autoscaling(
    cluster: Mapping[str, Any], scales: bool, *, is_template: bool
) -> Iterator[str]:
    options = cluster.get("autoscalerOptions", {})
    if options and not scales and not is_template:
        yield "autoscalerOptions without enableInTreeAutoscaling say nothing"
    if options.get("idleTimeoutSeconds", 0) < 0:
        yield "autoscalerOptions.idleTimeoutSeconds must not be below 0"
    if not (scales and options.get("version") == "v2"):
        return
    head = ("head", cluster.get("headGroupSpec", {}))
    for name, group in [head, *_named(cluster.get("workerGroupSpecs", []))]:
        if group["template"]["spec"].get("restartPolicy", "Never") != "Never":
            yield f"{name}: the autoscaler v2 needs restartPolicy Never"
        if group.get("suspend"):
            yield f"{name}: a suspended group can't be scaled"


def _named(groups: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    return [(group.get("groupName", "?"), group) for group in groups]
