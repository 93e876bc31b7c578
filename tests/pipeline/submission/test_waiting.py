"""What a job waits for is said, wherever Kubernetes says it, with the submitter's own rights."""

from typing import Any

import pytest

from jobs.submit import main
from pipeline.config import SubmitConfig
from pipeline.submission import follower, narrator
from tests.support.rayjobs import RUNNING, SUCCEEDED, submit

CLUSTER = "first-x7k2p"


def initializing(*conditions: dict[str, Any], **cluster: Any) -> dict[str, Any]:
    """A RayJob's status while its cluster is made, as KubeRay 1.7 writes it."""
    return {
        "jobDeploymentStatus": "Initializing",
        "rayClusterName": CLUSTER,
        "rayClusterStatus": {"conditions": list(conditions), **cluster},
    }


def pod(name: str, cluster: str = CLUSTER, **status: Any) -> dict[str, Any]:
    return {
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {"name": name, "labels": {"ray.io/cluster": cluster}},
        "spec": {"containers": []}, "status": {"phase": "Pending", **status},
    }  # fmt: skip


def unscheduled(name: str, message: str) -> dict[str, Any]:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                 "message": message}  # fmt: skip
    return pod(name, conditions=[condition])


def without_image(name: str, reason: str, of: str = "containerStatuses") -> dict[str, Any]:
    waiting = {"reason": reason, "message": 'Back-off pulling image "nowhere:1"'}
    container = {"name": "ray", "ready": False, "restartCount": 0, "image": "nowhere:1",
                 "imageID": "", "state": {"waiting": waiting}}  # fmt: skip
    statuses: dict[str, Any] = {of: [container]}
    return pod(name, **statuses)


def event(about: str, message: str, at: str, kind: str = "Pod", **more: Any) -> dict[str, Any]:
    return {
        "kind": "Event", "apiVersion": "v1", "metadata": {"name": f"{about}.{at}"},
        "type": "Warning", "reason": "Failed", "message": message, "lastTimestamp": at,
        "involvedObject": {"kind": kind, "name": about}, **more,
    }  # fmt: skip


def reason(server: Any, status: dict[str, Any]) -> str:
    """What `--status` says of a job that is there."""
    if "first" not in server.objects:
        submit(detach=True)
    server.script["first"] = [status] * 3
    said = main(SubmitConfig(kubernetes=True, id="first", status=True))
    assert said.exit_code == 0
    return str(said.result["message"])


def test_a_head_without_an_image_is_told_by_the_clusters_own_condition(server: Any) -> None:
    condition = {
        "type": "HeadPodReady", "status": "False", "reason": "ImagePullBackOff",
        "message": 'Back-off pulling image "nowhere:1"',
    }  # fmt: skip
    said = reason(server, initializing(condition))
    assert said == 'the head: ImagePullBackOff: Back-off pulling image "nowhere:1"'


def test_pods_that_a_quota_refuses_are_told_by_the_clusters_own_condition(server: Any) -> None:
    condition = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreateWorkerPod",
                 "message": "exceeded quota: gpus"}  # fmt: skip
    assert "FailedCreateWorkerPod: exceeded quota: gpus" in reason(server, initializing(condition))


def test_a_reason_is_one_line_and_the_same_however_kuberay_names_the_pod(server: Any) -> None:
    """The message as KubeRay 1.6.2 wrote it on a cluster, with another name at each attempt."""
    said = set()
    for suffix in ("l2s48", "rzm95"):
        message = (
            f'FailedCreateHeadPod\npods "first-{suffix}" is forbidden: exceeded quota: crowded'
        )
        made = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreateHeadPod",
                "message": message}  # fmt: skip
        head = {"type": "HeadPodReady", "status": "False", "reason": "HeadPodNotFound",
                "message": "Head Pod not found"}  # fmt: skip
        said.add(reason(server, initializing(made, head)))
    assert said == {
        "pods can't be made: FailedCreateHeadPod: a pod is forbidden: exceeded quota: crowded"
    }


def test_a_head_that_begins_has_nothing_to_wait_for_and_one_that_never_does_has(
    server: Any,
) -> None:
    server.put(pod("head", conditions=[{"type": "PodScheduled", "status": "True"}]))
    at, said = "2026-01-01T00:00:00Z", "Readiness probe failed: connection refused"
    server.put(event("head", said, at, reason="Unhealthy", count=5))
    assert reason(server, initializing()) == ""
    server.put(event("head", said, at, reason="Unhealthy", count=60))
    assert reason(server, initializing()) == f"Pod head: {said}"


def test_what_kuberay_has_made_before_it_looked_is_nothing_to_wait_for(server: Any) -> None:
    """As KubeRay 1.6.2 said it on a cluster under load, of a RayCluster that was there."""
    said = f'Failed to create RayCluster vae/{CLUSTER}: "{CLUSTER}" already exists'
    server.put(event("first", said, "2026-01-01T00:00:00Z", kind="RayJob"))
    assert reason(server, initializing()) == ""
    said = f"Failed to create RayCluster vae/{CLUSTER}: exceeded quota: clusters"
    server.put(event("first", said, "2026-01-01T00:00:00Z", kind="RayJob"))
    assert reason(server, initializing()) == f"RayJob first: {said}"


def test_of_a_job_that_runs_its_pods_are_told_and_no_event_of_long_ago(server: Any) -> None:
    running = initializing(desiredWorkerReplicas=1, readyWorkerReplicas=0) | RUNNING
    server.put(pod("head", conditions=[{"type": "PodScheduled", "status": "True"}]))
    server.put(event("head", "Readiness probe failed", "2026-01-01T00:00:00Z"))
    assert reason(server, running) == ""
    server.put(unscheduled("w0", "0/3 nodes are available"))
    assert reason(server, running) == (
        "1 pod: Unschedulable: 0/3 nodes are available; 0 of 1 workers are ready"
    )


def test_an_operator_that_takes_no_notice_is_told(server: Any) -> None:
    assert "KubeRay has taken no notice of it yet" in reason(server, {})


def test_pods_for_which_no_node_has_room_are_counted(server: Any) -> None:
    for number in range(2):
        server.put(unscheduled(f"w{number}", "0/3 nodes are available: 3 Insufficient gpu."))
    server.put(pod("of-another", "other", conditions=[]))
    said = reason(server, initializing(desiredWorkerReplicas=3, readyWorkerReplicas=1))
    assert said == (
        "2 pods: Unschedulable: 0/3 nodes are available: 3 Insufficient gpu.; "
        "1 of 3 workers are ready"
    )


def test_a_container_that_only_takes_its_time_is_no_reason_and_a_missing_image_is(
    server: Any,
) -> None:
    server.put(without_image("w0", "ContainerCreating"))
    assert reason(server, initializing()) == ""
    server.put(without_image("w1", "ErrImagePull"))
    assert "1 pod: ErrImagePull" in reason(server, initializing())


def test_a_missing_image_of_what_a_head_starts_first_is_told(server: Any) -> None:
    """`job-log` is an init container: until it is there, no other one is looked at."""
    server.put(without_image("head", "ImagePullBackOff", of="initContainerStatuses"))
    assert "1 pod: ImagePullBackOff" in reason(server, initializing())


def test_a_volume_that_cannot_be_mounted_is_told_by_its_newest_event(server: Any) -> None:
    server.put(pod("w0", conditions=[{"type": "PodScheduled", "status": "True"}]))
    server.put(event("w0", "an older one", "2026-01-01T00:00:00Z"))
    server.put(event("w0", 'MountVolume.SetUp failed: configmap "ca" not found',
                     "2026-01-02T00:00:00Z"))  # fmt: skip
    server.put(event("of-another", "not ours", "2026-01-03T00:00:00Z"))
    said = reason(server, initializing())
    assert said == 'Pod w0: MountVolume.SetUp failed: configmap "ca" not found'


@pytest.mark.parametrize("right", ["pods", "events"])
def test_a_right_that_is_missing_for_it_costs_the_reason_not_the_status(
    server: Any, right: str
) -> None:
    server.rights[right] = []
    assert f"the Role may not read {'its ' * (right == 'pods')}{right}" in reason(
        server, initializing()
    )


def queued(server: Any, *conditions: dict[str, Any]) -> str:
    submit(detach=True)
    job = server.objects["first"]
    job["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "gpu"}
    if conditions:
        server.put({
            "kind": "Workload", "apiVersion": "kueue.x-k8s.io/v1beta2",
            "metadata": {
                "name": "w", "labels": {"kueue.x-k8s.io/job-uid": job["metadata"]["uid"]},
            },
            "status": {"conditions": list(conditions)},
        })  # fmt: skip
    return reason(server, {"jobDeploymentStatus": "Suspended"})


def test_a_queue_says_why_it_holds_a_job_back(server: Any) -> None:
    said = "couldn't assign flavors to pod set head: insufficient unused quota for nvidia.com/gpu"
    waits = {"type": "QuotaReserved", "status": "False", "reason": "Pending", "message": said}
    assert queued(server, waits) == f"queue gpu: {said}"


TAKEN = "Preempted to accommodate a workload (UID: 1, JobUID: 2) due to prioritization"
FULL = "couldn't assign flavors to pod set head: insufficient unused quota for cpu"


@pytest.mark.parametrize(
    ("is_out", "of_quota", "told"),
    [("True", TAKEN, TAKEN), ("True", FULL, f"{TAKEN}; {FULL}"), ("False", FULL, FULL)],
)
def test_a_queue_says_for_whom_it_took_a_job_out_and_why_it_is_not_let_in_again(
    server: Any, is_out: str, of_quota: str, told: str
) -> None:
    # As Kueue 0.17 writes it: at first the quota's condition repeats the other, and what was
    # taken out long ago stays there as False.
    evicted = {"type": "Evicted", "status": is_out, "reason": "Preempted", "message": TAKEN}
    pending = {"type": "QuotaReserved", "status": "False", "reason": "Pending", "message": of_quota}
    assert queued(server, evicted, pending) == f"queue gpu: {told}"


def test_a_queue_that_nobody_serves_is_told(server: Any) -> None:
    assert "is Kueue installed" in queued(server)


def test_a_job_that_somebody_suspended_is_told(server: Any) -> None:
    assert "suspended" in reason(server, {"jobDeploymentStatus": "Suspended"})


def test_a_follower_says_within_a_minute_why_nothing_happens_and_says_it_once(
    server: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert narrator._WAIT_SECONDS <= 60
    # Of a job that runs for long: the look comes up to 15 s later.
    assert narrator._RUNNING_SECONDS + follower._LONGEST_PAUSE_SECONDS <= 60
    monkeypatch.setattr(narrator, "_WAIT_SECONDS", 0.2)
    monkeypatch.setattr(narrator, "_RUNNING_SECONDS", 0.2)
    server.put(unscheduled("w0", "0/3 nodes are available"))
    server.script["first"] = [initializing()] * 60 + [SUCCEEDED]
    with caplog.at_level("INFO"):
        assert submit().exit_code == 0
    assert caplog.text.count("first waits: 1 pod: Unschedulable: 0/3 nodes are available") == 1
