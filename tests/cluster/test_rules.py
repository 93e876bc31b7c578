"""KubeRay's own word for each rule that is kept offline (tests/k8s/kuberay_rules.py).

A RayJob that breaks one is refused by its kind, or ends as `ValidationFailed`. All are suspended:
nothing starts.
"""

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.submission.rayjob import Wishes, base_template, render_rayjob
from tests.k8s import kuberay_rules
from tests.k8s.manifests import put_at
from tests.servers.cluster.box import until
from tests.servers.cluster.cluster import Cluster

pytestmark = pytest.mark.cluster
CLUSTER = "spec/rayClusterSpec"
HEAD, GROUP = f"{CLUSTER}/headGroupSpec", f"{CLUSTER}/workerGroupSpecs/0"
BROKEN: dict[str, tuple[str, Any]] = {
    "a-name-of-48": ("metadata/name", "a" * 48),
    "suspended-and-kept": ("spec/shutdownAfterJobFinishes", False),
    "no-time": ("spec/activeDeadlineSeconds", 0),
    "no-time-before": ("spec/preRunningDeadlineSeconds", 0),
    "tries-below-0": ("spec/backoffLimit", -1),
    "time-below-0": ("spec/ttlSecondsAfterFinished", -1),
    "two-ways-to-delete": (
        "spec/deletionStrategy",
        {"deletionRules": [{"policy": "DeleteCluster", "condition": {"jobStatus": "FAILED"}}]},
    ),
    "another-cluster": ("spec/clusterSelector", {"ray.io/cluster": "c"}),
    "no-cluster": (CLUSTER, None),
    "no-head": (f"{HEAD}/template/spec/containers", []),
    "no-worker": (f"{GROUP}/template/spec/containers", []),
    "most-below-fewest": (f"{GROUP}/maxReplicas", 1),
    "resources-twice": (f"{GROUP}/resources", {"CPU": "1"}),
    "labels-misplaced": (f"{GROUP}/rayStartParams/labels", "a=b"),
    "an-older-ray": (f"{CLUSTER}/rayVersion", "2.51.0"),
    "tokens-of-kubernetes": (f"{CLUSTER}/authOptions/enableK8sTokenAuth", True),
}
SCALING_BROKEN: dict[str, tuple[str, Any]] = {
    "idle-below-0": (f"{CLUSTER}/autoscalerOptions/idleTimeoutSeconds", -1),
    "restarted-head": (f"{HEAD}/template/spec/restartPolicy", "Always"),
    "restarted-worker": (f"{GROUP}/template/spec/restartPolicy", "OnFailure"),
    "a-suspended-group": (f"{GROUP}/suspend", True),
}
OURS: dict[str, tuple[str, Any]] = {
    "follows-the-log": ("spec/submissionMode", "K8sJobMode"),
    "open-to-all": (f"{CLUSTER}/authOptions", None),
    "options-of-no-autoscaler": (f"{CLUSTER}/autoscalerOptions", {"idleTimeoutSeconds": 60}),
    # Its kind's default is filled in, and is no bound.
    "no-most": (f"{GROUP}/maxReplicas", None),
}
"""What KubeRay would take, and this project does not."""


@pytest.fixture(scope="module")
def namespace(nodes: Cluster) -> Iterator[Cluster]:
    nodes.kubectl("create", "namespace", "rules")
    yield nodes
    nodes.kubectl("-n", "rules", "delete", "rayjobs", "--all")
    nodes.kubectl("delete", "namespace", "rules", "--wait=false")


def rayjob(name: str, pool: str) -> Any:
    made: Any = render_rayjob(
        ("python", "-c", "1"), name=name, template=base_template(pool),
        wishes=Wishes(workers=2, namespace="rules"),
    )  # fmt: skip
    made["spec"]["suspend"] = True
    return made


def with_mistake(made: Any, path: str, value: Any) -> Any:
    made = copy.deepcopy(made)
    put_at(made, path, value)
    return made


def fates(found: Cluster, jobs: list[Any]) -> dict[str, str]:
    """Of each RayJob, by its name: what the kind's schema or KubeRay makes of it."""
    known = {}
    for job in jobs:
        done = found.try_kubectl("create", "--validate=strict", "-f", "-", given=json.dumps(job))
        if done.returncode:
            known[job["metadata"]["name"]] = "refused"

    def judged() -> bool:
        for item in found.items("rayjobs", namespace="rules"):
            status = item.get("status", {}).get("jobDeploymentStatus", "")
            if status in ("Suspended", "ValidationFailed"):
                known[item["metadata"]["name"]] = status
        return len(known) == len(jobs)

    until(judged, "KubeRay's word", 60)
    return known


def test_kuberay_refuses_what_breaks_a_rule_and_takes_what_breaks_none(namespace: Cluster) -> None:
    jobs = [with_mistake(rayjob(name, "train"), *each) for name, each in BROKEN.items()]
    jobs += [with_mistake(rayjob(name, "encode"), *each) for name, each in SCALING_BROKEN.items()]
    assert [job["metadata"]["name"] for job in jobs if not kuberay_rules.broken_rules(job)] == []
    good = [rayjob("a" * 47, "train"), rayjob("encode", "encode"), rayjob("cpu", "cpu")]
    ours = [with_mistake(rayjob(name, "train"), *each) for name, each in OURS.items()]
    assert [kuberay_rules.broken_rules(job) for job in good] == [[], [], []]
    assert all(kuberay_rules.broken_rules(job) for job in ours)
    found = fates(namespace, [*jobs, *good, *ours])
    taken = {name for name, fate in found.items() if fate == "Suspended"}
    assert taken == {job["metadata"]["name"] for job in [*good, *ours]}
    assert sum(fate == "ValidationFailed" for fate in found.values()) > 10
