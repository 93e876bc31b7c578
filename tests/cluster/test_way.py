"""The whole way of k8s/README.md as one story: from its secrets to a second night.

The commands are the README's, with overlays/dev and small numbers; whoever submits has the Role
`submitter` and nothing else. Each fixture is a part of the way, gone once, after those before it.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests.cluster.conftest import K8S, fresh_cluster, written
from tests.cluster.monitors import Prometheus
from tests.cluster.pods import Pod
from tests.cluster.story import (
    IMAGES,
    STEPS,
    Begun,
    Ended,
    Nights,
    Promoted,
    Remains,
    Trained,
    answers_to_tokens,
    cluster_of,
    here,
    inline,
    is_ready,
    members,
    nights,
    pods,
    put_images,
    status,
    submissions,
)
from tests.cluster.submitting import Submitter, forwarded, s3_from_here
from tests.servers.cluster.box import until
from tests.servers.cluster.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
STORE = "s3://latents/photos"


@pytest.fixture(scope="module")
def vae(can_start: None) -> Iterator[Cluster]:
    """Steps 2 and 3, on a cluster of its own."""
    with fresh_cluster() as found:
        for step in ("kubectl create namespace vae", "kubectl apply -k"):
            found.bash(written(step))
        yield found


@pytest.fixture(scope="module")
def registry(vae: Cluster) -> Iterator[dict[str, str]]:
    """The three variables of step 5."""
    with forwarded(vae, "mlflow", 5000) as url:
        yield {
            "MLFLOW_TRACKING_URI": url,
            "MLFLOW_TRACKING_USERNAME": "pipeline",
            "MLFLOW_TRACKING_PASSWORD": vae.secret(
                "mlflow-credentials", "MLFLOW_TRACKING_PASSWORD"
            ),
        }


def test_mlflow_answers_its_users_by_its_own_names_alone(
    vae: Cluster, registry: dict[str, str]
) -> None:
    url, password = registry["MLFLOW_TRACKING_URI"], registry["MLFLOW_TRACKING_PASSWORD"]
    search = "/api/2.0/mlflow/experiments/search?max_results=1"
    admin = vae.secret("mlflow-admin", "password")
    assert status(url + search) == 401
    assert status(url + search, "pipeline:wrong") == 401
    assert status(url + search, f"pipeline:{password}") == 200
    for host in (
        "mlflow:5000",
        "mlflow.vae.svc:5000",
        "mlflow.team-b.svc",
        "10.244.1.2:5000",
        "[fd00::5]:5000",
    ):
        assert status(url + search, f"pipeline:{password}", host) == 200, host
    for host in ("other:5000", "10.evil.example:5000"):
        assert status(url + search, f"pipeline:{password}", host) == 403
    assert status(f"{url}/metrics", f"pipeline:{password}") == 403
    assert status(f"{url}/metrics", f"admin:{admin}") == 200


@pytest.fixture(scope="module")
def prometheus(vae: Cluster) -> Prometheus:
    vae.kubectl("create", "namespace", "monitoring")
    found = Prometheus(vae)
    found.start()
    return found


@pytest.fixture(scope="module")
def storage(vae: Cluster) -> Iterator[dict[str, str]]:
    with s3_from_here(vae) as found:
        yield found


@pytest.fixture(scope="module")
def s3(storage: dict[str, str]) -> Any:
    """Where the images are already; `archive` is among the buckets that overlays/dev makes."""
    client = boto3.client(
        "s3", endpoint_url=storage["AWS_ENDPOINT_URL"], region_name="us-east-1",
        aws_access_key_id=storage["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=storage["AWS_SECRET_ACCESS_KEY"],
    )  # fmt: skip
    put_images(client)
    return client


@pytest.fixture(scope="module")
def alice(
    vae: Cluster, storage: dict[str, str], s3: Any, tmp_path_factory: pytest.TempPathFactory
) -> Submitter:
    return Submitter.bound(vae, "alice", tmp_path_factory.mktemp("alice"), storage)


@pytest.fixture(scope="module")
def begun(alice: Submitter, vae: Cluster) -> Begun:
    """One after the other."""
    first = alice.submits(*submissions()["doctor"])
    doctor = Ended(*first.ends(600), first.said)
    name = doctor.result["submission_id"]
    (head,) = (pod["metadata"]["name"] for pod in pods(vae, name, "head"))

    def mounted(container: str) -> str:
        place = "/var/run/secrets/kubernetes.io/serviceaccount"
        command = ("-n", "vae", "exec", head, "-c", container, "--", "ls", place)
        return vae.try_kubectl(*command).stdout

    def printed() -> str:
        return vae.kubectl("-n", "vae", "logs", head, "-c", "job-log")

    until(lambda: "Nothing is wrong." in printed(), "the doctor's last word", 15)
    stdout, token = printed(), vae.secret(cluster_of(vae, name), "auth_token")
    mounts = {each: mounted(each) for each in ("ray-head", "job-log", "autoscaler")}
    packing = alice.submits(*submissions()["pack"])
    pack = Ended(*packing.ends(600), packing.said)
    packers = len(pods(vae, pack.result["submission_id"], "worker"))
    return Begun(doctor, pack, packers, stdout, token, mounts)


def test_doctor_finds_that_pods_reach_what_they_need(begun: Begun) -> None:
    assert begun.doctor.code == 0, begun.doctor.said
    levels = {each["name"]: each["level"] for each in begun.doctor.result["result"]["checks"]}
    needed = {"storage", "storage: create once", "mlflow", "ray", "ray: authentication"}
    assert needed <= {name for name, level in levels.items() if level == "ok"}
    assert set(levels.values()) <= {"ok", "skipped"}


def test_images_become_a_dataset_and_a_hold_out_by_a_pod_that_the_autoscaler_brings(
    begun: Begun, s3: Any
) -> None:
    assert begun.pack.code == 0, begun.pack.said
    packed = {part: members(s3, f"photos/{part}/") for part in ("train", "holdout")}
    assert sorted(packed["train"] + packed["holdout"]) == sorted(IMAGES)
    assert 0 < len(packed["holdout"]) < 40  # --holdout 0.05 of 300: 15, give or take 6 deviations
    assert begun.packers == 1


def test_a_driver_prints_to_the_stdout_of_job_log_and_to_storage_alike(
    begun: Begun, s3: Any
) -> None:
    below = f"job-logs/{begun.doctor.result['submission_id']}/"
    (item,) = s3.list_objects_v2(Bucket="runs", Prefix=below)["Contents"]
    kept = s3.get_object(Bucket="runs", Key=item["Key"])["Body"].read().decode()
    assert kept == begun.stdout
    assert kept.count("Nothing is wrong.") == 1


def test_the_autoscaler_alone_has_a_token_of_the_api_server(begun: Begun) -> None:
    assert begun.mounts["autoscaler"].split() == ["ca.crt", "namespace", "token"]
    assert begun.mounts["ray-head"] == begun.mounts["job-log"] == ""


SERIES = (
    'vae_train_step{namespace="vae", run="photos"} > 0',
    'vae:train_images:rate5m{namespace="vae", run="photos"} > 0',
    'up{job="vae/vae-runs", run="photos"} == 1',
    'up{job="vae/ray", ray_io_node_type="head"} == 1',
    'count(up{job="vae/ray", ray_io_node_type="worker"} == 1) == 2',
    'up{job="vae/mlflow"} == 1',
    'up{job="vae/pushgateway"} == 1',
    'kuberay_job_info{namespace="vae", name="train-photos"} == 1',
)
"""What monitors find while a training of two workers runs."""


@pytest.fixture(scope="module")
def trained(begun: Begun, alice: Submitter, vae: Cluster, prometheus: Prometheus) -> Trained:
    foreign = Pod("foreign", {}, (), "default")
    vae.apply([foreign.manifest()])
    training = alice.submits(*submissions()["train"])
    training.says("train-photos: INITIALIZING")

    def head() -> Any:
        return (pods(vae, "train-photos", "head") or [{}])[0]

    until(lambda: head().get("status", {}).get("podIP"), "the head's address", 60)
    url = f"http://{head()['status']['podIP']}:9464/metrics"
    early = endpoint(prometheus, url) != ""
    training.says("train-photos: (PENDING|RUNNING)", 420)
    found = [*pods(vae, "train-photos", "head"), *pods(vae, "train-photos", "worker")]
    tokens = answers_to_tokens(vae, "train-photos", begun.token)

    vae.wait("pod", "foreign", "condition=Ready", namespace="default")
    # While it runs: afterwards nobody would get in.
    until(lambda: "vae_train_step{" in endpoint(prometheus, url), "the run's metrics", 200)
    elsewhere = foreign.reaches(vae, [f"{head()['status']['podIP']}:9464"])
    seen = Trained(
        Ended(-1, {}, ""), [is_ready(pod) for pod in found], early, tokens, elsewhere,
        endpoint(prometheus, url), prometheus.misses(SERIES, 300),
    )  # fmt: skip
    return seen._replace(ended=Ended(*training.ends(600), training.said))


def endpoint(prometheus: Prometheus, url: str) -> str:
    """What it answers the namespace `monitoring`; "" where it does not."""
    try:
        return prometheus.fetch(url)
    except RuntimeError:
        return ""


def test_a_training_of_two_workers_ends_with_its_last_step(trained: Trained) -> None:
    assert trained.ended.code == 0, trained.ended.said
    result = trained.ended.result["result"]
    assert (result["reason"], result["steps"]) == ("done", STEPS)


def test_both_workers_are_ready_before_the_driver_begins(trained: Trained) -> None:
    assert trained.ready_at_its_begin == [True] * 3


def test_the_runs_port_answers_the_namespace_monitoring_alone_and_only_once_it_runs(
    trained: Trained,
) -> None:
    assert not trained.answered_while_it_waited
    assert 'vae_train_step{run="photos"}' in trained.endpoint
    assert trained.from_elsewhere == [False]


def test_prometheus_finds_by_the_monitors_what_runs(trained: Trained) -> None:
    assert trained.missing_series == []


def test_the_dashboard_is_its_own_tokens_alone(trained: Trained) -> None:
    assert trained.tokens == [401, 403, 200]


@pytest.fixture(scope="module")
def promoted(trained: Trained, registry: dict[str, str], tmp_path_factory: Any) -> Promoted:
    folder = tmp_path_factory.mktemp("promotion")
    command = inline("python -m jobs.models --promote")
    nobody = here(command, {"MLFLOW_TRACKING_URI": registry["MLFLOW_TRACKING_URI"]}, folder)
    return Promoted(nobody, here(command, registry, folder))


def test_a_run_is_registered_by_its_name_and_promoted_by_mlflows_user_alone(
    promoted: Promoted,
) -> None:
    assert promoted.nobody.code == 1, promoted.nobody.said
    assert "MLFLOW_TRACKING_USERNAME" in promoted.nobody.said
    assert promoted.ended.code == 0, promoted.ended.said
    (model,) = promoted.ended.result["models"]
    assert model["name"] == "photos"
    assert model["versions"][0]["run"] == "s3://runs/train/photos"
    assert set(model["versions"][0]["aliases"]) == {"candidate", "champion"}


def test_a_model_is_pulled_through_mlflow_without_keys_of_the_storage(
    promoted: Promoted, registry: dict[str, str], s3: Any, tmp_path: Path
) -> None:
    command = "python -m jobs.pull --model models:/photos@champion --output pulled"
    assert here(command, registry, tmp_path).code == 0
    pulled = list((tmp_path / "pulled").rglob("*.safetensors"))
    sizes = [
        item["Size"]
        for item in s3.list_objects_v2(Bucket="mlflow", Prefix="artifacts/")["Contents"]
        if item["Key"].endswith(".safetensors")
    ]
    assert pulled
    assert {path.stat().st_size for path in pulled} <= set(sizes)


@pytest.fixture(scope="module")
def first(promoted: Promoted, vae: Cluster, s3: Any, tmp_path_factory: Any) -> Nights:
    """Step 6: the overlay's own nightly.yaml is changed and applied, and a night tried."""
    copied = tmp_path_factory.mktemp("overlay") / "k8s"
    shutil.copytree(K8S, copied)
    file = copied / "overlays/dev/nightly.yaml"
    text = file.read_text()
    assert text.count("value: true") == 1
    file.write_text(text.replace("value: true", "value: false"))
    vae.kubectl("apply", "-k", str(copied / "overlays/dev"))
    return nights(vae, s3, ["nightly-try"])


def test_a_night_appends_encodes_and_verifies(first: Nights) -> None:
    (night,) = first.nights
    assert "Complete" in night.conditions
    assert night.exit_codes == {"append": 0, "encode": 0, "verify": 0}
    encoded = night.result("encode")["result"]
    assert (encoded["encoded"], encoded["complete"]) == (encoded["samples"], True)
    assert night.result("verify") == {"ok": True, "problems": []}


def test_a_night_submits_from_inside_with_the_account_submitter(
    first: Nights, vae: Cluster
) -> None:
    pod = vae.get("cronjob", "nightly")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == "submitter"
    assert vae.get("cronjob", "nightly")["spec"]["suspend"] is False
    (rayjob,) = first.rayjobs.values()
    assert rayjob["metadata"]["labels"]["vae-pipeline.internal/pool"] == "encode"
    (group,) = rayjob["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["maxReplicas"] == 2  # --actors=2
    assert first.nights[0].result("encode")["status"] == "SUCCEEDED"


@pytest.fixture(scope="module")
def again(first: Nights, vae: Cluster, s3: Any) -> Nights:
    """Two more at once."""
    return nights(vae, s3, ["nightly-again", "nightly-twin"])


def test_two_more_nights_at_once_share_one_encoding_and_change_nothing(
    first: Nights, again: Nights
) -> None:
    for night in again.nights:
        assert night.exit_codes == {"append": 0, "encode": 0, "verify": 0}
        assert night.result("append")["added"] == 0
        assert night.result("encode")["result"]["encoded"] == 0
        assert night.result("verify")["ok"]
    (encoding,) = again.rayjobs.keys() - first.rayjobs.keys()
    assert again.rayjobs[encoding]["status"]["jobStatus"] == "SUCCEEDED"
    assert again.latents == first.latents != {}


@pytest.fixture(scope="module")
def remains(
    again: Nights, begun: Begun, alice: Submitter, vae: Cluster, prometheus: Prometheus
) -> Remains:
    name = begun.doctor.result["submission_id"]
    doctors = cluster_of(vae, name)
    assert vae.find("raycluster", doctors) is None  # two minutes after its end
    vae.kubectl("-n", "vae", "delete", "rayjob", "nightly")
    selector = "app.kubernetes.io/component=encode,ray.io/node-type=head"
    until(lambda: not vae.items("pod", selector), "the night's cluster to be gone", 150)
    url = "http://pushgateway.vae:9091/metrics"
    prometheus.fetch(f"{url}/job/vae-encode/store/other", "--data-binary", "other_store 1\n")
    before = prometheus.fetch(url)
    vae.kubectl("-n", "vae", "rollout", "restart", "deployment/pushgateway")
    vae.kubectl("-n", "vae", "rollout", "status", "deployment/pushgateway", "--timeout=60s")
    restarted = prometheus.fetch(url, "--retry", "9", "--retry-all-errors")
    page = K8S / "base/monitoring/README.md"
    vae.bash(written("kubectl -n vae port-forward deployment/pushgateway", page))
    return Remains(
        alice.asks_text("--logs", "--id", name), alice.asks_text("--logs", "--id", "nightly"),
        before, restarted, prometheus.fetch(url),
    )  # fmt: skip


def test_a_log_outlives_its_cluster_and_its_rayjob(remains: Remains, begun: Begun) -> None:
    for line in begun.stdout.splitlines():
        assert line in remains.doctors_log
    assert f"{STORE}: " in remains.nights_log
    assert '"encoded": 0' in remains.nights_log  # the result, its last line


def test_what_an_encoding_leaves_behind_outlives_its_cluster_and_is_forgotten_when_told(
    remains: Remains,
) -> None:
    series = [
        line
        for line in remains.metrics.splitlines()
        if line.startswith("vae_encode_last_success_timestamp_seconds{")
    ]
    assert len(series) == 1
    assert f'store="{STORE}"' in series[0]
    assert series[0] in remains.after_restart
    assert STORE not in remains.forgotten
    assert "other_store" in remains.forgotten
