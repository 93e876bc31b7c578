"""What the Role `submitter` gives, verb by verb, and what `jobs.submit` does with it and no more.

There is no node, and no operator: an API server alone says what it takes.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from jobs.command import Outcome
from jobs.submit import main
from pipeline.config import SubmitConfig
from pipeline.errors import ClusterError, ConfigError, NotNowError
from tests.cluster.conftest import K8S
from tests.k8s.manifests import build, find
from tests.k8s.test_components import own_overlay
from tests.servers.cluster.cluster import Cluster, cluster
from tests.servers.cluster.operators import add_kind, add_kuberays_kinds

pytestmark = pytest.mark.cluster
DOCTOR = ("python", "-m", "jobs.doctor", "--storage", "s3://runs/doctor")
PACK = ("python", "-m", "jobs.pack", "--source", "s3://archive/photos", "--output", "s3://d/p")
ENCODE = ("python", "-m", "jobs.encode", "--model", "m", "--data", "s3://d/t", "--output", "s3://l")
TRAIN = (
    "python", "-m", "jobs.train", "--data", "s3://datasets/photos/train", "--run", "photos",
    "--storage", "s3://runs/train", "--steps", "100000", "--tracking.metrics", "0.0.0.0:9464",
)  # fmt: skip
GIVEN = {
    "rayjobs.ray.io": "create delete get list",
    "rayjobtemplates.vae-pipeline.internal": "get list",
    "pods.": "list",
    "events.": "list",
    "workloads.kueue.x-k8s.io": "list",
    "localqueues.kueue.x-k8s.io": "list",
}
"""By the comment of the Role in k8s/base/accounts.yaml."""
EVERYBODYS = ("authorization.k8s.io", "authentication.k8s.io", "certificates.k8s.io")
"""To ask who one is and what one may; of any account, to read public certificates."""
POOL = "vae-pipeline.internal/pool"


@pytest.fixture(scope="module")
def server(can_start: None) -> Iterator[Cluster]:
    with cluster(nodes=0) as found:
        add_kuberays_kinds(found)
        add_kind(found, K8S / "templates.yaml", "rayjobtemplates")
        found.kubectl("apply", "-k", str(K8S / "overlays/dev"))
        # As k8s/README.md says it.
        found.kubectl(
            "-n", "vae", "create", "rolebinding", "alice", "--role=submitter", "--user=alice"
        )
        yield found


@pytest.fixture
def alice(server: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """The server, to whom what runs in this process is a user with the Role and nothing else."""
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig("alice")))
    return server


def submit(*command: str, **more: Any) -> Outcome:
    return main(SubmitConfig(kubernetes=True, command=command or DOCTOR, **more))


def dry(*command: str, **more: Any) -> Any:
    """The RayJob that a dry run shows."""
    return submit(*command, dry_run=True, **more).result["rayjob"]


def size(job: Any) -> list[int]:
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    return [group[key] for key in ("replicas", "minReplicas", "maxReplicas")]


def rights(server: Cluster, user: str, groups: tuple[str, ...] = (), namespace: str = "vae") -> Any:
    """All that somebody may do with objects of a namespace, beyond what everybody may."""
    asked = {
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": namespace},
    }  # fmt: skip
    said = server.kubectl(
        "create", "--raw", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", "-f", "-",
        given=json.dumps(asked), user=server.kubeconfig(user, groups),
    )  # fmt: skip
    found: dict[str, str] = {}
    for rule in json.loads(said)["status"]["resourceRules"]:
        assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"]
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                if group not in EVERYBODYS:
                    found[f"{resource}.{group}"] = " ".join(sorted(rule["verbs"]))
    return found


def test_a_submitter_has_the_verbs_of_the_role_and_no_other(server: Cluster) -> None:
    assert rights(server, "alice") == GIVEN
    assert rights(server, "alice", namespace="default") == {}
    assert rights(server, "bob") == {}


def test_of_the_accounts_only_the_one_that_submits_has_rights(server: Cluster) -> None:
    groups = ("system:serviceaccounts", "system:serviceaccounts:vae")
    accounts = [item["metadata"]["name"] for item in server.items("serviceaccounts")]
    assert len(accounts) > 6
    for name in accounts:
        found = rights(server, f"system:serviceaccount:vae:{name}", groups)
        assert found == (GIVEN if name == "submitter" else {}), name


@pytest.mark.parametrize(
    "asked",
    [
        "get secret storage-credentials", "get pod any", "logs any", "get configmaps",
        "exec any -- true", "delete rayjobtemplate train", "get rayclusters", "delete pod any",
        "run any --image=any", "patch rayjob any --type=merge -p {}", "get rayjobs -n default",
        "create token ray-autoscaler", "scale deployment/mlflow --replicas=0",
        "get rayjobtemplates -A", "delete rayjobs -n default any",
    ],
)  # fmt: skip
def test_what_the_role_does_not_give_is_refused(server: Cluster, asked: str) -> None:
    if asked.startswith("patch"):
        server.kubectl("create", "-f", "-", given=json.dumps(rayjob("any")))
    done = server.try_kubectl(*asked.split(), user=server.kubeconfig("alice"))
    assert done.returncode == 1
    assert "Forbidden" in done.stderr or "forbidden" in done.stderr, done.stderr
    server.try_kubectl("-n", "vae", "delete", "rayjob", "any", "--ignore-not-found")


def rayjob(name: str) -> Any:
    return {
        "apiVersion": "ray.io/v1", "kind": "RayJob",
        "metadata": {"name": name, "namespace": "vae"}, "spec": {"entrypoint": "true"},
    }  # fmt: skip


def test_with_the_role_a_job_is_submitted_listed_seen_and_ended(alice: Cluster) -> None:
    submit(id="first", detach=True)
    made = alice.get("rayjob", "first")
    assert made["spec"]["entrypoint"] == f"exec {' '.join(DOCTOR)}"
    # A dry run of it shows what was made.
    shown = dry(id="first")
    assert lacking(shown, made) == []
    listed: Any = submit(list=True).result["jobs"]
    assert [job["id"] for job in listed] == ["first"]
    assert submit(id="first", status=True).result["status"] == "NEW"
    assert submit(id="first", stop=True).exit_code == 0
    assert alice.find("rayjob", "first") is None


def lacking(shown: Any, made: Any, place: str = "") -> list[str]:
    """Where an object lacks what was shown: its kind's defaults may come on top."""
    if isinstance(shown, dict):
        return [
            each for key in shown for each in lacking(shown[key], made.get(key), f"{place}/{key}")
        ]
    if isinstance(shown, list) and len(shown) == len(made):
        return [
            each for n in range(len(shown)) for each in lacking(shown[n], made[n], f"{place}/{n}")
        ]
    return [] if shown == made else [place]


def test_who_has_not_the_role_is_told_which_one_suffices(
    server: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig("bob")))
    for more in ({"detach": True}, {"dry_run": True}, {"status": True}):
        with pytest.raises(ConfigError, match=r"Is `--namespace NAME` right.*The Role `subm"):
            submit(**more)


def test_a_dry_run_creates_nothing_and_is_checked_by_the_server(alice: Cluster) -> None:
    outcome = submit(dry_run=True)
    assert outcome.result["status"] == "DRY_RUN"
    assert alice.items("rayjobs") == []
    patch(alice, "cpu", {"op": "add", "path": "/spec/backofLimit", "value": 1})
    try:
        with pytest.raises(ClusterError, match=r'unknown field "spec\.backofLimit"'):
            submit(dry_run=True)
    finally:
        patch(alice, "cpu", {"op": "remove", "path": "/spec/backofLimit"})


def patch(server: Cluster, template: str, *operations: dict[str, Any]) -> None:
    server.kubectl(
        "-n", "vae", "patch", "rayjobtemplate", template, "--type=json", "-p",
        json.dumps(operations),
    )  # fmt: skip


def test_a_job_has_the_clusters_own_patches(alice: Cluster) -> None:
    pod = "/spec/rayClusterSpec/headGroupSpec/template/spec"
    selector = {"op": "add", "path": f"{pod}/nodeSelector", "value": {"x": "y"}}
    logs = {"op": "replace", "path": f"{pod}/initContainers/0/env/0/value", "value": "s3://l/logs"}
    before = alice.get("rayjobtemplate", "cpu")["spec"]
    patch(alice, "cpu", selector, logs)
    try:
        job = dry(*PACK, id="first")
    finally:
        patch(alice, "cpu", {"op": "replace", "path": "/spec", "value": before})
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert head["nodeSelector"] == {"x": "y"}
    assert head["initContainers"][0]["env"] == [{"name": "JOB_LOGS", "value": "s3://l/logs/first"}]
    assert (job["kind"], job["spec"]["entrypoint"]) == ("RayJob", f"exec {' '.join(PACK)}")


@pytest.mark.parametrize(
    ("command", "pool"),
    [(TRAIN, "train"), (ENCODE, "encode"), (PACK, "cpu"), (DOCTOR, "cpu"),
     (("python", "-m", "jobs.verify", "--store", "s3://latents/photos"), "cpu")],
)  # fmt: skip
def test_each_job_has_a_pool_by_itself_and_another_by_name(
    alice: Cluster, command: tuple[str, ...], pool: str
) -> None:
    assert dry(*command)["metadata"]["labels"][POOL] == pool
    assert dry(*command, pool="encode")["metadata"]["labels"][POOL] == "encode"
    with pytest.raises(ClusterError, match="no template nope: those there are: cpu, encode, train"):
        dry(*command, pool="nope")


def test_eight_gpus_are_one_pod_with_eight_times_the_rest(alice: Cluster) -> None:
    job = dry(*TRAIN, "--workers", "8", gpus=8)
    container = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"][
        "containers"
    ][0]
    assert container["resources"]["limits"] == {"cpu": "8", "memory": "24Gi", "nvidia.com/gpu": "8"}
    assert size(job) == [1, 1, 1]
    assert "autoscalerOptions" not in job["spec"]["rayClusterSpec"]


def test_an_elastic_training_begins_with_the_pods_that_its_fewest_workers_fill(
    alice: Cluster,
) -> None:
    job = dry(*TRAIN, "--workers", "2..8")
    assert size(job) == [2, 2, 8]
    assert job["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] is True
    dev = alice.get("rayjobtemplate", "train")["spec"]
    gpu = find(build("gpu"), "RayJobTemplate", "train")["spec"]
    patch(alice, "train", {"op": "replace", "path": "/spec", "value": gpu})
    try:
        assert size(dry(*TRAIN, "--workers", "2..8")) == [1, 1, 1]
        assert size(dry(*TRAIN, "--workers", "8..32")) == [1, 1, 4]
    finally:
        patch(alice, "train", {"op": "replace", "path": "/spec", "value": dev})


def test_deadline_and_retries_are_kuberays_own(alice: Cluster) -> None:
    spec = dry(*TRAIN, deadline_hours=2, retries=0)["spec"]
    assert (spec["activeDeadlineSeconds"], spec["backoffLimit"]) == (7200, 0)


def test_a_priority_without_a_queue_is_that_of_all_pods(alice: Cluster) -> None:
    job = dry(*TRAIN, priority="urgent")  # The Role may not look it up.
    cluster_spec = job["spec"]["rayClusterSpec"]
    for group in (cluster_spec["headGroupSpec"], *cluster_spec["workerGroupSpecs"]):
        assert group["template"]["spec"]["priorityClassName"] == "urgent"
    assert job["metadata"]["labels"]["ray.io/priority-class-name"] == "urgent"


def test_a_priority_that_is_not_there_is_refused_where_it_may_be_looked_up(
    server: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(server.admin))
    with pytest.raises(ConfigError, match=r"no such PriorityClass.*system-node-critical"):
        dry(*TRAIN, priority="urgent", namespace="vae")


def test_a_queue_needs_kueue(alice: Cluster) -> None:
    for more in ({"dry_run": True}, {"detach": True}):
        with pytest.raises(ConfigError, match="Kueue is not installed"):
            submit(*TRAIN, queue="gpu", **more)
    assert alice.items("rayjobs") == []


def test_another_teams_namespace_needs_another_teams_role(
    alice: Cluster, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_overlay("dev", tmp_path, namespace="team-b")
    alice.kubectl("apply", "-k", str(tmp_path / "k8s/overlays/own"))
    with pytest.raises(ConfigError, match="Is `--namespace NAME` right"):
        dry(namespace="team-b")
    alice.kubectl(
        "-n", "team-b", "create", "rolebinding", "carol", "--role=submitter", "--user=carol"
    )
    monkeypatch.setenv("KUBECONFIG", str(alice.kubeconfig("carol")))
    assert dry(namespace="team-b")["metadata"]["namespace"] == "team-b"
    with pytest.raises(ConfigError, match="Is `--namespace NAME` right"):
        dry(namespace="vae")


def test_a_credential_that_is_none_is_refused_by_a_dry_run_too(
    server: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    config = server.kubeconfig("alice").read_text()
    stranger = tmp_path / "config"
    stranger.write_text(config.replace("client-certificate:", "no:").replace(
        "client-key:", "token: wrong\n    neither:"))  # fmt: skip
    monkeypatch.setenv("KUBECONFIG", str(stranger))
    with pytest.raises(ConfigError, match="credentials are wrong"):
        dry()


def test_a_quota_on_jobs_is_told_of_a_job_that_is_not_made_yet(
    alice: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(SubmitConfig, "lost_seconds", 2)
    monkeypatch.setattr(SubmitConfig, "poll_seconds", 0.5)
    alice.kubectl("-n", "vae", "create", "quota", "jobs", "--hard=count/rayjobs.ray.io=0")
    alice.wait("resourcequota", "jobs", "jsonpath={.status.used}")
    for more in ({"detach": True}, {"dry_run": True}):
        with pytest.raises(NotNowError, match="exceeded quota: jobs"):
            submit(id="first", **more)
    assert "asking again" in caplog.text
    assert "may well go on" not in caplog.text
    assert alice.items("rayjobs") == []
    alice.kubectl("-n", "vae", "delete", "quota", "jobs")
    submit(id="first", detach=True)
    submit(id="first", stop=True)
