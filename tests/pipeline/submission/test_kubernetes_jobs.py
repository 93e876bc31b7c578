"""What a RayJob's submission says is what became of the job, whoever else acts meanwhile."""

import json
import shutil
import threading
import time
from pathlib import Path

import pytest

from jobs.submit import asked_of, main
from pipeline.config import SubmitConfig
from pipeline.errors import ClusterError, ConfigError
from pipeline.runs.result import TrainingResult
from pipeline.submission import kubernetes_submission
from pipeline.submission.kubernetes import connect
from pipeline.submission.rayjob import base_template
from tests.k8s.commands import parsed
from tests.k8s.schemas import CRDS, crd_validator
from tests.servers.api_server import ApiServer

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")

ENCODE = (
    "python", "-m", "jobs.encode", "--model", "m", "--data", "d", "--output", "o",
    "--quarantine-exit", "0",
)  # fmt: skip
RUNNING = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
SUCCEEDED = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
HEAD_LOST = {
    "jobDeploymentStatus": "Failed", "jobStatus": "RUNNING",
    "reason": "JobStatusCheckTimeoutExceeded", "message": "no answer for 300 s",
}  # fmt: skip


def failed(code: int) -> dict[str, str]:
    """As KubeRay passes on what Ray says."""
    message = f"Job entrypoint command failed with exit code {code}, last available logs:\nbye"
    return {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed",
            "message": message}  # fmt: skip


@pytest.fixture
def server(tmp_path, monkeypatch):
    folder = tmp_path / "server"
    folder.mkdir()
    with ApiServer(folder).running() as server:
        if CRDS.exists():
            server.validator = crd_validator("RayJob")
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig()))
        for name in ("train", "encode"):
            server.put(base_template(name))
        yield server


def submit(*command: str, **more):
    config = {"id": "first", "poll_seconds": 0.05, "command": command or ENCODE, **more}
    return main(SubmitConfig(kubernetes=True, **config))


@pytest.mark.parametrize(
    ("states", "code", "status"),
    [
        ([RUNNING, SUCCEEDED], 0, "SUCCEEDED"),
        ([RUNNING, failed(1)], 1, "FAILED"),
        ([failed(2)], 2, "FAILED"),
        ([RUNNING, failed(3)], 3, "QUARANTINED"),
        ([RUNNING, HEAD_LOST], 4, "LOST"),
        ([RUNNING, {"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}], 5, "STOPPED"),
        ([RUNNING, {"gone": ""}], 5, "STOPPED"),
        ([{"jobDeploymentStatus": "Failed", "reason": "DeadlineExceeded"}], 1, "FAILED"),
        ([{"jobDeploymentStatus": "Failed", "reason": "PreRunningDeadlineExceeded"}], 1, "FAILED"),
        ([{"jobDeploymentStatus": "ValidationFailed", "message": "bad"}], 1, "FAILED"),
        ([{}, {"jobDeploymentStatus": "Retrying"}, RUNNING, SUCCEEDED], 0, "SUCCEEDED"),
    ],
)
def test_the_exit_code_is_the_jobs_fate(server, states, code, status):
    server.script["first"] = list(states)
    outcome = submit()
    assert (outcome.exit_code, outcome.result["status"]) == (code, status)


def test_a_lost_head_is_submitted_again_as_often_as_told(server):
    server.lives = [[RUNNING, HEAD_LOST], [RUNNING, HEAD_LOST], [RUNNING, SUCCEEDED]]
    assert submit(resubmit_on_head_loss=2).exit_code == 0
    assert server.lives == []
    server.lives = [[HEAD_LOST], [SUCCEEDED]]
    assert submit(resubmit_on_head_loss=0).exit_code == 4


def test_a_job_that_runs_already_is_followed_not_doubled(server):
    server.script["first"] = [RUNNING]
    submit(detach=True)
    uid = server.objects["first"]["metadata"]["uid"]
    server.script["first"] = [RUNNING, RUNNING, SUCCEEDED]
    assert submit().exit_code == 0
    assert server.objects["first"]["metadata"]["uid"] == uid


def test_another_command_of_the_same_name_is_refused(server):
    submit(detach=True)
    server.script["first"] = [RUNNING]
    with pytest.raises(ConfigError, match="another command"):
        submit(*ENCODE, "--limit", "3")


def test_a_templates_name_is_refused(server):
    with pytest.raises(ConfigError, match="a template's name"):
        submit(id="encode")


def test_one_that_has_ended_makes_room(server):
    submit(detach=True)
    uid = server.objects["first"]["metadata"]["uid"]
    server.script["first"] = [SUCCEEDED]
    submit(detach=True)
    assert server.objects["first"]["metadata"]["uid"] != uid


def test_of_two_submissions_at_once_one_creates_and_the_other_follows(server):
    server.lives = [[failed(1)], [RUNNING] * 40 + [SUCCEEDED]]
    submit(detach=True)
    # Parsed once, as in a process of its own: tyro's cache is not for threads. Under pytest it
    # even computes a tenth of its hits again, long enough for the other parse to empty it.
    config = SubmitConfig(kubernetes=True, id="first", poll_seconds=0.05, command=ENCODE)
    asked, jobs, verdicts = asked_of(ENCODE), connect(None, None, 30), []

    def follow() -> None:
        verdicts.append(kubernetes_submission.submit(config, jobs, asked))

    threads = [threading.Thread(target=follow) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [verdict.status for verdict in verdicts] == ["SUCCEEDED", "SUCCEEDED"]


def test_an_api_server_that_restarts_ends_nothing(server):
    server.script["first"] = [RUNNING] * 20 + [SUCCEEDED]
    outcomes = []
    thread = threading.Thread(target=lambda: outcomes.append(submit(lost_seconds=60)))
    thread.start()
    while "first" not in server.objects:
        time.sleep(0.01)
    server.refuse_with = "ServiceUnavailable"
    while server.refused < 2:
        time.sleep(0.01)
    server.refuse_with = None
    thread.join()
    assert outcomes[0].exit_code == 0


def test_the_clusters_own_patches_are_kept(server):
    template = server.objects["encode"]["spec"]["rayClusterSpec"]
    pod = template["workerGroupSpecs"][0]["template"]["spec"]
    pod["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    submit(detach=True)
    created = server.objects["first"]["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    assert created["template"]["spec"]["tolerations"] == pod["tolerations"]
    assert "suspend" not in server.objects["first"]["spec"]


def test_a_namespace_without_templates_is_told_what_is_missing(server):
    server.objects.clear()
    with pytest.raises(ClusterError, match="apply an overlay"):
        submit()


def test_stopping_a_job_without_a_run_deletes_its_rayjob(server):
    submit(detach=True)
    server.script["first"] = [RUNNING]
    assert submit(stop=True).result["status"] == "STOPPED"
    assert "first" not in server.objects


@pytest.fixture
def train(tmp_path):
    return ("python", "-m", "jobs.train", "--data", "d", "--run", "My.Run", "--storage",
            str(tmp_path / "runs"), "--workers", "2")  # fmt: skip


def test_a_training_is_stopped_by_its_flag_and_keeps_its_checkpoint(server, train):
    submit(*train, detach=True)
    server.script["first"] = [RUNNING, RUNNING, SUCCEEDED]
    run = asked_of(train).run
    assert submit(*train, stop=True).result["status"] == "STOPPED"
    assert Path(run.path("STOP")).exists()
    assert "first" in server.objects


def test_a_training_that_finished_before_its_head_was_lost_has_succeeded(server, train):
    run = asked_of(train).run
    result = TrainingResult(
        run=run.url, run_id="1", reason="done", steps=2, samples=8, bad_samples=0, converged=False,
        run_seconds={}, elbo=-1.0, chosen_step=2, holdout_before=None, holdout_after=None,
        model=None, model_version=None, bundle=None, digest=None,
    )  # fmt: skip
    server.script["first"] = [RUNNING] * 3 + [HEAD_LOST]
    outcomes = []
    thread = threading.Thread(target=lambda: outcomes.append(submit(*train)))
    thread.start()
    while "first" not in server.objects:
        time.sleep(0.01)
    run.finish(result)
    thread.join()
    assert (outcomes[0].exit_code, outcomes[0].result["result"]) == (0, result.to_json())


def test_a_runs_name_becomes_one_that_kubernetes_takes(server, train):
    name = submit(*train, id=None, detach=True).result["submission_id"]
    assert name.startswith("train-my-run-")
    assert len(name) <= 47
    assert name in server.objects
    assert submit(*train, id=None, dry_run=True).result["submission_id"] == name


def test_a_dry_run_shows_what_would_be_created_and_creates_nothing(server, train):
    outcome = submit(*train, gpus=2, image="other:1", dry_run=True)
    job = outcome.result["rayjob"]
    assert "first" not in server.objects
    assert any("dryRun=All" in path for _, path in server.requests)
    submit(*train, gpus=2, image="other:1", detach=True)
    created = json.loads(json.dumps(server.objects["first"]))
    del created["metadata"]["uid"]
    assert created == job


def test_a_dry_run_needs_no_cluster(tmp_path, monkeypatch, train):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    job = submit(*train, gpus=2, dry_run=True).result["rayjob"]
    assert parsed(job["spec"]["entrypoint"].split()).run == "My.Run"
    if CRDS.exists():
        assert list(crd_validator("RayJob").iter_errors(job)) == []


def test_flags_that_kubernetes_needs_are_asked_for(server, caplog):
    submit(*ENCODE[:-2], detach=True)
    assert "--quarantine-exit 0" in caplog.text
    assert "--tracking.metrics 0.0.0.0:9464" in caplog.text
    caplog.clear()
    submit(*ENCODE, "--tracking.metrics", "0.0.0.0:9464", id="second", detach=True)
    assert "--quarantine-exit" not in caplog.text
    assert "--tracking.metrics" not in [
        record.message for record in caplog.records if "WARN" in record.levelname
    ]


def test_flags_that_say_nothing_without_kubernetes_are_refused():
    with pytest.raises(ValueError, match="need --kubernetes"):
        SubmitConfig(command=ENCODE, gpus=8)


def test_a_command_that_its_job_refuses_is_refused_before_anything_is_created(server):
    with pytest.raises(SystemExit):
        submit("python", "-m", "jobs.encode", "--no-such-flag", "1")
    with pytest.raises(ConfigError, match=r"jobs\.encod: there is no such job"):
        submit("python", "-m", "jobs.encod")
    assert "first" not in server.objects
