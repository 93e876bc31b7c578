"""Who talks to whom: every pair of kinds of pods, let through or refused by the policies.

Expected is what the table in k8s/README.md says, written once more by hand. A refusal counts only
where the same connection is open once the policies are gone.
"""

import time
from collections.abc import Iterator

import pytest

from tests.cluster.pods import Pod
from tests.k8s.manifests import build
from tests.servers.cluster.cluster import Cluster

pytestmark = pytest.mark.cluster
COMPONENT = "app.kubernetes.io/component"
RAY = {"ray.io/is-ray-node": "yes"}
HEAD, WORKER = RAY | {"ray.io/node-type": "head"}, RAY | {"ray.io/node-type": "worker"}
SCALES = {"vae-pipeline.internal/scales": "yes"}
RAY_PORTS = (6379, 8080, 8265, 9464, 10001, 31234, 44217, 44227)
METRICS = (8080, 9464, 44217, 44227)

PLACE = "policies"
"""A namespace of its own: others count on the policies of `vae`."""

PODS = (
    Pod("train-head", HEAD | {COMPONENT: "train"}, RAY_PORTS, PLACE),
    Pod("train-worker", WORKER | {COMPONENT: "train"}, (8080, 9464, 31234), PLACE),
    Pod("encode-head", HEAD | SCALES | {COMPONENT: "encode"}, RAY_PORTS, PLACE),
    Pod("encode-worker", WORKER | {COMPONENT: "encode"}, (8080, 31234), PLACE),
    Pod("nightly", {COMPONENT: "nightly"}, (443, 8080), PLACE),
    Pod("mlflow", {COMPONENT: "mlflow"}, (443, 5000, 9000), PLACE),
    Pod("postgres", {COMPONENT: "postgres"}, (5432, 5000), PLACE),
    Pod("pushgateway", {COMPONENT: "pushgateway"}, (9091,), PLACE),
    Pod("s3", {COMPONENT: "s3"}, (9000, 443), PLACE),
    Pod("stray", {"app": "stray"}, (443, 8080), PLACE),
    Pod("operator", {}, (443,), "kuberay-operator"),
    Pod("prometheus", {}, (443, 9090), "monitoring"),
    Pod("foreign", {}, (443, 5000, 6443, 80), "default"),
)
RAY_PODS = ("train-head", "train-worker", "encode-head", "encode-worker")
OUTSIDE = ("operator", "prometheus", "foreign")
JOBS = (*RAY_PODS, "nightly", "mlflow")
METADATA = "169.254.169.254"


def allowed(source: str, target: str, port: int) -> bool:
    """As the table says."""
    if target in OUTSIDE or target in ("metadata", "API server"):
        if source in OUTSIDE:
            return True
        if target == "metadata":
            return False
        if port == 443:
            return source in JOBS
        return port == 6443 and source in ("encode-head", "nightly")
    if source in RAY_PODS and target in RAY_PODS:
        return True
    return port in {
        "train-head": {"operator": {8265}, "prometheus": set(METRICS)},
        "encode-head": {"operator": {8265}, "prometheus": set(METRICS)},
        "train-worker": {"prometheus": set(METRICS)},
        "encode-worker": {"prometheus": set(METRICS)},
        "mlflow": {key: {5000} for key in (*RAY_PODS, "prometheus")},
        "pushgateway": {key: {9091} for key in (*RAY_PODS, "prometheus")},
        "postgres": {"mlflow": {5432}},
        "s3": {key: {9000} for key in JOBS},
    }.get(target, {}).get(source, set())


@pytest.fixture(scope="module")
def places(nodes: Cluster) -> Iterator[dict[tuple[str, int], str]]:
    """ADDRESS:PORT of everything that listens; the policies of overlays/dev are there."""
    objects = [item for item in build("dev") if item["kind"] in ("Namespace", "NetworkPolicy")]
    for item in objects:
        item["metadata"]["name" if item["kind"] == "Namespace" else "namespace"] = PLACE
    for name in ("monitoring", "kuberay-operator"):
        if nodes.find("namespace", name, "") is None:
            nodes.kubectl("create", "namespace", name)
    nodes.apply(objects)
    for node in nodes.nodes.values():
        node.run("ip", "address", "add", f"{METADATA}/32", "dev", "lo")
        node.part("metadata", "socat", f"TCP-LISTEN:80,bind={METADATA},fork,reuseaddr", "EXEC:date")
    nodes.apply([pod.manifest() for pod in PODS])
    for pod in PODS:
        nodes.wait("pod", pod.name, "condition=Ready", namespace=pod.namespace)
    found = {(pod.name, port): f"{pod.address(nodes)}:{port}" for pod in PODS for port in pod.ports}
    found["metadata", 80] = f"{METADATA}:80"
    found["API server", 6443] = f"{nodes.nodes[1].address}:6443"
    yield found
    for pod in PODS:
        nodes.kubectl("-n", pod.namespace, "delete", "pod", pod.name, "--wait=false")
    nodes.kubectl("delete", "namespace", PLACE)


def reached(nodes: Cluster, places: dict[tuple[str, int], str]) -> dict[tuple[str, str, int], bool]:
    """For every pod, all that is not itself."""
    found = {}
    for pod in PODS:
        others = {key: place for key, place in places.items() if key[0] != pod.name}
        for key, is_open in zip(others, pod.reaches(nodes, list(others.values())), strict=True):
            found[pod.name, *key] = is_open
    return found


def test_each_pair_is_open_or_closed_as_the_table_says_and_all_are_open_without_it(
    nodes: Cluster, places: dict[tuple[str, int], str]
) -> None:
    deadline = time.monotonic() + 60
    while True:
        seen = reached(nodes, places)
        wrong = {key: is_open for key, is_open in seen.items() if is_open != allowed(*key)}
        if not wrong or time.monotonic() > deadline:
            break
    assert wrong == {}
    assert sum(seen.values()) > 60
    nodes.kubectl("-n", PLACE, "delete", "networkpolicies", "--all")
    deadline = time.monotonic() + 60
    while True:
        closed = [key for key, is_open in reached(nodes, places).items() if not is_open]
        if not closed or time.monotonic() > deadline:
            break
    assert closed == []
