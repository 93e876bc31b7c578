"""What goes away under a training of two workers on a real cluster; its weights stay the same.

All faults fall on one run, one after the other: each has to be got over before the next is made.
At the end it has the bits of the same training on one machine that nobody disturbed.
"""

import datetime
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.training import EVERY, Training, open_s3, put_below
from tests.servers.cluster.box import until
from tests.servers.cluster.cluster import Cluster
from tests.support.killing import finish, start_job
from tests.support.packed_digits import write_digits

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
STEPS = 6000
TRAIN = (
    "--data", "s3://datasets/digits/train", "--image-size", "8", "--channels", "1",
    "--model.kind", "mlp", "--global-batch-size", "96", "--exact", "--micro-batch-size", "16",
    "--transform", "tests.cluster.slow:pause", "--no-register", "--steps", str(STEPS),
    "--evaluate-every", "1000000", "--checkpoint-every", str(EVERY), "--max-failures", "20",
)  # fmt: skip
TABLE = Path(__file__).with_name("README.md")
WORKERS = "/spec/rayClusterSpec/workerGroupSpecs/0/template/spec"
OPERATOR = ("-n", "kuberay-operator", "scale", "deployment/kuberay-operator")
DRAINED = ("--ignore-daemonsets", "--delete-emptydir-data", "--timeout=170s")


@dataclass
class Told:
    """Rows of the table: what was done, what was seen, and how many seconds it took."""

    rows: dict[str, str] = field(default_factory=dict)

    def note(self, fault: str, seen: str, began: float) -> None:
        today = datetime.datetime.now(datetime.UTC).date()
        self.rows[fault] = f"| {fault} | {seen} | {time.monotonic() - began:.0f} | {today} |"
        print(self.rows[fault], flush=True)

    def write(self) -> None:
        """Into the table, in place of what an earlier run has seen."""
        kept = [
            line for line in TABLE.read_text().splitlines()
            if not any(line.startswith(f"| {fault} |") for fault in self.rows)
        ]  # fmt: skip
        TABLE.write_text("\n".join([*kept, *self.rows.values()]) + "\n")


@pytest.fixture(scope="module")
def told() -> Told:
    return Told()


@pytest.fixture(scope="module")
def storage(vae: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """How the host reaches S3, in which the digits lie."""
    for workload in ("deployment/s3", "deployment/mlflow"):
        vae.kubectl("-n", "vae", "rollout", "status", workload, "--timeout=180s")
    environment = open_s3(vae)
    put_below(environment, "digits", write_digits(tmp_path_factory.mktemp("digits")).parent)
    return environment


@pytest.fixture(scope="module")
def user(vae: Cluster) -> Path:
    vae.kubectl("-n", "vae", "create", "rolebinding", "faults", "--role=submitter", "--user=faults")
    return vae.kubeconfig("faults")


@pytest.fixture
def calm(
    storage: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Any]:
    """The result of the same training of that name, of two workers on the host alone."""
    for key, value in storage.items():
        monkeypatch.setenv(key, value)

    def trained(run: str) -> Any:
        # A pod's worker has one core; how many threads there are decides a sum's last bits. And a
        # look at the hold-out, which stands in the bundle, has other last bits in another world.
        words = ("--run", run, "--workers", "2", "--cpus-per-worker", "1")
        return finish(start_job(tmp_path, "jobs.train", *TRAIN, *words, "--storage", str(tmp_path)))

    return trained


def same(result: Any, calm: Any) -> bool:
    return (result["digest"], result["samples"]) == (calm["digest"], calm["samples"])


def change(cluster: Cluster, path: str, value: Any) -> None:
    """Of the template `train`, as a cluster's owner may."""
    op = "replace" if path.rpartition("/")[2].isdigit() else "add"
    patch = json.dumps([{"op": op, "path": path, "value": value}])
    cluster.kubectl("-n", "vae", "patch", "rayjobtemplate", "train", "--type=json", "-p", patch)


def make_small(cluster: Cluster) -> None:
    """Heads go to the first node; workers ask for little, and may write little."""
    head = "/spec/rayClusterSpec/headGroupSpec/template/spec/nodeSelector"
    change(cluster, head, {"kubernetes.io/hostname": "node1"})
    change(cluster, f"{WORKERS}/containers/0/resources/requests/cpu", "200m")
    change(cluster, f"{WORKERS}/volumes/0", {"name": "tmp", "emptyDir": {"sizeLimit": "200Mi"}})


@pytest.fixture(scope="module")
def run(
    vae: Cluster, storage: dict[str, str], user: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Training]:
    """A training of two workers that has left two checkpoints."""
    make_small(vae)
    folder = tmp_path_factory.mktemp("run")
    run = Training.start(vae, storage, folder, user, "--run", "faults", "--workers", "2", *TRAIN)
    try:
        run.goes_on(0)
        yield run
    finally:
        run.end()


def name(pod: Any) -> str:
    return str(pod["metadata"]["name"])


def kill(cluster: Cluster, pod: Any) -> None:
    cluster.kubectl("-n", "vae", "delete", "pod", name(pod), "--force", "--grace-period=0")


def on_node2(run: Training) -> list[str]:
    """Names of the workers on the node without a head; there is one afterwards."""
    workers = run.pods("worker")
    if "node2" not in [pod["spec"]["nodeName"] for pod in workers]:
        run.cluster.kubectl("cordon", "node1")
        kill(run.cluster, workers[0])
        run.goes_on()
        run.cluster.kubectl("uncordon", "node1")
    found = [name(pod) for pod in run.pods("worker") if pod["spec"]["nodeName"] == "node2"]
    assert found
    return found


def test_a_worker_pod_that_is_killed_is_replaced(run: Training, told: Told) -> None:
    began, victim = time.monotonic(), run.pods("worker")[0]
    kill(run.cluster, victim)
    run.goes_on()
    assert name(victim) not in map(name, run.pods("worker"))
    told.note("a worker pod killed", "another pod; the run goes on by itself", began)


def test_a_node_that_is_drained_leaves_a_checkpoint_within_its_grace(
    run: Training, told: Told
) -> None:
    on_node2(run)
    began = time.monotonic()
    run.cluster.kubectl("drain", "node2", *DRAINED)
    drained = time.monotonic() - began
    left = [step for step in run.checkpoints() if step % EVERY]
    assert left, run.checkpoints()
    assert drained < 150
    run.goes_on()
    assert {pod["spec"]["nodeName"] for pod in run.pods("worker")} == {"node1"}
    run.cluster.kubectl("uncordon", "node2")
    seen = f"a checkpoint at step {left[-1]}; the node is empty after {drained:.0f} s"
    told.note("a worker's node drained", seen, began)


def evict(cluster: Cluster, pod: str) -> str:
    """What the API server says to an eviction, as a dry run; nothing where it lets it pass."""
    eviction = {
        "apiVersion": "policy/v1", "kind": "Eviction",
        "metadata": {"name": pod, "namespace": "vae"}, "deleteOptions": {"dryRun": ["All"]},
    }  # fmt: skip
    path = f"/api/v1/namespaces/vae/pods/{pod}/eviction"
    done = cluster.try_kubectl("create", "--raw", path, "-f", "-", given=json.dumps(eviction))
    return done.stderr if done.returncode else ""


def test_a_head_that_is_ready_is_not_evicted_and_another_one_is(run: Training, told: Told) -> None:
    began, (head,) = time.monotonic(), run.pods("head")
    assert "Cannot evict pod" in evict(run.cluster, name(head))
    assert evict(run.cluster, name(run.pods("worker")[0])) == ""
    # By hand, for the moment until the kubelet says again what it sees.
    unready = {"status": {"conditions": [{"type": "Ready", "status": "False"}]}}
    run.cluster.kubectl("-n", "vae", "patch", "pod", name(head), "--subresource=status", "-p",
                        json.dumps(unready))  # fmt: skip
    assert evict(run.cluster, name(head)) == ""
    run.goes_on()
    seen = "refused by the PodDisruptionBudget while it is Ready, and else let through"
    told.note("a head evicted", seen, began)


def test_the_api_server_goes_and_comes(run: Training, told: Told) -> None:
    began, server = time.monotonic(), run.cluster.control.parts["kube-apiserver"]
    before = sorted(map(name, run.pods("head") + run.pods("worker")))
    server.kill()
    run.goes_on()
    server.start()
    until(run.cluster.control.is_ready, "the API server again", 60)
    run.goes_on()
    assert sorted(map(name, run.pods("head") + run.pods("worker"))) == before
    seen = "all pods stay, and train on meanwhile; the follower waits for it"
    told.note("the API server killed, and started again", seen, began)


def test_a_worker_that_takes_all_memory_starts_again(run: Training, told: Told) -> None:
    began, groups = time.monotonic(), run.groups(2)
    run.inside(run.pods("worker")[0], "touch", "/tmp/hungry")
    until(lambda: run.groups(2) > groups, "another group", 180)
    run.goes_on()
    told.note("a worker beyond its memory", "killed; the workers start again", began)


def test_a_worker_whose_disk_is_full_is_evicted_and_replaced(run: Training, told: Told) -> None:
    began, victim = time.monotonic(), run.pods("worker")[0]
    run.inside(victim, "sh", "-c", "head -c 300M /dev/zero > /tmp/fill")
    until(lambda: name(victim) not in map(name, run.pods("worker")), "its eviction", 120)
    events = run.cluster.kubectl("-n", "vae", "get", "events")
    assert 'Usage of EmptyDir volume "tmp" exceeds the limit "200Mi"' in events
    run.goes_on()
    told.note("a worker's emptyDir beyond its limit", "evicted, and replaced", began)


def test_storage_that_hangs_delays_a_checkpoint_and_no_more(run: Training, told: Told) -> None:
    began, step = time.monotonic(), run.newest()
    tell = ("-n", "vae", "exec", "deployment/s3", "-c", "s3", "--", "pkill")
    run.cluster.kubectl(*tell, "-STOP", "radosgw")
    time.sleep(60)
    assert run.newest() == 0
    run.cluster.kubectl(*tell, "-CONT", "radosgw")
    run.goes_on(step)
    told.note("storage that answers nothing for 60 s", "waited for; then it goes on", began)


def test_the_operator_is_away_while_a_worker_dies(run: Training, told: Told) -> None:
    began = time.monotonic()
    run.cluster.kubectl(*OPERATOR, "--replicas=0")
    kill(run.cluster, run.pods("worker")[0])
    time.sleep(300)
    assert len(run.pods("worker")) == 1
    step = run.newest()
    run.cluster.kubectl(*OPERATOR, "--replicas=1")
    run.goes_on(step)
    seen = "the run waits for its second worker, and goes on once the operator is back"
    told.note("the operator away for five minutes, a worker killed meanwhile", seen, began)


def test_a_node_that_is_lost_takes_its_workers_and_nothing_else(run: Training, told: Told) -> None:
    node, lost = run.cluster.nodes[2], on_node2(run)
    began = time.monotonic()
    node.power_off()
    run.cluster.wait("node", node.name, "condition=Ready=Unknown", seconds=90)
    # As a cloud's controller does with the object of a machine that it took back.
    run.cluster.kubectl("delete", "node", node.name)
    until(lambda: not set(lost) & set(map(name, run.pods("worker"))), "its pods to go", 180)
    run.goes_on()
    told.note("a worker's node lost, and its object deleted", "workers on another node", began)
    run.cluster.add_node(2)


def test_a_head_pod_that_is_killed_is_replaced_and_its_run_goes_on(
    run: Training, told: Told
) -> None:
    began, (head,) = time.monotonic(), run.pods("head")
    before = run.cluster.get("rayjob", "train-faults")["status"]["rayClusterName"]
    kill(run.cluster, head)
    time.sleep(3)
    run.goes_on()
    assert run.cluster.get("rayjob", "train-faults")["status"]["rayClusterName"] == before
    seen = "another one in the same RayCluster; on from the last checkpoint"
    told.note("the head pod killed", seen, began)


def test_a_head_that_is_deleted_by_itself_trains_on_for_its_drain(
    run: Training, told: Told
) -> None:
    began, (head,), step = time.monotonic(), run.pods("head"), run.newest()
    run.cluster.kubectl("-n", "vae", "delete", "pod", name(head), "--wait=false")
    until(lambda: run.cluster.find("pod", name(head)) is None, "the head's end", 200)
    lasted = time.monotonic() - began
    trained = run.newest()
    assert trained > step
    assert [each for each in run.checkpoints() if each > step and each % EVERY] == []
    assert 145 < lasted < 180
    run.goes_on()
    seen = f"trains on for {lasted:.0f} s, to step {trained}, which was due; then as a killed one"
    told.note("the head pod deleted", seen, began)


def test_the_run_has_the_bits_and_samples_of_one_that_nobody_disturbed(
    run: Training, told: Told, calm: Callable[[str], Any]
) -> None:
    run.hurries()
    code, end = run.result()
    assert (code, end["status"]) == (0, "SUCCEEDED"), run.said()
    assert same(end["result"], calm("faults"))
    told.write()
