"""One rank of a training run: the loop of `pipeline.training`, its reports sent to the recorder."""

import logging
import socket
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from pipeline.config import TrainConfig
from pipeline.runs.outbox import Outbox
from pipeline.runs.run import Attempt, Run
from pipeline.tracking.logs import stored_log
from pipeline.tracking.reporter import Recorder, Reporter
from pipeline.training.loop import Ended, train
from pipeline.training.step import StepReport
from pipeline.training.world import World

logger = logging.getLogger(__name__)


def run_rank(
    config: TrainConfig,
    attempt: Attempt,
    world: World,
    recorder: Recorder | None,
    drained: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Trains as one rank; returns how it ended, as plain data. Rank 0 has the recorder.

    Once rank 0's `drained` says so, the run ends with a checkpoint, to go on elsewhere.
    """
    run = Run.at(config)
    # Each worker group claims for itself: one that Ray has replaced, but not yet killed, is older.
    restart = run.claim_restart(attempt).restart if world.rank == 0 else 0
    claim = Attempt(attempt.number, world.broadcast(restart))
    with stored_log(run, f"{claim.name}-rank{world.rank}"):
        logger.info("rank %d of %d starts on %s", world.rank, world.size, socket.gethostname())
        return _run_claimed(config, run, claim, world, recorder, drained)


def _run_claimed(
    config: TrainConfig,
    run: Run,
    claim: Attempt,
    world: World,
    recorder: Recorder | None,
    drained: Callable[[], bool],
) -> dict[str, Any]:
    outbox = Outbox()
    facts = {
        "attempt": claim.number,
        "target_steps": config.steps,
        "checkpoint_every": config.checkpoint_every,
        "world_size": world.size,
    }
    reporter = (
        Reporter(recorder, outbox, claim.restart, config.tracking.every_steps, facts)
        if recorder is not None
        else None
    )
    ended: Ended | None = None
    for report in train(config, run, claim, world, outbox, drained):
        if isinstance(report, Ended):
            ended = report
        elif reporter is None:
            continue
        elif isinstance(report, StepReport):
            reporter.step(report)
        else:
            reporter.validation(report)
    assert ended is not None, "the loop's last report is always `Ended`"
    points, snapshot = reporter.settle() if reporter else ([], {})
    return {**asdict(ended), "points": [p.to_json() for p in points], "snapshot": snapshot}
