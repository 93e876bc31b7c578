"""A RayJob of one job is its template with another name, command and size, and nothing else."""

import copy
import shlex
from typing import Any

import pytest

from jobs.submit import request_of
from pipeline.errors import ConfigError
from pipeline.submission.place import Served
from pipeline.submission.rayjob import (
    GPU,
    NAME_CHARACTERS,
    Wishes,
    base_template,
    pool_of,
    render_rayjob,
)
from tests.k8s import kuberay_rules

TRAIN = ("python", "-m", "jobs.train", "--data", "s3://a b/train", "--run", "first")
ENCODE = ("python", "-m", "jobs.encode", "--model", "models:/vae@champion")


def rendered(command: Any, *, name: str, template: Any = None, **wishes: Any) -> Any:
    return render_rayjob(command, name=name, template=template, wishes=Wishes(**wishes))


def worker_group(job: Any) -> Any:
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    return group


def container(job: Any) -> Any:
    return worker_group(job)["template"]["spec"]["containers"][0]


@pytest.mark.parametrize(("command", "template"), [(TRAIN, "train"), (ENCODE, "encode")])
def test_without_a_size_only_kind_name_and_command_differ_from_the_file(
    command: tuple[str, ...], template: str
) -> None:
    job: Any = rendered(command, name="first")
    expected: Any = base_template(template)
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    expected |= {"apiVersion": "ray.io/v1", "kind": "RayJob"}
    expected["metadata"]["name"] = "first"
    expected["spec"]["entrypoint"] = f"exec {shlex.join(command)}"
    cluster = expected["spec"]["rayClusterSpec"]
    (log,) = cluster["headGroupSpec"]["template"]["spec"]["initContainers"]
    assert log["env"] == [{"name": "JOB_LOGS", "value": "s3://runs/job-logs"}]
    log["env"] = [{"name": "JOB_LOGS", "value": "s3://runs/job-logs/first"}]
    if template == "train":
        # What only an elastic training has.
        del cluster["enableInTreeAutoscaling"], cluster["autoscalerOptions"]
    assert job == expected


def test_a_shell_splits_the_entrypoint_into_the_same_words() -> None:
    # Ray gives the entrypoint to a shell; the quoted form is that of POSIX.
    entrypoint = rendered(TRAIN, name="first")["spec"]["entrypoint"]
    assert entrypoint == "exec python -m jobs.train --data 's3://a b/train' --run first"


def test_training_workers_without_gpus_get_a_pod_each_all_of_them_needed() -> None:
    group = worker_group(rendered(TRAIN, name="first", workers=5))
    assert [group[k] for k in ("replicas", "minReplicas", "maxReplicas")] == [5, 5, 5]


def test_encoding_actors_get_pods_only_while_there_is_work() -> None:
    group = worker_group(rendered(ENCODE, name="first", workers=5))
    assert [group[k] for k in ("replicas", "minReplicas", "maxReplicas")] == [0, 0, 5]


@pytest.mark.parametrize(
    ("gpus", "pods", "each", "cpu", "memory"),
    [(1, 1, "1", "4", "8Gi"), (4, 1, "4", "16", "32Gi"), (16, 2, "8", "32", "64Gi")],
)
def test_gpus_fill_nodes_and_bring_cores_and_memory_along(
    gpus: int, pods: int, each: str, cpu: str, memory: str
) -> None:
    job = rendered(TRAIN, name="first", workers=gpus, gpus=gpus)
    limits = container(job)["resources"]["limits"]
    assert limits == {"cpu": cpu, "memory": memory, GPU: each}
    assert worker_group(job)["maxReplicas"] == pods
    assert "num-cpus" not in worker_group(job)["rayStartParams"]


@pytest.mark.parametrize(
    ("workers", "fewest", "gpus", "bounds"),
    [(8, 2, None, [2, 2, 8]), (8, 8, None, None), (16, 8, 16, [1, 1, 2]), (8, 2, 8, None)],
)
def test_an_elastic_training_begins_with_the_fewest_pods_and_an_autoscaler_brings_the_others(
    workers: int, fewest: int, gpus: int | None, bounds: list[int] | None
) -> None:
    # KubeRay submits once all pods that are asked for are there.
    job = rendered(TRAIN, name="first", workers=workers, fewest=fewest, gpus=gpus)
    cluster = job["spec"]["rayClusterSpec"]
    group = worker_group(job)
    found = [group[k] for k in ("replicas", "minReplicas", "maxReplicas")]
    head = cluster["headGroupSpec"]["template"]["metadata"]["labels"]
    if bounds is None:
        # Of one size, or all in one pod.
        assert found[0] == found[1] == found[2]
        assert not {"enableInTreeAutoscaling", "autoscalerOptions"} & set(cluster)
        assert "vae-pipeline.internal/scales" not in head
    else:
        assert found == bounds
        assert cluster["enableInTreeAutoscaling"] is True
        assert cluster["autoscalerOptions"]["version"] == "v2"
        assert head["vae-pipeline.internal/scales"] == "yes"
    assert kuberay_rules.broken_rules(job) == []


def test_workers_of_an_elastic_training_are_read_from_its_command() -> None:
    asked = request_of((*TRAIN, "--workers", "2..8"))
    assert (asked.fewest, asked.workers) == (2, 8)


@pytest.mark.parametrize(
    ("job", "pool"),
    [("train", "train"), ("encode", "encode"), ("evaluate", "encode"), ("decode", "encode"),
     ("pack", "cpu"), ("doctor", "cpu"), ("verify", "cpu"), ("models", "cpu")],
)  # fmt: skip
def test_what_runs_a_model_gets_the_pods_that_may_have_gpus_and_all_else_cores(
    job: str, pool: str
) -> None:
    assert pool_of(("python", "-m", f"jobs.{job}", "--a", "b")) == pool
    assert pool_of(("python", "-c", f"import jobs.{job}")) == "cpu"


def test_deadline_and_retries_are_those_that_were_asked_for() -> None:
    spec = rendered(TRAIN, name="first", deadline_hours=1.5, retries=0)["spec"]
    assert (spec["activeDeadlineSeconds"], spec["backoffLimit"]) == (5400, 0)
    plain = rendered(TRAIN, name="first")["spec"]
    assert "activeDeadlineSeconds" not in plain
    assert plain["backoffLimit"] == 3


@pytest.mark.parametrize(
    ("label", "queue"),
    [(None, "kueue.x-k8s.io/queue-name"), ("volcano.sh/queue-name", "volcano.sh/queue-name"),
     ("kai.scheduler/queue", "kai.scheduler/queue")],
)  # fmt: skip
def test_a_queue_is_named_by_the_label_that_the_template_knows_it_by(
    label: str | None, queue: str
) -> None:
    template = base_template("train")
    template["metadata"]["labels"] |= {label: "default"} if label else {}
    job = rendered(TRAIN, name="first", template=template, queue="research")
    assert job["metadata"]["labels"][queue] == "research"


def test_priority_is_the_pods_own_or_where_kueue_queues_the_queues() -> None:
    job = rendered(TRAIN, name="first", priority="urgent")
    for group in ("headGroupSpec", "workerGroupSpecs"):
        found = job["spec"]["rayClusterSpec"][group]
        for each in found if isinstance(found, list) else [found]:
            assert each["template"]["spec"]["priorityClassName"] == "urgent"
    # What a gang scheduler reads.
    assert job["metadata"]["labels"]["ray.io/priority-class-name"] == "urgent"
    queued = rendered(TRAIN, name="first", priority="urgent", queue="gpu")
    assert queued["metadata"]["labels"]["kueue.x-k8s.io/priority-class"] == "urgent"
    head = queued["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert "priorityClassName" not in head


def test_an_image_that_is_asked_for_is_that_of_every_container() -> None:
    text = str(rendered(TRAIN, name="first", image="other:1"))
    assert "vae-pipeline:" not in text


def test_a_template_of_eight_gpus_is_cut_down_for_four() -> None:
    eight = rendered(TRAIN, name="template", gpus=8)
    four = container(rendered(TRAIN, name="first", template=eight, gpus=4))
    assert four["resources"]["limits"] == {"cpu": "16", "memory": "32Gi", GPU: "4"}
    asked = four["resources"]["requests"]  # more than the limits is refused by the API server
    assert (asked["cpu"], asked["memory"]) == ("16", "32Gi")


def test_a_template_of_the_cluster_keeps_its_patches_and_is_not_changed() -> None:
    template: Any = base_template("train")
    worker_group(template)["template"]["spec"]["nodeSelector"] = {"pool": "h100"}
    template["metadata"] |= {"uid": "1", "resourceVersion": "7"}
    template["status"] = {"jobStatus": "SUSPENDED"}
    before = copy.deepcopy(template)
    job = rendered(TRAIN, name="first", template=template, workers=3, image="other:1")
    assert worker_group(job)["template"]["spec"]["nodeSelector"] == {"pool": "h100"}
    assert container(job)["image"] == "other:1"
    assert set(job["metadata"]) == {"name", "labels"}
    assert "status" not in job
    assert template == before


def test_what_is_served_stands_on_the_head_and_nothing_where_nobody_could_read_it() -> None:
    asked = (*TRAIN, "--tracking.metrics", "0.0.0.0:9464")
    serves = request_of(asked).serves
    assert serves == Served("run", "first")
    job = rendered(asked, name="first", serves=serves)
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["metadata"]
    assert head["labels"]["vae-pipeline.internal/serves"] == "run-metrics"
    assert head["annotations"]["vae-pipeline.internal/run"] == "first"
    for metrics in ("127.0.0.1:9464", "0.0.0.0:0"):
        assert request_of((*TRAIN, "--tracking.metrics", metrics)).serves is None
    store = (
        *ENCODE, "--data", "d", "--output", "s3://latents/a", "--tracking.metrics", "0.0.0.0:9464",
    )  # fmt: skip
    assert request_of(store).serves == Served("store", "s3://latents/a")


def test_a_copy_is_no_part_of_what_argo_cd_made_the_template_from() -> None:
    # It tracks what it made by this label, and prunes what has it and is not in the repository.
    template = base_template("train")
    template["metadata"]["labels"] |= {"app.kubernetes.io/instance": "vae", "team": "a"}
    job = rendered(TRAIN, name="first", template=template)
    assert job["metadata"]["labels"] == {
        "app.kubernetes.io/component": "train", "vae-pipeline.internal/pool": "train", "team": "a",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["Upper", "1st", "a" * 48, "end-", "under_score"])
def test_a_name_that_kuberay_would_refuse_is_refused_here(name: str) -> None:
    with pytest.raises(ConfigError, match="at most 47"):
        rendered(TRAIN, name=name)


def test_gpus_that_leave_a_node_half_used_are_refused() -> None:
    with pytest.raises(ConfigError, match="12 GPUs on nodes of 8: give a multiple"):
        rendered(TRAIN, name="first", gpus=12)


def test_fewer_gpus_than_workers_are_refused() -> None:
    with pytest.raises(ConfigError, match="8 GPUs for 4 workers"):
        rendered(TRAIN, name="first", gpus=8, workers=4)


@pytest.mark.parametrize("length", [1, 46, 47, 48, 60])
def test_a_name_is_too_long_here_where_it_is_for_kuberay(length: int) -> None:
    allowed = not kuberay_rules.broken_rules(rendered(TRAIN, name="a") | named("a" * length))
    assert allowed == (length <= NAME_CHARACTERS)


def named(name: Any) -> Any:
    return {"metadata": {"name": name}}


@pytest.mark.parametrize("name", ["train", "encode"])
def test_what_is_made_of_a_template_breaks_none_of_kuberays_rules(name: str) -> None:
    command = TRAIN if name == "train" else ENCODE
    for workers, gpus in ((None, None), (3, None), (16, 16)):
        job = rendered(command, name="first", workers=workers, gpus=gpus)
        assert kuberay_rules.broken_rules(job) == []


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("submissionMode",), "K8sJobMode", "HTTPMode"),
        (("rayClusterSpec", "authOptions"), {}, "not token"),
    ],
)
def test_a_template_that_opens_the_dashboard_or_follows_the_log_is_refused(
    path: tuple[str, ...], value: dict[str, Any] | str, said: str
) -> None:
    template: Any = base_template("train")
    place = template["spec"]
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    with pytest.raises(ConfigError, match=said):
        rendered(TRAIN, name="first", template=template)


def test_what_goes_through_a_queue_asks_for_all_its_pods_and_has_no_autoscaler() -> None:
    # Kueue admits a RayJob as a whole, and its webhook refuses enableInTreeAutoscaling.
    template = base_template("encode")
    template["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "gpu"
    job = rendered(ENCODE, name="first", template=template, workers=5)
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpu"
    assert [worker_group(job)[k] for k in ("replicas", "minReplicas", "maxReplicas")] == [5, 5, 5]
    elastic = rendered(TRAIN, name="first", workers=5, fewest=2, queue="gpu")
    assert worker_group(elastic)["replicas"] == 5
    assert "enableInTreeAutoscaling" not in elastic["spec"]["rayClusterSpec"]
    # Nor may what then has no autoscaler reach the API server (the policy `to-api-server`).
    assert "vae-pipeline.internal/scales" not in str((job, elastic))
    assert not {"enableInTreeAutoscaling", "autoscalerOptions"} & set(job["spec"]["rayClusterSpec"])
    assert kuberay_rules.broken_rules(job) == []


@pytest.mark.parametrize("form", [("vae",), ("/opt/venv/bin/vae",), ("python", "-m", "jobs")])
@pytest.mark.parametrize("command", [TRAIN, (*ENCODE, "--data", "d", "--output", "s3://l/a")])
def test_a_job_is_the_same_however_it_is_called(
    command: tuple[str, ...], form: tuple[str, ...]
) -> None:
    name = command[2].removeprefix("jobs.")
    asked = request_of((*form, name, *command[3:]))
    assert asked == request_of(command)
    assert pool_of(asked.command) == name
    with pytest.raises(ConfigError, match=r"jobs\.trian: there is no such job"):
        request_of((*form, "trian"))
    with pytest.raises(ConfigError, match="--outptu"):
        request_of((*form, "encode", "--outptu", "x"))
