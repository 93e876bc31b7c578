"""A Ray cluster's own job API over plain HTTP, as a place to run jobs."""

import json
import re
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NotRequired, TypedDict

from pipeline import storage
from pipeline.config import SubmitConfig
from pipeline.errors import ClusterError, ConfigError, UnreachableError
from pipeline.submission.job_output import said_and_printed
from pipeline.submission.place import Job, Output, Request
from pipeline.submission.working_tree import packed
from pipeline.web import MOST_BYTES, Answer, ask, ray_token

_MOST_LOG_BYTES = 2**30
"""Ray sends a job's whole log at once."""
_ENDED = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})
_LOST = frozenset({"JOB_SUPERVISOR_ACTOR_DIED", "JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE"})
"""Ray's `error_type` of a driver that went with its node: nobody saw how it ended."""


class RayJobs:
    """The jobs of the cluster whose dashboard is at `address`: the place `Place` of that name.

    Ray keeps what has ended, and appends to the log of an id that is used again: so new starts get
    the next of BASE-1, BASE-2, ..., and those of a given id ID, ID-2, .... `ship` is a folder whose
    files the jobs run with.
    """

    # Nobody deletes what runs: another head has taken the address.
    gone: Literal["LOST", "STOPPED"] = "LOST"
    elsewhere = (
        "Is Ray's dashboard there? Start a head, or name its dashboard by "
        "`export RAY_API_SERVER_ADDRESS=URL` or `--address URL`, as http://HOST:8265"
    )

    def __init__(
        self, address: str, seconds: float = SubmitConfig.timeout_seconds, ship: str | None = None
    ) -> None:
        self.address, self._seconds = address.rstrip("/"), seconds
        self._ship = ship
        token = ray_token()
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def find(self, request: Request) -> Job | None:
        """The job of the highest number; one that has the given id alone counts as the first."""
        numbered = self._numbered(request)
        return numbered[max(numbered)] if numbered else None

    def job(self, name: str) -> Job | None:
        """One job; None where this cluster knows none of that id."""
        answer = self._ask("GET", f"/api/jobs/{urllib.parse.quote(name)}")
        if answer.status == 404:
            return None
        return self._checked(answer).read(_job, "Ray dashboard")

    def jobs(self) -> list[Job]:
        """Every submitted job that the cluster remembers, oldest first."""
        return self._checked(self._ask("GET", "/api/jobs/")).read(_submitted, "Ray dashboard")

    def free_id(self, request: Request, newest: Job | None) -> str:
        """The given id the first time, then the next number."""
        if newest is None:
            return request.id or f"{request.base}-1"
        return f"{request.id or request.base}-{max(self._numbered(request), default=0) + 1}"

    def advice(self, request: Request) -> Sequence[str]:
        """None: nothing here differs from one's own machine."""
        return ()

    def start(self, request: Request, name: str) -> bool:
        """Submits a job; False if there is one of this id."""
        package = self._uploaded(Path(self._ship)) if self._ship else None
        asked = {
            "entrypoint": request.entrypoint,
            "submission_id": name,
            "runtime_env": {"working_dir": package} if package else {},
        }
        answer = self._ask("POST", "/api/jobs/", json.dumps(asked).encode())
        if answer.status >= 400 and b"already exists" in answer.body:
            return False
        self._checked(answer)
        return True

    def end(self, job: Job) -> None:
        """SIGTERM to the driver, and SIGKILL 3 s later, unless Ray was told otherwise."""
        self._checked(self._ask("POST", f"/api/jobs/{urllib.parse.quote(job.id)}/stop"))

    def output(self, job: Job) -> Output:
        """Everything that the driver has printed so far."""
        path = f"/api/jobs/{urllib.parse.quote(job.id)}/logs"
        answer = self._checked(self._ask("GET", path, most_bytes=_MOST_LOG_BYTES))
        return Output(answer.read(lambda found: str(found["logs"]), "Ray dashboard"), whole=True)

    def earlier_tries(self, job: Job) -> Sequence[str]:
        """None: Ray itself tries once."""
        return ()

    def kept_output(self, request: Request) -> Output:
        """Nothing: a head takes its logs along."""
        return Output("", whole=False)

    def why_waiting(self, job: Job) -> str:
        """Ray's own sentence on a job that is pending."""
        return job.message if job.status == "PENDING" else ""

    def _numbered(self, request: Request) -> dict[int, Job]:
        form = re.compile(rf"{re.escape(request.id or request.base)}(?:-(\d+))?")
        return {int(m[1] or 1): job for job in self.jobs() if (m := form.fullmatch(job.id))}

    def _uploaded(self, folder: Path) -> str:
        """Puts a zip of the folder's files beside the cluster's state, unless it is there."""
        name, data = packed(folder)
        path = f"/api/packages/gcs/{name}"
        if self._ask("GET", path).status == 404:
            self._checked(self._ask("PUT", path, data))
        return f"gcs://{name}"

    def _ask(
        self, method: str, path: str, data: bytes | None = None, most_bytes: int = MOST_BYTES
    ) -> Answer:
        headers = {"Content-Type": "application/json"} if method == "POST" else {}
        answer = ask(
            method, self.address + path, data, headers=self._headers | headers,
            seconds=self._seconds, most_bytes=most_bytes,
        )  # fmt: skip
        if answer.status in (401, 403):
            raise ConfigError(
                f"{storage.shown(self.address)} refuses the token ({answer.status}: {answer.text})."
                " Give the cluster's own: `export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=TOKEN`, or a "
                "file of it by RAY_AUTH_TOKEN_PATH."
            )
        # A dashboard whose head is gone answers 500 to what it is asked: that says nothing of a
        # job. To a job that is sent, 500 may be a verdict on it.
        if answer.status in (502, 503, 504) or (answer.status >= 500 and method == "GET"):
            raise UnreachableError(
                f"{storage.shown(self.address)}: {answer.status} {_last(answer)}"
            )
        return answer

    def _checked(self, answer: Answer) -> Answer:
        if answer.status >= 400:
            raise ClusterError(
                f"Ray at {storage.shown(self.address)} says {answer.status}: {_last(answer)}"
            )
        return answer


def _last(answer: Answer) -> str:
    """The last line of a traceback is the one that says it."""
    lines = answer.body.decode(errors="replace").strip().splitlines() or [""]
    return lines[-1][:500]


class _Details(TypedDict):
    """What Ray says of one job, as far as it is read here."""

    submission_id: str | None
    job_id: str | None
    status: str
    entrypoint: str
    message: NotRequired[str | None]
    error_type: NotRequired[str | None]
    start_time: NotRequired[int | None]
    driver_exit_code: NotRequired[int | None]


def _submitted(found: list[_Details]) -> list[Job]:
    """Of all jobs those that were submitted, oldest first."""
    if not isinstance(found, list):
        raise TypeError("jobs are a list")
    jobs = [each for each in found if each.get("submission_id")]
    return [_job(each) for each in sorted(jobs, key=lambda job: job.get("start_time") or 0)]


def _job(found: _Details) -> Job:
    """One job; what is no text raises `TypeError`."""
    texts = (found["submission_id"] or str(found["job_id"]), found["status"], found["entrypoint"])
    code = found.get("driver_exit_code")
    if not all(isinstance(each, str) for each in texts) or not isinstance(code, int | None):
        raise TypeError("a job's id, status, command and exit code are texts and a number")
    said, output_end = said_and_printed(found.get("message") or "")
    return Job(
        id=texts[0],
        uid="",
        status=texts[1],
        entrypoint=texts[2],
        has_ended=found["status"] in _ENDED,
        was_lost=found.get("error_type") in _LOST,
        exit_code=code,
        message=said,
        output_end=output_end,
    )
