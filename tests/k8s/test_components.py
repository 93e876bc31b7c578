"""Each component builds on each overlay, fits its schemas, and adds what it is for."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.submission.rayjob import Wishes, render_rayjob
from tests.k8s import schemas
from tests.k8s.manifests import K8S, OVERLAYS, Object, build, called, of_kind
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
    assert added
    # Cilium's schema can't be had here: its file says that it is unproven.
    known = [item for item in added if item["kind"] != "CiliumNetworkPolicy"]
    assert list(schemas.problems(known)) == []
    assert [problem for check in CHECKS for problem in check(objects)] == []
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
    for name in ("cilium-api-server", "volcano", "kai"):
        assert "Unproven" in (K8S / "components" / name / "kustomization.yaml").read_text()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_second_team_has_all_of_it_in_a_namespace_of_its_own(
    overlay: str, tmp_path: Path
) -> None:
    objects = own_overlay(overlay, tmp_path, namespace="team-b")
    assert {item["metadata"]["name"] for item in of_kind(objects, "Namespace")} == {"team-b"}
    for item in objects:
        if item["kind"] != "Namespace":
            assert item["metadata"]["namespace"] == "team-b", called(item)
    assert list(schemas.problems(objects)) == []
    assert [problem for check in CHECKS for problem in check(objects)] == []
    # Nothing in it speaks of the first one's.
    assert not [item for item in objects if ".vae" in str(item) or "namespace: vae" in str(item)]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_buckets_are_named_only_where_a_second_team_is_told_to_patch_them(overlay: str) -> None:
    named = {called(item) for item in build(overlay) if "s3://" in str(item)}
    templates = {f"RayJobTemplate/{name}" for name in ("train", "encode", "cpu")}
    assert named == {*templates, "Deployment/mlflow", "CronJob/nightly"}
