"""The training loop, as a generator of reports: no Ray, no MLflow, no clock but for durations."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipeline.config import TrainConfig
from pipeline.data import Batch, Dataset, Loader
from pipeline.errors import ConfigError
from pipeline.runs.checkpoint import Checkpoint, CheckpointWriter
from pipeline.runs.history import Validation
from pipeline.runs.outbox import Outbox, Point
from pipeline.runs.reason import Reason, StopReason
from pipeline.runs.run import Attempt, Run
from pipeline.runs.stop import StopSignal
from pipeline.training.goodput import State, WallClock
from pipeline.training.gradients import Component, StepSettings
from pipeline.training.holdout import Watch
from pipeline.training.incidents import Incidents
from pipeline.training.profile import StepTrace
from pipeline.training.restore import autocast_dtype, numerics, restore
from pipeline.training.schedule import learning_rate
from pipeline.training.state import TrainState
from pipeline.training.step import StepReport, train_step
from pipeline.training.step_time import GpuShare
from pipeline.training.world import World

logger = logging.getLogger(__name__)

_STOPS: tuple[StopReason, ...] = ("stopped", "superseded", "drained")


@dataclass(frozen=True)
class Ended:
    """The last report: the run is `done`, was `stopped`, or another start took it over.

    `drained` is `stopped` by a node that is being taken away: the same run goes on elsewhere.
    `converged`: validations got no better for as long as `patience` says. `terms` are the last
    step's (empty if none was made). `digest` names the bundle of a done run, made by rank 0 from
    the averaged weights that the validation `chosen` saw (None: it has no hold-out).
    `run_seconds`: see goodput.py.
    """

    reason: Reason
    converged: bool
    step: int
    images_seen: int
    bad_images: int
    terms: Mapping[Component, float]
    validations: tuple[Validation, ...]
    chosen: Validation | None
    digest: str | None
    run_seconds: Mapping[State, float]


def train(
    config: TrainConfig,
    run: Run,
    attempt: Attempt,
    world: World,
    outbox: Outbox,
    drained: Callable[[], bool] = lambda: False,
) -> Iterator[StepReport | Validation | Ended]:
    """Trains from the newest checkpoint to `config.steps`, yielding a report after each step.

    Every rank runs it alike. A checkpoint holds the points that are in rank 0's `outbox` by then,
    so the consumer adds a step's point before it takes the next report.
    """
    with numerics(config), closing(WallClock(run, attempt, writes=world.rank == 0)) as clock:
        yield from _train(config, run, attempt, world, outbox, drained, clock)


def _train(
    config: TrainConfig,
    run: Run,
    attempt: Attempt,
    world: World,
    outbox: Outbox,
    drained: Callable[[], bool],
    clock: WallClock,
) -> Iterator[StepReport | Validation | Ended]:
    dataset, holdout = open_pinned(config, run)
    state, checkpoint = restore(config, run, world, dataset)
    watch = _taken_up(config, run, world, holdout, checkpoint, outbox)
    gpu = GpuShare(state.vae, config.objective, world) if world.rank == 0 else None
    incidents = Incidents(config, run, attempt, world, len(dataset))
    reason: Reason = "done"
    report: StepReport | None = None
    with (
        closing(StepTrace(run, config.profile if world.rank == 0 else None)) as trace,
        closing(make_loader(config, dataset, world, checkpoint)) as loader,
        closing(CheckpointWriter(run, attempt)) as writer,
        closing(StopSignal(run, attempt, drained)) as stop,
    ):
        if watch.is_due(0, last=False):
            yield watch.look(state)
        batches = _endless(loader)
        while state.step < config.steps and reason == "done" and not watch.has_converged:
            batch, report = _next_step(config, state, batches, world, stop, trace, clock)
            yield _completed(report, loader, writer, clock, gpu)
            incidents.check(batch, report, state)
            if watch.is_due(state.step, last=state.step == config.steps):
                yield watch.look(state)
            last = state.step == config.steps or watch.has_converged
            if report.stop_requested:
                reason = _asked(stop, world, last=last)
            due = last or reason != "done" or state.step % config.checkpoint_every == 0
            if due and reason != "superseded":
                clock.enter("checkpoint")
                incidents.publish()
                if world.rank == 0:
                    writer.save(_checkpoint(state, loader, outbox, watch.validations))
        clock.enter("checkpoint")
        writer.finish()
    if reason == "done" and world.broadcast(int(run.newest_attempt() > attempt)):
        reason = "superseded"
    digest, chosen = None, watch.newest
    if reason == "done" and world.rank == 0:
        digest, chosen = watch.save_final(state, _facts(config, dataset, state))
    clock.finish(as_asked=reason in ("done", "stopped"))
    yield Ended(
        reason=reason,
        converged=watch.has_converged,
        step=state.step,
        images_seen=state.images_seen,
        bad_images=state.bad_images,
        terms=report.terms if report else {},
        validations=tuple(watch.validations),
        chosen=chosen,
        digest=digest,
        run_seconds=clock.totals(),
    )


def _taken_up(
    config: TrainConfig,
    run: Run,
    world: World,
    holdout: Dataset | None,
    checkpoint: Checkpoint | None,
    outbox: Outbox,
) -> Watch:
    """What was seen of the hold-out before; the points that wait go into rank 0's outbox."""
    for point in checkpoint.points if checkpoint and world.rank == 0 else ():
        outbox.add(Point.from_json(point))
    before = [Validation(**data) for data in checkpoint.validations] if checkpoint else []
    return Watch(config, run, world, holdout, before)


def _completed(
    report: StepReport,
    loader: Loader,
    writer: CheckpointWriter,
    clock: WallClock,
    gpu: GpuShare | None,
) -> StepReport:
    """With what the step itself does not know: the totals of what goes on beside it."""
    return replace(
        report,
        loader=loader.stats.totals(),
        checkpoints=writer.stats,
        run_seconds=clock.totals(),
        gpu_share=gpu.of(report.images, report.seconds) if gpu else None,
    )


def _asked(stop: StopSignal, world: World, *, last: bool) -> Reason:
    """Why to stop now; after the last step the run is done, unless another start owns it."""
    # Rank 0 alone asked: only its answer is the truth.
    mine = _STOPS.index(stop.reason()) if world.rank == 0 else 0
    asked = _STOPS[world.broadcast(mine)]
    return "done" if last and asked != "superseded" else asked


def open_pinned(config: TrainConfig, run: Run) -> tuple[Dataset, Dataset | None]:
    """The generations of training data and hold-out that the run began with."""
    pins = run.pins()
    assert pins is not None, "a run is opened before it is trained"
    holdout = Dataset.open(config.holdout, pins.holdout) if config.holdout else None
    return Dataset.open(config.data, pins.dataset), holdout


def _next_step(
    config: TrainConfig,
    state: TrainState,
    batches: Iterator[Batch],
    world: World,
    stop: StopSignal,
    trace: StepTrace,
    clock: WallClock,
) -> tuple[Batch, StepReport]:
    settings = StepSettings(
        config.objective,
        config.seed,
        config.optimizer.clip_norm,
        autocast_dtype(config, world),
        config.micro_batch_size,
        config.exact,
    )
    trace.before(state.step + 1)
    clock.enter("data_wait")
    started = time.perf_counter()
    batch = next(batches)
    waited = time.perf_counter() - started
    clock.step(state.step + 1)
    report = train_step(
        state,
        batch,
        world,
        settings,
        rate=learning_rate(config.optimizer, state.step + 1, config.steps),
        stop=stop.requested and world.rank == 0,
        data_wait_seconds=waited,
    )
    trace.after(state.step)
    return batch, report


def make_loader(
    config: TrainConfig, dataset: Dataset, world: World, checkpoint: Checkpoint | None
) -> Loader:
    """This rank's loader, at the place where a checkpoint left it."""
    loader = Loader(
        dataset,
        config.preprocess,
        global_batch_size=config.global_batch_size,
        flip=config.flip,
        transform=config.transform,
        seed=config.seed,
        tail="pad",
        rank=world.rank,
        world_size=world.size,
        settings=config.loader,
        stall_seconds=config.stall_seconds,
    )
    if loader.steps_per_epoch == 0:
        loader.close()
        raise ConfigError(f"{config.data}: holds no images. Name a dataset that has some.")
    if checkpoint:
        loader.load_state_dict(checkpoint.order)
    if world.rank == 0:
        bound = loader.memory_bound_bytes / 2**20
        logger.info("each rank's loader keeps at most %.0f MiB of images in memory", bound)
    return loader


def _facts(config: TrainConfig, dataset: Dataset, state: TrainState) -> dict[str, Any]:
    """What a bundle says about its making, beside the hold-out's numbers."""
    return {
        "run": config.run,
        "dataset_digest": dataset.digest,
        "beta": config.objective.beta,
        "holdout_data": config.holdout,
        "steps": state.step,
        "images_seen": state.images_seen,
    }


def _endless(loader: Loader) -> Iterator[Batch]:
    while True:
        yield from loader


def _checkpoint(
    state: TrainState, loader: Loader, outbox: Outbox, validations: list[Validation]
) -> Checkpoint:
    return Checkpoint(
        step=state.step,
        images_seen=state.images_seen,
        bad_images=state.bad_images,
        model=state.vae.state_dict(),
        ema=state.ema.module.state_dict(),
        optimizer=state.optimizer.state_dict(),
        objective=state.objective.to_json(),
        order=loader.state_dict(),
        points=[point.to_json() for point in outbox.pending()],
        validations=[asdict(validation) for validation in validations],
        scaler=state.scaler.state_dict(),
        skipped_in_a_row=state.skipped_in_a_row,
    )
