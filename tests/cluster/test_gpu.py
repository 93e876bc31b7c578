"""The gpu overlay's pods on nodes of 8 GPUs: KubeRay makes them, the scheduler binds, Kueue holds.

The nodes are objects without a kubelet, so nothing starts there: what is seen is where pods go,
what they mount, and what holds them back.
"""

import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from jobs.submit import main
from pipeline.config import SubmitConfig
from pipeline.errors import ConfigError
from pipeline.submission.rayjob import Wishes, render_rayjob
from tests.cluster.conftest import K8S, written
from tests.cluster.paper_nodes import PaperNode, paper_nodes
from tests.cluster.test_objects import PROMETHEUS, add_prometheus_kinds, holders_of_tokens
from tests.k8s.manifests import build, find, of_kind
from tests.servers.cluster.box import until
from tests.servers.cluster.cluster import Cluster, cluster
from tests.servers.cluster.operators import add_kind, start_kuberay, start_kueue

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
# As nodes of 96 cores, 1152 GiB and 8 GPUs say it: system and kubelet keep some.
GPU_NODE = {
    "cpu": "95690m", "memory": "1176329836Ki", "ephemeral-storage": "900Gi", "pods": "110",
    "nvidia.com/gpu": "8",
}  # fmt: skip
CPU_NODE = {"cpu": "31850m", "memory": "122Gi", "ephemeral-storage": "200Gi", "pods": "110"}
TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
NODES = (
    PaperNode("gpus-a", GPU_NODE, (TAINT,)),
    PaperNode("gpus-b", GPU_NODE, (TAINT,)),
    PaperNode("cores", CPU_NODE),
)
TRAIN = (
    "python", "-m", "jobs.train", "--data", "s3://datasets/photos/train", "--run", "photos",
    "--storage", "s3://runs/train", "--steps", "100000", "--tracking.metrics", "0.0.0.0:9464",
)  # fmt: skip
ENCODE = (
    "python", "-m", "jobs.encode", "--model", "m", "--data", "s3://d/t", "--output", "s3://l/p",
    "--tracking.metrics", "0.0.0.0:9464",
)  # fmt: skip
PACK = ("python", "-m", "jobs.pack", "--source", "s3://archive/photos", "--output", "s3://d/p")


@pytest.fixture(scope="module")
def gpus(can_start: None) -> Iterator[Cluster]:
    """The overlay on a cluster whose only real node is kept free for the operators."""
    if not PROMETHEUS.exists():
        pytest.skip("the kinds of the Prometheus operator are not at hand")
    with cluster(nodes=1) as found:
        start_kuberay(found)
        start_kueue(found)
        found.kubectl("cordon", "node1")
        add_prometheus_kinds(found)
        add_kind(found, K8S / "templates.yaml", "rayjobtemplates")
        found.bash(written("kubectl create namespace vae"))
        found.kubectl("apply", "-k", str(K8S / "overlays/gpu"))
        found.kubectl(
            "-n", "vae", "create", "rolebinding", "alice", "--role=submitter", "--user=alice"
        )
        with paper_nodes(found, *NODES):
            yield found


@pytest.fixture(autouse=True)
def alice(gpus: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What runs in this process is a user with the Role; afterwards nothing of it is left."""
    monkeypatch.setenv("KUBECONFIG", str(gpus.kubeconfig("alice")))
    yield
    gpus.kubectl("-n", "vae", "delete", "rayjobs,rayclusters", "--all", "--wait=false")
    until(lambda: gpus.items("rayclusters") == [], "clusters to go", 60)
    # No kubelet says that they have ended.
    gpus.kubectl("-n", "vae", "delete", "pods", "-l", "ray.io/is-ray-node=yes", "--force")


def submit(*command: str, **more: Any) -> Any:
    return main(SubmitConfig(kubernetes=True, command=command, detach=True, **more)).result


def pods(found: Cluster, selector: str, count: int) -> list[Any]:
    """So many pods, once they are there and the scheduler has judged each."""

    def judged() -> bool:
        items = found.items("pods", selector)
        return len(items) == count and all(item["status"].get("conditions") for item in items)

    until(judged, f"{count} pods", 60)
    return found.items("pods", selector)


def places(items: list[Any]) -> list[str | None]:
    return sorted(item["spec"].get("nodeName") or "" for item in items)


HEADS, WORKERS = "ray.io/node-type=head", "ray.io/node-type=worker"


def test_a_training_of_two_nodes_fills_them_and_the_next_one_is_told_to_wait_for_gpus(
    gpus: Cluster,
) -> None:
    submit(*TRAIN, "--workers", "16", id="first")
    workers = pods(gpus, WORKERS, 2)
    assert places(workers) == ["gpus-a", "gpus-b"]
    assert places(pods(gpus, HEADS, 1)) == ["cores"]
    for worker in workers:
        limits = worker["spec"]["containers"][0]["resources"]["limits"]
        assert limits["nvidia.com/gpu"] == "8"
        assert worker["spec"]["containers"][0]["image"] == "vae-pipeline:0.1.0-gpu"
    submit(*TRAIN, "--workers", "8", id="second")
    pods(gpus, WORKERS, 3)
    config = SubmitConfig(kubernetes=True, id="second", status=True)

    def told() -> bool:
        return "Insufficient nvidia.com/gpu" in str(main(config).result)

    until(told, "the reason", 30)


def test_without_what_gpu_nodes_yaml_says_no_pod_goes_where_gpus_are(gpus: Cluster) -> None:
    template: Any = find(build("gpu"), "RayJobTemplate", "train")
    pod = template["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
    assert pod.pop("tolerations") == [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    ]
    wishes = Wishes(workers=8, namespace="vae")
    made = render_rayjob(TRAIN, name="first", template=template, wishes=wishes)
    gpus.kubectl("create", "-f", "-", given=json.dumps(made))
    (worker,) = pods(gpus, WORKERS, 1)
    assert places([worker]) == [""]
    assert "untolerated taint" in worker["status"]["conditions"][0]["message"]


def test_eight_encoding_actors_fit_a_node_and_packing_stays_off_it(gpus: Cluster) -> None:
    gpus.kubectl("cordon", "gpus-b")
    try:
        command = (*ENCODE, "--actors", "8", "--gpus", "1", "--cores", "8")  # as by night
        config = SubmitConfig(kubernetes=True, command=command, dry_run=True, id="encode")
        made: Any = main(config).result["rayjob"]
        # As its autoscaler asks for them.
        made["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"] = 8
        gpus.kubectl("create", "-f", "-", given=json.dumps(made))
        assert places(pods(gpus, f"{WORKERS},app.kubernetes.io/component=encode", 8)) == (
            ["gpus-a"] * 8
        )
    finally:
        gpus.kubectl("uncordon", "gpus-b")


def test_packing_has_nodes_without_gpus(gpus: Cluster) -> None:
    job: Any = main(SubmitConfig(kubernetes=True, command=PACK, dry_run=True, id="pack")).result
    job["rayjob"]["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"] = 5
    gpus.kubectl("create", "-f", "-", given=json.dumps(job["rayjob"]))
    workers = pods(gpus, WORKERS, 5)
    # Four of 7 cores fill the only one.
    assert places(workers) == ["", "cores", "cores", "cores", "cores"]
    assert {item["spec"]["containers"][0]["image"] for item in workers} == {"vae-pipeline:0.1.0"}


@pytest.mark.parametrize(
    ("command", "more", "holders"),
    [(TRAIN, ("--workers", "8"), set()), (TRAIN, ("--workers", "8..32"), {"autoscaler"}),
     (ENCODE, (), {"autoscaler"}), (PACK, (), {"autoscaler"})],
)  # fmt: skip
def test_of_all_that_kuberay_makes_the_autoscaler_alone_has_a_token(
    gpus: Cluster, command: tuple[str, ...], more: tuple[str, ...], holders: set[str]
) -> None:
    submit(*command, *more, id="first")
    (head,) = pods(gpus, HEADS, 1)
    assert set(holders_of_tokens(head["spec"])) == holders
    names = {container["name"] for container in head["spec"]["containers"]}
    assert names == {"ray-head"} | holders
    # And the policy that lets it out is for those alone.
    assert ("vae-pipeline.internal/scales" in head["metadata"]["labels"]) == bool(holders)
    for worker in gpus.items("pods", WORKERS):
        assert holders_of_tokens(worker["spec"]) == []
    every = [*head["spec"]["containers"], *head["spec"]["initContainers"]]
    assert all(each["securityContext"]["readOnlyRootFilesystem"] for each in every)


def test_a_head_that_is_ready_can_not_be_evicted_and_its_budget_says_how(gpus: Cluster) -> None:
    """What the README calls `SyncFailed`, as meant."""
    until(lambda: reason(gpus.get("pdb", "ray-heads")) == "InsufficientPods", "no head", 30)
    submit(*TRAIN, "--workers", "8", id="first")
    (head,), (worker,) = pods(gpus, HEADS, 1), pods(gpus, WORKERS, 1)
    for pod in (head, worker):
        condition = {"type": "Ready", "status": "True", "lastTransitionTime": None}
        ready = {"status": {"phase": "Running", "conditions": [condition]}}
        gpus.kubectl(
            "-n", "vae", "patch", "pod", pod["metadata"]["name"], "--subresource=status",
            "-p", json.dumps(ready),
        )  # fmt: skip
    until(lambda: reason(gpus.get("pdb", "ray-heads")) == "SyncFailed", "SyncFailed", 30)
    code, said = evicted(gpus, head)
    assert (code, "Cannot evict pod" in said) == (429, True)
    assert evicted(gpus, worker)[0] == 201


def reason(budget: Any) -> str:
    (condition,) = [
        each for each in budget["status"]["conditions"] if each["type"] == "DisruptionAllowed"
    ]
    return str(condition["reason"])


def evicted(found: Cluster, pod: Any) -> tuple[int, str]:
    """What the API server answers once; `kubectl` would ask again and again."""
    name = pod["metadata"]["name"]
    eviction = {
        "apiVersion": "policy/v1", "kind": "Eviction",
        "metadata": {"name": name, "namespace": "vae"}, "deleteOptions": {"dryRun": ["All"]},
    }  # fmt: skip
    pki = found.authority.folder
    context = ssl.create_default_context(cafile=str(pki / "ca.crt"))
    context.load_cert_chain(pki / "admin.crt", pki / "admin.key")
    asked = urllib.request.Request(
        f"{found.control.url}/api/v1/namespaces/vae/pods/{name}/eviction", method="POST",
        data=json.dumps(eviction).encode(), headers={"Content-Type": "application/json"},
    )  # fmt: skip
    try:
        with urllib.request.urlopen(asked, context=context, timeout=30) as answer:
            return int(answer.status), answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


QUEUE = "kueue.x-k8s.io/queue-name"


def test_templates_start_nothing_though_they_are_in_a_queue(gpus: Cluster) -> None:
    for template in of_kind(build("gpu"), "RayJobTemplate"):
        gpus.kubectl(
            "-n", "vae", "label", "rayjobtemplate", template["metadata"]["name"], f"{QUEUE}=gpu"
        )
    time.sleep(10)
    try:
        for kind in ("rayjobs", "rayclusters", "jobs", "workloads.kueue.x-k8s.io"):
            assert gpus.items(kind) == [], kind
        components = {
            pod["metadata"]["labels"]["app.kubernetes.io/component"] for pod in gpus.items("pods")
        }
        assert components == {"mlflow", "postgres", "pushgateway"}
    finally:
        gpus.kubectl("-n", "vae", "label", "rayjobtemplate", "--all", f"{QUEUE}-")


def test_kueue_takes_what_asks_for_all_its_pods_and_holds_it_back(gpus: Cluster) -> None:
    with pytest.raises(ConfigError, match=r"no such LocalQueue\. It has none"):
        submit(*TRAIN, queue="gpu", id="first")
    gpus.apply([
        {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "LocalQueue",
         "metadata": {"name": "gpu", "namespace": "vae"}, "spec": {"clusterQueue": "gpu"}},
        {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "WorkloadPriorityClass",
         "metadata": {"name": "research"}, "value": 10},
    ])  # fmt: skip
    with pytest.raises(ConfigError, match=r"no such LocalQueue\. It has gpu"):
        submit(*TRAIN, queue="typo", id="first")
    with pytest.raises(ConfigError, match=r"no such LocalQueue\. It has gpu"):
        main(SubmitConfig(kubernetes=True, command=TRAIN, queue="typo", dry_run=True))
    submit(*TRAIN, "--workers", "8..32", queue="gpu", priority="research", id="first")
    submit(*ENCODE, "--actors", "2", queue="gpu", id="second")
    for name, workers in (("first", 4), ("second", 2)):
        made = gpus.get("rayjob", name)
        (group,) = made["spec"]["rayClusterSpec"]["workerGroupSpecs"]
        assert [group[k] for k in ("replicas", "minReplicas", "maxReplicas")] == [workers] * 3
        assert "enableInTreeAutoscaling" not in made["spec"]["rayClusterSpec"]
        assert made["metadata"]["labels"][QUEUE] == "gpu"
        assert made["spec"]["suspend"] is True
    labels = gpus.get("rayjob", "first")["metadata"]["labels"]
    assert labels["kueue.x-k8s.io/priority-class"] == "research"
    until(lambda: len(gpus.items("workloads.kueue.x-k8s.io")) == 2, "Kueue", 20)
    assert gpus.items("pods", "ray.io/is-ray-node=yes") == []
