"""Each component builds on each overlay, fits its schemas, and adds what it is for."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.submission.rayjob import Wishes, render_rayjob
from tests.k8s import schemas
from tests.k8s.manifests import K8S, OVERLAYS, Object, build, called, find, of_kind, pods, selects
from tests.k8s.test_manifests import CHECKS

COMPONENTS = sorted(path.name for path in (K8S / "components").iterdir())


def with_component(name: str, overlay: str, folder: Path) -> list[Object]:
    """A user's own overlay: one of ours with one component."""
    return own_overlay(overlay, folder, namespace="vae", components=[f"../../components/{name}"])


def own_overlay(overlay: str, folder: Path, **more: object) -> list[Object]:
    shutil.copytree(K8S, folder / "k8s")
    own = folder / "k8s/overlays/own"
    own.mkdir()
    mine = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
        "resources": [f"../{overlay}"], **more,
    }  # fmt: skip
    (own / "kustomization.yaml").write_text(yaml.safe_dump(mine))
    return build("own", folder / "k8s")


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("name", COMPONENTS)
def test_it_builds_on_every_overlay_and_fits(name: str, overlay: str, tmp_path: Path) -> None:
    objects = with_component(name, overlay, tmp_path)
    before = build(overlay)
    added = [item for item in objects if item not in before]
    # One takes away what only an overlay with Prometheus has.
    assert added or (name == "second-team" and (len(objects) < len(before)) == (overlay == "gpu"))
    # Cilium's schema can't be had here: its file says that it is unproven.
    known = [item for item in added if item["kind"] != "CiliumNetworkPolicy"]
    assert list(schemas.problems(known)) == []
    found = {problem.partition(": ")[2] for check in CHECKS for problem in check(objects)}
    # The ConfigMap of one's own CA is the only thing that no overlay has.
    assert found == ({"there is no ConfigMap ca"} if name == "private-ca" else set())
    for item in of_kind(added, "NetworkPolicy"):
        assert item["spec"]["policyTypes"] == ["Egress"], called(item)
        assert "ingress" not in item["spec"]


@pytest.mark.parametrize(
    ("name", "label"),
    [("volcano", "volcano.sh/queue-name"), ("kai", "kai.scheduler/queue")],
)
def test_a_gang_schedulers_queue_reaches_each_job_and_can_be_another(
    name: str, label: str, tmp_path: Path
) -> None:
    template: Any
    for template in of_kind(with_component(name, "gpu", tmp_path), "RayJobTemplate"):
        command = ("python", "-m", "jobs.train", "--data", "d", "--run", "r")
        for queue in (None, "research"):
            job = render_rayjob(
                command, name="r", template=template, wishes=Wishes(queue=queue)
            )  # fmt: skip
            assert job["metadata"]["labels"][label] == (queue or "default")


def test_every_component_stands_in_the_readme() -> None:
    text = (K8S / "README.md").read_text()
    assert [name for name in COMPONENTS if f"| `{name}` |" not in text] == []


def test_what_no_controller_has_seen_says_so_where_it_stands() -> None:
    for name in ("cilium-api-server", "volcano", "kai", "openshift-scc"):
        assert "Unproven" in (K8S / "components" / name / "kustomization.yaml").read_text()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_private_ca_reaches_every_container_that_has_the_storages_keys(
    overlay: str, tmp_path: Path
) -> None:
    objects = with_component("private-ca", overlay, tmp_path)
    bundle = find(objects, "ConfigMap", "pipeline-settings")["data"]["AWS_CA_BUNDLE"]
    reached = set()
    for pod in pods(objects):
        for container in pod.containers:
            taken = str(container.get("envFrom", []))
            if "storage-credentials" not in taken:
                continue
            told = "pipeline-settings" in taken or "'key': 'AWS_CA_BUNDLE'" in str(container["env"])
            places = [each["mountPath"] for each in container["volumeMounts"]]
            assert told, f"{pod.owner}/{container['name']}"
            assert str(Path(bundle).parent) in places, f"{pod.owner}/{container['name']}"
            reached.add(f"{pod.owner.split('/')[-1]}/{container['name']}")
    assert reached == {
        "head/job-log", "head/ray-head", "workers/ray-worker", "mlflow/mlflow",
        "nightly/append", "nightly/encode", "nightly/verify",
    }  # fmt: skip


def test_openshifts_binding_names_every_account_of_a_pod(tmp_path: Path) -> None:
    objects = with_component("openshift-scc", "gpu", tmp_path)
    bound = {each["name"] for each in find(objects, "RoleBinding", "openshift-scc")["subjects"]}
    assert bound == {pod.spec["serviceAccountName"] for pod in pods(objects)}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ciliums_component_lets_those_who_have_a_token_to_the_api_server_and_nowhere_else(
    overlay: str, tmp_path: Path
) -> None:
    objects = with_component("cilium-api-server", overlay, tmp_path)
    reach = set()
    for policy in of_kind(objects, "CiliumNetworkPolicy"):
        assert set(policy["spec"]) == {"endpointSelector", "egress"}
        assert policy["spec"]["egress"] == [{"toEntities": ["kube-apiserver"]}]
        selector = policy["spec"]["endpointSelector"]
        reach |= {pod.owner for pod in pods(objects) if selects(selector, pod.labels)}
    assert reach == {
        "RayJobTemplate/encode/head", "RayJobTemplate/cpu/head", "CronJob/nightly",
    }  # fmt: skip
