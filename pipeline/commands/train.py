"""`jobs.train`: start or continue a run on Ray, under torchrun or in this process."""

import logging
import os
from datetime import UTC, datetime

from pipeline import storage
from pipeline.cluster.worker_group import train_on_ray
from pipeline.commands.conclude import conclude, deliver, result_of
from pipeline.commands.interruption import ended_by_signals, saved_at
from pipeline.commands.train_checks import refuse_beyond_memory_here, refuse_what_cannot_train
from pipeline.commands.train_parts import TrainParts, parts_of
from pipeline.config import TrainConfig
from pipeline.data import Dataset
from pipeline.errors import AccessDeniedError
from pipeline.masking import shell_word
from pipeline.places import refuse_another_kind
from pipeline.rank import RunEnd, run_rank
from pipeline.registry.checkpoint_versions import registered_on_the_way
from pipeline.runs.checkpoint import newest_step
from pipeline.runs.goodput import furthest_step, known_furthest
from pipeline.runs.lost_files import refuse_lost_work
from pipeline.runs.result import TrainingResult
from pipeline.runs.run import Pins, Run, Start
from pipeline.runs.versions import changes, versions_here
from pipeline.tracking.endpoint import refuse_taken
from pipeline.tracking.progress_line import live_view
from pipeline.tracking.recorder import (
    FLUSH_SECONDS,
    RunRecorder,
    Settled,
    failing,
    mlflow_status,
)
from pipeline.training.world import current_world, process_group
from pipeline.vae import save_bundle

logger = logging.getLogger(__name__)


def run_training(config: TrainConfig) -> TrainingResult:
    """Trains to the last step and registers the model.

    Starting the same run again continues it, or says that it is finished. What can't be trained is
    refused before the run's name is taken.
    """
    config = resolve(config)
    storage.refuse_file_above(config.storage, "--storage")
    run = Run.at(config)
    is_first = bool(config.max_workers) or int(os.environ.get("RANK", "0")) == 0
    if is_first:
        refuse_another_kind(run.url, "a run", "--run NAME")
        refuse_lost_work(
            run,
            steps=config.steps,
            checkpoint_every=config.checkpoint_every,
            keeps_best=config.holdout is not None and config.objective.aims_at_elbo,
            begin_anew=config.begin_anew,
        )
        _open(config, run)
    finished = run.result()
    done = finished is not None and (
        finished.steps >= config.steps or (finished.converged and config.patience is not None)
    )
    if not is_first:
        return finished if done and finished else _follow(config, run)
    if done and finished:
        logger.info("run %s is finished at step %d", run.url, finished.steps)
        return deliver(config, run, finished)
    refuse_beyond_memory_here(config, run.pins() or _current_pins(config))
    # Before an older start is told to stop; and a recorder that is an actor would only die of it.
    refuse_taken(config.tracking.metrics_host, config.tracking.metrics_port)
    start = run.claim()
    _tell_continued(run, start)
    _tell_versions(run, start)
    with ended_by_signals(run, start) as interruption:
        parts = parts_of(config)
        if config.max_workers:
            end = train_on_ray(start, parts.group, parts.rank, parts.recording, parts.versions)
        else:
            end = _train_here(start, parts)
    result = conclude(run, start, end)
    if result.reason == "stopped":
        # To whoever pressed Ctrl-C the run is over, and so is what would have come after it.
        if interruption.by_keyboard:
            raise KeyboardInterrupt(saved_at(run))
        logger.warning("stopped: %s", saved_at(run))
    return deliver(config, run, result)


def _open(config: TrainConfig, run: Run) -> None:
    """Takes the run's name, or finds that it is this run's: a name is taken by its first step."""
    if newest_step(run) or furthest_step(run) or run.result():
        run.open(config, _pins(config, run))
        return
    pins = _current_pins(config)
    start = refuse_what_cannot_train(config, pins)
    differences = run.differences(config, pins)
    if differences:
        logger.warning(
            "run %s was tried with another configuration and made no step; it begins with this "
            "one: %s", run.url, "; ".join(differences),
        )  # fmt: skip
        run.begin_anew()
    run.open(config, pins)
    if start is not None:
        # Copied into the run, where every worker finds it and nothing moves it.
        save_bundle(start, run.path("init"), start.metadata)


def _tell_continued(run: Run, start: Start) -> None:
    """Which step a start goes on from, and what was made beyond it by those before and is lost."""
    step, furthest = newest_step(run), known_furthest(run, start)
    if not furthest.step and not step:
        return
    began = run.claimed_at(Start(1))
    when = f"started {datetime.fromtimestamp(began, UTC):%Y-%m-%d %H:%M} UTC; " if began else ""
    lost = max(0, furthest.step - step)
    told = f"lost {lost} step{'s' * (lost > 1)}, made again" if lost else "lost no step"
    if not furthest.exact:
        told = (
            f"lost at least {lost} step{'s' * (lost > 1)}, made again" if lost
            else "lost steps unknown: the start before left no last count; any are made again"
        )  # fmt: skip
    logger.info("continues run %s from step %d (%s%s)", run.url, step, when, told)


def _tell_versions(run: Run, start: Start) -> None:
    """What has changed under the run since its last start."""
    changed = changes(run.versions_before(start), versions_here())
    if changed and newest_step(run):
        logger.warning(
            "run %s goes on with other software (%s). The same bits are promised for one release "
            "alone: to compare runs to the last digit, finish this one with what it began with.",
            run.url, "; ".join(changed),
        )  # fmt: skip


def _pins(config: TrainConfig, run: Run) -> Pins:
    """The generations that the run began with, or, for a new one, the current ones."""
    pins = run.pins()
    if pins is None:
        return _current_pins(config)
    places = config.shards_below
    current = Dataset.open(config.data, None, places)
    if pins.dataset != current.digest:
        kept = Dataset.open(config.data, pins.dataset, places)
        logger.info(
            "%s has changed since run %s began: the run stays with its %d samples (the dataset now "
            "has %d). A new `--run NAME` reads them all.",
            config.data,
            run.url,
            len(kept),
            len(current),
        )
    return pins


def _current_pins(config: TrainConfig) -> Pins:
    places = config.shards_below
    holdout = (
        Dataset.open(config.holdout, None, places, flag="--holdout") if config.holdout else None
    )
    return Pins(Dataset.open(config.data, None, places).digest, holdout.digest if holdout else None)


def _follow(config: TrainConfig, run: Run) -> TrainingResult:
    """Any rank of torchrun's but the first, which alone claims, tracks and registers."""
    # Its claim is not known yet; a signal before that is told to the run as well.
    with ended_by_signals(run, Start(0)) as interruption, process_group(config.stall_seconds):
        world = current_world()
        end = run_rank(parts_of(config).rank, Start(world.broadcast(0)), world, None)
    result = result_of(run, RunEnd(end.ended, Settled(None, ())))
    if result.reason == "stopped" and interruption.by_keyboard:
        raise KeyboardInterrupt(saved_at(run))
    return result


def _train_here(start: Start, parts: TrainParts) -> RunEnd:
    """This process, alone or as the first rank of torchrun's."""
    rank, training = parts.rank, parts.rank.training
    with process_group(parts.group.stall_seconds):
        world = current_world()
        world.broadcast(start.number)
        recorder = RunRecorder(parts.recording)
        with (
            failing(recorder.finish),
            live_view(rank.run, training.name, training.steps, recorder.latest),
            registered_on_the_way(parts.versions, recorder.run_id),
        ):
            end = run_rank(rank, start, world, recorder)
        left = recorder.settle(end.unsettled.points, end.unsettled.report, FLUSH_SECONDS)
        run_id = recorder.finish(mlflow_status(end.ended.reason))
        return RunEnd(end.ended, Settled(run_id, left))


def resolve(config: TrainConfig) -> TrainConfig:
    """The config with absolute URLs, and with the hold-out that lies beside the training data."""
    data = storage.absolute(config.data)
    holdout = config.holdout and storage.absolute(config.holdout)
    parent, _, last = data.rpartition("/")
    if holdout is None and last == "train":
        beside = storage.join(parent, "holdout")
        # An empty one, as a small dataset may get, is none.
        try:
            there = storage.exists(storage.join(beside, "manifest.json"))
        except AccessDeniedError as error:
            raise AccessDeniedError(
                f"`--data {shell_word(storage.shown(config.data))}`: whether a hold-out lies "
                f"beside it can't be seen: {error}"
            ) from None
        holdout = beside if there and len(Dataset.open(beside, None, config.shards_below)) else None
    update = {"data": data, "holdout": holdout, "storage": storage.absolute(config.storage)}
    return config.model_copy(update=update)
