"""The loop's steps, one after the other, with what is told of each: time, trace, totals."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from pipeline.config import OptimizerConfig
from pipeline.data import Batch, Loader
from pipeline.runs.checkpoint import CheckpointWriter
from pipeline.runs.goodput import WallClock
from pipeline.training.batches import without_end
from pipeline.training.gradients import StepSettings
from pipeline.training.profile import StepTrace
from pipeline.training.schedule import learning_rate
from pipeline.training.state import TrainState
from pipeline.training.step import StepReport, train_step
from pipeline.training.step_time import GpuShare
from pipeline.training.world import World


@dataclass(frozen=True)
class Made:
    """A step that was made, and the batch that it was made of."""

    batch: Batch
    report: StepReport


class Stepper:
    """Makes the steps of a run of `steps`; `state` is what each of them changes."""

    def __init__(
        self,
        state: TrainState,
        world: World,
        settings: StepSettings,
        *,
        optimizer: OptimizerConfig,
        steps: int,
        loader: Loader,
        writer: CheckpointWriter,
        clock: WallClock,
        trace: StepTrace,
    ) -> None:
        self._state, self._world, self._settings = state, world, settings
        self._optimizer, self._steps = optimizer, steps
        self._loader, self._writer, self._clock, self._trace = loader, writer, clock, trace
        self._batches: Iterator[Batch] = without_end(loader)
        # Counting FLOPs costs a forward and a backward pass: rank 0 alone tells them.
        self._gpu = GpuShare(state.vae, settings.objective, world) if world.rank == 0 else None

    def make(self, *, stop: bool) -> Made:
        """Waits for the next batch and moves the weights; `stop` is this rank's wish to stop."""
        step = self._state.step + 1
        self._trace.before(step)
        self._clock.enter("data_wait")
        started = time.perf_counter()
        batch = next(self._batches)
        waited = time.perf_counter() - started
        self._clock.step(step)
        report = train_step(
            self._state,
            batch,
            self._world,
            self._settings,
            rate=learning_rate(self._optimizer, step, self._steps),
            stop=stop,
            data_wait_seconds=waited,
        )
        self._trace.after(step)
        return Made(batch, self._with_totals(report))

    def _with_totals(self, report: StepReport) -> StepReport:
        """With what goes on beside the steps, up to this one."""
        return replace(
            report,
            loader=self._loader.stats.totals(),
            checkpoints=self._writer.stats,
            run_seconds=self._clock.totals(),
            gpu_share=self._gpu.of(report.images, report.seconds) if self._gpu else None,
        )
