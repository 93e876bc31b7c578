"""What the overlays are to a real API server: whole, admitted, and nothing that starts by itself.

There is no node: objects alone are looked at, and pods as they are admitted.
"""

import copy
import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.cluster.conftest import K8S, written
from tests.k8s.manifests import Object, build, find, of_kind, pods
from tests.k8s.test_components import own_overlay
from tests.servers.cluster.box import until
from tests.servers.cluster.cluster import ROOT, Cluster, cluster
from tests.servers.cluster.operators import add_kind, add_kuberays_kinds

pytestmark = pytest.mark.cluster
README = (K8S / "README.md").read_text()
PROMETHEUS = ROOT / "../shared/crds"
"""Kinds of the Prometheus operator, where they are at hand."""
Done = subprocess.CompletedProcess[str]


class Walked(NamedTuple):
    """A cluster on which the README was walked, and what it said on the way."""

    cluster: Cluster
    without_kind: Done
    deployed_without_kind: list[str]
    applied: Done
    gpu_without_prometheus: Done
    secrets_before: list[str]


@pytest.fixture(scope="module")
def walked(can_start: None) -> Iterator[Walked]:
    with cluster(nodes=0) as found:
        add_kuberays_kinds(found)
        found.bash(written("kubectl create namespace vae"))
        secrets = names(found, "secrets")
        without = found.try_kubectl("apply", "-k", str(K8S / "overlays/dev"))
        deployed = names(found, "deployments")
        (teach,) = re.findall(r"`(kubectl [^`]*)`", README.split("## The way")[0])
        found.bash(teach)
        dev = ("apply", "-k", str(K8S / "overlays/dev"))
        until(lambda: found.try_kubectl(*dev).returncode == 0, "the kind to be known", 10)
        applied = found.try_kubectl(*dev)
        gpu = found.try_kubectl("apply", "--dry-run=server", "-k", str(K8S / "overlays/gpu"))
        yield Walked(found, without, deployed, applied, gpu, secrets)


def names(found: Cluster, kind: str, namespace: str = "vae") -> list[str]:
    return [item["metadata"]["name"] for item in found.items(kind, namespace=namespace)]


def test_an_overlay_before_the_templates_kind_says_so_applies_the_rest_and_is_mended(
    walked: Walked,
) -> None:
    (row,) = re.findall(r'\| `(no matches for kind "RayJobTemplate")`', README)
    assert walked.without_kind.returncode == 1
    assert row in walked.without_kind.stderr
    assert walked.deployed_without_kind == ["mlflow", "pushgateway", "s3"]
    assert walked.applied.returncode == 0, walked.applied.stderr


def test_all_objects_of_the_overlay_are_there_and_no_pod_would_be_refused(walked: Walked) -> None:
    assert len(walked.applied.stdout.splitlines()) == len(build("dev"))
    assert "would violate" not in walked.applied.stderr + walked.without_kind.stderr
    labels = walked.cluster.get("namespace", "vae", "")["metadata"]["labels"]
    prefix = "pod-security.kubernetes.io"
    assert labels[f"{prefix}/enforce"] == "restricted"
    assert labels[f"{prefix}/enforce-version"] == "latest"


def test_the_gpu_overlay_needs_prometheus_kinds_and_fits_them(walked: Walked) -> None:
    assert walked.gpu_without_prometheus.returncode == 1
    assert 'no matches for kind "PodMonitor"' in walked.gpu_without_prometheus.stderr
    found = walked.cluster
    add_prometheus_kinds(found)
    done = found.try_kubectl("apply", "--dry-run=server", "-k", str(K8S / "overlays/gpu"))
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(build("gpu"))
    assert "would violate" not in done.stderr
    named = {
        "podmonitors": 2, "servicemonitors": 3, "prometheusrules": 1,
    }  # fmt: skip
    found.kubectl("apply", "-k", str(K8S / "overlays/gpu"))
    for kind, count in named.items():
        labelled = found.items(kind, "release=kube-prometheus-stack")
        assert len(labelled) == count == len(found.items(kind)), kind
    assert len(found.items("configmaps", "grafana_dashboard=1")) == 1
    found.kubectl("apply", "-k", str(K8S / "overlays/dev"))


def add_prometheus_kinds(found: Cluster) -> None:
    kinds = sorted(PROMETHEUS.glob("monitoring*.yaml"))
    if not kinds:
        pytest.skip("the kinds of the Prometheus operator are not at hand")
    for path in kinds:
        add_kind(found, path, path.stem.partition("_")[2])


def test_every_secret_and_key_that_pods_name_is_made_by_the_readmes_commands(
    walked: Walked,
) -> None:
    # No overlay brought another.
    assert names(walked.cluster, "secrets") == walked.secrets_before
    made = {
        (item["metadata"]["name"], key)
        for item in walked.cluster.items("secrets")
        for key in item["data"]
    }
    assert made == {
        ("storage-credentials", "AWS_ACCESS_KEY_ID"),
        ("storage-credentials", "AWS_SECRET_ACCESS_KEY"),
        ("postgres-credentials", "password"),
        ("mlflow-admin", "username"),
        ("mlflow-admin", "password"),
        ("mlflow-admin", "form-key"),
        ("mlflow-credentials", "MLFLOW_TRACKING_USERNAME"),
        ("mlflow-credentials", "MLFLOW_TRACKING_PASSWORD"),
    }
    objects = [*build("dev"), *build("gpu")]
    assert set(asked_secrets(objects)) <= made
    taken_whole = set(re.findall(r"'secretRef': {'name': '([a-z-]+)'", str(objects)))
    assert taken_whole == {"storage-credentials", "mlflow-credentials"}


def asked_secrets(place: Any) -> Iterator[tuple[str, str]]:
    """All that is named by a `secretKeyRef`, wherever it stands."""
    if isinstance(place, Mapping):
        if "secretKeyRef" in place:
            yield place["secretKeyRef"]["name"], place["secretKeyRef"]["key"]
        place = list(place.values())
    for each in place if isinstance(place, list) else ():
        yield from asked_secrets(each)


def pod_of(owner: str, spec: Object, claims: frozenset[str] = frozenset()) -> Object:
    """What a controller would make of a template."""
    spec = copy.deepcopy(spec)
    spec.setdefault("volumes", []).extend({"name": name, "emptyDir": {}} for name in claims)
    name = re.sub(r"[^a-z0-9]+", "-", owner.lower())
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "vae"},
            "spec": spec}  # fmt: skip


@pytest.mark.parametrize("overlay", ["dev", "gpu"])
def test_every_pod_of_an_overlay_passes_pod_security(walked: Walked, overlay: str) -> None:
    made = [pod_of(pod.owner, pod.spec, pod.claims) for pod in pods(build(overlay))]
    assert len(made) > 9
    for pod in made:
        walked.cluster.kubectl("create", "--dry-run=server", "-f", "-", given=json.dumps(pod))


POD, CONTAINER = "securityContext", "containers/0/securityContext"
REFUSED = {
    "root": (f"{POD}/runAsUser", 0),
    "perhaps root": (f"{POD}/runAsNonRoot", False),
    "no seccomp": (f"{POD}/seccompProfile", {"type": "Unconfined"}),
    "its node's network": ("hostNetwork", True),
    "its node's processes": ("hostPID", True),
    "its node's memory": ("hostIPC", True),
    "a folder of its node": ("volumes/0", {"name": "tmp", "hostPath": {"path": "/"}}),
    "a port of its node": ("containers/0/ports", [{"containerPort": 80, "hostPort": 80}]),
    "privileged": (CONTAINER, {"privileged": True, "capabilities": {"drop": ["ALL"]}}),
    "a capability": (f"{CONTAINER}/capabilities", {"drop": ["ALL"], "add": ["NET_ADMIN"]}),
    "more rights than its parent": (f"{CONTAINER}/allowPrivilegeEscalation", True),
    "nothing said": (CONTAINER, {}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_pod_that_could_leave_its_container_is_refused_in_the_readmes_words(
    walked: Walked, case: str
) -> None:
    (row,) = re.findall(r"\| a pod is refused by `([^`]*)`", README)
    path, value = REFUSED[case]
    good = find(build("dev"), "RayJobTemplate", "train")["spec"]["rayClusterSpec"]
    pod = pod_of("worker", good["workerGroupSpecs"][0]["template"]["spec"])
    walked.cluster.kubectl("create", "--dry-run=server", "-f", "-", given=json.dumps(pod))
    place: Any = pod["spec"]
    *parents, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    for part in parents:
        place = place[part]
    place[last] = value
    done = walked.cluster.try_kubectl(
        "create", "--dry-run=server", "-f", "-", given=json.dumps(pod)
    )
    assert done.returncode == 1
    assert row in done.stderr


def test_the_templates_hold_what_the_readme_says_of_them(walked: Walked) -> None:
    found = {
        item["metadata"]["name"]: item["spec"] for item in walked.cluster.items("rayjobtemplates")
    }
    assert set(found) == {"train", "encode", "cpu"}
    train = found["train"]
    head, (group,) = (train["rayClusterSpec"][k] for k in ("headGroupSpec", "workerGroupSpecs"))
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert group["minReplicas"] == group["maxReplicas"]
    assert train["backoffLimit"] == 3
    for name in ("encode", "cpu"):
        cluster_spec = found[name]["rayClusterSpec"]
        assert cluster_spec["enableInTreeAutoscaling"] is True
        assert cluster_spec["workerGroupSpecs"][0]["minReplicas"] == 0
        assert "nvidia.com/gpu" not in json.dumps(cluster_spec), name
    drained, pod = group["template"]["spec"]["containers"][0]["env"], group["template"]["spec"]
    assert drained == [{"name": "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "value": "120"}]
    assert pod["terminationGracePeriodSeconds"] == 150


def test_a_template_without_a_cluster_is_refused_by_its_kind(walked: Walked) -> None:
    (template,) = [item for item in walked.cluster.items("rayjobtemplates")
                   if item["metadata"]["name"] == "train"]  # fmt: skip
    template["metadata"] = {"name": "train", "namespace": "vae"}
    del template["spec"]["rayClusterSpec"]
    done = walked.cluster.try_kubectl(
        "apply", "--dry-run=server", "-f", "-", given=json.dumps(template)
    )
    assert done.returncode == 1
    assert "spec.rayClusterSpec: Required value" in done.stderr


def test_no_token_is_mounted_but_beside_an_autoscaler_and_by_the_step_that_submits(
    walked: Walked,
) -> None:
    found = walked.cluster
    for account in found.items("serviceaccounts"):
        if account["metadata"]["name"] != "default":  # Kubernetes' own: nothing here uses it.
            assert account["automountServiceAccountToken"] is False, account["metadata"]["name"]
    found.kubectl("-n", "vae", "create", "job", "--from=cronjob/nightly", "nightly-try")
    found.wait("job", "nightly-try", "jsonpath={.status.active}=1")
    running = found.items("pods")
    components = {pod["metadata"]["labels"]["app.kubernetes.io/component"] for pod in running}
    assert components == {"mlflow", "postgres", "pushgateway", "s3", "nightly"}
    assert {
        (pod["metadata"]["labels"]["app.kubernetes.io/component"], name)
        for pod in running
        for name in holders_of_tokens(pod["spec"])
    } == {("nightly", "encode")}
    assert all(pod["spec"]["serviceAccountName"] != "default" for pod in running)
    found.kubectl("-n", "vae", "delete", "job", "nightly-try")


def holders_of_tokens(spec: Object) -> list[str]:
    """Containers of an admitted pod that mount a token of the API server."""
    tokens = {
        volume["name"]
        for volume in spec.get("volumes", ())
        for source in volume.get("projected", {}).get("sources", ())
        if "serviceAccountToken" in source
    }
    return [
        container["name"]
        for container in [*spec.get("initContainers", ()), *spec["containers"]]
        if tokens & {mount["name"] for mount in container.get("volumeMounts", ())}
    ]


def test_the_night_is_append_encode_verify_never_twice_and_suspended_at_first(
    walked: Walked, tmp_path: Path
) -> None:
    found = walked.cluster
    night = found.get("cronjob", "nightly")["spec"]
    pod = night["jobTemplate"]["spec"]["template"]["spec"]
    steps = [*pod["initContainers"], *pod["containers"]]
    assert [step["name"] for step in steps] == ["append", "encode", "verify"]
    assert "--id=nightly" in steps[1]["args"]
    assert (night["suspend"], night["concurrencyPolicy"]) == (True, "Forbid")
    # Step 6 of the README.
    own_overlay("dev", tmp_path, namespace="vae")
    patch = tmp_path / "k8s/overlays/dev/nightly.yaml"
    text = patch.read_text()
    assert "path: /spec/suspend\n  value: true" in text
    patch.write_text(text.replace("path: /spec/suspend\n  value: true",
                                  "path: /spec/suspend\n  value: false"))  # fmt: skip
    found.kubectl("apply", "-k", str(tmp_path / "k8s/overlays/dev"))
    assert found.get("cronjob", "nightly")["spec"]["suspend"] is False
    found.kubectl("apply", "-k", str(K8S / "overlays/dev"))
    assert found.get("cronjob", "nightly")["spec"]["suspend"] is True


def test_the_policies_are_those_of_the_table(walked: Walked) -> None:
    table = README.split("## Who talks to whom")[1].split("## ")[0]
    rows = re.findall(r"^\| `([a-z0-9-]+)` \|.*\|.*\|.*\|$", table, re.MULTILINE)
    assert len(rows) == 15
    assert sorted(names(walked.cluster, "networkpolicies")) == sorted(rows)


def test_a_second_team_has_all_of_it_beside_the_first(walked: Walked, tmp_path: Path) -> None:
    found = walked.cluster
    kinds = "deploy,sts,cronjobs,services,netpol,cm,sa,role,rolebinding,pvc,rayjobtemplates"
    own_overlay("dev", tmp_path, namespace="team-b")
    before = found.kubectl("-n", "vae", "get", kinds, "-o", "name")
    applied = found.kubectl("apply", "-k", str(tmp_path / "k8s/overlays/own"))
    assert len(applied.splitlines()) == len(build("dev"))
    labels = found.get("namespace", "team-b", "")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    binding = found.get("rolebinding", "submitter", "team-b")
    assert binding["subjects"] == [
        {"kind": "ServiceAccount", "name": "submitter", "namespace": "team-b"}
    ]
    for kind in ("networkpolicies", "rayjobtemplates", "cronjobs", "deployments"):
        assert names(found, kind, "team-b") == names(found, kind), kind
    after = found.kubectl("-n", "vae", "get", kinds, "-o", "name")
    assert before == after
    found.kubectl("delete", "namespace", "team-b", "--wait=false")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("nodelocal-dns", "NetworkPolicy"), ("openshift-dns", "NetworkPolicy"),
     ("eks-pod-identity", "NetworkPolicy"), ("gke-metadata", "NetworkPolicy"),
     ("volcano", "RayJobTemplate"), ("kai", "RayJobTemplate")],
)  # fmt: skip
def test_a_component_is_taken_by_the_api_server(
    walked: Walked, tmp_path: Path, name: str, kind: str
) -> None:
    objects = own_overlay("dev", tmp_path, namespace="vae", components=[f"../../components/{name}"])
    done = walked.cluster.try_kubectl(
        "apply", "--dry-run=server", "-k", str(tmp_path / "k8s/overlays/own")
    )
    assert done.returncode == 0, done.stderr
    changed = [item for item in objects if item not in build("dev")]
    assert {item["kind"] for item in changed} == {kind}
    assert len(changed) == (3 if kind == "RayJobTemplate" else 1)


def test_ciliums_component_needs_ciliums_kind(walked: Walked, tmp_path: Path) -> None:
    own_overlay("dev", tmp_path, namespace="vae", components=["../../components/cilium-api-server"])
    done = walked.cluster.try_kubectl(
        "apply", "--dry-run=server", "-k", str(tmp_path / "k8s/overlays/own")
    )
    assert 'no matches for kind "CiliumNetworkPolicy"' in done.stderr


def test_all_that_clusters_differ_in_can_be_said_at_once(walked: Walked, tmp_path: Path) -> None:
    """cluster.yaml and gpu-nodes.yaml with every patch that they offer."""
    shutil.copytree(K8S, tmp_path / "k8s")
    folder = tmp_path / "k8s/overlays/gpu"
    for file in ("cluster.yaml", "gpu-nodes.yaml"):
        text = (folder / file).read_text()
        offered = re.sub(r"^# (- op:|  (?:path|value):|    )", r"\1", text, flags=re.MULTILINE)
        assert len(yaml.safe_load(offered)) > len(yaml.safe_load(text))
        (folder / file).write_text(offered)
    objects = of_kind(build("gpu", tmp_path / "k8s"), "RayJobTemplate")
    for template in objects:
        done = walked.cluster.try_kubectl(
            "create", "--dry-run=server", "--validate=strict", "-f", "-",
            given=json.dumps(started(template)),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


def started(template: Object) -> Object:
    """The RayJob that a template is of."""
    return {
        "apiVersion": "ray.io/v1", "kind": "RayJob",
        "metadata": {"name": "first", "namespace": "vae"},
        "spec": {**template["spec"], "entrypoint": "true"},
    }  # fmt: skip


@pytest.mark.parametrize(
    "path",
    ["backofLimit", "rayClusterSpec/headGroupSpec/rayStartParam",
     "rayClusterSpec/workerGroupSpecs/0/template/spec/tolerationz"],
)  # fmt: skip
def test_a_field_that_is_misspelt_is_refused_in_what_is_made_of_a_template(
    walked: Walked, path: str
) -> None:
    template = find(build("dev"), "RayJobTemplate", "train")
    *parents, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    place: Any = template["spec"]
    for part in parents:
        place = place[part]
    place[last] = 1
    done = walked.cluster.try_kubectl(
        "create", "--dry-run=server", "--validate=strict", "-f", "-",
        given=json.dumps(started(template)),
    )  # fmt: skip
    assert done.returncode == 1
    assert 'unknown field "spec.' in done.stderr
    assert str(last) in done.stderr
