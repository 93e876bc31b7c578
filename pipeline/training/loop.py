"""The training loop, as a generator of reports: no Ray, no MLflow, no clock but for durations."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass

from pipeline.data import Dataset, Loader
from pipeline.runs.checkpoint import Cadence, Checkpoint, CheckpointWriter
from pipeline.runs.facts import RunFacts
from pipeline.runs.goodput import State, WallClock
from pipeline.runs.history import Validation, no_course
from pipeline.runs.outbox import Outbox
from pipeline.runs.reason import Reason
from pipeline.runs.run import Run, Start
from pipeline.runs.stop import StopSignal
from pipeline.training.batches import open_pinned, training_loader
from pipeline.training.holdout import HoldOut
from pipeline.training.incidents import Incidents
from pipeline.training.profile import StepTrace
from pipeline.training.restore import numerics, restore
from pipeline.training.settings import TrainSettings
from pipeline.training.state import Component, TrainState
from pipeline.training.step import StepReport
from pipeline.training.stepper import Stepper
from pipeline.training.stopping import Stopping
from pipeline.training.world import World
from pipeline.vae import optimised


@dataclass(frozen=True)
class Ended:
    """The last report: how this start ended, on every rank alike but for the bundle.

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
    settings: TrainSettings,
    run: Run,
    start: Start,
    world: World,
    outbox: Outbox,
    drained: Callable[[], bool] = lambda: False,
) -> Iterator[StepReport | Validation | Ended]:
    """Trains from the newest checkpoint to the last step, yielding a report after each.

    Every rank runs it alike. A checkpoint holds the points that are in rank 0's `outbox` by then,
    so the consumer adds a step's point before it takes the next report.
    """
    with (
        numerics(settings.state),
        closing(WallClock(run, start, writes=world.rank == 0)) as clock,
    ):
        yield from _train(
            settings, run=run, start=start, world=world, outbox=outbox, drained=drained,
            clock=clock,
        )  # fmt: skip


def _train(
    settings: TrainSettings,
    *,
    run: Run,
    start: Start,
    world: World,
    outbox: Outbox,
    drained: Callable[[], bool],
    clock: WallClock,
) -> Iterator[StepReport | Validation | Ended]:
    dataset, held = open_pinned(run, settings.data, settings.holdout, settings.shards_below)
    state, checkpoint = restore(settings.state, run, world, dataset)
    if checkpoint and world.rank == 0:
        outbox.take_over(checkpoint.points)
    holdout = _holdout(settings, run, world, held, checkpoint)
    incidents = Incidents(run, start, world, dataset, settings.bad_fraction)
    order = checkpoint.order if checkpoint else None
    # Every rank makes the same steps: one trace tells of them.
    profile = settings.profile if world.rank == 0 else None
    with (
        closing(StepTrace(run, profile)) as trace,
        closing(training_loader(dataset, settings.batches, world, order)) as loader,
        closing(CheckpointWriter(run, start, saved=checkpoint.step if checkpoint else 0)) as writer,
        closing(StopSignal(run, start, drained)) as signal,
    ):
        stopping = Stopping(settings.steps, run, start, world, holdout=holdout, signal=signal)
        stepper = Stepper(
            state, world, settings.step, optimizer=settings.optimizer, steps=settings.steps,
            loader=loader, writer=writer, clock=clock, trace=trace,
        )  # fmt: skip
        if holdout.is_due(0, last=False):
            yield holdout.look(state)
        # Only rank 0 writes: the clocks of ranks need not agree.
        cadence = Cadence(settings.checkpoint_every)
        reason = stopping.at_start(state.step)
        while reason is None:
            made = stepper.make(stop=stopping.is_wished)
            yield made.report
            incidents.check(made.batch, made.report, state)
            holdout.note(made.report)
            asked = stopping.asked(made.report)
            if stopping.may_look(state.step, asked):
                yield holdout.look(state)
            reason = stopping.after(state.step, asked)
            if reason != "superseded" and (cadence.is_due(state.step) or reason is not None):
                clock.enter("checkpoint")
                incidents.publish()
                if world.rank == 0:
                    writer.save(_checkpoint(state, loader, outbox, holdout))
        clock.enter("checkpoint")
        writer.finish()
    reason = stopping.at_end(reason)
    digest, chosen = None, holdout.newest
    if reason == "done" and world.rank == 0:
        digest, chosen = holdout.save_final(state, _facts(settings, dataset, state))
    clock.finish(as_asked=reason in ("done", "stopped"))
    yield _ended(reason, state, holdout, chosen=chosen, digest=digest, clock=clock)


def _holdout(
    settings: TrainSettings,
    run: Run,
    world: World,
    held: Dataset | None,
    checkpoint: Checkpoint | None,
) -> HoldOut:
    """As the checkpoint left it, or at the run's beginning."""
    return HoldOut(
        run,
        world,
        held,
        settings=settings.looks,
        batches=settings.batches,
        validations=checkpoint.validations if checkpoint else (),
        course=checkpoint.course if checkpoint else no_course(),
    )


def _ended(
    reason: Reason,
    state: TrainState,
    holdout: HoldOut,
    *,
    chosen: Validation | None,
    digest: str | None,
    clock: WallClock,
) -> Ended:
    return Ended(
        reason=reason,
        converged=holdout.has_converged,
        step=state.step,
        images_seen=state.images_seen,
        bad_images=state.bad_images,
        terms=state.terms,
        validations=tuple(holdout.validations),
        chosen=chosen,
        digest=digest,
        run_seconds=clock.totals(),
    )


def _facts(settings: TrainSettings, dataset: Dataset, state: TrainState) -> RunFacts:
    return RunFacts(
        run=settings.name,
        dataset_digest=dataset.digest,
        holdout_data=settings.holdout,
        objective=optimised(settings.step.objective, state.step, state.objective),
        steps=state.step,
        images_seen=state.images_seen,
    )


def _checkpoint(state: TrainState, loader: Loader, outbox: Outbox, holdout: HoldOut) -> Checkpoint:
    return Checkpoint(
        step=state.step,
        images_seen=state.images_seen,
        bad_images=state.bad_images,
        model=state.vae.state_dict(),
        ema=state.ema.module.state_dict(),
        optimizer=state.optimizer.state_dict(),
        objective=state.objective,
        order=loader.state_dict(),
        points=tuple(outbox.pending()),
        validations=tuple(holdout.validations),
        course=holdout.course,
        scaler=state.scaler.state_dict(),
        skipped_in_a_row=state.skipped_in_a_row,
        terms=dict(state.terms.items()),
    )
