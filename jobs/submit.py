"""Run a job on a Ray cluster or Kubernetes, follow it truthfully; stop it, show status and log."""

import hashlib
import importlib.util
import os
import shlex
import sys
import typing
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from jobs.command import Outcome, parse_flags, run_job, validate, while_read
from pipeline.config import EncodeConfig, MetricsConfig, SubmitConfig, TrainConfig
from pipeline.errors import ConfigError, UnreachableError
from pipeline.json_value import Json
from pipeline.masking import safe, shell_word

if TYPE_CHECKING:
    from pipeline.submission.kubernetes_jobs import KubernetesJobs
    from pipeline.submission.place import Place, Request
    from pipeline.submission.verdict import Verdict


def main(config: SubmitConfig) -> Outcome:
    """Does the one thing that was asked for, else submits and follows."""
    place = _place(config)
    try:
        return _asked(config, place)
    except UnreachableError as error:
        run = request_of(config.command).run if config.stop and config.command else None
        stop = (
            f"; or, if it trains on without its head, an empty file {run.path('STOP')}"
            if run
            else ""
        )
        said = str(error).rstrip(".")
        raise UnreachableError(f"{said}. {place.elsewhere}{stop}.") from None


def _asked(config: SubmitConfig, place: "Place") -> Outcome:
    """What was asked of a place that answers."""
    from pipeline.submission import follower

    if config.list:
        jobs = place.jobs()
        rows = [f"{job.id:<48}{job.status:<12}{job.entrypoint}" for job in jobs]
        if any(job.status == "SUCCEEDED" and "jobs.train" in job.entrypoint for job in jobs):
            # Its own word: a folder for each training would be asked otherwise.
            rows.append(
                "A training that was stopped after a checkpoint SUCCEEDED too: "
                f"`{_self(config)} --status --id ID` tells the two apart."
            )
        return Outcome({"jobs": [asdict(job) for job in jobs]}, summary=rows)
    request = _request(config, place)
    if config.logs:
        with while_read():
            for text in follower.logs(place, request):
                sys.stdout.write(safe(text if text.endswith("\n") else f"{text}\n"))
        return Outcome({"submission_id": follower.name_of(place, request) or config.id})
    if config.status:
        verdict = follower.status(place, request)
    elif config.stop:
        verdict = follower.stop(config, place, request)
        # What was asked for is that it ends.
        return _told(config, verdict, 0 if verdict.status == "STOPPED" else verdict.exit_code)
    elif config.dry_run:
        return _dry_run(config, request)
    else:
        verdict = follower.submit(config, place, request)
    return _told(config, verdict, verdict.exit_code)


def request_of(command: tuple[str, ...]) -> "Request":
    """What a command runs; raises `ConfigError` for flags that its job refuses."""
    from pipeline import storage
    from pipeline.runs.run import Run
    from pipeline.submission.place import Request, Served

    command = _as_module(command)
    digest = hashlib.sha256(shlex.join(command).encode()).hexdigest()[:8]
    if command[1:2] != ("-m",) or not command[2:] or not command[2].startswith("jobs."):
        return Request(command, f"job-{digest}")
    module = command[2]
    if importlib.util.find_spec(module) is None or module == "jobs.command":
        raise ConfigError(f"{module}: there is no such job. `python -m jobs` lists them.")
    config_type = typing.get_type_hints(importlib.import_module(module).main)["config"]
    values, _ = parse_flags(config_type, command[3:], f"python -m {module}")
    config = validate(config_type, values)
    if isinstance(config, EncodeConfig):
        base, store = f"encode-{digest}", storage.shown(storage.absolute(config.output))
        serves = Served("store", store) if _can_be_scraped(config.tracking) else None
        return Request(command, base, workers=config.actors or None, serves=serves)
    if not isinstance(config, TrainConfig):
        return Request(command, f"{module.removeprefix('jobs.')}-{digest}")
    # A relative path is one of the head's, which can't be seen from here.
    local = storage.local_path(config.storage)
    seen = local is None or local.is_absolute()
    return Request(
        command,
        f"train-{config.run}",
        Run.at(config) if seen else None,
        config.max_workers or None,
        fewest=config.min_workers or None,
        serves=Served("run", config.run) if _can_be_scraped(config.tracking) else None,
    )


def _as_module(command: tuple[str, ...]) -> tuple[str, ...]:
    """`vae NAME ...` and `python -m jobs NAME ...` as `python -m jobs.NAME ...`: one job, one name.

    The image has all three; what a job is, and so its template and its stop, is told by the last.
    """
    program = command[0].rpartition("/")[2] if command else ""
    if program == "vae" and len(command) > 1:
        return ("python", "-m", f"jobs.{command[1]}", *command[2:])
    if command[1:3] == ("-m", "jobs") and len(command) > 3:
        return (command[0], "-m", f"jobs.{command[3]}", *command[4:])
    return command


def _can_be_scraped(tracking: MetricsConfig) -> bool:
    """Whether others find `/metrics`: on every address, and a port that was named."""
    return tracking.metrics_host in ("0.0.0.0", "::") and tracking.metrics_port != 0  # noqa: S104


def _place(config: SubmitConfig) -> "Place":
    if config.kubernetes:
        return _kubernetes(config)
    from pipeline.submission.ray_jobs import RayJobs

    address = config.address or os.environ.get("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265")
    if "://" not in address:
        raise ConfigError(
            f"{address}: is no URL of a Ray dashboard. Give `--address {shell_word(f'http://{address}')}`."
        )
    return RayJobs(address, config.timeout_seconds, config.ship)


def _kubernetes(config: SubmitConfig) -> "KubernetesJobs":
    from pipeline.submission.api_server import ApiServer
    from pipeline.submission.kubernetes_jobs import KubernetesJobs

    server = ApiServer(config.context, config.namespace, config.timeout_seconds)
    return KubernetesJobs(server, config)


def _request(config: SubmitConfig, place: "Place") -> "Request":
    """What is meant: by the command, or, where an id is all there is, by what that job runs."""
    if config.command:
        return replace(request_of(config.command), id=config.id)
    from pipeline.submission.follower import unknown
    from pipeline.submission.place import Request

    assert config.id is not None, "the config has an id or a command"
    nameless = Request((), config.id, id=config.id)
    job = place.find(nameless)
    if job is None and config.logs:
        return nameless  # Its log may be kept, all the same.
    if job is None:
        raise unknown(place, config.id)
    command = tuple(shlex.split(job.entrypoint))
    try:
        return replace(request_of(command), id=config.id)
    except (ConfigError, SystemExit):  # It was submitted with another version of this package.
        return replace(nameless, command=command)


def _dry_run(config: SubmitConfig, request: "Request") -> Outcome:
    import yaml

    rayjob = _kubernetes(config).dry_run(request)
    text = yaml.safe_dump(rayjob, sort_keys=False, width=100)
    result: Json = {
        "submission_id": rayjob["metadata"]["name"],
        "status": "DRY_RUN",
        "rayjob": typing.cast(Json, rayjob),
    }
    return Outcome(result, summary=text.splitlines())


def _self(config: SubmitConfig) -> str:
    """This command, as far as it says where jobs run."""
    words = ["python", "-m", "jobs.submit"]
    if config.kubernetes:
        words += ["--kubernetes"]
        words += ["--context", config.context] if config.context else []
        words += ["--namespace", config.namespace] if config.namespace else []
    elif config.address:
        words += ["--address", config.address]
    return " ".join(map(shell_word, words))


def _told(config: SubmitConfig, verdict: "Verdict", exit_code: int) -> Outcome:
    message = verdict.message
    if verdict.status == "SUBMITTED":
        message = f"follow it by `{_self(config)} --status --id {shell_word(verdict.id)}`"
    elif verdict.status == "LOST":
        message = (
            f"{message.rstrip('.')}. Submit it again: that joins the job where it runs still, and "
            "starts it where it does not; `--resubmit-on-head-loss 3` does so by itself."
        )
    result = {
        "submission_id": verdict.id,
        "status": verdict.status,
        "message": message,
        "result": verdict.result,
    }
    return Outcome(result, exit_code)


if __name__ == "__main__":
    run_job(SubmitConfig, main)
