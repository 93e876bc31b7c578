"""One rank of a training run: the loop of `pipeline.training`, its reports sent to the recorder."""

import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.rank_memory import refuse_beyond_rank
from pipeline.runs.outbox import Outbox
from pipeline.runs.run import Run, Start
from pipeline.tracking.logs import stored_log
from pipeline.tracking.metric_table import MetricsReport
from pipeline.tracking.recorder import Settled
from pipeline.tracking.reporter import Recorder, Reporter, Unsettled
from pipeline.training.loop import Ended, train
from pipeline.training.settings import TrainSettings
from pipeline.training.step import StepReport
from pipeline.training.world import World

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RankEnd:
    """How the loop ended on a rank, and, on rank 0, what its reporter had not settled by then."""

    ended: Ended
    unsettled: Unsettled


@dataclass(frozen=True)
class RunEnd:
    """How a start ended: as its rank 0 says, and as far as MLflow was told of it."""

    ended: Ended
    settled: Settled


@dataclass(frozen=True)
class RankSettings:
    """What each rank of a run is told: where it is, and how it trains."""

    run: Run
    training: TrainSettings
    points_every: int
    """Steps between two points in MLflow."""


def run_rank(
    settings: RankSettings,
    start: Start,
    world: World,
    recorder: Recorder | None,
    drained: Callable[[], bool] = lambda: False,
) -> RankEnd:
    """Trains as one rank, to the end of the run or of this start. Rank 0 has the recorder.

    Once rank 0's `drained` says so, the run ends with a checkpoint, to go on elsewhere.
    """
    run = settings.run
    # Each worker group claims for itself: one that Ray has replaced, but not yet killed, is older.
    restart = run.claim_restart(start).restart if world.rank == 0 else 0
    claim = Start(start.number, world.broadcast(restart))
    with stored_log(run, f"{claim.name}-rank{world.rank}"):
        if world.size > 1:
            logger.info("rank %d of %d starts on %s", world.rank, world.size, socket.gethostname())
        return _run_claimed(settings, claim, world, recorder, drained)


def _run_claimed(
    settings: RankSettings,
    claim: Start,
    world: World,
    recorder: Recorder | None,
    drained: Callable[[], bool],
) -> RankEnd:
    outbox, training = Outbox(), settings.training
    refuse_beyond_rank(training, settings.run, world)
    begun = MetricsReport(
        start=claim.number,
        restart=claim.restart,
        target_steps=training.steps,
        checkpoint_every=training.checkpoint_every,
        world_size=world.size,
    )
    reporter = (
        Reporter(recorder, outbox, settings.points_every, begun) if recorder is not None else None
    )
    ended: Ended | None = None
    for report in train(training, settings.run, claim, world=world, outbox=outbox, drained=drained):
        if isinstance(report, Ended):
            ended = report
        elif reporter is None:
            continue
        elif isinstance(report, StepReport):
            reporter.step(report)
        else:
            reporter.validation(report)
    assert ended is not None, "the loop's last report is always `Ended`"
    if world.rank == 0 and ended.reason in ("stopped", "drained"):
        logger.info("saved at step %d" if ended.step else "step %d: nothing saved yet", ended.step)
    return RankEnd(ended, reporter.settle() if reporter else Unsettled((), begun))
