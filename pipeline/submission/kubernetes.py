"""The API server's RayJobs, through kubectl, or inside a pod with the service account's token."""

import json
import os
import ssl
import subprocess
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pipeline.errors import ClusterError, ConfigError, UnreachableError
from pipeline.submission.rayjob import TEMPLATES
from pipeline.web import ask

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod finds its token, the API server's CA and its own namespace."""

DEFAULT_NAMESPACE = "vae"

_ENDED = frozenset({"Complete", "Failed", "ValidationFailed"})
_SILENT = (
    "was refused", "connection re", "no such host", "timeout", "Unable to connect", "EOF",
    "request canceled", "deadline exceeded",
)  # fmt: skip
"""In what kubectl says where no API server has answered."""

_PASSING = frozenset(
    {"InternalError", "ServerTimeout", "ServiceUnavailable", "Timeout", "TooManyRequests"}
)
"""Refusals that say nothing of what was asked: the API server starts, or has too much to do."""


@dataclass(frozen=True)
class Refusal(Exception):  # noqa: N818 - it never leaves this module's classes
    """The API server said no; `reason` is its own word, such as NotFound."""

    reason: str
    message: str


class ApiServer(Protocol):
    """One request at a time; raises `Refusal`, or `UnreachableError` for no answer."""

    def request(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """The answer's object."""
        ...


class Kubectl:
    """With kubectl's own credentials, whatever kind they are of."""

    def __init__(self, context: str | None, seconds: float) -> None:
        self._command = ["kubectl", f"--request-timeout={seconds:g}s"]
        self._command += [f"--context={context}"] if context else []
        self._seconds = seconds

    def request(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """`kubectl get|create|delete --raw`, which asks for nothing besides."""
        verb = {"GET": "get", "POST": "create", "DELETE": "delete"}[method]
        command = [*self._command, verb, "--raw", path]
        command += [] if body is None else ["-f", "-"]
        try:
            done = subprocess.run(
                command, input=None if body is None else json.dumps(body), check=False,
                capture_output=True, text=True, timeout=2 * self._seconds + 10,
            )  # fmt: skip
        except FileNotFoundError:
            raise ConfigError(
                "--kubernetes needs the program kubectl, or to run in a pod with a service "
                "account. Install kubectl and give it your cluster's kubeconfig."
            ) from None
        except subprocess.TimeoutExpired:
            raise UnreachableError(f"kubectl {verb} {path}: no answer") from None
        if done.returncode != 0:
            raise self._error(done.stderr.strip())
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def _error(self, said: str) -> Exception:
        message = said.removeprefix("Error from server ")
        if message.startswith("("):  # "Error from server (NotFound): ..."
            reason, _, rest = message[1:].partition("): ")
            return Refusal(reason, rest)
        if "certificate" not in said and any(each in said for each in _SILENT):
            return UnreachableError(f"kubectl: {said}")
        return ConfigError(f"kubectl: {said}")


class InCluster:
    """With the credentials that a pod was given; `account` is their folder."""

    def __init__(self, account: Path, seconds: float) -> None:
        host, port = (os.environ[f"KUBERNETES_SERVICE_{part}"] for part in ("HOST", "PORT"))
        self._url = f"https://{f'[{host}]' if ':' in host else host}:{port}"
        self._account, self._seconds = account, seconds
        self._context = ssl.create_default_context(cafile=str(account / "ca.crt"))

    def request(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """One HTTPS request; the token is read each time, since it is renewed each hour."""
        token = (self._account / "token").read_text(encoding="ascii").strip()
        answer = ask(
            method, self._url + path, None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
            seconds=self._seconds, context=self._context,
        )  # fmt: skip
        if answer.status in (502, 503, 504):
            raise UnreachableError(f"{self._url}: {answer.status} {answer.text}")
        found: dict[str, Any] = answer.json()
        if answer.status >= 400:
            raise Refusal(found.get("reason") or str(answer.status), found.get("message") or "")
        return found


@dataclass(frozen=True)
class ClusterJob:
    """A RayJob as the API server has it."""

    name: str
    uid: str
    entrypoint: str
    deployment: str
    job: str
    reason: str
    message: str

    @property
    def is_template(self) -> bool:
        """By its name: a RayJob that waits in a queue is suspended as well."""
        return self.name in TEMPLATES

    @property
    def has_ended(self) -> bool:
        """Whether KubeRay will do nothing more for it."""
        return self.deployment in _ENDED

    @property
    def status(self) -> str:
        """Ray's word for the job where it has one, else KubeRay's for the cluster around it."""
        if self.deployment in ("Failed", "ValidationFailed"):
            return "FAILED"
        return self.job or (self.deployment or "new").upper()

    @property
    def was_lost(self) -> bool:
        """KubeRay could not ask the head for five minutes, and never tries again by itself."""
        return self.deployment == "Failed" and self.reason == "JobStatusCheckTimeoutExceeded"


class KubernetesJobs:
    """The RayJobs of one namespace.

    All methods raise `UnreachableError` for no answer, `ConfigError` for credentials that do not
    do, `ClusterError` for anything else that is refused.
    """

    def __init__(self, server: ApiServer, namespace: str) -> None:
        self._server, self.namespace = server, namespace
        self._path = f"/apis/ray.io/v1/namespaces/{urllib.parse.quote(namespace)}/rayjobs"

    def object(self, name: str) -> dict[str, Any] | None:
        """A RayJob's whole object; None if there is none of that name."""
        try:
            return self._ask("GET", f"/{urllib.parse.quote(name)}")
        except Refusal as refusal:
            if refusal.reason == "NotFound":
                return None
            raise self._explained(refusal) from None

    def job(self, name: str) -> ClusterJob | None:
        """How a RayJob is; None if there is none of that name."""
        found = self.object(name)
        return None if found is None else _job(found)

    def jobs(self) -> list[ClusterJob]:
        """All but the templates."""
        try:
            found = self._ask("GET", "")
        except Refusal as refusal:
            raise self._explained(refusal) from None
        return [job for each in found["items"] if not (job := _job(each)).is_template]

    def create(self, rayjob: Mapping[str, Any], *, dry_run: bool = False) -> bool:
        """False if there is one of that name. Unknown fields are refused, not dropped."""
        query = "?fieldValidation=Strict" + ("&dryRun=All" if dry_run else "")
        try:
            self._ask("POST", query, rayjob)
        except Refusal as refusal:
            if refusal.reason == "AlreadyExists":
                return False
            raise self._explained(refusal) from None
        return True

    def delete(self, job: ClusterJob) -> None:
        """Removes this very RayJob with its cluster, not one that took its name meanwhile."""
        options = {
            "apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background",
            "preconditions": {"uid": job.uid},
        }  # fmt: skip
        try:
            self._ask("DELETE", f"/{urllib.parse.quote(job.name)}", options)
        except Refusal as refusal:
            if refusal.reason not in ("NotFound", "Conflict"):
                raise self._explained(refusal) from None

    def _ask(
        self, method: str, below: str, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        try:
            return self._server.request(method, self._path + below, body)
        except Refusal as refusal:
            if refusal.reason in _PASSING:
                raise UnreachableError(f"Kubernetes: {refusal.reason}: {refusal.message}") from None
            raise

    def _explained(self, refusal: Refusal) -> Exception:
        said = f"Kubernetes, namespace {self.namespace}: {refusal.reason}: {refusal.message}"
        if refusal.reason in ("Forbidden", "Unauthorized"):
            return ConfigError(f"{said}. k8s/base/accounts.yaml has a role that suffices.")
        if refusal.reason == "NotFound":
            return ClusterError(f"{said}. Is KubeRay installed, and the overlay applied?")
        return ClusterError(said)


def connect(context: str | None, namespace: str | None, seconds: float) -> KubernetesJobs:
    """By the service account inside a pod that has one, else by kubectl."""
    if context is None and "KUBERNETES_SERVICE_HOST" in os.environ and (ACCOUNT / "token").exists():
        own = (ACCOUNT / "namespace").read_text(encoding="utf-8").strip()
        return KubernetesJobs(InCluster(ACCOUNT, seconds), namespace or own)
    return KubernetesJobs(Kubectl(context, seconds), namespace or DEFAULT_NAMESPACE)


def _job(found: Mapping[str, Any]) -> ClusterJob:
    status = found.get("status") or {}
    return ClusterJob(
        name=found["metadata"]["name"],
        uid=found["metadata"]["uid"],
        entrypoint=found["spec"].get("entrypoint", ""),
        deployment=status.get("jobDeploymentStatus", ""),
        job=status.get("jobStatus", ""),
        reason=status.get("reason", ""),
        message=status.get("message", ""),
    )
