"""How a run ends: its result on storage, its last points to MLflow, its model into the registry."""

import logging
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from pipeline import storage
from pipeline.commands.train_parts import parts_of
from pipeline.config import TrainConfig
from pipeline.data import Dataset
from pipeline.errors import (
    DatasetError,
    RunError,
    StorageError,
    TrackingError,
    UndeliveredError,
)
from pipeline.evaluation.alarms import last_word, read_looks
from pipeline.figures.history import draw_way
from pipeline.figures.overview import draw_glance, glanced_at
from pipeline.masking import shell_word
from pipeline.progress import phase
from pipeline.rank import RunEnd
from pipeline.registry.checkpoint_versions import registration_tags
from pipeline.registry.models import is_registered, register
from pipeline.registry.promotion import place_alias
from pipeline.runs.history import read_kl_per_dimension, read_validations
from pipeline.runs.json_numbers import plain_json
from pipeline.runs.result import TrainingResult
from pipeline.runs.run import Run, Start
from pipeline.tracking.metric_table import MetricsReport
from pipeline.tracking.mlflow_client import (
    check_artifacts_root,
    mlflow_client,
    tracking_errors,
    tracking_uri,
)
from pipeline.tracking.mlflow_facts import About, ReadDataset, describe
from pipeline.tracking.recorder import FLUSH_SECONDS, RunRecorder
from pipeline.vae import load_bundle

logger = logging.getLogger(__name__)


def conclude(run: Run, start: Start, end: RunEnd) -> TrainingResult:
    """The result of a run that has ended, kept in its folder.

    Raises `RunError` if another start took the run over.
    """
    if end.ended.reason == "superseded":
        raise RunError(
            f"run {run.url} was started again elsewhere (start {run.newest_start().number}; "
            f"this one was {start.number}): this process stopped at step {end.ended.step} and "
            "left the run to it. Follow the other one, or start this command again to take over."
        )
    unsent = run.keep_points(end.settled.left)
    result = replace(result_of(run, end), unsent=unsent)
    run.end(start, result)
    if result.reason == "done":
        run.finish(result)
        words = last_word(read_looks(run), result.chosen_step)
        if words is not None:
            # Here, on the driver: what a worker logs never reaches the terminal.
            logger.warning("run %s: %s", run.url, words)
    return result


def result_of(run: Run, end: RunEnd) -> TrainingResult:
    """What a start that ended comes to, before anything is registered."""
    ended = end.ended
    before = ended.validations[0] if ended.validations else None
    terms = ended.chosen.terms if ended.chosen else ended.terms
    # A run that diverged ends too; what is not finite is null.
    return TrainingResult(
        run=run.url,
        run_id=end.settled.run_id,
        reason=ended.reason,
        steps=ended.step,
        samples=ended.images_seen,
        bad_samples=ended.bad_images,
        converged=ended.converged,
        run_seconds=dict(ended.run_seconds.items()),
        elbo=plain_json(terms.get("elbo")),
        chosen_step=ended.chosen.step if ended.chosen else ended.step,
        holdout_before=plain_json(before.terms) if before else None,
        holdout_after=plain_json(ended.chosen.terms) if ended.chosen else None,
        model=None,
        model_version=None,
        bundle=run.path("bundle") if ended.digest else None,
        digest=ended.digest,
    )


def deliver(config: TrainConfig, run: Run, result: TrainingResult) -> TrainingResult:
    """Sends MLflow what it has not got yet of a finished run: points, then the model.

    Doing it again does nothing, unless the registry has lost the model since.
    Raises `UndeliveredError` if MLflow can't be reached or refuses.
    """
    if result.reason != "done":
        return result
    try:
        with phase("handing curves, pictures and the model to MLflow"):
            return _delivered(config, run, _as_registered(run, result))
    except UndeliveredError:
        raise
    except TrackingError as error:
        raise UndeliveredError(
            f"run {run.url} is trained and its bundle is {result.bundle}, but no model is "
            f"registered: {error} The same command then registers it."
        ) from None


def _as_registered(run: Run, result: TrainingResult) -> TrainingResult:
    """The result without the model that the registry has lost, as by a restore of an older copy."""
    if result.model is None or result.model_version is None:
        return result
    try:
        if is_registered(result.model, result.model_version, result.digest):
            return result
    except TrackingError as error:
        logger.warning(
            "run %s: whether the registry has %s still is not known: %s",
            run.url, result.model, error,
        )  # fmt: skip
        return result
    logger.warning(
        "run %s: MLflow at %s has no version %d of its model %s any more, as after a restore from "
        "an older copy; its bundle is %s",
        run.url, storage.shown(tracking_uri()), result.model_version, result.model, result.bundle,
    )  # fmt: skip
    # Its run there may be gone as well, or say RUNNING.
    return replace(result, run_id=None, model=None, model_version=None)


def _delivered(config: TrainConfig, run: Run, result: TrainingResult) -> TrainingResult:
    points = run.kept_points(result.unsent)
    if points or result.unsent or result.run_id is None:
        recorder = RunRecorder(parts_of(config).recording)
        recorder.record("kept", 0, points, MetricsReport())
        left = recorder.flush(FLUSH_SECONDS)
        result = replace(result, run_id=recorder.finish("FINISHED"))
        if left or result.run_id is None:
            raise UndeliveredError(
                f"run {run.url} is trained and its bundle is {result.bundle}, but MLflow at "
                f"{storage.shown(tracking_uri())} can't be reached: "
                f"{len(left)} points are kept and no model is registered. Start MLflow; the same "
                "command then sends them."
            )
        # The file last: what it holds twice is skipped, what it lacks would be missed.
        result = replace(result, unsent=None)
        run.finish(result)
        run.keep_points([])
    if result.model is None and result.elbo is None:
        logger.warning("run %s: its ELBO is not finite, so no model is registered", run.url)
        return result
    if result.model is None:
        assert result.run_id is not None, "MLflow was reached"
        assert result.bundle is not None, "a run that is done has one"
        _tell(config, run, result, result.run_id)
        if config.no_register:
            return result
        elbo = result.holdout_after["elbo"] if result.holdout_after else None
        versions = parts_of(config).versions
        tags = registration_tags(versions, result.bundle, elbo)
        model = register(
            result.bundle, versions.name, result.run_id, tags,
            description=_about(config, result), allow_custom=versions.model.own_classes,
        )  # fmt: skip
        alias = place_alias(model, versions.alias)
        uri = model.uri if alias is None else f"models:/{versions.name}@{alias}"
        result = replace(result, model=uri, model_version=model.version)
        run.finish(result)
    return result


def _about(config: TrainConfig, result: TrainingResult) -> str:
    """What the model is, for whoever finds it in MLflow."""
    model, held_out = config.model, (result.holdout_after or {}).get("elbo")
    size = f"{config.channels} x {config.image_size} x {config.image_size}"
    told = "" if held_out is None else f", held-out ELBO {held_out:,.2f} nats per image"
    return (
        f"{model.kind} VAE of images {size}, likelihood {model.likelihood}, objective "
        f"{config.objective.kind}: the weights of step {result.chosen_step:,} of {result.steps:,} "
        f"in run {config.run}{told}. `vae explain --run {shell_word(config.run)}` says what "
        "that means."
    )


def _tell(config: TrainConfig, run: Run, result: TrainingResult, run_id: str) -> None:
    """MLflow's run gets its description, the datasets that it read, and its pictures."""
    pins = run.pins()
    assert pins is not None, "a run that is done was opened"
    assert result.bundle is not None, "and has a bundle"
    about = About(_about(config, result), config.model_dump(mode="json"))
    named = [("training", config.data, pins.dataset), ("evaluation", config.holdout, pins.holdout)]
    try:
        opened = [
            (context, Dataset.open(url, digest, config.shards_below))
            for context, url, digest in named
            if url
        ]
        context, dataset = opened[-1]
        vae = load_bundle(result.bundle, config.model.own_classes).eval()
        batch = glanced_at(dataset, vae.preprocess)
    except (DatasetError, StorageError) as error:
        # The model is trained: data that are gone since keep nobody from registering it.
        logger.warning("run %s: MLflow gets no pictures of the model: %s", run.url, error)
        describe(run_id, about, result.chosen_step, ())
        _log_figures(run, run_id, ())
        return
    read = [ReadDataset(context, d.url, d.digest, len(d)) for context, d in opened]
    describe(run_id, about, result.chosen_step, read)
    of = "held-out images" if context == "evaluation" else "images that were trained on"
    _log_figures(run, run_id, draw_glance(vae, batch, of))


def _log_figures(run: Run, run_id: str, more: Iterable[tuple[str, bytes]]) -> None:
    """The pictures of the run's way and `more`, and the last KL per dimension, as artifacts."""
    where = tracking_uri()
    validations = read_validations(run)
    with tempfile.TemporaryDirectory(prefix="vae-figures-") as folder:
        for name, picture in (*draw_way(run), *more):
            (Path(folder) / name).write_bytes(picture)
        if validations:
            # Not as metrics: a model may have thousands of dimensions.
            nats = read_kl_per_dimension(run, validations[-1]).tolist()
            table = plain_json({"step": validations[-1].step, "nats": nats})
            (Path(folder) / "kl_per_dimension.json").write_bytes(storage.canonical_json(table))
        with tracking_errors(where):
            client = mlflow_client(where)
            check_artifacts_root(client.get_run(run_id).info.artifact_uri, where)
            client.log_artifacts(run_id, folder, "figures")
