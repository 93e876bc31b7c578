"""One rank of a training run: the loop of `pipeline.training`, its reports sent to the recorder."""

import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import torch
import torch.distributed

from pipeline.config import TrainConfig
from pipeline.edges.logs import stored_log
from pipeline.edges.recorder import Delivered
from pipeline.edges.reporting import Recorder, Reporter
from pipeline.training.loop import Ended, train
from pipeline.training.points import Outbox, Point
from pipeline.training.run import Attempt, Run
from pipeline.training.step import StepReport
from pipeline.training.world import World, leave_process_group

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


@contextmanager
def process_group(stall_seconds: float) -> Iterator[None]:
    """torchrun's process group while the block runs; nothing outside torchrun.

    A rank that waits for the others for `stall_seconds` ends with an error.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo", timeout=timedelta(seconds=stall_seconds)
    )
    try:
        yield
    finally:
        leave_process_group()


def actor_deaths() -> tuple[type[Exception], ...]:
    """What a call raises whose actor has died, or was killed for memory."""
    import ray

    return (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError)


class ActorRecorder:
    """The recorder actor, called without waiting."""

    def __init__(self, actor: Any) -> None:
        import ray

        self._ray, self._actor = ray, actor
        self._calls: list[Any] = []
        self._newest: Delivered | None = None

    def record(
        self, session: str, points: Sequence[Point], snapshot: dict[str, Any]
    ) -> Delivered | None:
        """See `Recorder`."""
        self._calls.append(self._actor.record.remote(session, list(points), snapshot))
        done, self._calls = self._ray.wait(
            self._calls, num_returns=len(self._calls), timeout=0, fetch_local=True
        )
        for call in done:
            try:
                self._newest = self._ray.get(call)
            except actor_deaths():
                continue  # Its points stay in the outbox, and in every checkpoint.
        return self._newest
