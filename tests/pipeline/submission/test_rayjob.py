"""A RayJob of one job is its template with another name, command and size, and nothing else."""

import copy
import shlex
from typing import Any

import pytest

from pipeline.errors import ConfigError
from pipeline.submission.rayjob import GPU, NAME_CHARACTERS, base_template, render_rayjob
from tests.k8s import kuberay_rules

TRAIN = ("python", "-m", "jobs.train", "--data", "s3://a b/train", "--run", "first")
ENCODE = ("python", "-m", "jobs.encode", "--model", "models:/vae@champion")


def worker_group(job: Any) -> Any:
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    return group


def container(job: Any) -> Any:
    return worker_group(job)["template"]["spec"]["containers"][0]


@pytest.mark.parametrize(("command", "template"), [(TRAIN, "train"), (ENCODE, "encode")])
def test_without_a_size_only_kind_name_and_command_differ_from_the_file(
    command: tuple[str, ...], template: str
) -> None:
    job, expected = render_rayjob(command, name="first"), base_template(template)
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    expected |= {"apiVersion": "ray.io/v1", "kind": "RayJob"}
    expected["metadata"]["name"] = "first"
    expected["spec"]["entrypoint"] = shlex.join(command)
    assert job == expected


def test_a_shell_splits_the_entrypoint_into_the_same_words() -> None:
    # Ray gives the entrypoint to a shell; the quoted form is that of POSIX.
    entrypoint = render_rayjob(TRAIN, name="first")["spec"]["entrypoint"]
    assert entrypoint == "python -m jobs.train --data 's3://a b/train' --run first"


def test_training_workers_without_gpus_get_a_pod_each_all_of_them_needed() -> None:
    group = worker_group(render_rayjob(TRAIN, name="first", workers=5))
    assert [group[k] for k in ("replicas", "minReplicas", "maxReplicas")] == [5, 5, 5]


def test_encoding_actors_get_pods_only_while_there_is_work() -> None:
    group = worker_group(render_rayjob(ENCODE, name="first", workers=5))
    assert [group[k] for k in ("replicas", "minReplicas", "maxReplicas")] == [0, 0, 5]


@pytest.mark.parametrize(
    ("gpus", "pods", "each", "cpu", "memory"),
    [(1, 1, "1", "4", "8Gi"), (4, 1, "4", "16", "32Gi"), (16, 2, "8", "32", "64Gi")],
)
def test_gpus_fill_nodes_and_bring_cores_and_memory_along(
    gpus: int, pods: int, each: str, cpu: str, memory: str
) -> None:
    job = render_rayjob(TRAIN, name="first", workers=gpus, gpus=gpus)
    limits = container(job)["resources"]["limits"]
    assert limits == {"cpu": cpu, "memory": memory, GPU: each}
    assert worker_group(job)["maxReplicas"] == pods
    assert "num-cpus" not in worker_group(job)["rayStartParams"]


def test_a_template_of_eight_gpus_is_cut_down_for_four() -> None:
    eight = render_rayjob(TRAIN, name="template", gpus=8)
    four = container(render_rayjob(TRAIN, name="first", template=eight, gpus=4))
    assert four["resources"]["limits"] == {"cpu": "16", "memory": "32Gi", GPU: "4"}


def test_a_template_of_the_cluster_keeps_its_patches_and_is_not_changed() -> None:
    template = base_template("train")
    worker_group(template)["template"]["spec"]["nodeSelector"] = {"pool": "h100"}
    template["metadata"] |= {"uid": "1", "resourceVersion": "7"}
    template["status"] = {"jobStatus": "SUSPENDED"}
    before = copy.deepcopy(template)
    job = render_rayjob(TRAIN, name="first", template=template, workers=3, image="other:1")
    assert worker_group(job)["template"]["spec"]["nodeSelector"] == {"pool": "h100"}
    assert container(job)["image"] == "other:1"
    assert set(job["metadata"]) == {"name", "labels"}
    assert "status" not in job
    assert template == before


@pytest.mark.parametrize("name", ["Upper", "1st", "a" * 48, "end-", "under_score"])
def test_a_name_that_kuberay_would_refuse_is_refused_here(name: str) -> None:
    with pytest.raises(ConfigError, match="at most 47"):
        render_rayjob(TRAIN, name=name)


def test_gpus_that_leave_a_node_half_used_are_refused() -> None:
    with pytest.raises(ConfigError, match="12 GPUs on nodes of 8: give a multiple"):
        render_rayjob(TRAIN, name="first", gpus=12)


def test_fewer_gpus_than_workers_are_refused() -> None:
    with pytest.raises(ConfigError, match="8 GPUs for 4 workers"):
        render_rayjob(TRAIN, name="first", gpus=8, workers=4)


@pytest.mark.parametrize("length", [1, 46, 47, 48, 60])
def test_a_name_is_too_long_here_where_it_is_for_kuberay(length: int) -> None:
    allowed = not kuberay_rules.broken_rules(render_rayjob(TRAIN, name="a") | named("a" * length))
    assert allowed == (length <= NAME_CHARACTERS)


def named(name: Any) -> Any:
    return {"metadata": {"name": name}}


@pytest.mark.parametrize("name", ["train", "encode"])
def test_what_is_made_of_a_template_breaks_none_of_kuberays_rules(name: str) -> None:
    command = TRAIN if name == "train" else ENCODE
    for workers, gpus in ((None, None), (3, None), (16, 16)):
        job = render_rayjob(command, name="first", workers=workers, gpus=gpus)
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
    template = base_template("train")
    place = template["spec"]
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    with pytest.raises(ConfigError, match=said):
        render_rayjob(TRAIN, name="first", template=template)


def test_what_goes_through_a_queue_asks_for_all_its_pods_and_has_no_autoscaler() -> None:
    # Kueue admits a RayJob as a whole, and its webhook refuses enableInTreeAutoscaling.
    template = base_template("encode")
    template["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "gpu"
    job = render_rayjob(ENCODE, name="first", template=template, workers=5)
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpu"
    assert [worker_group(job)[k] for k in ("replicas", "minReplicas", "maxReplicas")] == [5, 5, 5]
    assert not {"enableInTreeAutoscaling", "autoscalerOptions"} & set(job["spec"]["rayClusterSpec"])
    assert kuberay_rules.broken_rules(job) == []
