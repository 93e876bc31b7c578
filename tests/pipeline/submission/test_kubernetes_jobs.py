"""One RayJob for each submission, made of the cluster's template, whoever else submits."""

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.submit import main, request_of
from pipeline.config import SubmitConfig
from pipeline.errors import ClusterError, ConfigError, NotNowError
from pipeline.submission import follower
from pipeline.submission.api_server import ApiServer
from pipeline.submission.kubernetes_jobs import KubernetesJobs
from tests.k8s.commands import parsed
from tests.k8s.schemas import CRDS, crd_validator
from tests.support.rayjobs import (
    ENCODE,
    HEAD_LOST,
    RUNNING,
    SUCCEEDED,
    failed,
    followed,
    submit,
    until,
)


def test_a_lost_head_is_submitted_again_as_often_as_told(server: Any) -> None:
    server.lives = [[RUNNING, HEAD_LOST], [RUNNING, HEAD_LOST], [RUNNING, SUCCEEDED]]
    assert submit(resubmit_on_head_loss=2).exit_code == 0
    assert server.lives == []
    server.lives = [[HEAD_LOST], [SUCCEEDED]]
    assert submit(resubmit_on_head_loss=0).exit_code == 4


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ({"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}, 5),
        (failed(1), 1),
        (failed(2), 2),
        ({"gone": ""}, 5),
    ],
)
def test_only_a_lost_head_is_submitted_again(server: Any, end: dict[str, Any], code: int) -> None:
    server.lives = [[RUNNING, end], [RUNNING, SUCCEEDED]]
    assert submit(resubmit_on_head_loss=2).exit_code == code
    assert server.lives == [[RUNNING, SUCCEEDED]]


def test_a_job_that_runs_already_is_followed_not_doubled(server: Any) -> None:
    server.script["first"] = [RUNNING]
    submit(detach=True)
    uid = server.objects["first"]["metadata"]["uid"]
    server.script["first"] = [RUNNING, RUNNING, SUCCEEDED]
    assert submit().exit_code == 0
    assert server.objects["first"]["metadata"]["uid"] == uid


def test_another_command_of_the_same_name_is_refused(server: Any) -> None:
    submit(detach=True)
    server.script["first"] = [RUNNING]
    with pytest.raises(ConfigError, match="another command"):
        submit(*ENCODE, "--limit", "3")


@pytest.mark.parametrize("flag", ["stop", "status", "logs"])
def test_a_template_is_no_job_and_nothing_that_could_be_stopped(server: Any, flag: str) -> None:
    with pytest.raises(ClusterError, match="knows no job train"):
        main(SubmitConfig(kubernetes=True, id="train", **{flag: True}))
    assert submit(list=True).result["jobs"] == []
    assert {item["metadata"]["name"] for item in server.others["rayjobtemplates"]} == {
        "train", "encode", "cpu"
    }  # fmt: skip


def test_one_that_has_ended_makes_room(server: Any) -> None:
    submit(detach=True)
    uid = server.objects["first"]["metadata"]["uid"]
    server.script["first"] = [SUCCEEDED]
    submit(detach=True)
    assert server.objects["first"]["metadata"]["uid"] != uid


def test_of_two_submissions_at_once_one_creates_and_the_other_follows(server: Any) -> None:
    server.lives = [[failed(1)], [RUNNING] * 40 + [SUCCEEDED]]
    submit(detach=True)
    config = SubmitConfig(kubernetes=True, id="first", command=ENCODE)
    request, verdicts = replace(request_of(ENCODE), id="first"), []

    def follow() -> None:
        place = KubernetesJobs(ApiServer(None, None, 30), config)
        verdicts.append(follower.submit(config, place, request))

    threads = [threading.Thread(target=follow) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [verdict.status for verdict in verdicts] == ["SUCCEEDED", "SUCCEEDED"]


@pytest.mark.parametrize(
    "refusal",
    [
        (403, "Forbidden", 'rayjobs "first" is forbidden: exceeded quota: jobs'),
        (500, "InternalError", 'failed calling webhook "vrayjob": connection refused'),
    ],
)
def test_submitting_waits_for_a_quota_and_a_webhook_as_following_does(
    server: Any, refusal: tuple[int, str, str]
) -> None:
    server.refuse_creation = refusal
    server.lives = [[RUNNING, SUCCEEDED]]
    thread, outcomes = followed()
    until(lambda: server.refused >= 3)
    server.refuse_creation = None
    thread.join()
    assert outcomes[0].exit_code == 0


def test_a_job_that_is_there_is_joined_while_a_webhook_refuses_creations(server: Any) -> None:
    submit(detach=True)
    server.script["first"] = [RUNNING, RUNNING, SUCCEEDED]
    server.refuse_creation = (500, "InternalError", "failed calling webhook")
    assert submit().exit_code == 0
    assert server.refused == 0


def test_a_quota_that_stays_full_is_a_failure_in_the_end(
    server: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(SubmitConfig, "lost_seconds", 0.3)
    server.refuse_creation = (403, "Forbidden", "exceeded quota: jobs")
    with pytest.raises(NotNowError, match="exceeded quota"):
        submit()
    # Of a job that was never made, nothing "may well go on".
    assert "exceeded quota: jobs; asking again, for 0.3 s at most" in caplog.text


def test_the_clusters_own_patches_are_kept(server: Any) -> None:
    (template,) = [
        item["spec"]["rayClusterSpec"]
        for item in server.others["rayjobtemplates"]
        if item["metadata"]["name"] == "encode"
    ]
    pod = template["workerGroupSpecs"][0]["template"]["spec"]
    pod["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    submit(detach=True)
    created = server.objects["first"]["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    assert created["template"]["spec"]["tolerations"] == pod["tolerations"]


def test_a_namespace_without_templates_is_told_what_is_missing(server: Any) -> None:
    server.others.clear()
    with pytest.raises(ClusterError, match="apply an overlay"):
        submit()


def test_a_runs_name_becomes_one_that_kubernetes_takes(server: Any, train: Any) -> None:
    name: Any = submit(*train, id=None, detach=True).result["submission_id"]
    assert name.startswith("train-my-run-")
    assert len(name) <= 47
    assert name in server.objects
    assert submit(*train, id=None, dry_run=True).result["submission_id"] == name


def test_a_dry_run_shows_what_would_be_created_and_creates_nothing(server: Any, train: Any) -> None:
    outcome = submit(*train, gpus=2, image="other:1", dry_run=True)
    job = outcome.result["rayjob"]
    assert "first" not in server.objects
    assert any("dryRun=All" in path for _, path in server.requests)
    submit(*train, gpus=2, image="other:1", detach=True)
    created = json.loads(json.dumps(server.objects["first"]))
    del created["metadata"]["uid"]
    assert created == job


def test_a_dry_run_needs_no_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: Any
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    job: Any = submit(*train, gpus=2, dry_run=True).result["rayjob"]
    assert parsed(job["spec"]["entrypoint"].split()[1:]).run == "My.Run"
    if CRDS.exists():
        assert list(crd_validator("RayJob").iter_errors(job)) == []


def test_what_a_submission_is_refused_for_a_dry_run_is_refused_for_too(server: Any) -> None:
    server.others["localqueues"] = [{"metadata": {"name": "research"}}]
    with pytest.raises(ConfigError, match="no such LocalQueue"):
        submit(queue="typo", dry_run=True)
    server.refuse_creation = (403, "Forbidden", "exceeded quota: jobs")
    with pytest.raises(NotNowError, match="exceeded quota"):
        submit(dry_run=True)
    server.rights.clear()
    with pytest.raises(ConfigError, match="The Role `submitter`"):
        submit(dry_run=True)
    server.tokens.clear()
    with pytest.raises(ConfigError, match="credentials are wrong"):
        submit(dry_run=True)


def test_a_context_that_is_not_there_is_refused_though_a_dry_run_needs_none(server: Any) -> None:
    with pytest.raises(ConfigError, match="needs a kubeconfig"):
        submit(context="typo", dry_run=True)


def test_a_dry_run_where_no_server_answers_says_so(
    server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server.stop()
    assert submit(dry_run=True).result["status"] == "DRY_RUN"
    assert "no API server has seen this RayJob" in caplog.text


def test_flags_that_kubernetes_needs_are_asked_for(
    server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    submit(*ENCODE[:-2], detach=True)
    assert "--tracking.metrics 0.0.0.0:9464" in caplog.text
    caplog.clear()
    submit(*ENCODE, "--tracking.metrics", "0.0.0.0:9464", id="second", detach=True)
    assert "--tracking.metrics" not in [
        record.message for record in caplog.records if "WARN" in record.levelname
    ]


def test_flags_that_say_nothing_without_kubernetes_are_refused() -> None:
    for flag in ({"gpus": 8}, {"queue": "gpu"}, {"retries": 0}, {"dry_run": True}):
        with pytest.raises(ValueError, match=f"{next(iter(flag))}: give them with `--kubernetes`"):
            SubmitConfig(command=ENCODE, **flag)


def test_a_pool_that_is_not_there_is_told_with_those_that_are(server: Any) -> None:
    with pytest.raises(ClusterError, match="no template gpus: those there are: train, encode, cpu"):
        submit(pool="gpus")
    submit(pool="cpu", detach=True)
    assert "first" in server.objects


def test_a_queue_that_is_not_there_is_refused_with_those_that_are(
    server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ConfigError, match="Kueue is not installed"):
        submit(queue="gpu", detach=True)
    server.others["localqueues"] = [{"metadata": {"name": "research"}}]
    with pytest.raises(ConfigError, match=r"no such LocalQueue. It has research"):
        submit(queue="gpu", detach=True)
    assert "first" not in server.objects
    submit(queue="research", detach=True)
    made = server.objects["first"]
    assert made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"
    del server.rights["localqueues"]
    with caplog.at_level("INFO"):
        submit(queue="gpu", id="second", detach=True)
    assert "can't be seen from here" in caplog.text


def test_a_priority_that_is_not_there_is_refused_where_the_user_may_see_it(server: Any) -> None:
    submit(priority="urgent", detach=True)  # The Role may not read them: the pods will tell.
    server.rights["priorityclasses"] = ["list"]
    server.others["priorityclasses"] = [{"metadata": {"name": "usual"}}]
    with pytest.raises(ConfigError, match=r"no such PriorityClass. It has usual"):
        submit(priority="urgent", id="second", detach=True)
    submit(priority="usual", id="second", detach=True)
    assert "second" in server.objects


def test_a_command_that_its_job_refuses_is_refused_before_anything_is_created(server: Any) -> None:
    with pytest.raises(ConfigError, match="there is no such flag"):
        submit("python", "-m", "jobs.encode", "--no-such-flag", "1")
    with pytest.raises(ConfigError, match=r"jobs\.encod: there is no such job"):
        submit("python", "-m", "jobs.encod")
    assert "first" not in server.objects
