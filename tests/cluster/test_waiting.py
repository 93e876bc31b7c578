"""Why a job waits: each reason made for real, and told by the follower and by `--status`.

All wait at once, each as a copy of a template of its own; what they wait for is said by the API
server, the scheduler, the kubelet, KubeRay or Kueue themselves.
"""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.submitting import (
    Submission,
    Submitter,
    head_pod,
    operator_away,
    seconds_between,
    template,
)
from tests.servers.cluster.cluster import Cluster
from tests.servers.cluster.operators import start_kueue

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
NOTHING = ("--", "python", "-c", "print('ran')")
A_TASK = "import ray; ray.init(); ray.get(ray.remote(lambda: 1).remote()); print('ran')"

SENTENCES = {
    "no-node": "1 pod: Unschedulable: 0/2 nodes are available: .*node affinity/selector",
    "no-image": r"1 pod: (ErrImagePull|ImagePullBackOff): .*nowhere\.invalid/none:1",
    "no-claim": '1 pod: Unschedulable: .*persistentvolumeclaim "none" not found',
    "no-volume": "1 pod: Unschedulable: .*didn't find available persistent volumes to bind",
    "no-config": r'Pod \S+: MountVolume\.SetUp failed for volume "tmp" : configmap "none"',
    "no-priority": "pods can't be made: .*no PriorityClass with name nosuch was found",
    "not-admitted": "pods can't be made: .*violates PodSecurity \"restricted:latest\"",
    "no-quota": "pods can't be made: .*exceeded quota: crowded",
    "no-room-in-queue": "queue small: .*insufficient quota for cpu",
    "queue-on-hold": "queue held: LocalQueue held is inactive",
    "no-workers-image": r"[12] pods?: (ErrImagePull|ImagePullBackOff): .*nowhere\.invalid/none:1",
    "no-workers": "1 pod: Unschedulable: 0/2 nodes are available: .*node affinity/selector",
}  # fmt: skip
"""What the words of Kubernetes and Kueue are, behind `NAME waits: `."""


def volume(source: dict[str, Any]) -> Any:
    """A template's change: the head's /tmp comes from elsewhere."""

    def change(spec: Any) -> None:
        (tmp,) = [each for each in head_pod(spec)["volumes"] if each["name"] == "tmp"]
        del tmp["emptyDir"]
        tmp |= source

    return change


def unadmitted(spec: Any) -> None:
    del head_pod(spec)["securityContext"]


def nowhere(spec: Any) -> None:
    """For no node; an hour of patience is a minute here."""
    head_pod(spec)["nodeSelector"] = {"nowhere": "yes"}
    impatient(spec)


def impatient(spec: Any) -> None:
    spec["preRunningDeadlineSeconds"] = 60


def without_workers(spec: Any) -> None:
    (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    group["template"]["spec"]["nodeSelector"] = {"nowhere": "yes"}


def workers_of_no_image(spec: Any) -> None:
    (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    (worker,) = group["template"]["spec"]["containers"]
    worker["image"] = "nowhere.invalid/none:1"


CHANGES: dict[str, Any] = {
    "no-node": nowhere,
    "no-claim": volume({"persistentVolumeClaim": {"claimName": "none"}}),
    "no-volume": volume({"persistentVolumeClaim": {"claimName": "too-large"}}),
    "no-config": volume({"configMap": {"name": "none"}}),
    "not-admitted": unadmitted,
    "no-quota": lambda spec: head_pod(spec).update(priorityClassName="crowded"),
    "no-room-in-queue": impatient,
    "no-workers-image": workers_of_no_image,
    "no-workers": without_workers,
}
FLAGS = {
    "no-node": ("--retries", "1"),
    "no-image": ("--image", "nowhere.invalid/none:1"),
    "no-priority": ("--priority", "nosuch"),
    "no-room-in-queue": ("--queue", "small"),
    "queue-on-hold": ("--queue", "held"),
}


def queue(name: str, cores: str, **spec: Any) -> list[dict[str, Any]]:
    """A queue of the namespace whose jobs may take so much altogether."""
    quota = [{"name": "cpu", "nominalQuota": cores}, {"name": "memory", "nominalQuota": "64Gi"},
             {"name": "ephemeral-storage", "nominalQuota": "1Ti"}]  # fmt: skip
    version = "kueue.x-k8s.io/v1beta2"
    return [
        {"apiVersion": version, "kind": "ClusterQueue", "metadata": {"name": name}, "spec": {
            "namespaceSelector": {},
            "resourceGroups": [{
                "coveredResources": [each["name"] for each in quota],
                "flavors": [{"name": "any", "resources": quota}],
            }],
        }},
        {"apiVersion": version, "kind": "LocalQueue",
         "metadata": {"name": name, "namespace": "vae"}, "spec": {"clusterQueue": name, **spec}},
    ]  # fmt: skip


OBJECTS = [
    {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "ResourceFlavor", "metadata": {"name": "any"}},
    *queue("small", "0"),
    *queue("held", "8", stopPolicy="Hold"),
    {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
     "metadata": {"name": "crowded"}, "value": 1},
    {"apiVersion": "v1", "kind": "ResourceQuota",
     "metadata": {"name": "crowded", "namespace": "vae"},
     "spec": {"hard": {"pods": "0"}, "scopeSelector": {"matchExpressions": [
         {"scopeName": "PriorityClass", "operator": "In", "values": ["crowded"]}]}}},
    {"apiVersion": "v1", "kind": "PersistentVolumeClaim",
     "metadata": {"name": "too-large", "namespace": "vae"},
     "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Ti"}}}},
]  # fmt: skip


@pytest.fixture(scope="module")
def user(vae: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Submitter:
    return Submitter.bound(vae, "waiter", tmp_path_factory.mktemp("waiter"))


@pytest.fixture(scope="module")
def waiting(vae: Cluster, user: Submitter) -> Iterator[dict[str, Submission]]:
    """A follower for each reason."""
    start_kueue(vae)
    vae.apply(OBJECTS)
    found = {}
    for name in SENTENCES:
        of = "train" if name == "no-workers-image" else "cpu"
        pool = template(vae, name, CHANGES[name], of) if name in CHANGES else "cpu"
        command = ("--", "python", "-c", A_TASK) if name == "no-workers" else NOTHING
        found[name] = user.submits(
            "--pool", pool, "--id", name, *FLAGS.get(name, ("--retries", "0")), *command
        )
    yield found
    for name, submission in found.items():
        if submission.process.poll() is None:
            submission.process.kill()
        vae.try_kubectl("-n", "vae", "delete", "rayjob", name, "--wait=false")


@pytest.mark.parametrize("name", sorted(SENTENCES, key=lambda name: name == "no-workers"))
def test_what_a_job_waits_for_is_told_by_its_follower_within_a_minute(
    waiting: dict[str, Submission], name: str
) -> None:
    """Of its first sight of the job; where a job that runs asks for pods, of that."""
    begun = waiting[name].says(f"{name}: {'RUNNING' if name == 'no-workers' else '[A-Z]+'}")
    told = waiting[name].says(f"{name} waits: {SENTENCES[name]}")
    assert seconds_between(begun, told) <= 60, waiting[name].said


def test_it_goes_on_once_the_queue_has_room_however_long_it_waited(
    vae: Cluster, waiting: dict[str, Submission], user: Submitter
) -> None:
    """A try that finds no node ends after `preRunningDeadlineSeconds`, and is repeated as any is.

    What a queue holds back has the same deadline, and waits on.
    """
    follower = waiting["no-node"]
    follower.says("try 1 of 2 failed, and it is tried again: .*(PreRunning|Unschedulable)")
    code, ended = follower.ends()
    assert (code, ended["status"]) == (1, "FAILED")
    assert "PreRunningDeadlineExceeded" in ended["message"]
    assert "to the last it waited: 1 pod: Unschedulable" in ended["message"]
    assert vae.get("rayjob", "no-node")["status"]["failed"] == 2
    code, now, _ = user.asks("--status", "--id", "no-room-in-queue")
    assert (code, now["status"]) == (0, "SUSPENDED")
    assert "insufficient quota for cpu" in now["message"]
    vae.apply(queue("small", "8"))
    assert waiting["no-room-in-queue"].ends()[0] == 0


def test_status_says_of_a_running_job_what_its_pods_wait_for(
    waiting: dict[str, Submission], user: Submitter
) -> None:
    code, now, _ = user.asks("--status", "--id", "no-workers")
    assert (code, now["status"]) == (0, "RUNNING")
    assert "1 pod: Unschedulable" in now["message"]


def test_an_operator_that_is_away_is_told(vae: Cluster, user: Submitter) -> None:
    with operator_away(vae):
        follower = user.submits("--id", "no-operator", *NOTHING)
        begun = follower.says("no-operator: NEW")
        told = follower.says("no-operator waits: KubeRay has taken no notice of it yet")
        assert seconds_between(begun, told) <= 60
        assert follower.interrupt() == 130
        vae.kubectl("-n", "vae", "delete", "rayjob", "no-operator")
