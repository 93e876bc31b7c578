"""The overlays as kubectl renders them, and the pods that would come of them."""

import copy
import functools
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
OVERLAYS = sorted(path.name for path in (K8S / "overlays").iterdir() if path.is_dir())

BY_SUBMISSION = {"vae-pipeline.internal/serves": "run-metrics"}
"""What `jobs.submit` adds to a head whose job serves /metrics (seen in test_nightly.py)."""

Object = dict[str, Any]
RAY = ("RayJob", "RayJobTemplate")
"""A template has a RayJob's spec, without an entrypoint."""


@functools.cache
def _objects(overlay: str, folder: Path) -> tuple[Object, ...]:
    program = ["kubectl", "kustomize"] if shutil.which("kubectl") else ["kustomize", "build"]
    if shutil.which(program[0]) is None:
        pytest.skip("neither kubectl nor kustomize is installed: the overlays can't be built")
    done = subprocess.run(
        [*program, str(folder / "overlays" / overlay)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return tuple(yaml.load_all(done.stdout, Loader=yaml.CSafeLoader))


def build(overlay: str, folder: Path = K8S) -> list[Object]:
    """The overlay's objects, which the caller may change."""
    return copy.deepcopy(list(_objects(overlay, folder)))


def example_secrets() -> list[Object]:
    return list(yaml.safe_load_all((K8S / "base/secrets.example.yaml").read_text()))


def called(item: Object) -> str:
    return f"{item['kind']}/{item['metadata']['name']}"


def of_kind(objects: Sequence[Object], *kinds: str) -> list[Object]:
    return [item for item in objects if item["kind"] in kinds]


def find(objects: Sequence[Object], kind: str, name: str) -> Object:
    (found,) = [item for item in of_kind(objects, kind) if item["metadata"]["name"] == name]
    return found


def put_at(item: Object, path: str, value: object) -> None:
    """The field at `a/0/b` of an object gets this value; None removes it."""
    place: Any = item
    *parents, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    for part in parents:
        place = place[part]
    if value is None:
        del place[last]
    else:
        place[last] = value


@dataclass(frozen=True)
class Pod:
    """A pod template, with the labels that its pods will have; `claims` are StatefulSets' own."""

    owner: str
    labels: Mapping[str, str]
    spec: Object
    claims: frozenset[str] = frozenset()

    @property
    def containers(self) -> list[Object]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def ports(self) -> list[Object]:
        return [port for each in self.spec["containers"] for port in each.get("ports", [])]

    def port_of(self, asked: str | int) -> int | None:
        """The number of a port that a container declares; None: none does."""
        for port in self.ports:
            if asked in (port.get("name"), port["containerPort"]):
                return int(port["containerPort"])
        return None


def pods(objects: Sequence[Object]) -> Iterator[Pod]:
    for item in objects:
        spec, kind = item.get("spec", {}), item["kind"]
        if kind in ("Deployment", "StatefulSet"):
            claims = [each["metadata"]["name"] for each in spec.get("volumeClaimTemplates", [])]
            yield _pod(called(item), spec["template"], claims=claims)
        elif kind == "CronJob":
            yield _pod(called(item), spec["jobTemplate"]["spec"]["template"])
        elif kind in RAY:
            cluster = spec["rayClusterSpec"]
            head = cluster["headGroupSpec"]["template"]
            labels = _by_kuberay("head") | (BY_SUBMISSION if kind == "RayJobTemplate" else {})
            yield _pod(f"{called(item)}/head", head, labels)
            for group in cluster["workerGroupSpecs"]:
                owner = f"{called(item)}/{group['groupName']}"
                yield _pod(owner, group["template"], _by_kuberay("worker"))


def _by_kuberay(node_type: str) -> dict[str, str]:
    """labelPod in pod.go of KubeRay 1.7.0."""
    return {
        "ray.io/is-ray-node": "yes",
        "ray.io/node-type": node_type,
        "ray.io/cluster": "CLUSTER",
        "app.kubernetes.io/name": "kuberay",
        "app.kubernetes.io/created-by": "kuberay-operator",
    }


def _pod(
    owner: str,
    template: Object,
    labels: Mapping[str, str] | None = None,
    claims: Sequence[str] = (),
) -> Pod:
    own = template.get("metadata", {}).get("labels", {})
    return Pod(owner, {**own, **(labels or {})}, template["spec"], frozenset(claims))


def selects(selector: Mapping[str, Any] | None, labels: Mapping[str, str]) -> bool:
    """Kubernetes' label selector: all of it must hold; an empty one selects everything."""
    if selector is None:
        return False
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for each in selector.get("matchExpressions", []):
        assert each["operator"] == "In", "the only operator in use"
        if labels.get(each["key"]) not in each["values"]:
            return False
    return True
