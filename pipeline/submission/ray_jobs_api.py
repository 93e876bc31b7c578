"""Ray's Jobs API over plain HTTP: one request, one answer, and errors that say what happened."""

import json
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline import storage
from pipeline.errors import ClusterError, ConfigError, UnreachableError
from pipeline.web import Answer, ask, ray_token

ENDED = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})
_LOST = frozenset({"JOB_SUPERVISOR_ACTOR_DIED", "JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE"})
"""Ray's `error_type` of a driver that went with its node: nobody saw how it ended."""


@dataclass(frozen=True)
class RayJob:
    """What the cluster says of a job; `exit_code` is the driver's, once it has ended.

    `run_url` is the folder of a training that was submitted here.
    """

    id: str
    status: str
    entrypoint: str
    message: str
    exit_code: int | None
    started_ms: int
    run_url: str | None
    was_lost: bool

    @property
    def has_ended(self) -> bool:
        """Whether it is over, however."""
        return self.status in ENDED


class RayJobs:
    """The jobs of the cluster whose dashboard is at `address`.

    All methods raise `UnreachableError` for no answer, `ConfigError` for a wrong token.
    """

    def __init__(self, address: str, seconds: float = 30.0) -> None:
        self.address, self._seconds = address.rstrip("/"), seconds
        token = ray_token()
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def job(self, name: str) -> RayJob | None:
        """One job; None where this cluster knows none of that id.

        A dashboard whose head is gone answers 500: that says nothing of the job.
        """
        answer = self._ask("GET", f"/api/jobs/{urllib.parse.quote(name)}")
        if answer.status == 404:
            return None
        if answer.status >= 500:
            raise UnreachableError(
                f"{storage.shown(self.address)}: {answer.status} {_last(answer)}"
            )
        return _job(self._checked(answer).json())

    def jobs(self) -> list[RayJob]:
        """Every submitted job that the cluster remembers, oldest first."""
        found = self._checked(self._ask("GET", "/api/jobs/")).json()
        jobs = [_job(each) for each in found if each.get("submission_id")]
        return sorted(jobs, key=lambda job: job.started_ms)

    def submit(
        self, name: str, entrypoint: str, package: str | None, cpus: float, facts: Mapping[str, str]
    ) -> bool:
        """Starts a job; False if there is one of this id. `package` is what `upload` returned."""
        asked = {
            "entrypoint": entrypoint,
            "submission_id": name,
            "runtime_env": {"working_dir": package} if package else {},
            "metadata": dict(facts),
            "entrypoint_num_cpus": cpus or None,
        }
        answer = self._ask("POST", "/api/jobs/", json.dumps(asked).encode())
        if answer.status >= 400 and b"already exists" in answer.body:
            return False
        self._checked(answer)
        return True

    def upload(self, name: str, data: bytes) -> str:
        """Puts a zip of code beside the cluster's state, unless it is there; returns its URI."""
        path = f"/api/packages/gcs/{name}"
        if self._ask("GET", path).status == 404:
            self._checked(self._ask("PUT", path, data))
        return f"gcs://{name}"

    def logs(self, name: str) -> str:
        """Everything that the driver has printed so far."""
        answer = self._checked(self._ask("GET", f"/api/jobs/{urllib.parse.quote(name)}/logs"))
        return str(answer.json()["logs"])

    def stop(self, name: str) -> None:
        """SIGTERM to the driver, SIGKILL 3 s later; nothing where it has ended."""
        self._checked(self._ask("POST", f"/api/jobs/{urllib.parse.quote(name)}/stop"))

    def _ask(self, method: str, path: str, data: bytes | None = None) -> Answer:
        headers = {"Content-Type": "application/json"} if method == "POST" else {}
        answer = ask(
            method, self.address + path, data, headers=self._headers | headers,
            seconds=self._seconds,
        )  # fmt: skip
        if answer.status in (401, 403):
            raise ConfigError(
                f"{storage.shown(self.address)} refuses the token ({answer.status}: {answer.text})."
                " Set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's own."
            )
        if answer.status in (502, 503, 504):
            raise UnreachableError(f"{storage.shown(self.address)}: {answer.status} {answer.text}")
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


def _job(found: Mapping[str, Any]) -> RayJob:
    return RayJob(
        id=found["submission_id"] or found["job_id"],
        status=found["status"],
        entrypoint=found["entrypoint"],
        message=found.get("message") or "",
        exit_code=found.get("driver_exit_code"),
        started_ms=found.get("start_time") or 0,
        run_url=(found.get("metadata") or {}).get("run"),
        was_lost=found.get("error_type") in _LOST,
    )
