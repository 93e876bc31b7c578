"""Each overlay builds, fits its schemas and itself; each planted mistake is caught by name."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from pipeline.errors import ConfigError
from tests.k8s import agreement, commands, lifetimes, memory, reach, schemas
from tests.k8s.manifests import (
    K8S,
    OVERLAYS,
    Object,
    build,
    example_secrets,
    find,
    of_kind,
    put_at,
)

CHECKS = [
    agreement.names_and_quantities, agreement.selectors, agreement.ports, agreement.accounts,
    agreement.references, agreement.network, agreement.passwords, agreement.hardening,
    commands.entrypoints,
    commands.images, commands.pools, commands.addresses, commands.nightly, commands.tracking,
    lifetimes.beginnings, lifetimes.outcomes, lifetimes.endings, lifetimes.budgets,
    lifetimes.tries, lifetimes.kept, lifetimes.command_lines, memory.shared_memory, memory.disks,
    reach.nodes, reach.names, reach.storage, reach.api_server,
]  # fmt: skip


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_fits_its_schema_without_unknown_fields(overlay: str) -> None:
    assert list(schemas.problems(build(overlay))) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nothing_that_an_overlay_brings_could_be_started_as_a_job(overlay: str) -> None:
    objects = build(overlay)
    assert of_kind(objects, "RayJob", "RayCluster", "Job") == []
    assert {item["metadata"]["name"] for item in of_kind(objects, "RayJobTemplate")} == {
        "train", "encode", "cpu",
    }  # fmt: skip


def test_the_templates_kind_is_one_that_the_api_server_can_be_taught() -> None:
    (kind,) = yaml.safe_load_all((K8S / "templates.yaml").read_text())
    assert list(schemas.problems([kind])) == []
    for template in of_kind(build("gpu"), "RayJobTemplate"):
        group, _, version = template["apiVersion"].partition("/")
        assert (kind["spec"]["group"], kind["spec"]["names"]["kind"]) == (group, template["kind"])
        (served,) = [each for each in kind["spec"]["versions"] if each["name"] == version]
        assert schemas.pruned(served["schema"]["openAPIV3Schema"], template) == template


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_objects_fit_each_other(overlay: str, check: Callable[..., Any]) -> None:
    assert list(check(build(overlay))) == []


def ray_worker(objects: list[Object], name: str = "train") -> Object:
    (group,) = find(objects, "RayJobTemplate", name)["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    return group


def misspell_a_field_of_the_rayjob(objects: Any) -> None:
    spec = find(objects, "RayJobTemplate", "train")["spec"]
    spec["ttlSecondsAfterFinish"] = spec.pop("ttlSecondsAfterFinished")


def misspell_a_field_deep_in_a_pod(objects: Any) -> None:
    container = ray_worker(objects)["template"]["spec"]["containers"][0]
    container["imagePullPolicyy"] = "Always"


def misspell_a_field_of_the_cronjob(objects: Any) -> None:
    spec = find(objects, "CronJob", "nightly")["spec"]
    spec["concurencyPolicy"] = spec["concurrencyPolicy"]


def misspell_a_field_of_a_rule(objects: Any) -> None:
    groups = find(objects, "PrometheusRule", "vae")["spec"]["groups"]
    groups[1]["rules"][0]["annotation"] = {}


def give_a_number_as_text(objects: Any) -> None:
    find(objects, "RayJobTemplate", "train")["spec"]["backoffLimit"] = "3"


def misspell_a_field_of_a_policy(objects: Any) -> None:
    find(objects, "NetworkPolicy", "ray-inside")["spec"]["egres"] = []


MISFITS: list[tuple[Callable[[list[Object]], object], str]] = [
    (misspell_a_field_of_the_rayjob, "ttlSecondsAfterFinish"),
    (misspell_a_field_deep_in_a_pod, "imagePullPolicyy"),
    (misspell_a_field_of_the_cronjob, "concurencyPolicy"),
    (misspell_a_field_of_a_rule, "annotation"),
    (give_a_number_as_text, "backoffLimit"),
    (misspell_a_field_of_a_policy, "egres"),
]


@pytest.mark.parametrize(("plant", "said"), MISFITS, ids=lambda each: getattr(each, "__name__", ""))
def test_a_planted_misfit_is_caught_by_the_schemas(plant: Callable[..., Any], said: str) -> None:
    objects = build("gpu")
    plant(objects)
    # The others were seen to fit.
    found = list(schemas.problems([item for item in objects if item not in build("gpu")]))
    assert found
    assert all(said in each for each in found)


def set_at(kind: str, name: str, path: str, value: object) -> Callable[[list[Object]], None]:
    """A mistake: that field of that object gets this value; None removes it."""

    return lambda objects: put_at(find(objects, kind, name), path, value)


def without(kind: str, name: str) -> Callable[[list[Object]], None]:
    return lambda objects: objects.remove(find(objects, kind, name))


def reworded(step: str, old: str, new: str) -> Callable[[list[Object]], None]:
    """A mistake in the arguments of a step of the night; "" takes the argument away."""

    def plant(objects: list[Object]) -> None:
        pod = find(objects, "CronJob", "nightly")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        steps = [*pod["initContainers"], *pod["containers"]]
        (args,) = [each["args"] for each in steps if each["name"] == step]
        assert old in args
        at = args.index(old)
        args[at : at + 1] = [new] if new else []

    return plant


WORKERS = "spec/rayClusterSpec/workerGroupSpecs/0"
HEAD = "spec/rayClusterSpec/headGroupSpec"
NIGHT = "spec/jobTemplate/spec/template/spec"
SERVER = "spec/template/spec/containers/0"
MISTAKES: dict[str, tuple[Callable[[list[Object]], None], str]] = {
    "a wrong targetPort": (
        set_at("Service", "mlflow", "spec/ports/0/targetPort", 5001), "targetPort 5001"),
    "a probe of a port that is not there": (
        set_at("Deployment", "mlflow", f"{SERVER}/readinessProbe/httpGet/port", "web"), "port web"),
    "a monitor of a port that is not there": (
        set_at("PodMonitor", "vae-runs", "spec/podMetricsEndpoints/0/port", "runs"), "port runs"),
    "a service monitor of a port that is not there": (
        set_at("ServiceMonitor", "mlflow", "spec/endpoints/0/port", "web"), "no port web"),
    "a service that selects nothing": (
        set_at("Service", "mlflow", "spec/selector", {"app": "mlfow"}), "selects no pod"),
    "a deployment that selects not its own": (
        set_at("Deployment", "mlflow", "spec/selector/matchLabels", {"app": "m"}), "its own pods"),
    "a budget that selects nothing": (
        set_at("PodDisruptionBudget", "ray-heads", "spec/selector/matchLabels", {"a": "b"}),
        "selects no pod"),
    "a monitor that selects nothing": (
        set_at("ServiceMonitor", "mlflow", "spec/selector/matchLabels", {"a": "b"}),
        "selects no service"),
    "a policy that selects nothing": (
        set_at("NetworkPolicy", "ray-inside", "spec/podSelector/matchLabels", {"a": "b"}),
        "selects no pod"),
    "a policy for a port that is not there": (
        set_at("NetworkPolicy", "operator-to-dashboard", "spec/ingress/0/ports/0/port", 8266),
        "none of those pods has"),
    "only one end of a connection is allowed": (
        without("NetworkPolicy", "postgres-from-mlflow"), "is not taken"),
    "nothing is denied": (without("NetworkPolicy", "default-deny"), "denies"),
    "a missing service account": (without("ServiceAccount", "submitter"), "service account submit"),
    "a pod of a misspelt account": (
        set_at("RayJobTemplate", "train", f"{HEAD}/template/spec/serviceAccountName", "rya"),
        "account rya"),
    "a binding of a role that is not there": (without("Role", "submitter"), "no role submitter"),
    "a role with a wildcard": (
        set_at("Role", "submitter", "rules/0/verbs", ["*"]), "wildcard"),
    "a missing ConfigMap": (without("ConfigMap", "pipeline-settings"), "ConfigMap pipeline-set"),
    "a missing key of a Secret": (
        set_at("Deployment", "mlflow", f"{SERVER}/env/1/valueFrom/secretKeyRef/key", "pass"),
        "no key pass"),
    "a missing claim": (without("PersistentVolumeClaim", "pushgateway"), "claim pushgateway"),
    "a volume that is not there": (
        set_at("RayJobTemplate", "train",
               f"{WORKERS}/template/spec/containers/0/volumeMounts/0/name", "t"),
        "no volume t"),
    "a flag that does not exist": (
        reworded("encode", "--cores=8", "--core-count=8"), "nightly/encode: python"),
    "a value that a flag refuses": (
        reworded("encode", "--actors=8", "--actors=-1"), "actors"),
    "a job that does not exist": (
        reworded("encode", "jobs.encode", "jobs.encoder"), "jobs.encoder"),
    "a flag of the last step that does not exist": (
        set_at("CronJob", "nightly", f"{NIGHT}/containers/0/args/1", "--shop=s3://latents/photos"),
        "nightly/verify"),
    "a night that verifies another store than it encodes": (
        reworded("verify", "--store=s3://latents/photos", "--store=s3://latents/other"),
        "verifies s3://latents/other"),
    "a finished encoding that would run again": (
        reworded("encode", "--bad-fraction=1", ""), "run again"),
    "a metrics port that nobody asks": (
        reworded("encode", "--tracking.metrics=0.0.0.0:9464", "--tracking.metrics=0.0.0.0:9465"),
        "another port"),
    "a server that does not exist": (
        set_at("ConfigMap", "pipeline-settings", "data/MLFLOW_TRACKING_URI", "http://mlfow:5000"),
        "no service mlfow:5000"),
    "a host that MLflow refuses": (
        set_at("Deployment", "mlflow", f"{SERVER}/args/7", "--allowed-hosts=localhost:*"), "403"),
    "an image of another version": (
        set_at("Deployment", "mlflow", f"{SERVER}/image", "vae-pipeline:0.0.9"), "0.0.9"),
    "an image without a version": (
        set_at("StatefulSet", "postgres", f"{SERVER}/image", "postgres:latest"), "not pinned"),
    "another user than the image's": (
        set_at("Deployment", "mlflow", "spec/template/spec/securityContext/runAsUser", 1000),
        "another user"),
    "a root file system that can be written to": (
        set_at("RayJobTemplate", "train", f"{WORKERS}/template/spec/containers/0/securityContext",
               {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}),
        "can be written to"),
    "a token that is not needed": (
        set_at("CronJob", "nightly", f"{NIGHT}/automountServiceAccountToken", True), "token"),
    "the autoscaler's token beside the driver": (
        set_at("RayJobTemplate", "encode", f"{HEAD}/template/spec/containers/0/volumeMounts/0/name",
               "token"),
        "encode/head/ray-head: mounts a token"),
    "a head whose driver gets a token by itself": (
        set_at("RayJobTemplate", "encode", f"{HEAD}/template/spec/automountServiceAccountToken",
               None),
        "encode/head: gets a token"),
    "an operator that is looked for where it is not": (
        set_at("ServiceMonitor", "kuberay-operator", "spec/namespaceSelector/matchNames",
               ["kuberay"]),
        "selects no service"),
    "heads that are found by a label which submissions do not give": (
        set_at("PodMonitor", "vae-runs", "spec/selector/matchLabels",
               {"vae-pipeline.internal/served": "run-metrics"}),
        "selects no pod"),
    "a budget that kube-prometheus calls missed": (
        set_at("PodDisruptionBudget", "ray-heads", "spec", {
            "minAvailable": 1000,
            "selector": {"matchLabels": {"ray.io/node-type": "head"}}}),
        "more pods than there are"),
    "packing on nodes with GPUs": (
        set_at("RayJobTemplate", "cpu", f"{WORKERS}/template/spec/tolerations",
               [{"key": "nvidia.com/gpu", "operator": "Exists"}]),
        "may take their nodes"),
    "CUDA on a head": (
        set_at("RayJobTemplate", "train", f"{HEAD}/template/spec/containers/0/image",
               f"vae-pipeline:{commands.VERSION}-gpu"),
        "on no GPU"),
    "a GPU without CUDA": (
        set_at("RayJobTemplate", "encode", f"{WORKERS}/template/spec/containers/0/image",
               f"vae-pipeline:{commands.VERSION}"),
        "on True GPU"),
    "an autoscaler that may not reach the API server": (
        set_at("NetworkPolicy", "to-api-server", "spec/podSelector/matchLabels",
               {"vae-pipeline.internal/scale": "yes"}),
        "to-api-server: selects no pod"),
    "a drain that outlasts the pod": (
        set_at("RayJobTemplate", "train",
               f"{WORKERS}/template/spec/terminationGracePeriodSeconds", 60),
        "killed while it drains"),
    "an open dashboard": (
        set_at("RayJobTemplate", "train", "spec/rayClusterSpec/authOptions", {}), "not token"),
    "a submission that follows the log": (
        set_at("RayJobTemplate", "train", "spec/submissionMode", "K8sJobMode"), "HTTPMode"),
    "a name too long for KubeRay": (
        set_at("RayJobTemplate", "train", "metadata/name", "t" * 48), "at most 47"),
    "pods that the autoscaler v2 refuses": (
        set_at("RayJobTemplate", "encode", f"{WORKERS}/template/spec/restartPolicy", "Always"),
        "Never"),
    "a group without bounds": (
        set_at("RayJobTemplate", "train", f"{WORKERS}/maxReplicas", None), "maxReplicas"),
    "a quantity that is none": (
        set_at("Deployment", "mlflow", f"{SERVER}/resources/limits/memory", "five"), "no quantity"),
    "a night that begins again when it is stopped": (
        set_at("CronJob", "nightly",
               "spec/jobTemplate/spec/podFailurePolicy/rules/1/onExitCodes/values", [2]),
        "end the night"),
    "a first start that is cut short": (
        set_at("Deployment", "mlflow", f"{SERVER}/startupProbe/failureThreshold", 2),
        "no more than 10 s"),
    "a head whose log goes with it": (
        set_at("RayJobTemplate", "encode",
               f"{HEAD}/template/spec/initContainers/0/restartPolicy", None), "no job-log"),
    "a stopped driver without time": (
        set_at("RayJobTemplate", "train", f"{HEAD}/template/spec/containers/0/env/1/value", "3"),
        "killed after 3 s"),
    "a budget that counts heads": (
        set_at("PodDisruptionBudget", "ray-heads", "spec", {
            "minAvailable": 1, "selector": {"matchLabels": {"ray.io/node-type": "head"}}}),
        "alerts where there are none"),
    "a password in a command line": (
        set_at("Deployment", "mlflow", f"{SERVER}/args/3",
               "--backend-store-uri=postgresql://mlflow:$(PGPASSWORD)@postgres/mlflow"),
        "stands in its command line"),
    "a late night that meets the next one": (
        set_at("CronJob", "nightly", "spec/jobTemplate/spec/activeDeadlineSeconds", 79200),
        "until the next one"),
    "a probe that takes initdb for the server": (
        set_at("StatefulSet", "postgres", f"{SERVER}/startupProbe/exec/command", ["pg_isready"]),
        "initdb answers"),
    "outcomes that a kill takes along": (
        set_at("Deployment", "pushgateway", f"{SERVER}/args", ["--persistence.file=/data/o"]),
        "takes along"),
    "a password for who opens files from outside": (
        set_at("CronJob", "nightly", f"{NIGHT}/initContainers/0/envFrom",
               [{"secretRef": {"name": "mlflow-credentials"}}]),
        "may not reach MLflow"),
    "a name of somebody else that MLflow takes for an address": (
        set_at("Deployment", "mlflow", f"{SERVER}/args/7", "--allowed-hosts=mlflow*,10.*"),
        "10.evil.example"),
    "a worker without room for Ray's objects": (
        set_at("RayJobTemplate", "cpu", f"{WORKERS}/template/spec/volumes/1/emptyDir/sizeLimit",
               "2Gi"),
        "/dev/shm has"),
    "a node's own rights within reach": (
        set_at("NetworkPolicy", "to-storage", "spec/egress/0/to/0/ipBlock/except", None),
        "own metadata"),
    "names asked of pods that are not there": (
        set_at("NetworkPolicy", "dns", "spec/egress/0/to/0/podSelector",
               {"matchLabels": {"k8s-app": "coredns"}}), "no server for names"),
    "a worker that reaches the API server": (
        set_at("RayJobTemplate", "cpu", f"{WORKERS}/template/metadata/labels",
               {"vae-pipeline.internal/scales": "yes"}), "no business"),
    "a volume that goes with its pods": (
        set_at("StatefulSet", "postgres", "spec/persistentVolumeClaimRetentionPolicy",
               {"whenScaled": "Delete"}), "goes with its pods"),
    "a cluster that outlasts its endpoint": (
        set_at("RayJobTemplate", "train", "spec/ttlSecondsAfterFinished", 600), "alerts while"),
    "a head on any node": (
        set_at("RayJobTemplate", "train", f"{HEAD}/template/spec/tolerations",
               [{"operator": "Exists"}]), "tolerates every node"),
    "nights that overlap": (
        set_at("CronJob", "nightly", "spec/concurrencyPolicy", "Allow"), "overlap"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_is_caught(mistake: str) -> None:
    plant, said = MISTAKES[mistake]
    objects = build("gpu")
    plant(objects)
    found: list[str] = []
    stumbled = []
    for check in CHECKS:
        try:
            found += check(objects)
        except (ConfigError, ImportError, KeyError, ValueError, SystemExit) as error:
            # A check may stumble over what another one reports; that other one must be there.
            stumbled.append(f"{check.__name__}: {error!r}")
    assert any(said in each for each in found), (found, stumbled)


def test_no_example_secret_holds_a_secret() -> None:
    for secret in example_secrets():
        assert set(secret["stringData"].values()) == {""}, secret["metadata"]["name"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_overlay_brings_secrets(overlay: str) -> None:
    assert of_kind(build(overlay), "Secret") == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_all_that_has_a_namespace_is_in_the_same_one(overlay: str) -> None:
    for item in build(overlay):
        if item["kind"] != "Namespace":
            assert item["metadata"]["namespace"] == "vae", item["metadata"]["name"]


def test_the_namespace_lets_no_root_in() -> None:
    labels = find(build("gpu"), "Namespace", "vae")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_policy_stands_in_the_readmes_table(overlay: str) -> None:
    rows = re.findall(r"^\| `([a-z0-9-]+)` \|", (K8S / "README.md").read_text(), flags=re.M)
    for policy in of_kind(build(overlay), "NetworkPolicy"):
        assert policy["metadata"]["name"] in rows


def test_rules_and_dashboards_reach_the_cluster_as_they_are_tested() -> None:
    objects = build("gpu")
    shown = find(objects, "ConfigMap", "dashboards")
    assert shown["metadata"]["labels"]["grafana_dashboard"] == "1"
    for name in ("training.json", "encoding.json"):
        assert shown["data"][name] == (K8S / "base/monitoring/dashboards" / name).read_text()
