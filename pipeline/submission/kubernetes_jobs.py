"""A Kubernetes namespace as a place to run jobs: a RayJob with a cluster of its own for each."""

import hashlib
import logging
import re
from collections.abc import Iterator, Sequence
from typing import Literal

from pipeline.config import SubmitConfig
from pipeline.errors import ClusterError, ConfigError, NotNowError, UnreachableError
from pipeline.submission.api_server import ApiServer
from pipeline.submission.objects import RAYJOBS, TEMPLATES, RayJob, RayJobTemplate
from pipeline.submission.place import Job, Output, Request, said_and_printed
from pipeline.submission.rayjob import (
    NAME_CHARACTERS,
    base_template,
    render_rayjob,
    template_name,
)
from pipeline.submission.waiting import why_waiting

logger = logging.getLogger(__name__)

_ENDED = frozenset({"Complete", "Failed", "ValidationFailed"})


class KubernetesJobs:
    """The RayJobs of one namespace: the place `Place` of that name.

    The API server lets one RayJob have a name, so one that ended makes room for the next.
    """

    # Only a deletion removes a RayJob that has not ended.
    gone: Literal["LOST", "STOPPED"] = "STOPPED"

    def __init__(self, server: ApiServer, config: SubmitConfig) -> None:
        self._server, self._config = server, config
        self.address = f"Kubernetes, namespace {server.namespace}"

    def find(self, request: Request) -> Job | None:
        """The RayJob of the name that the request gives."""
        return self.job(name_of(request))

    def job(self, name: str) -> Job | None:
        """A RayJob; None if there is none of that name."""
        found = self._server.get(RAYJOBS, name)
        return None if found is None else _job(found)

    def jobs(self) -> list[Job]:
        """Every RayJob of the namespace."""
        return [_job(each) for each in self._server.objects(RAYJOBS)]

    def free_id(self, request: Request, newest: Job | None) -> str:
        """Its one name."""
        return name_of(request)

    def advice(self, request: Request) -> Sequence[str]:
        """What is fine on one's own machine, and rarely meant on Kubernetes."""
        return list(_advice(request.command))

    def start(self, request: Request, name: str) -> bool:
        """Creates the RayJob; False if there is one of that name."""
        return self._server.create(RAYJOBS, self._rendered(request, name))

    def end(self, job: Job) -> None:
        """Deletes the RayJob; KubeRay asks the driver to end, and takes its cluster away."""
        self._server.delete(RAYJOBS, job.id, job.uid)

    def output(self, job: Job) -> Output:
        """The end of what a failed driver printed: all that KubeRay passes on."""
        return Output(job.output_end, whole=False)

    def why_waiting(self, job: Job) -> str:
        """What the RayJob, its cluster, its pods, their events and a queue say."""
        return why_waiting(self._server, job.id)

    def dry_run(self, request: Request) -> RayJob:
        """The RayJob as it would be created, checked by the API server where one answers.

        Where none does, it is a copy of the template of k8s/base.
        """
        name = name_of(request)
        try:
            rayjob = self._rendered(request, name)
            if not self._server.create(RAYJOBS, rayjob, dry_run=True):
                logger.info("%s exists already", name)
        except (UnreachableError, NotNowError, ConfigError) as error:
            logger.warning(
                "no API server has seen this RayJob; shown is the template of k8s/base, without "
                "the cluster's own patches: %s",
                error,
            )
            return self._copy(base_template(template_name(request.command)), request, name)
        return rayjob

    def _rendered(self, request: Request, name: str) -> RayJob:
        """A copy of the cluster's own template, so with the patches of its overlay."""
        wanted = template_name(request.command)
        template = self._server.get(TEMPLATES, wanted)
        if template is None:
            raise ClusterError(
                f"{self.address}, has no template {wanted}: apply an overlay of k8s/ to it"
            )
        return self._copy(template, request, name)

    def _copy(self, template: RayJobTemplate, request: Request, name: str) -> RayJob:
        return render_rayjob(
            request.command,
            name=name,
            template=template,
            image=self._config.image,
            workers=request.workers,
            gpus=self._config.gpus,
            namespace=self._server.namespace,
        )


def name_of(request: Request) -> str:
    """The RayJob's name: --id, or one made of the command, as far as Kubernetes allows it."""
    if request.id is not None:
        return request.id
    name = re.sub(r"[^a-z0-9-]+", "-", request.base.lower()).strip("-")
    if name == request.base and len(name) <= NAME_CHARACTERS:
        return name
    digest = hashlib.sha256(request.base.encode()).hexdigest()[:8]
    return f"{name[: NAME_CHARACTERS - 9].rstrip('-')}-{digest}"


def _advice(command: Sequence[str]) -> Iterator[str]:
    job, flags = command[2:3], " ".join(command)
    if job in (("jobs.encode",), ("jobs.pack",)) and "--bad-fraction" not in flags:
        yield "without --bad-fraction 1, KubeRay takes a few bad images for failure, and retries"
    if job in (("jobs.encode",), ("jobs.train",)) and "--tracking.metrics" not in flags:
        yield (
            "Prometheus sees a job only with --tracking.metrics 0.0.0.0:9464, the port that the "
            "policies and monitors of k8s/ know"
        )


def _job(found: RayJob) -> Job:
    """What KubeRay says of a job, in `status`; Ray's word for it is `jobStatus`."""
    status, spec = found.get("status") or {}, found["spec"]
    deployment, reason = status.get("jobDeploymentStatus", ""), status.get("reason", "")
    message, output_end = said_and_printed(status.get("message", ""))
    code = re.search(r"exit code (\d+)", message)
    if deployment in ("Failed", "ValidationFailed"):
        word = "FAILED"
        message = message if code or not reason else f"{reason}: {message}".rstrip(": ")
    elif deployment == "Retrying":
        word = "RETRYING"
    else:
        word = status.get("jobStatus") or deployment.upper() or "NEW"
    return Job(
        id=found["metadata"]["name"],
        uid=found["metadata"]["uid"],
        status=word,
        entrypoint=spec.get("entrypoint", ""),
        has_ended=deployment in _ENDED,
        # KubeRay could not ask the head for five minutes, and never tries again by itself.
        was_lost=deployment == "Failed" and reason == "JobStatusCheckTimeoutExceeded",
        exit_code=int(code[1]) if code else None,
        message=message,
        output_end=output_end,
        tries=1 + (spec.get("backoffLimit") or 0),
        failed_tries=status.get("failed") or 0,
    )
