"""What clusters differ in: patches that are offered, API servers' ports, digests, second teams."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.k8s import commands, schemas
from tests.k8s.manifests import K8S, OVERLAYS, Object, build, called, find, of_kind, pods
from tests.k8s.memory import size_of
from tests.k8s.test_components import own_overlay
from tests.k8s.test_manifests import CHECKS

OFFERED = ("cluster.yaml", "gpu-nodes.yaml", "accounts.yaml", "network.yaml")
"""Files of an overlay that are comments until somebody uncomments them."""
SECOND = "../../components/second-team"


@pytest.fixture(scope="module")
def all_taken(tmp_path_factory: pytest.TempPathFactory) -> list[Object]:
    """The overlay `gpu` with every patch that it offers."""
    folder = tmp_path_factory.mktemp("clusters") / "k8s"
    shutil.copytree(K8S, folder)
    commented, count = r"^# (?=- op: |  path: |  value:|    )", 0
    for name in OFFERED:
        file = folder / "overlays/gpu" / name
        text, changed = re.subn(commented, "", file.read_text(), flags=re.M)
        file.write_text(text)
        count += changed
    assert count >= 36
    return build("gpu", folder)


def test_what_clusters_differ_in_fits_when_all_of_it_is_taken(all_taken: list[Object]) -> None:
    (group,) = find(all_taken, "RayJobTemplate", "train")["spec"]["rayClusterSpec"][
        "workerGroupSpecs"
    ]
    worker = group["template"]["spec"]
    assert len(worker["tolerations"]) == 2
    assert "tolerations" not in str(find(all_taken, "RayJobTemplate", "cpu"))
    assert worker["containers"][0]["resources"]["limits"]["rdma/hca"] == "1"
    assert [problem for check in CHECKS for problem in check(all_taken)] == []
    assert list(schemas.problems(all_taken)) == []


def test_whatever_pulls_an_image_of_ours_has_the_registrys_password_by_its_account(
    all_taken: list[Object],
) -> None:
    """Kubernetes gives a pod that names no pull secret those of its account."""
    accounts = {item["metadata"]["name"]: item for item in of_kind(all_taken, "ServiceAccount")}
    ours = [pod for pod in pods(all_taken) if "vae-pipeline:" in str(pod.spec)]
    assert {pod.owner.partition("/")[0] for pod in ours} == {
        "RayJobTemplate", "CronJob", "Deployment",
    }  # fmt: skip
    for pod in ours:
        assert "imagePullSecrets" not in pod.spec
        account = accounts[pod.spec["serviceAccountName"]]
        assert account["imagePullSecrets"] == [{"name": "pull"}], pod.owner
    annotated = {name for name, item in accounts.items() if "annotations" in item["metadata"]}
    assert annotated == {pod.spec["serviceAccountName"] for pod in ours}


def test_an_api_server_on_443_can_be_taken_out_of_the_policy_for_storage(
    all_taken: list[Object],
) -> None:
    (rule,) = find(all_taken, "NetworkPolicy", "to-storage")["spec"]["egress"]
    assert rule["to"][0]["ipBlock"]["except"] == ["169.254.0.0/16", "203.0.113.7/32"]


@pytest.mark.parametrize(("of", "port"), [("kind", 6443), ("minikube", 8443), ("MicroK8s", 16443)])
def test_the_api_server_of_each_small_cluster_that_dev_is_for_is_let_through(
    of: str, port: int
) -> None:
    text = (K8S / "overlays/dev/kustomization.yaml").read_text()
    assert of in text.partition("apiVersion")[0]
    for name in ("to-api-server", "nightly-to-api-server"):
        (rule,) = find(build("dev"), "NetworkPolicy", name)["spec"]["egress"]
        assert port in [each["port"] for each in rule["ports"]]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_table_of_policies_names_each_port_that_leads_out_of_the_cluster(overlay: str) -> None:
    table = (K8S / "README.md").read_text().split("## Who talks to whom")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| `([\w-]+)` \|.*\| ([^|]*) \|$", table, flags=re.M))
    for policy in of_kind(build(overlay), "NetworkPolicy"):
        for rule in policy["spec"].get("egress", []):
            if any("ipBlock" in peer for peer in rule["to"]):
                ports = {str(each["port"]) for each in rule["ports"]}
                assert ports <= set(re.findall(r"\d+", rows[policy["metadata"]["name"]]))


def test_images_of_others_are_pinned_as_the_readme_says(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(   images:.*?)```", (K8S / "README.md").read_text(), re.S)
    pinned = yaml.safe_load(block.replace("sha256:...", f"sha256:{'0' * 64}"))["images"]
    objects = own_overlay("gpu", tmp_path, namespace="vae", images=pinned)
    assert list(commands.images(objects)) == []
    foreign = {
        container["image"]
        for pod in pods(objects)
        for container in pod.containers
        if "vae-pipeline" not in container["image"]
    }
    assert foreign == {f"{each['name']}@{each['digest']}" for each in pinned}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_second_team_has_all_of_it_in_a_namespace_of_its_own(
    overlay: str, tmp_path: Path
) -> None:
    objects = own_overlay(overlay, tmp_path, namespace="team-b", components=[SECOND])
    assert {item["metadata"]["name"] for item in of_kind(objects, "Namespace")} == {"team-b"}
    for item in objects:
        if item["kind"] != "Namespace":
            assert item["metadata"]["namespace"] == "team-b", called(item)
    assert list(schemas.problems(objects)) == []
    assert [problem for check in CHECKS for problem in check(objects)] == []
    # Nothing in it speaks of the first one's.
    assert not [item for item in objects if ".vae" in str(item) or "namespace: vae" in str(item)]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_stands_once_for_all_teams_a_second_one_does_not_bring(
    overlay: str, tmp_path: Path
) -> None:
    first = build(overlay)
    both = [*first, *own_overlay(overlay, tmp_path, namespace="team-b", components=[SECOND])]
    assert len(of_kind(both, "PrometheusRule")) == len(of_kind(first, "PrometheusRule")) <= 1
    shown: list[Any] = [item for item in both if "grafana_dashboard" in str(item["metadata"])]
    assert len(shown) <= 1
    elsewhere = [item for item in both if "namespaceSelector" in item.get("spec", {})]
    assert len(elsewhere) == len({item["metadata"]["name"] for item in elsewhere})
    # What sees one namespace alone is there for each.
    monitors = [called(item) for item in of_kind(both, "PodMonitor")]
    assert all(monitors.count(name) == 2 for name in monitors)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_buckets_are_named_only_where_a_second_team_is_told_to_patch_them(overlay: str) -> None:
    named = {called(item) for item in build(overlay) if "s3://" in str(item)}
    templates = {f"RayJobTemplate/{name}" for name in ("train", "encode", "cpu")}
    assert named == {*templates, "Deployment/mlflow", "CronJob/nightly"}


def test_every_pod_of_dev_fits_a_small_cluster() -> None:
    for pod in pods(build("dev")):
        for container in pod.containers:
            asked = container["resources"]["requests"]
            cores = float(asked["cpu"].removesuffix("m")) / (1000 if "m" in asked["cpu"] else 1)
            assert cores <= 1, f"{pod.owner}/{container['name']}"
            assert size_of(asked["memory"]) <= 2 * 2**30, f"{pod.owner}/{container['name']}"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_as_it_stands_names_nothing_that_a_cluster_may_not_have(overlay: str) -> None:
    """Classes and nodes have other names on each cluster: these are offered as comments."""
    for name in ("priorityClassName", "storageClassName", "runtimeClassName", "nodeSelector"):
        assert f"'{name}'" not in str(build(overlay))
