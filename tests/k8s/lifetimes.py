"""How long things have to begin and to end, and what they leave. Checks yield what is wrong."""

import re
from collections.abc import Iterator, Sequence

from tests.k8s.manifests import Object, called, find, of_kind, pods

_FIRST_START_SECONDS = 120
"""PostgreSQL makes its files in it, and MLflow its tables, on a slow disk."""
_UNREACHABLE_SECONDS = 300
"""`for` of the alert VaeRunUnreachable: an endpoint that is gone for so long pages."""
_LAST_CHECKPOINT_SECONDS = 60
"""What a driver's workers need for it; Ray itself gives a stopped driver 3."""


def beginnings(objects: Sequence[Object]) -> Iterator[str]:
    """A probe that ends containers waits for the first start."""
    for pod in pods(objects):
        for container in pod.containers:
            probe = container.get("startupProbe")
            if probe is not None:
                seconds = probe.get("periodSeconds", 10) * probe.get("failureThreshold", 3)
                if seconds < _FIRST_START_SECONDS:
                    yield f"{pod.owner}: its first start may take no more than {seconds} s"
                asked = probe.get("exec", {}).get("command", ["", "--host"])
                if "--host" not in asked:
                    # docker-entrypoint.sh of the image `postgres`: initdb's server has no port.
                    yield f"{pod.owner}: {asked[0]} asks a socket, where initdb answers, too"


def outcomes(objects: Sequence[Object]) -> Iterator[str]:
    """What the Pushgateway was told outlives a kill; its own interval is five minutes."""
    (container,) = find(objects, "Deployment", "pushgateway")["spec"]["template"]["spec"][
        "containers"
    ]
    given = dict(each.split("=") for each in container["args"])
    mounts = [each["mountPath"] for each in container["volumeMounts"]]
    if not given.get("--persistence.file", "").startswith(tuple(f"{each}/" for each in mounts)):
        yield "Deployment/pushgateway: what it was told is on no volume"
    if not re.fullmatch(r"\ds", given.get("--persistence.interval", "5m")):
        yield "Deployment/pushgateway: a kill takes along what it was told for minutes"


def endings(objects: Sequence[Object]) -> Iterator[str]:
    """A deleted training's driver has time for a last checkpoint, and every head keeps its log."""
    for template in of_kind(objects, "RayJobTemplate"):
        head = template["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
        logs = [each for each in head.get("initContainers", []) if each["name"] == "job-log"]
        if [each.get("restartPolicy") for each in logs] != ["Always"]:
            yield f"{called(template)}: no job-log stays beside its head"
        if template["metadata"]["name"] == "train":
            (driver,) = head["containers"]
            given = {each["name"]: each.get("value") for each in driver["env"]}
            seconds = int(given.get("RAY_JOB_STOP_WAIT_TIME_S", 3))
            if not _LAST_CHECKPOINT_SECONDS <= seconds < head["terminationGracePeriodSeconds"]:
                yield f"{called(template)}: a stopped driver is killed after {seconds} s"


def tries(objects: Sequence[Object]) -> Iterator[str]:
    """How long a job's tries wait and stay, as k8s/README.md has it; none has an end by itself."""
    for template in of_kind(objects, "RayJobTemplate"):
        spec, name = template["spec"], called(template)
        if "activeDeadlineSeconds" in spec:
            yield f"{name}: each job of it would end by the clock (--deadline-hours: one job)"
        hours = (spec["backoffLimit"] + 1) * spec.get("preRunningDeadlineSeconds", 0) / 3600
        if hours != (4 if template["metadata"]["name"] == "train" else 3):
            yield f"{name}: gives up after {hours:g} hours of waiting"
        if not spec["shutdownAfterJobFinishes"]:
            yield f"{name}: its cluster stays"
        if not spec["ttlSecondsAfterFinished"] < _UNREACHABLE_SECONDS:
            yield f"{name}: an endpoint that is gone alerts while its cluster stays"


def kept(objects: Sequence[Object]) -> Iterator[str]:
    """No volume goes with the pods that wrote to it, and they can write to it."""
    for item in of_kind(objects, "StatefulSet"):
        if "Delete" in item["spec"].get("persistentVolumeClaimRetentionPolicy", {}).values():
            yield f"{called(item)}: its volume goes with its pods"
    for pod in pods(objects):
        context = pod.spec["securityContext"]
        if context.get("fsGroup") != context["runAsGroup"]:
            yield f"{pod.owner}: its volumes are another group's"


def budgets(objects: Sequence[Object]) -> Iterator[str]:
    """A RayCluster's pods can't be counted: a budget that wants some is missed for ever."""
    for budget in of_kind(objects, "PodDisruptionBudget"):
        if "minAvailable" in budget["spec"]:
            yield f"{called(budget)}: minAvailable lets heads go, and alerts where there are none"


def command_lines(objects: Sequence[Object]) -> Iterator[str]:
    """Whoever sees a process sees its arguments: no secret is among them."""
    for pod in pods(objects):
        for container in pod.containers:
            secrets = [
                each["name"]
                for each in container.get("env", [])
                if "secretKeyRef" in each.get("valueFrom", {})
            ]
            words = [*container.get("command", []), *container.get("args", [])]
            for name in secrets:
                if any(f"$({name})" in word for word in words):
                    yield f"{pod.owner}/{container['name']}: {name} stands in its command line"
