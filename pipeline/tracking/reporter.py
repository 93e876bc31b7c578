"""From the loop's reports to the recorder: points for MLflow, a metrics report for Prometheus."""

import math
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Protocol

import torch

from pipeline.runs.history import Validation
from pipeline.runs.outbox import Outbox, Point, Series
from pipeline.tracking.metric import mlflow_values
from pipeline.tracking.metric_table import MetricsReport
from pipeline.tracking.recorder import Delivered
from pipeline.training.step import StepReport
from pipeline.training.step_time import Slowest, parts_of_step, slowest_rank

SEND_SECONDS = 2.0
"""Between two metrics reports: a quarter of what Prometheus asks at most, and cheap."""


class Recorder(Protocol):
    """What reports are given to."""

    def record(
        self, sender: str, first: int, points: Sequence[Point], report: MetricsReport
    ) -> Delivered | None:
        """Takes points, without waiting; returns the newest count that is known, if any.

        `first`: how many points of this sender came before them.
        """


@dataclass(frozen=True)
class Unsettled:
    """What a reporter has at the end: points not known to have arrived, and its last report."""

    points: Sequence[Point]
    report: MetricsReport


class Reporter:
    """Rank 0's side: keeps what is not yet delivered in the outbox, which checkpoints hold."""

    def __init__(
        self, recorder: Recorder, outbox: Outbox, every_steps: int, begun: MetricsReport
    ) -> None:
        """`begun`: what is known before the first step, the group of workers (`restart`) too."""
        self._recorder, self._outbox, self._every_steps = recorder, outbox, every_steps
        self._recorders = 0
        self._handed_over = self._acknowledged = 0
        self._sent = 0.0
        self._report = begun
        self._loader_before = (0.0, 0.0)
        self._ranks: list[float] = []

    def step(self, step: StepReport) -> None:
        """Takes the report of one step."""
        if self._report.step is None:
            self._begin(step)
        self._report = self._after(step)
        if step.step == 1 or step.step % self._every_steps == 0:
            self._log("elbo", step.step)
        self._send_if_due()

    def validation(self, validation: Validation) -> None:
        """Takes the report of one pass over the hold-out."""
        terms = dict(validation.terms)
        units = terms.pop("active_units", None)
        self._report = replace(
            self._report,
            holdout_terms=terms,
            holdout_active_units=None if units is None else int(units),
            holdout_step=validation.step,
        )
        self._log("holdout_elbo", validation.step)
        self._send_if_due()

    def settle(self) -> Unsettled:
        """What the recorder's `settle` is given."""
        return Unsettled(self._outbox.pending(), self._report)

    def _after(self, step: StepReport) -> MetricsReport:
        """The report up to this step: its numbers, and totals of this group of workers."""
        before, loader, checkpoints = self._report, step.loader, step.checkpoints
        slowest = self._slowest(step)
        has_new = checkpoints.written > (before.checkpoints or 0)
        return replace(
            before,
            images=step.images_seen,
            step=step.step,
            epoch=step.epoch,
            step_seconds=(before.step_seconds or 0.0) + step.seconds,
            data_wait_seconds=(before.data_wait_seconds or 0.0) + step.data_wait_seconds,
            data_wait_fraction=step.data_wait_seconds / step.seconds,
            part_seconds=self._parts(step),
            slowest_rank=slowest.rank if slowest else before.slowest_rank,
            slowest_rank_ratio=slowest.ratio if slowest else before.slowest_rank_ratio,
            gpu_share=step.gpu_share,
            last_step_timestamp_seconds=time.time(),
            images_per_second=step.images / step.seconds,
            terms=_terms(step),
            gradient_norm=step.gradient_norm,
            learning_rate=step.learning_rate,
            nonfinite_steps=(before.nonfinite_steps or 0) + (step.skipped and step.images > 0),
            bad_images=(before.bad_images or 0) + step.bad_images,
            memory_bytes=_memory_bytes(),
            run_seconds=step.run_seconds,
            fetch_seconds=loader.fetch_seconds,
            decode_seconds=loader.decode_seconds,
            fetched_bytes=loader.bytes_fetched,
            samples=loader.samples,
            bad_samples=loader.bad,
            retries=loader.retries,
            cache_hits=loader.cache_hits,
            cache_misses=loader.cache_misses,
            queued_batches=loader.queued_batches,
            checkpoints=checkpoints.written,
            checkpoint_failures=checkpoints.failures,
            checkpoint_seconds=checkpoints.seconds,
            checkpoint_bytes=checkpoints.bytes,
            checkpoint_step=checkpoints.step or before.checkpoint_step,
            checkpoint_timestamp_seconds=time.time()
            if has_new
            else before.checkpoint_timestamp_seconds,
        )

    def _parts(self, step: StepReport) -> dict[str, float]:
        """Where the seconds of all steps went, by part, with this step's."""
        now = step.loader.fetch_seconds, step.loader.decode_seconds
        before, self._loader_before = self._loader_before, now
        parts = parts_of_step(
            step.seconds, step.data_wait_seconds, step.copy_seconds,
            now[0] - before[0], now[1] - before[1],
        )  # fmt: skip
        totals = self._report.part_seconds
        return {part: totals.get(part, 0.0) + seconds for part, seconds in parts.items()}

    def _slowest(self, step: StepReport) -> Slowest | None:
        """By what each rank did by itself since the last report was sent."""
        self._ranks = [
            sum(pair) for pair in zip_longest(self._ranks, step.rank_seconds, fillvalue=0.0)
        ]
        return slowest_rank(self._ranks)

    def _begin(self, first: StepReport) -> None:
        """Says where this group of workers begins, so that its first step is counted as well."""
        self._report = replace(
            self._report, checkpoint_step=first.step - 1, step_seconds=0.0, data_wait_seconds=0.0
        )
        before = replace(self._report, step=first.step - 1, images=first.images_seen - first.images)
        self._recorder.record(self._sender, self._handed_over, [], before)

    def _log(self, series: Series, step: int) -> None:
        values = mlflow_values(self._report, series)
        # MLflow keeps NaN, and turns infinities into 1.8e308.
        kept = {k: v if math.isfinite(v) else math.nan for k, v in values.items()}
        self._outbox.add(Point(series, step, int(time.time() * 1000), kept))

    def _send_if_due(self) -> None:
        has_begun = self._report.step is not None
        if not has_begun or time.monotonic() - self._sent < SEND_SECONDS:
            return
        self._sent = time.monotonic()
        self._ranks = []
        first, points = self._handed_over, self._outbox.hand_over()
        self._handed_over += len(points)
        delivered = self._recorder.record(self._sender, first, points, self._report)
        if delivered is not None:
            self._note(delivered)

    @property
    def _sender(self) -> str:
        return f"{self._report.restart}.{self._recorders}"

    def _note(self, delivered: Delivered) -> None:
        """Forgets the points that have arrived.

        A recorder that took over from a dead one has none of the points that were handed over, so
        they are handed over again, and counted anew: MLflow gets each once, whoever sends it.
        """
        if delivered.sender != self._sender:
            return
        if delivered.missed:
            self._handed_over = self._acknowledged = 0
            self._recorders += 1
            self._outbox.take_back()
        else:
            self._outbox.acknowledge(delivered.points - self._acknowledged)
            self._acknowledged = delivered.points


def _terms(step: StepReport) -> dict[str, float]:
    """The ELBO's terms, and beside them what was optimised."""
    terms: dict[str, float] = dict(step.terms.items())
    return terms | {"objective": step.objective, "beta": step.beta}


def _memory_bytes() -> int:
    """The most that rank 0 has held so far: on its GPU where it has one, else of main memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
