"""`jobs.train`: start or continue a run on Ray, under torchrun or in this process."""

import logging
import os

from pipeline import storage
from pipeline.cluster.worker_group import train_on_ray
from pipeline.commands.conclude import conclude, deliver, result_of
from pipeline.commands.interruption import ended_by_signals, saved_at
from pipeline.config import TrainConfig
from pipeline.data import Dataset
from pipeline.errors import DatasetError
from pipeline.rank import RunEnd, run_rank
from pipeline.registry.checkpoint_versions import registered_on_the_way
from pipeline.registry.named_models import load_named
from pipeline.runs.lost import refuse_lost_work
from pipeline.runs.result import TrainingResult
from pipeline.runs.run import Attempt, Pins, Run
from pipeline.tracking.endpoint import refuse_taken
from pipeline.tracking.progress_line import live_view
from pipeline.tracking.recorder import (
    FLUSH_SECONDS,
    RunRecorder,
    Settled,
    failing,
    mlflow_status,
    recorder_settings,
)
from pipeline.training.world import current_world, process_group
from pipeline.vae import save_bundle

logger = logging.getLogger(__name__)


def run_training(config: TrainConfig) -> TrainingResult:
    """Trains to the last step and registers the model.

    Starting the same run again continues it, or says that it is finished.
    """
    config = resolve(config)
    run = Run.at(config)
    if int(os.environ.get("RANK", "0")) == 0:
        refuse_lost_work(config, run)
    run.open(config, _pins(config, run))
    finished = run.result()
    done = finished is not None and (
        finished.steps >= config.steps or (finished.converged and config.patience is not None)
    )
    if not config.max_workers and int(os.environ.get("RANK", "0")) > 0:
        return finished if done and finished else _follow(config, run)
    if done and finished:
        logger.info("run %s is finished at step %d", run.url, finished.steps)
        return deliver(config, run, finished)
    if config.init is not None:
        _keep_init(config, run)
    # Before an older start is told to stop; and a recorder that is an actor would only die of it.
    refuse_taken(config.tracking.metrics_host, config.tracking.metrics_port)
    attempt = run.claim()
    with ended_by_signals(run, attempt) as interruption:
        end = (train_on_ray if config.max_workers else _train_here)(config, run, attempt)
    result = conclude(run, attempt, end)
    if result.reason == "stopped":
        # To whoever pressed Ctrl-C the run is over, and so is what would have come after it.
        if interruption.by_keyboard:
            raise KeyboardInterrupt(saved_at(run))
        logger.warning("stopped: %s", saved_at(run))
    return deliver(config, run, result)


def _pins(config: TrainConfig, run: Run) -> Pins:
    """The generations that the run began with, or, for a new one, the current ones."""
    places = config.shards_below
    current = Dataset.open(config.data, None, places)
    pins = run.pins()
    if pins is None:
        _check_size(current, config.global_batch_size)
        holdout = Dataset.open(config.holdout, None, places) if config.holdout else None
        return Pins(current.digest, holdout.digest if holdout else None)
    if pins.dataset != current.digest:
        kept = Dataset.open(config.data, pins.dataset, places)
        logger.info(
            "%s has changed since run %s began: the run stays with its %d samples (the dataset now "
            "has %d). A new --run reads them all.",
            config.data,
            run.url,
            len(kept),
            len(current),
        )
    return pins


def _keep_init(config: TrainConfig, run: Run) -> None:
    """Copies what --init names into the run, where every worker finds it and nothing moves it."""
    if not storage.exists(run.path("init", "bundle.json")):
        own = config.model.own_classes
        vae, _ = load_named(str(config.init), config.storage, own)
        save_bundle(vae, run.path("init"), vae.metadata)


def _follow(config: TrainConfig, run: Run) -> TrainingResult:
    """Any rank of torchrun's but the first, which alone claims, tracks and registers."""
    # Its claim is not known yet; a signal before that is told to the run as well.
    with ended_by_signals(run, Attempt(0)) as interruption, process_group(config.stall_seconds):
        world = current_world()
        end = run_rank(config, Attempt(world.broadcast(0)), world, None)
    result = result_of(run, RunEnd(end.ended, Settled(None, ())))
    if result.reason == "stopped" and interruption.by_keyboard:
        raise KeyboardInterrupt(saved_at(run))
    return result


def _train_here(config: TrainConfig, run: Run, attempt: Attempt) -> RunEnd:
    """This process, alone or as the first rank of torchrun's."""
    with process_group(config.stall_seconds):
        world = current_world()
        world.broadcast(attempt.number)
        recorder = RunRecorder(recorder_settings(config, run))
        with (
            failing(recorder.finish),
            live_view(run, config.run, config.steps, recorder.latest),
            registered_on_the_way(config, run, recorder.run_id),
        ):
            end = run_rank(config, attempt, world, recorder)
        left = recorder.settle(end.unsettled.points, end.unsettled.report, FLUSH_SECONDS)
        run_id = recorder.finish(mlflow_status(end.ended.reason))
        return RunEnd(end.ended, Settled(run_id, left))


def _check_size(dataset: Dataset, global_batch_size: int) -> None:
    """Before anything starts: an empty dataset is an error, one smaller than a batch is said."""
    if not len(dataset):
        raise DatasetError(
            f"{dataset.url}: holds no samples that count. Pack images into it first."
        )
    if global_batch_size > len(dataset):
        logger.warning(
            "a batch of %d is larger than the dataset of %d images: each step is an epoch, and its "
            "rest is padding, which is masked. Give a smaller --global-batch-size",
            global_batch_size, len(dataset),
        )  # fmt: skip


def resolve(config: TrainConfig) -> TrainConfig:
    """The config with absolute URLs, and with the hold-out that lies beside the training data."""
    data = storage.absolute(config.data)
    holdout = config.holdout and storage.absolute(config.holdout)
    parent, _, last = data.rpartition("/")
    if holdout is None and last == "train":
        beside = storage.join(parent, "holdout")
        # An empty one, as a small dataset may get, is none.
        there = storage.exists(storage.join(beside, "manifest.json"))
        holdout = beside if there and len(Dataset.open(beside, None, config.shards_below)) else None
    update = {"data": data, "holdout": holdout, "storage": storage.absolute(config.storage)}
    return config.model_copy(update=update)
