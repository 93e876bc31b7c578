"""What a RayJob waits for: its queue, its cluster's conditions, its pods and their events."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.errors import ClusterError, ConfigError
from pipeline.submission.api_server import ApiServer
from pipeline.submission.objects import QUEUE, RAYJOBS, WORKLOADS, ClusterStatus, Condition, RayJob

_PASSING = frozenset({
    "", "Unknown", "HeadPodNotFound", "ContainerCreating", "PodInitializing", "ContainersNotReady",
})  # fmt: skip
"""Reasons that say no more than that it takes time."""


_FAILED_PROBES = 24
"""So many, each 5 s after the last, are more than a head's start takes."""


def why_waiting(server: ApiServer, name: str) -> str:
    """What stands in the way, in one line; "" if nothing is said to.

    Of one that runs, what pods that it has asked for wait for: it may do without them.
    """
    job = server.get(RAYJOBS, name)
    if job is None:
        return ""
    status = job.get("status") or {}
    if not status.get("jobDeploymentStatus") and not job["spec"].get("suspend"):
        return (
            "KubeRay has taken no notice of it yet. If that stays so, its operator is not up: "
            "kubectl -n kuberay-operator get pods"
        )
    if job["spec"].get("suspend") or status.get("jobDeploymentStatus") == "Suspended":
        return _of_queue(server, job)
    cluster = status.get("rayClusterStatus") or {}
    said = list(_of_cluster(cluster))
    unseen = []
    pods: list[Any] = []
    try:
        if status.get("rayClusterName"):
            pods = server.pods(f"ray.io/cluster={status['rayClusterName']}")
            said += _of_pods(pods)
    except ConfigError:
        unseen.append("its pods")
    runs = status.get("jobStatus") == "RUNNING"
    if not said and not runs:  # Events stay for an hour, of what has long been got over, too.
        names = {name, status.get("rayClusterName"), *(pod.metadata.name for pod in pods)}
        try:
            said += _of_events(server.warnings(), names)
        except ConfigError:
            unseen.append("events")
    wanted, ready = cluster.get("desiredWorkerReplicas"), cluster.get("readyWorkerReplicas", 0)
    if wanted and ready < wanted and (said or not runs):
        said.append(f"{ready} of {wanted} workers are ready")
    if unseen and len(said) < 2 and not runs:
        said.append(f"the Role may not read {' and '.join(unseen)}, which would say more")
    return "; ".join(said)


def _of_queue(server: ApiServer, job: RayJob) -> str:
    """What Kueue says of a job that it holds back."""
    queue = (job["metadata"].get("labels") or {}).get(QUEUE)
    if queue is None:
        return "it is suspended, and waits for whoever suspended it"
    for kind in WORKLOADS:
        try:
            found = server.objects(kind, f"kueue.x-k8s.io/job-uid={job['metadata']['uid']}")
        except ConfigError:
            return f"queue {queue}; the Role may not read its Workload, which says why"
        except ClusterError:
            continue  # Kueue is of another version, or not installed.
        for workload in found:
            listed = (workload.get("status") or {}).get("conditions", [])
            conditions: dict[str, Condition] = {each["type"]: each for each in listed}
            said = list(dict.fromkeys(_of_workload(conditions)))
            if said:
                return f"queue {queue}: {'; '.join(said)}"
        if found:
            return f"queue {queue}: Kueue has not said why"
    return f"queue {queue}, of which no Workload is there: is Kueue installed, and knows RayJobs?"


def _of_workload(conditions: Mapping[str, Condition]) -> Iterator[str]:
    """Why it was taken out, if it ran before, and why it is not let in."""
    evicted = conditions.get("Evicted")
    if evicted is not None and evicted["status"] == "True":
        # Kept until it is let in again; what is said of the quota soon hides it.
        yield _said(evicted)
    for step in ("QuotaReserved", "Admitted"):
        condition = conditions.get(step)
        if condition is not None and condition["status"] != "True":
            yield _said(condition)
            return


def _said(condition: Condition) -> str:
    return condition.get("message") or condition.get("reason", "")


def _of_cluster(cluster: ClusterStatus) -> Iterator[str]:
    """KubeRay's conditions: pods that it could not create, a head that is not ready."""
    for condition in cluster.get("conditions") or []:
        kind, is_true = condition["type"], condition["status"] == "True"
        bad = (kind == "ReplicaFailure" and is_true) or (kind == "HeadPodReady" and not is_true)
        if bad and condition.get("reason") not in _PASSING:
            # KubeRay tries again under another name each time, and it is the same reason.
            said = re.sub(r'pods "[^"]*" is', "a pod is", condition.get("message") or "")
            said = " ".join(said.removeprefix(condition["reason"]).split())
            what = "the head" if kind == "HeadPodReady" else "pods can't be made"
            yield f"{what}: {condition['reason']}: {said}".rstrip(": ")


def _of_pods(pods: Sequence[Any]) -> Iterator[str]:
    """What the scheduler and the kubelets say of pods that do not run."""
    counted = Counter(said for pod in pods if (said := _of_pod(pod)))
    for said, number in counted.items():
        yield f"{number} pod{'s' if number > 1 else ''}: {said}"


def _of_pod(pod: Any) -> str:
    for condition in pod.status.conditions or []:
        if condition.type == "PodScheduled" and condition.status != "True":
            return f"{condition.reason}: {condition.message or ''}".rstrip(": ")
    statuses = [*(pod.status.init_container_statuses or []), *(pod.status.container_statuses or [])]
    for container in statuses:
        waiting = container.state.waiting if container.state else None
        if waiting is not None and waiting.reason not in _PASSING:
            return f"{waiting.reason}: {waiting.message or container.image}"
    return ""


def _of_events(events: Sequence[Any], names: set[Any]) -> Iterator[str]:
    """The newest warning about one of these objects, such as a volume that can't be mounted."""
    ours = [
        event
        for event in events
        if event.involved_object.name in names
        and (event.reason != "Unhealthy" or (event.count or 0) >= _FAILED_PROBES)
        # Of KubeRay, which looks at a late copy of what is there: what it lacks, it has made.
        and not (event.message or "").endswith("already exists")
    ]
    if ours:
        newest = max(ours, key=lambda e: str(e.last_timestamp or e.event_time or ""))
        yield f"{newest.involved_object.kind} {newest.involved_object.name}: {newest.message}"
