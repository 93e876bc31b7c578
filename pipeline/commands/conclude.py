"""How a run ends: its result on storage, its last points to MLflow, its model into the registry."""

import logging
import tempfile
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.config import TrainConfig
from pipeline.errors import RunError, TrackingError
from pipeline.figures.history import draw_way
from pipeline.registry.checkpoint_versions import registration_tags
from pipeline.registry.models import register
from pipeline.runs.history import read_kl_per_dimension, read_validations
from pipeline.runs.json_numbers import plain_json
from pipeline.runs.outbox import Point
from pipeline.runs.run import Attempt, Run
from pipeline.tracking.mlflow_client import mlflow_client, tracking_errors, tracking_uri
from pipeline.tracking.recorder import FLUSH_SECONDS, RunRecorder, recorder_arguments

logger = logging.getLogger(__name__)


def conclude(run: Run, attempt: Attempt, ended: dict[str, Any]) -> dict[str, Any]:
    """The result of a run that has ended, kept in its folder when it is finished.

    Raises `RunError` if another start took the run over.
    """
    if ended["reason"] == "superseded":
        raise RunError(
            f"run {run.url} was started again elsewhere (attempt {run.newest_attempt().number}; "
            f"this one was {attempt.number}): this process stopped at step {ended['step']} and "
            "wrote nothing more. Follow the other one, or start this command again to take over."
        )
    run.keep_points([Point.from_json(data) for data in ended["points"]])
    validations, chosen = ended["validations"], ended["chosen"]
    result = {
        "run": run.url,
        "run_id": ended["run_id"],
        "reason": ended["reason"],
        "steps": ended["step"],
        "samples": ended["images_seen"],
        "bad_samples": ended["bad_images"],
        "converged": ended["converged"],
        "run_seconds": ended["run_seconds"],
        "elbo": (chosen or ended)["terms"]["elbo"],
        "chosen_step": chosen["step"] if chosen else ended["step"],
        "holdout_before": validations[0]["terms"] if validations else None,
        "holdout_after": chosen["terms"] if chosen else None,
        "model": None,
        "model_version": None,
        "bundle": run.path("bundle") if ended["digest"] else None,
        "digest": ended["digest"],
    }
    # A run that diverged ends too; what is not finite is null.
    result = {name: plain_json(value) for name, value in result.items()}
    if ended["reason"] == "done":
        run.finish(result)
    return result


def deliver(config: TrainConfig, run: Run, result: dict[str, Any]) -> dict[str, Any]:
    """Sends MLflow what it has not got yet of a finished run: points, then the model.

    Doing it again does nothing. Raises `TrackingError` if MLflow can't be reached.
    """
    if result["reason"] != "done":
        return result
    points = run.kept_points()
    if points or result["run_id"] is None:
        recorder = RunRecorder(*recorder_arguments(config, run))
        recorder.record("kept", points, {})
        left = recorder.flush(FLUSH_SECONDS)
        result = {**result, "run_id": recorder.finish("FINISHED")}
        run.keep_points(left)
        if left or result["run_id"] is None:
            raise TrackingError(
                f"run {run.url} is trained and its bundle is {result['bundle']}, but MLflow at "
                f"{storage.shown(tracking_uri(config.tracking))} can't be reached: "
                f"{len(left)} points are kept and no model is registered. Start MLflow; the same "
                "command then sends them."
            )
        run.finish(result)
    if result["model"] is None and result["elbo"] is None:
        logger.warning("run %s: its ELBO is not finite, so no model is registered", run.url)
        return result
    if result["model"] is None:
        _log_figures(config, run, result["run_id"])
        held = result["holdout_after"]
        tags = registration_tags(config, run, result["bundle"], held and held["elbo"])
        own = config.model.own_classes
        model = register(
            result["bundle"], config.tracking, result["run_id"], tags, allow_custom=own
        )
        alias = f"models:/{model.name}@{config.tracking.alias}"
        result = {**result, "model": alias, "model_version": model.version}
        run.finish(result)
    return result


def _log_figures(config: TrainConfig, run: Run, run_id: str) -> None:
    """The pictures of the run's way and the last KL per dimension, as artifacts in MLflow."""
    where = tracking_uri(config.tracking)
    validations = read_validations(run)
    with tempfile.TemporaryDirectory(prefix="vae-figures-") as folder:
        for name, picture in draw_way(run):
            (Path(folder) / name).write_bytes(picture)
        if validations:
            # Not as metrics: a model may have thousands of dimensions.
            nats = read_kl_per_dimension(run, validations[-1]).tolist()
            table = plain_json({"step": validations[-1].step, "nats": nats})
            (Path(folder) / "kl_per_dimension.json").write_bytes(storage.canonical_json(table))
        with tracking_errors(where):
            mlflow_client(where).log_artifacts(run_id, folder, "figures")
