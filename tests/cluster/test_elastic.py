"""A training that grows, shrinks, or is preempted by Kueue, and has the bits of a calm one.

The calm one is one process on this machine. Without a hold-out: looks at one add up in the order
of their world.
"""

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.conftest import fresh_cluster, written
from tests.cluster.submitting import Submitter, template
from tests.cluster.test_faults import DRAINED, WORKERS, Told, change, name, same
from tests.cluster.training import Training, client, open_s3, put_below
from tests.servers.cluster.box import until
from tests.servers.cluster.cluster import Cluster
from tests.servers.cluster.operators import start_kueue
from tests.support import warm
from tests.support.packed_digits import write_digits

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
EVERY = 10
TRAIN = (
    "--data", "s3://datasets/digits", "--image-size", "8", "--channels", "1",
    "--model.kind", "mlp", "--global-batch-size", "96", "--exact", "--micro-batch-size", "16",
    "--transform", "tests.cluster.slow:rest", "--no-register",
    "--checkpoint-every", str(EVERY),
)  # fmt: skip
SEAT = "test/seat"
"""A worker takes one: a node has as many as the test says, whatever else runs there."""


@pytest.fixture(scope="module")
def room(can_start: None) -> Iterator[Cluster]:
    """All of overlays/dev, and seats for two workers on the second node."""
    with fresh_cluster() as found:
        for step in ("kubectl create namespace vae", "kubectl apply -k"):
            found.bash(written(step))
        head = "/spec/rayClusterSpec/headGroupSpec/template/spec/nodeSelector"
        change(found, head, {"kubernetes.io/hostname": "node1"})
        resources = f"{WORKERS}/containers/0/resources"
        change(found, f"{resources}/requests/cpu", "200m")
        for amounts in ("requests", "limits"):
            change(found, f"{resources}/{amounts}/test~1seat", "1")
        give_seats(found, "node2", 2)
        yield found


def give_seats(cluster: Cluster, node: str, seats: int) -> None:
    """As a device plugin says what a node has."""
    given = json.dumps({"status": {"capacity": {SEAT: str(seats)}}})
    cluster.kubectl("patch", "node", node, "--subresource=status", "--type=merge", "-p", given)


@pytest.fixture(scope="module")
def user(room: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Submitter:
    """With the Role, and S3, in which the digits lie."""
    for workload in ("deployment/s3", "deployment/mlflow"):
        room.kubectl("-n", "vae", "rollout", "status", workload, "--timeout=180s")
    storage = open_s3(room)
    put_below(storage, "digits", write_digits(tmp_path_factory.mktemp("digits"), holdout=0).parent)
    return Submitter.bound(room, "elastic", tmp_path_factory.mktemp("elastic"), storage)


@pytest.fixture
def calm(user: Submitter, tmp_path: Path) -> Callable[..., Any]:
    """The result of the same training in one process, which nobody disturbs."""

    def trained(*flags: str) -> Any:
        words = (*TRAIN, *flags, "--workers", "0", "--storage", str(tmp_path))
        done = warm.run(tmp_path, "jobs.train", *words, **user.storage)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return trained


def begun(user: Submitter, *flags: str, submit: tuple[str, ...] = ()) -> Training:
    """A training with these flags, of which the first two are `--run NAME`."""
    job = ("python", "-m", "jobs.train", "--storage", "s3://runs/train", *TRAIN, *flags)
    followed = user.submits(*submit, "--", *job)
    return Training(
        user.cluster, flags[1], followed.process, followed.stderr, client(user.storage), EVERY
    )


def ends_as(run: Training, calm: Callable[..., Any], flags: tuple[str, ...]) -> None:
    """Its steps take no time any more, and at its end it is like the other one."""
    run.hurries()
    undisturbed = calm(*flags)
    code, end = run.result()
    assert (code, end["status"]) == (0, "SUCCEEDED"), run.said()
    assert same(end["result"], undisturbed)


def test_a_training_grows_when_a_node_comes_and_shrinks_when_it_is_drained(
    room: Cluster, user: Submitter, calm: Callable[..., Any]
) -> None:
    flags, told = ("--run", "elastic", "--steps", "900"), Told()
    run = begun(user, *flags, "--workers", "2..3")
    try:
        run.goes_on(0)
        assert (run.groups(2), run.groups(3)) == (1, 0)
        began = time.monotonic()
        room.add_node(3)
        give_seats(room, "node3", 1)
        until(lambda: run.groups(3) == 1, "a group of three", 240)
        run.goes_on()
        assert sorted(pod["spec"]["nodeName"] for pod in run.pods("worker")) == [
            "node2", "node2", "node3",
        ]  # fmt: skip
        told.note("a node comes, to a training of 2..3 workers", "it goes on with three", began)
        began = time.monotonic()
        room.kubectl("drain", "node3", *DRAINED)
        left = run.left()
        assert left in run.checkpoints()
        until(lambda: run.groups(2) == 2, "a group of two", 240)
        run.goes_on()
        seen = f"a checkpoint at step {left}; it goes on with two"
        told.note("that node is drained", seen, began)
        ends_as(run, calm, flags)
    finally:
        run.end()
        room.kubectl("-n", "vae", "delete", "rayjob", "train-elastic", "--wait=false")
    assert run.made_by(3) > EVERY
    assert run.made_by(2) + run.made_by(3) == 900
    told.write()


KUEUE = "kueue.x-k8s.io/v1beta2"
QUOTA = {"cpu": "1200m", "memory": "64Gi", "ephemeral-storage": "1Ti", SEAT: "2"}
QUEUE: list[dict[str, Any]] = [
    {"apiVersion": KUEUE, "kind": "ResourceFlavor", "metadata": {"name": "any"}},
    {"apiVersion": KUEUE, "kind": "ClusterQueue", "metadata": {"name": "shared"}, "spec": {
        "namespaceSelector": {},
        "preemption": {"withinClusterQueue": "LowerPriority"},
        "resourceGroups": [{
            "coveredResources": list(QUOTA),
            "flavors": [{"name": "any", "resources": [
                {"name": each, "nominalQuota": amount} for each, amount in QUOTA.items()
            ]}],
        }],
    }},
    {"apiVersion": KUEUE, "kind": "LocalQueue", "metadata": {"name": "shared", "namespace": "vae"},
     "spec": {"clusterQueue": "shared"}},
    {"apiVersion": KUEUE, "kind": "WorkloadPriorityClass", "metadata": {"name": "patient"},
     "value": 1},
    {"apiVersion": KUEUE, "kind": "WorkloadPriorityClass", "metadata": {"name": "urgent"},
     "value": 100},
]  # fmt: skip


def ask_for_one_pod(spec: Any) -> None:
    """Of a job in a queue, which asks for all that its template allows."""
    (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    group["maxReplicas"] = 1


def preempted(cluster: Cluster, job: str) -> bool:
    """Whether Kueue says so of the Workload of a RayJob."""
    label = f"kueue.x-k8s.io/job-uid={cluster.get('rayjob', job)['metadata']['uid']}"
    (workload,) = cluster.items("workloads.kueue.x-k8s.io", label)
    conditions = {each["type"]: each for each in workload["status"]["conditions"]}
    found = conditions.get("Preempted", {"status": "False"})
    return (found["status"], found.get("reason")) == ("True", "InClusterQueue")


def test_a_training_that_kueue_preempts_says_so_and_goes_on_from_where_it_was(
    room: Cluster, user: Submitter, calm: Callable[..., Any]
) -> None:
    start_kueue(room)
    room.apply(QUEUE)
    template(room, "one-pod", ask_for_one_pod)
    flags, told = ("--run", "preempted", "--steps", "300"), Told()
    run = begun(
        user, *flags, "--workers", "2", submit=("--queue", "shared", "--priority", "patient")
    )
    try:
        run.goes_on(0)
        began, workers = time.monotonic(), [name(pod) for pod in run.pods("worker")]
        urgent = user.submits(
            "--id", "urgent", "--pool", "one-pod", "--queue", "shared", "--priority", "urgent",
            "--", "python", "-c", "import time; time.sleep(45)",
        )  # fmt: skip
        until(lambda: preempted(room, "train-preempted"), "its preemption", 60)
        until(
            lambda: all(room.find("pod", each) is None for each in workers), "its workers' end", 150
        )
        gone = time.monotonic() - began
        left = run.left()
        assert left == run.newest() > 0
        said = "queue shared: Preempted to accommodate a workload .*due to prioritization"
        until(lambda: re.search(f"train-preempted waits: {said}", run.said()), "the reason", 60)
        code, now, _ = user.asks("--status", "--id", "train-preempted")
        assert (code, now["status"]) == (0, "SUSPENDED")
        assert re.search(said, now["message"])
        assert run.newest() == left
        assert urgent.ends()[0] == 0
        run.goes_on(left)
        told.note(
            "preempted by Kueue, for a job of a higher priority",
            f"a checkpoint at step {left}, workers gone after {gone:.0f} s; on from there when the "
            "other has ended", began,
        )  # fmt: skip
        assert not preempted(room, "train-preempted")
        assert not room.get("rayjob", "train-preempted")["status"].get("failed")
        ends_as(run, calm, flags)
    finally:
        run.end()
    told.write()
