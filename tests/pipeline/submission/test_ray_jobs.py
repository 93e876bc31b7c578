"""Which of a Ray cluster's jobs is meant, and what a dashboard's answers mean."""

import json
from typing import Any

import pytest

from jobs.submit import main
from pipeline.config import SubmitConfig
from pipeline.errors import ClusterError, UnreachableError
from pipeline.submission import ray_jobs
from pipeline.submission.place import Request
from pipeline.submission.ray_jobs import RayJobs
from pipeline.web import Answer


def listed(*names: str) -> list[dict[str, Any]]:
    return [
        {"submission_id": name, "job_id": None, "status": "SUCCEEDED", "entrypoint": "python",
         "message": "", "start_time": 1000 + at, "driver_exit_code": 0}
        for at, name in enumerate(names)
    ]  # fmt: skip


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the dashboard answers, by method."""
    answers = {"GET": Answer(200, json.dumps(listed()).encode())}
    monkeypatch.setattr(ray_jobs, "ask", lambda method, *_, **__: answers[method])
    return answers


@pytest.mark.parametrize(
    ("names", "request_", "found", "free"),
    [
        ((), Request((), "train-v1"), None, "train-v1-1"),
        (("train-v1-9", "train-v1-10", "train-v10-11", "x"), Request((), "train-v1"),
         "train-v1-10", "train-v1-11"),
        ((), Request((), "b", id="mine"), None, "mine"),
        (("mine",), Request((), "b", id="mine"), "mine", "mine-2"),
        (("mine", "mine-2"), Request((), "b", id="mine"), "mine-2", "mine-3"),
        (("mine", "mine-2"), Request((), "b", id="mine-2"), "mine-2", "mine-2-2"),
    ],
)  # fmt: skip
def test_the_newest_of_a_name_is_meant_and_the_next_one_is_free(
    dashboard: Any, names: Any, request_: Any, found: Any, free: Any
) -> None:
    dashboard["GET"] = Answer(200, json.dumps(listed(*names)).encode())
    jobs = RayJobs("http://head:8265")
    newest = jobs.find(request_)
    assert (newest and newest.id) == found
    assert jobs.free_id(request_, newest) == free


def test_a_dashboard_without_its_head_says_nothing_of_a_job(dashboard: Any) -> None:
    dashboard["GET"] = Answer(500, b"Traceback\nRpcError: unavailable")
    with pytest.raises(UnreachableError, match="RpcError: unavailable"):
        RayJobs("http://head:8265").job("mine")


def test_a_submission_that_ray_refuses_is_refused_and_one_that_is_there_is_not_made_twice(
    dashboard: Any,
) -> None:
    jobs, request = RayJobs("http://head:8265"), Request(("python",), "b")
    dashboard["POST"] = Answer(500, b"Traceback\nRuntimeError: no such runtime_env")
    with pytest.raises(ClusterError, match="no such runtime_env"):
        jobs.start(request, "b-1")
    dashboard["POST"] = Answer(400, b"ValueError: Job with submission_id b-1 already exists")
    assert jobs.start(request, "b-1") is False
    dashboard["POST"] = Answer(200, b"{}")
    assert jobs.start(request, "b-1") is True


def test_what_holds_a_token_does_not_show_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "planted")
    jobs = RayJobs("http://127.0.0.1:9")
    assert "planted" not in f"{jobs!r} {jobs}"


def test_the_list_says_that_its_words_are_rays_where_it_shows_a_training_that_succeeded(
    dashboard: Any,
) -> None:
    asked = SubmitConfig(address="http://head:8265", list=True)
    note = "`python -m jobs.submit --address http://head:8265 --status --id ID` tells the two apart"
    for entrypoint, told in (("python", False), ("python -m jobs.train --run v1", True)):
        (job,) = listed("train-v1-1")
        dashboard["GET"] = Answer(200, json.dumps([job | {"entrypoint": entrypoint}]).encode())
        assert any(note in line for line in main(asked).summary or ()) == told
