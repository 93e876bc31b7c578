"""`jobs.train --sweep KEY=A,B,C`: one run per value, and what they say side by side."""

import logging
import math
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from typing import Any

from pydantic import ValidationError

from pipeline import storage
from pipeline.cluster.ray_cluster import cluster_resources, ray_cluster
from pipeline.commands.train import resolve, run_training
from pipeline.commands.train_parts import parts_of
from pipeline.config import TrainConfig
from pipeline.config.command_line import keys_of, near_names
from pipeline.config.plain_yaml import parse_plain
from pipeline.errors import ConfigError, PipelineError, RunError, TrackingError
from pipeline.figures.canvas import to_png
from pipeline.figures.curves import RatePoint, draw_rate_distortion
from pipeline.json_value import Json
from pipeline.masking import shell_word
from pipeline.registry.models import resolve as resolve_model
from pipeline.registry.promotion import place_alias
from pipeline.runs.result import TrainingResult
from pipeline.runs.run import Run
from pipeline.tracking.mlflow_client import (
    check_artifacts_root,
    mlflow_client,
    tracking_errors,
    tracking_uri,
)
from pipeline.tracking.mlflow_run import TrackedRun

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SweepRow:
    """One value's run, seen on the hold-out, in nats per image; None where it diverged."""

    name: str
    value: Any
    run: str
    run_id: str | None
    model_version: int | None
    elbo: float | None
    rate: float | None
    distortion: float | None
    active_units: int | None


@dataclass(frozen=True)
class SweepResult:
    """The run with the highest held-out ELBO, a row per value, and the URLs of the figures."""

    best: TrainingResult
    rows: Sequence[SweepRow]
    figures: Sequence[str]

    def to_json(self) -> Json:
        """The best run's result, with the table and the figures."""
        rows = [asdict(row) for row in self.rows]
        return {**self.best.to_json(), "sweep": rows, "figures": list(self.figures)}


def run_sweep(config: TrainConfig) -> SweepResult:
    """Trains every value's run (again: continues them), compares them on the hold-out.

    The table lies in RUN/sweep.json and RUN/rate_distortion.png. The result is that of the run with
    the highest held-out ELBO, which alone gets the alias, and the table.
    """
    key, values = parse_sweep(str(config.sweep))
    config = config.model_copy(update={"storage": storage.absolute(config.storage)})
    children = {_with(config, key, value): value for value in values}
    if any(resolve(child).holdout is None for child in children):
        raise ConfigError(
            f"--sweep {key}: its runs are compared on a hold-out, and there is none beside "
            f"{config.data}. Give `--holdout URL`."
        )
    results: dict[TrainConfig, TrainingResult] = {}
    failed = []
    for child, outcome in _run_all(list(children)):
        if isinstance(outcome, PipelineError):
            logger.error("run %s: %s", child.run, outcome)
            failed.append(child.run)
        else:
            results[child] = outcome
    if failed:
        raise RunError(
            f"{len(failed)} of {len(children)} runs of the sweep failed: {', '.join(failed)}. "
            "Their errors stand above; the same command goes on with them."
        )
    rows = [_row(key, children[child], results[child]) for child in children]
    best = results[max(children, key=lambda child: _elbo_of(results[child]))]
    run = Run.at(config)
    report = {"key": key, "rows": [asdict(row) for row in rows], "best": best.run}
    storage.publish(run.path("sweep.json"), storage.canonical_json(report))
    points = [
        RatePoint(row.name, row.rate, row.distortion)
        for row in rows
        if row.rate is not None and row.distortion is not None
    ]
    figures = [run.path("rate_distortion.png")] if points else []
    for url in figures:
        storage.publish(url, to_png(draw_rate_distortion, points))
    best = _track(config, run, [row.run_id for row in rows if row.run_id is not None], best)
    return SweepResult(best, rows, figures)


_LONGEST_SWEEP = 1000
"""Characters: each value is a whole run, and is shown in messages and names."""


def parse_sweep(text: str) -> tuple[str, list[Any]]:
    """`objective.beta=0.5,1,4` as its key and its values, each read as YAML."""
    key, equals, rest = text.partition("=")
    if len(text) > _LONGEST_SWEEP:
        raise ConfigError(
            f"--sweep: is of {len(text):,} characters, over {_LONGEST_SWEEP:,}: give fewer values."
        )
    try:
        values = [parse_plain(word) for word in rest.split(",") if word.strip()]
    except ValueError as error:
        raise ConfigError(f"--sweep {text!r}: {error}") from None
    if not key or not equals or len(values) < 2 or len(set(map(repr, values))) < len(values):
        raise ConfigError(
            f"--sweep {text!r}: is not KEY=A,B,... with two or more different values; give it so, "
            "as `--sweep objective.beta=0.5,1,4`."
        )
    return key.replace("-", "_"), values


def _elbo_of(result: TrainingResult) -> float:
    """For choosing the best: a run that diverged has none, and is the last."""
    return -math.inf if result.elbo is None else result.elbo


def _with(config: TrainConfig, key: str, value: Any) -> TrainConfig:
    """The config of one value's run: a version of the sweep's model, by the run's own alias."""
    leaf = key.rsplit(".", 1)[-1]
    name = re.sub(r"[^A-Za-z0-9._-]", "-", f"{config.run}-{leaf}-{value}")
    data = config.model_dump() | {"run": name, "sweep": None}
    registered, _ = config.tracking.registered_as(config.run)
    own_alias = re.sub(r"[^A-Za-z0-9_-]", "-", name)
    data["tracking"] |= {"model": f"{registered}@{own_alias}"}
    place = data
    *parents, last = key.split(".")
    for parent in parents:
        place = place.get(parent, {}) if isinstance(place, dict) else {}
    if not isinstance(place, dict) or last not in place:
        known = [".".join(path) for path, _ in keys_of(TrainConfig)]
        rest = str(config.sweep).partition("=")[2]
        meant = [f"`--sweep {shell_word(f'{each}={rest}')}`" for each in near_names(key, known)]
        hint = f"Did you mean {' or '.join(meant)}?" if meant else "`--print-config` tells all."
        raise ConfigError(f"--sweep {key}: there is no such knob. {hint}")
    place[last] = value
    try:
        return TrainConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError(
            f"--sweep {key}={value}: {error.errors()[0]['msg']}. Give other values: `--sweep "
            "KEY=A,B`."
        ) from None


def _run_all(
    children: Sequence[TrainConfig],
) -> Iterator[tuple[TrainConfig, TrainingResult | PipelineError]]:
    """Each child's result or error: side by side where a cluster has the room, else in turn."""
    places, workers = _places(children[0]), children[0].max_workers
    if places == 1:
        with ray_cluster(workers) if workers else nullcontext():
            for child in children:
                yield child, _run_one(child)
        return
    # A process each: Ray Train and MLflow's client keep state of their own per process.
    with ProcessPoolExecutor(places, get_context("spawn"), logging.basicConfig) as pool:
        started = {pool.submit(_run_one, child): child for child in children}
        for future in as_completed(started):
            yield started[future], future.result()


def _run_one(config: TrainConfig) -> TrainingResult | PipelineError:
    try:
        return run_training(config)
    except PipelineError as error:
        return error


def _places(config: TrainConfig) -> int:
    """How many of these runs the cluster at RAY_ADDRESS can hold at once; 1 without one."""
    if config.max_workers == 0 or not os.environ.get("RAY_ADDRESS"):
        return 1
    with ray_cluster(config.max_workers):
        resources = cluster_resources()
    if resources.get("GPU", 0):
        return max(1, int(resources["GPU"]) // config.max_workers)
    cores = config.max_workers * (config.cpus_per_worker or 1)
    return max(1, int(resources.get("CPU", 0)) // cores)


def _row(key: str, value: Any, result: TrainingResult) -> SweepRow:
    held = result.holdout_after  # None for each term of a run that diverged
    if held is None:
        raise RunError(
            f"run {result.run} stopped before it was seen on the hold-out, so the sweep can't "
            "compare it. The same command goes on with it."
        )
    log_likelihood, units = held["log_likelihood"], held["active_units"]
    return SweepRow(
        name=f"{key.rsplit('.', 1)[-1]} {value}",
        value=value,
        run=result.run,
        run_id=result.run_id,
        model_version=result.model_version,
        elbo=held["elbo"],
        rate=held["kl"],
        distortion=None if log_likelihood is None else -log_likelihood,
        active_units=None if units is None else int(units),
    )


def _track(
    config: TrainConfig, run: Run, run_ids: Sequence[str], best: TrainingResult
) -> TrainingResult:
    """One parent run in MLflow over the runs of all values; the best one's result with the alias
    that it got.
    """
    name, asked = config.tracking.registered_as(config.run)
    uri = tracking_uri()
    params = parts_of(config).recording.params
    try:
        with tracking_errors(uri):
            parent = TrackedRun(uri, config.tracking.experiment, config.run, run.url, params)
            client = mlflow_client(uri)
            for run_id in run_ids:
                client.set_tag(run_id, "mlflow.parentRunId", parent.run_id)
            check_artifacts_root(client.get_run(parent.run_id).info.artifact_uri, uri)
            client.log_dict(parent.run_id, storage.read_json(run.path("sweep.json")), "sweep.json")
            parent.set_status("FINISHED")
            if best.model_version is not None:
                model = resolve_model(f"models:/{name}/{best.model_version}")
                alias = place_alias(model, asked)
                uri = model.uri if alias is None else f"models:/{name}@{alias}"
                return replace(best, model=uri)
    except TrackingError as error:
        logger.warning("MLflow has no parent run of this sweep: %s", error)
    return best
