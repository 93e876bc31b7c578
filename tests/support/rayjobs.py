"""RayJobs of the stand-in API server: what KubeRay says of them, and who follows them."""

import threading
import time
from collections.abc import Callable
from typing import Any

from jobs.command import Outcome
from jobs.submit import main, request_of
from pipeline.config import SubmitConfig
from pipeline.runs.result import TrainingResult
from pipeline.runs.run import Run, Start

ENCODE = (
    "python", "-m", "jobs.encode", "--model", "m", "--data", "d", "--output", "o",
    "--bad-fraction", "1",
)  # fmt: skip
DENIED = "12:00:01 INFO jobs: begins\nAccessDeniedError: s3://d: looking it up was refused (403)\n"
RUNNING = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
SUCCEEDED = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
HEAD_LOST = {
    "jobDeploymentStatus": "Failed", "jobStatus": "RUNNING",
    "reason": "JobStatusCheckTimeoutExceeded", "message": "no answer for 300 s",
}  # fmt: skip


def said_of_exit(code: int, printed: str = DENIED) -> str:
    """Ray's message, as job_supervisor.py of Ray 2.60 makes it."""
    return (
        f"Job entrypoint command failed with exit code {code}, last available logs "
        f"(truncated to 20,000 chars):\n{printed}"
    )


def failed(code: int) -> dict[str, str]:
    """As KubeRay passes on what Ray says."""
    return {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed",
            "message": said_of_exit(code)}  # fmt: skip


def submit(*command: str, **more: Any) -> Outcome:
    config = {"id": "first", "command": command or ENCODE, **more}
    return main(SubmitConfig(kubernetes=True, **config))


def followed(*command: str, **more: Any) -> tuple[threading.Thread, list[Outcome]]:
    """A submission in a thread; and what it ends with, once that has ended."""
    outcomes: list[Outcome] = []

    def run() -> None:
        outcomes.append(submit(*command, **more))

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcomes


def message_of(outcome: Outcome) -> str:
    """What a submission ends with saying."""
    return str(outcome.result["message"])


def result_in(outcome: Outcome) -> Any:
    """The job's own result, in that of the submission."""
    return outcome.result["result"]


def run_of(command: tuple[str, ...]) -> Run:
    """The run that a training's command names."""
    run = request_of(command).run
    assert run is not None
    return run


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ended(train: tuple[str, ...], reason: str, step: int, number: int = 1) -> None:
    """What `jobs.train` leaves in the run's folder when its driver ends."""
    run = run_of(train)
    assert run.claim() == Start(number)
    result = result_of(run, reason, step)
    run.end(Start(number), result)
    if reason == "done":
        run.finish(result)


def result_of(run: Run, reason: Any, step: int) -> TrainingResult:
    return TrainingResult(
        run=run.url, run_id="1", reason=reason, steps=step, samples=8 * step, bad_samples=0,
        converged=False, run_seconds={}, elbo=-1.0, chosen_step=step, holdout_before=None,
        holdout_after=None, model=None, model_version=None, bundle=None, digest=None,
    )  # fmt: skip
