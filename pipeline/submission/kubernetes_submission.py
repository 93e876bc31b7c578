"""A job as a RayJob of its own, followed by what KubeRay says of it until it has ended."""

import hashlib
import logging
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline import storage
from pipeline.config import SubmitConfig
from pipeline.errors import ClusterError, ConfigError, UnreachableError
from pipeline.submission.kubernetes import ClusterJob, KubernetesJobs
from pipeline.submission.ray_submission import Asked, Verdict, left_in, logs_in, result_of
from pipeline.submission.rayjob import base_template, render_rayjob, template_name
from pipeline.submission.rayjob_rules import NAME_CHARACTERS

logger = logging.getLogger(__name__)


def name_of(config: SubmitConfig, asked: Asked | None) -> str:
    """The RayJob's name: --id, or one made of the command, as far as Kubernetes allows it."""
    if config.id is not None:
        return config.id
    assert asked is not None, "the config has an id or a command"
    name = re.sub(r"[^a-z0-9-]+", "-", asked.base.lower()).strip("-")
    if name == asked.base and len(name) <= NAME_CHARACTERS:
        return name
    digest = hashlib.sha256(asked.base.encode()).hexdigest()[:8]
    return f"{name[: NAME_CHARACTERS - 9].rstrip('-')}-{digest}"


def rendered(config: SubmitConfig, jobs: KubernetesJobs, asked: Asked) -> dict[str, Any]:
    """The RayJob: a copy of the cluster's own template, so with the patches of its overlay.

    For --dry-run alone, the file's template does where no cluster answers.
    """
    template = None
    try:
        template = jobs.object(template_name(asked.command))
        missing = "has no template"
    except (UnreachableError, ConfigError) as error:
        if not config.dry_run:
            raise
        missing = f"can't be asked ({error})"
    if template is None:
        message = f"Kubernetes, namespace {jobs.namespace}, {missing}: apply an overlay of k8s/"
        if not config.dry_run:
            raise ClusterError(message)
        logger.warning("%s. Shown is the template of k8s/base, without it.", message)
        template = base_template(template_name(asked.command))
    return render_rayjob(
        asked.command, name=name_of(config, asked), template=template, image=config.image,
        workers=asked.workers, gpus=config.gpus, namespace=jobs.namespace,
    )  # fmt: skip


def dry_run(config: SubmitConfig, jobs: KubernetesJobs, asked: Asked) -> dict[str, Any]:
    """The RayJob as it would be created, checked by the API server where one answers."""
    rayjob = rendered(config, jobs, asked)
    try:
        if not jobs.create(rayjob, dry_run=True):
            logger.info("%s exists already", rayjob["metadata"]["name"])
    except (UnreachableError, ConfigError) as error:
        logger.warning("no API server has checked this RayJob: %s", error)
    return rayjob


def submit(config: SubmitConfig, jobs: KubernetesJobs, asked: Asked) -> Verdict:
    """Creates the RayJob, unless the same one runs already, and follows it to its end."""
    for advice in _advice(asked.command):
        logger.warning(advice)
    before = result_of(asked.run)
    for left in range(config.resubmit_on_head_loss, -1, -1):
        _start_or_join(config, jobs, asked)
        name = name_of(config, asked)
        if config.detach:
            return Verdict(name, "SUBMITTED", f"follow it with --kubernetes --status --id {name}")
        verdict = follow(config, jobs, name, asked, before)
        if verdict.status != "LOST" or left == 0:
            return verdict
        logger.warning("%s: %s; it is submitted again, %d times more", name, verdict.message, left)
    raise AssertionError("the loop returns in its last round")


def follow(
    config: SubmitConfig,
    jobs: KubernetesJobs,
    name: str,
    asked: Asked,
    before: dict[str, Any] | None,
) -> Verdict:
    """Looks at the RayJob until it has ended, however long the API server is away."""
    said = ""
    silent_since: float | None = None
    while True:
        try:
            job = jobs.job(name)
            silent_since = None
        except UnreachableError as error:
            if silent_since is None:
                logger.warning("%s; the job may well go on. Waiting.", error)
                silent_since = time.monotonic()
            elif time.monotonic() - silent_since > config.lost_seconds:
                return Verdict(name, "LOST", f"no answer for {config.lost_seconds:g} s: {error}")
            time.sleep(config.poll_seconds)
            continue
        if job is None:
            return left_in(asked.run, name, before) or Verdict(name, "STOPPED", "it was deleted")
        now = f"{job.deployment or 'New'} {job.job}".strip()
        if now != said:
            logger.info("%s: %s", name, now)
            said = now
        if job.has_ended:
            return _verdict(job, asked, before)
        time.sleep(config.poll_seconds)


def status(config: SubmitConfig, jobs: KubernetesJobs, asked: Asked | None) -> Verdict:
    """How the job is now."""
    job = _find(config, jobs, asked)
    if not job.has_ended:
        return Verdict(job.name, job.status, job.message)
    return _verdict(job, asked, None)


def stop(config: SubmitConfig, jobs: KubernetesJobs, asked: Asked | None) -> Verdict:
    """Ends the job: a training by its `STOP` first, which costs no step; then its RayJob goes."""
    job = _find(config, jobs, asked)
    if job.has_ended:
        return Verdict(job.name, job.status, "it had ended before")
    run = asked.run if asked else None
    message = "it was deleted, with its cluster"
    if run is not None and job.job == "RUNNING":
        storage.publish(run.path("STOP"), b"jobs.submit --stop\n")
        logger.info("%s is asked to leave a last checkpoint and end", job.name)
        deadline = time.monotonic() + config.stop_seconds
        while not job.has_ended and time.monotonic() < deadline:
            time.sleep(config.poll_seconds)
            job = jobs.job(job.name) or job
        if job.has_ended:
            return Verdict(job.name, "STOPPED", "it left a checkpoint: the same command goes on")
        message = f"it did not end within {config.stop_seconds:g} s, and was deleted"
    jobs.delete(job)
    return Verdict(job.name, "STOPPED", message)


def logs(config: SubmitConfig, jobs: KubernetesJobs, asked: Asked | None) -> Iterator[str]:
    """What a training's driver and ranks left in its run, whether its cluster lives or not."""
    run = asked.run if asked else None
    if run is not None:
        yield from logs_in(run, run.newest_attempt().number)
        return
    raise ConfigError(
        "--kubernetes --logs reads the folder of a training: give its command after --. While any "
        f"other job lives: kubectl -n {jobs.namespace} exec HEAD-POD -- sh -c "
        "'cat /tmp/ray/session_latest/logs/job-driver-*'"
    )


def _advice(command: Sequence[str]) -> Iterator[str]:
    """What is fine on one's own machine, and rarely meant on Kubernetes."""
    job, flags = command[2:3], " ".join(command)
    if job in (("jobs.encode",), ("jobs.pack",)) and "--quarantine-exit" not in flags:
        yield "without --quarantine-exit 0, KubeRay takes a few bad images for failure, and retries"
    if job in (("jobs.encode",), ("jobs.train",)) and "--tracking.metrics" not in flags:
        yield (
            "Prometheus sees a job only with --tracking.metrics 0.0.0.0:9464, the port that the "
            "policies and monitors of k8s/ know"
        )


def _start_or_join(config: SubmitConfig, jobs: KubernetesJobs, asked: Asked) -> None:
    """The name is the lock: the API server lets one RayJob have it. One that ended makes room."""
    rayjob = rendered(config, jobs, asked)
    name, entrypoint = rayjob["metadata"]["name"], rayjob["spec"]["entrypoint"]
    while not jobs.create(rayjob):
        job = jobs.job(name)
        if job is None:
            continue
        if job.is_template:
            raise ConfigError(f"{name} is a template's name: give another --id")
        if job.has_ended:
            logger.info("%s has ended (%s), and makes room", name, job.status)
            jobs.delete(job)
            _until_gone(config, jobs, job)
            continue
        if job.entrypoint != entrypoint:
            raise ConfigError(
                f"{name} is {job.status}, and is another command: {job.entrypoint}. "
                "Stop it first, or give another --id."
            )
        logger.info("%s is there already, and is followed", name)
        return
    logger.info("created RayJob %s in namespace %s: %s", name, jobs.namespace, entrypoint)


def _until_gone(config: SubmitConfig, jobs: KubernetesJobs, job: ClusterJob) -> None:
    deadline = time.monotonic() + config.stop_seconds
    while (now := jobs.job(job.name)) is not None and now.uid == job.uid:
        if time.monotonic() > deadline:
            raise ClusterError(
                f"RayJob {job.name} is still there {config.stop_seconds:g} s after its deletion. "
                f"Look at its finalizers: kubectl -n {jobs.namespace} get rayjob {job.name} "
                "-o yaml"
            )
        time.sleep(min(config.poll_seconds, 1))


def _find(config: SubmitConfig, jobs: KubernetesJobs, asked: Asked | None) -> ClusterJob:
    name = name_of(config, asked)
    job = jobs.job(name)
    if job is None:
        raise ClusterError(
            f"Kubernetes, namespace {jobs.namespace}, knows no RayJob {name}. --list shows what it "
            "knows."
        )
    return job


def _verdict(job: ClusterJob, asked: Asked | None, before: dict[str, Any] | None) -> Verdict:
    run = asked.run if asked else None
    if job.was_lost:
        return left_in(run, job.name, before) or Verdict(job.name, "LOST", job.message)
    # Ray adds the end of the log to what it says of a failure.
    message = job.message.partition(", last available logs")[0]
    if job.status == "FAILED":
        code = re.search(r"exit code (\d+)", message)
        if code and code[1] == "3":
            return Verdict(job.name, "QUARANTINED", message)
        if code:
            message = f"exit code {code[1]}: {message}"
        elif job.reason:
            message = f"{job.reason}: {message}"
        return Verdict(job.name, "FAILED", message)
    result = result_of(run) if job.status == "SUCCEEDED" else None
    if result is not None and result.get("reason") == "stopped":
        return Verdict(job.name, "STOPPED", message, result)
    return Verdict(job.name, job.status, message, result)
