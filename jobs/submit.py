"""Run a job on a Ray cluster or Kubernetes, follow it truthfully; stop it, show status and log."""

import hashlib
import importlib.util
import os
import shlex
import sys
import typing
from dataclasses import asdict
from typing import Any

from jobs.command import Outcome, parse_flags, run_job, validate
from pipeline.config import EncodeConfig, SubmitConfig, TrainConfig
from pipeline.errors import ConfigError


def main(config: SubmitConfig) -> Outcome:
    """Does the one thing that was asked for, else submits and follows."""
    if config.kubernetes:
        return _on_kubernetes(config)
    from pipeline.submission import ray_submission as submission
    from pipeline.submission.ray_jobs_api import RayJobs

    address = config.address or os.environ.get("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265")
    jobs = RayJobs(address, config.timeout_seconds)
    if config.list:
        found = [asdict(job) for job in jobs.jobs()]
        rows = [f"{job['id']:<32}{job['status']:<12}{job['entrypoint']}" for job in found]
        return Outcome({"jobs": found}, summary=rows)
    asked = asked_of(config.command) if config.command else None
    if config.logs:
        for text in submission.logs(config, jobs, asked):
            sys.stdout.write(text if text.endswith("\n") else f"{text}\n")
        return Outcome({"submission_id": config.id or (asked and asked.base)})
    if config.status:
        verdict = submission.status(config, jobs, asked)
    elif config.stop:
        verdict = submission.stop(config, jobs, asked)
        return Outcome(_result(verdict))
    else:
        assert asked is not None, "the config has a command"
        verdict = submission.submit(config, jobs, asked)
    return Outcome(_result(verdict), verdict.exit_code)


def _on_kubernetes(config: SubmitConfig) -> Outcome:
    """The same, with a RayJob for each job."""
    from pipeline.submission import kubernetes_submission as submission
    from pipeline.submission.kubernetes import connect

    jobs = connect(config.context, config.namespace, config.timeout_seconds)
    if config.list:
        found = jobs.jobs()
        rows = [f"{job.name:<48}{job.status:<12}{job.entrypoint}" for job in found]
        return Outcome({"jobs": [asdict(job) for job in found]}, summary=rows)
    asked = asked_of(config.command) if config.command else None
    if config.logs:
        for text in submission.logs(config, jobs, asked):
            sys.stdout.write(text if text.endswith("\n") else f"{text}\n")
        return Outcome({"submission_id": submission.name_of(config, asked)})
    if config.status:
        verdict = submission.status(config, jobs, asked)
    elif config.stop:
        return Outcome(_result(submission.stop(config, jobs, asked)))
    else:
        assert asked is not None, "the config has a command"
        if config.dry_run:
            return _shown(submission.dry_run(config, jobs, asked))
        verdict = submission.submit(config, jobs, asked)
    return Outcome(_result(verdict), verdict.exit_code)


def _shown(rayjob: dict[str, Any]) -> Outcome:
    import yaml

    text = yaml.safe_dump(rayjob, sort_keys=False, width=100)
    name = rayjob["metadata"]["name"]
    result = {"submission_id": name, "status": "DRY_RUN", "rayjob": rayjob}
    return Outcome(result, summary=text.splitlines())


def asked_of(command: tuple[str, ...]) -> Any:
    """The command with its id and its run; raises `ConfigError` for flags that its job refuses."""
    from pipeline import storage
    from pipeline.runs.run import Run
    from pipeline.submission.ray_submission import Asked

    digest = hashlib.sha256(shlex.join(command).encode()).hexdigest()[:8]
    if command[1:2] != ("-m",) or not command[2:] or not command[2].startswith("jobs."):
        return Asked(command, f"job-{digest}", None)
    module = command[2]
    if importlib.util.find_spec(module) is None or module == "jobs.command":
        raise ConfigError(f"{module}: there is no such job. `python -m jobs` lists them.")
    config_type = typing.get_type_hints(importlib.import_module(module).main)["config"]
    values, _ = parse_flags(config_type, command[3:], f"python -m {module}")
    config = validate(config_type, values)
    if not isinstance(config, TrainConfig):
        workers = (config.actors or None) if isinstance(config, EncodeConfig) else None
        return Asked(command, f"{module.removeprefix('jobs.')}-{digest}", None, workers)
    # A relative path is one of the head's, which can't be seen from here.
    local = storage.local_path(config.storage)
    seen = local is None or local.is_absolute()
    run = Run.at(config) if seen else None
    return Asked(command, f"train-{config.run}", run, config.max_workers or None)


def _result(verdict: Any) -> dict[str, Any]:
    return {
        "submission_id": verdict.id,
        "status": verdict.status,
        "message": verdict.message,
        "result": verdict.result,
    }


if __name__ == "__main__":
    run_job(SubmitConfig, main)
