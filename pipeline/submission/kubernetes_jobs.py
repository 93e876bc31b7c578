"""A Kubernetes namespace as a place to run jobs: a RayJob with a cluster of its own for each."""

import hashlib
import logging
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Literal

from pipeline import storage
from pipeline.config import SubmitConfig
from pipeline.errors import ClusterError, ConfigError, UnreachableError
from pipeline.submission.api_server import ApiServer, is_named
from pipeline.submission.job_output import said_and_printed
from pipeline.submission.kept_log import (
    LAST_SECONDS,
    Kept,
    KeptLog,
    LogReader,
    folder_of_logs,
)
from pipeline.submission.objects import (
    LOCAL_QUEUES,
    PRIORITY_CLASSES,
    QUEUE,
    RAYJOBS,
    TEMPLATES,
    RayJob,
    RayJobStatus,
    RayJobTemplate,
)
from pipeline.submission.place import Job, Output, Request
from pipeline.submission.rayjob import (
    EXEC,
    NAME_CHARACTERS,
    Wishes,
    base_template,
    pool_of,
    render_rayjob,
)
from pipeline.submission.wait_reasons import why_waiting

logger = logging.getLogger(__name__)

_ENDED = frozenset({"Complete", "Failed", "ValidationFailed"})


class KubernetesJobs:
    """The RayJobs of one namespace: the place `Place` of that name.

    The API server lets one RayJob have a name, so one that ended makes room for the next.
    """

    # Only a deletion removes a RayJob that has not ended.
    gone: Literal["LOST", "STOPPED"] = "STOPPED"
    elsewhere = (
        "Is the cluster up? Name another by `--context NAME`, or by `export KUBECONFIG=PATH`"
    )

    def __init__(self, server: ApiServer, config: SubmitConfig) -> None:
        self._server, self._config = server, config
        self.address = f"Kubernetes, namespace {server.namespace}"
        self._log = LogReader()

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
        """What the head's `job-log` has put on storage; else what KubeRay tells of a failure."""
        kept = (
            Kept() if job.log is None else self._log.read(job.log, due_seconds=job.log_due_seconds)
        )
        if not kept.text:
            return Output(job.output_end, whole=False)
        return Output(kept.text, whole=True, source=kept.folder, before=kept.before)

    def earlier_tries(self, job: Job) -> Sequence[str]:
        """As their heads' `job-log` has put it on storage."""
        return self._log.earlier(job.log) if job.log is not None and job.failed_tries else ()

    def kept_output(self, request: Request) -> Output:
        """By the templates, which say where logs are kept, of a RayJob that was deleted.

        Its own is asked first; by a name alone, it may have been a copy of any.
        """
        own = self._pool(request)
        templates = sorted(
            self._server.objects(TEMPLATES), key=lambda each: each["metadata"]["name"] != own
        )
        for folder in dict.fromkeys(map(folder_of_logs, templates)):
            if folder is not None:
                log = KeptLog(storage.join(folder, name_of(request)))
                text = self._log.read(log).text
                if text:
                    return Output(text, whole=True)
        return Output("", whole=False)

    def why_waiting(self, job: Job) -> str:
        """What the RayJob, its cluster, its pods, their events and a queue say."""
        return why_waiting(self._server, job.id)

    def dry_run(self, request: Request) -> RayJob:
        """The RayJob as it would be created, checked by the API server where one answers.

        Where none is named, or does, it is a copy of the template of k8s/base. What it refuses is
        refused here too.
        """
        name, unseen = name_of(request), "no kubeconfig is here"
        if is_named(self._config.context):
            try:
                rayjob = self._rendered(request, name)
                if not self._server.create(RAYJOBS, rayjob, dry_run=True):
                    logger.info("%s exists already", name)
            except UnreachableError as error:
                unseen = str(error)
            else:
                return rayjob
        logger.warning(
            "no API server has seen this RayJob; shown is the template of k8s/base, without "
            "the cluster's own patches: %s",
            unseen,
        )
        return self._copy(base_template(self._pool(request)), request, name)

    def _pool(self, request: Request) -> str:
        return self._config.pool or pool_of(request.command)

    def _rendered(self, request: Request, name: str) -> RayJob:
        """A copy of the cluster's own template, so with the patches of its overlay."""
        wanted = self._pool(request)
        template = self._server.get(TEMPLATES, wanted)
        if template is None:
            there = [each["metadata"]["name"] for each in self._server.objects(TEMPLATES)]
            have = f"those there are: {', '.join(there)}" if there else "apply an overlay of k8s/"
            raise ClusterError(f"{self.address}, has no template {wanted}: {have}")
        rayjob = self._copy(template, request, name)
        if self._config.queue is not None and QUEUE in rayjob["metadata"]["labels"]:
            self._refuse_unknown_queue(self._config.queue)
        priority = rayjob["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"].get(
            "priorityClassName"
        )
        if self._config.priority is not None and priority == self._config.priority:
            self._refuse_unknown_priority(priority)
        return rayjob

    def _refuse_unknown_queue(self, queue: str) -> None:
        """Kueue holds back what names a queue that is not there, and says so to nobody."""
        for kind in LOCAL_QUEUES:
            try:
                there = [each["metadata"]["name"] for each in self._server.objects(kind)]
            except ConfigError as error:
                logger.info("whether there is a queue %s can't be seen from here: %s", queue, error)
                return
            except ClusterError:
                continue  # Kueue is of another version, or not installed.
            if queue not in there:
                raise ConfigError(
                    f"--queue {queue}: {self.address}, has no such LocalQueue. It has "
                    f"{', '.join(there) or 'none'}."
                )
            return
        raise ConfigError(
            f"--queue {queue}: Kueue is not installed, and nobody else would start it"
        )

    def _refuse_unknown_priority(self, priority: str) -> None:
        """Of a class that is not there, no pod can be made."""
        try:
            there = [each["metadata"]["name"] for each in self._server.everywhere(PRIORITY_CLASSES)]
        except ConfigError as error:
            logger.info(
                "whether there is a priority %s can't be seen from here: %s", priority, error
            )
            return
        if priority not in there:
            raise ConfigError(
                f"--priority {priority}: the cluster has no such PriorityClass. It has "
                f"{', '.join(there) or 'none'}."
            )

    def _copy(self, template: RayJobTemplate, request: Request, name: str) -> RayJob:
        asked = self._config
        wishes = Wishes(
            workers=request.workers,
            fewest=request.fewest,
            gpus=asked.gpus,
            image=asked.image,
            queue=asked.queue,
            priority=asked.priority,
            deadline_hours=asked.deadline_hours,
            retries=asked.retries,
            namespace=self._server.namespace,
            serves=request.serves,
        )
        return render_rayjob(request.command, name=name, template=template, wishes=wishes)


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
    folder = folder_of_logs(found)
    since = re.sub("[-:]", "", found["metadata"].get("creationTimestamp", ""))
    return Job(
        id=found["metadata"]["name"],
        uid=found["metadata"]["uid"],
        status=word,
        entrypoint=spec.get("entrypoint", "").removeprefix(EXEC),
        has_ended=deployment in _ENDED,
        # KubeRay could not ask the head for five minutes, and never tries again by itself.
        was_lost=deployment == "Failed" and reason == "JobStatusCheckTimeoutExceeded",
        exit_code=int(code[1]) if code else None,
        message=message,
        output_end=output_end,
        log=None if folder is None else KeptLog(folder, status.get("rayClusterName", ""), since),
        log_due_seconds=_log_due_seconds(status),
        tries=1 + (spec.get("backoffLimit") or 0),
        failed_tries=status.get("failed") or 0,
    )


def _log_due_seconds(status: RayJobStatus) -> float:
    """So much longer the last lines of an ended job may take, if it had a head to print any."""
    ended = status.get("endTime")
    if not ended or not status.get("rayClusterName"):
        return 0.0
    ago = (datetime.now(UTC) - datetime.fromisoformat(ended)).total_seconds()
    return min(max(LAST_SECONDS - ago, 0.0), LAST_SECONDS)
