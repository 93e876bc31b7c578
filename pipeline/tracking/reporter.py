"""From the loop's reports to the recorder: points for MLflow, snapshots for Prometheus."""

import math
import resource
import time
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, Protocol

import torch

from pipeline.runs.history import Validation
from pipeline.runs.outbox import Outbox, Point, Series
from pipeline.tracking.recorder import Delivered
from pipeline.training.step import StepReport
from pipeline.training.step_time import parts_of_step, slowest_rank

SEND_SECONDS = 2.0


class Recorder(Protocol):
    """What reports are given to."""

    def record(
        self, session: str, points: Sequence[Point], snapshot: dict[str, Any]
    ) -> Delivered | None:
        """Takes points, without waiting; returns the newest count that is known, if any."""


class Reporter:
    """Rank 0's side: keeps what is not yet delivered in the outbox, which checkpoints hold."""

    def __init__(
        self,
        recorder: Recorder,
        outbox: Outbox,
        worker_group: int,
        every_steps: int,
        facts: Mapping[str, int] | None = None,
    ) -> None:
        """`facts` go into every snapshot as they are."""
        self._recorder, self._outbox, self._worker_group = recorder, outbox, worker_group
        self._every_steps = every_steps
        self._known_recorder = ""
        self._recorders = 0
        self._acknowledged = 0
        self._sent = 0.0
        self._snapshot: dict[str, Any] = {
            **(facts or {}),
            "session": worker_group,
            "step_seconds_total": 0.0,
            "data_wait_seconds_total": 0.0,
            "part_seconds_total": {},
        }
        self._loader_before = (0.0, 0.0)
        self._ranks: list[float] = []

    def step(self, report: StepReport) -> None:
        """Takes the report of one step."""
        total = self._snapshot
        if "step" not in total:
            self._begin(report)
        total["step_seconds_total"] += report.seconds
        total["data_wait_seconds_total"] += report.data_wait_seconds
        self._add_parts(report)
        total |= {
            "step": report.step,
            "epoch": report.epoch,
            "images": report.images_seen,
            "images_per_second": report.images / report.seconds,
            "last_step_timestamp_seconds": time.time(),
            "terms": _finite({**report.terms, "objective": report.objective, "beta": report.beta}),
            "gradient_norm": report.gradient_norm,
            "learning_rate": report.learning_rate,
            "memory_bytes": _memory_bytes(),
        }
        total |= report.loader
        if report.checkpoints.get("checkpoints_total", 0) > total.get("checkpoints_total", 0):
            total["checkpoint_timestamp_seconds"] = time.time()
        total |= report.checkpoints
        total["run_seconds_total"] = report.run_seconds
        if report.gpu_share is not None:
            total["gpu_share"] = report.gpu_share
        total["nonfinite_steps_total"] = total.get("nonfinite_steps_total", 0) + report.skipped
        total["bad_images_total"] = total.get("bad_images_total", 0) + report.bad_images
        if report.step == 1 or report.step % self._every_steps == 0:
            values = {
                **report.terms,
                "objective": report.objective,
                "beta": report.beta,
                "gradient_norm": report.gradient_norm,
                "learning_rate": report.learning_rate,
                "images_seen": report.images_seen,
                "images_per_second": report.images / report.seconds,
                "data_wait_fraction": report.data_wait_seconds / report.seconds,
            }
            if report.gpu_share is not None:
                values["gpu_share"] = report.gpu_share
            self._add("elbo", report.step, values)
        self._send_if_due()

    def validation(self, validation: Validation) -> None:
        """Takes the report of one pass over the hold-out."""
        values = {f"holdout_{name}": value for name, value in validation.terms.items()}
        terms = _finite(validation.terms)
        self._snapshot["holdout_active_units"] = terms.pop("active_units", None)
        self._snapshot["holdout_terms"] = terms
        self._snapshot["holdout_step"] = validation.step
        self._add("holdout_elbo", validation.step, values)
        self._send_if_due()

    def _add_parts(self, report: StepReport) -> None:
        """Of the step's seconds; and each rank's own ones since the last snapshot was sent."""
        fetched, decoded = (
            report.loader.get(name, 0.0) for name in ("fetch_seconds_total", "decode_seconds_total")
        )
        parts = parts_of_step(
            report.seconds,
            report.data_wait_seconds,
            report.copy_seconds,
            fetched - self._loader_before[0],
            decoded - self._loader_before[1],
        )
        self._loader_before = (fetched, decoded)
        before = self._snapshot["part_seconds_total"]
        self._snapshot["part_seconds_total"] = {
            part: before.get(part, 0.0) + seconds for part, seconds in parts.items()
        }
        self._ranks = [
            sum(pair) for pair in zip_longest(self._ranks, report.rank_seconds, fillvalue=0.0)
        ]
        slowest = slowest_rank(self._ranks)
        if slowest is not None:
            self._snapshot |= {"slowest_rank": slowest.rank, "slowest_rank_ratio": slowest.ratio}

    def _begin(self, report: StepReport) -> None:
        """Says where this group of workers begins, so that its first step is counted as well."""
        before = {"step": report.step - 1, "images": report.images_seen - report.images}
        begun = {**self._snapshot, **before, "checkpoint_step": report.step - 1}
        self._snapshot["checkpoint_step"] = report.step - 1
        self._recorder.record(self._session, [], begun)

    def settle(self) -> tuple[list[Point], dict[str, Any]]:
        """What is not known to have arrived, and the last snapshot: for the recorder's `settle`."""
        return self._outbox.pending(), dict(self._snapshot)

    def _add(self, series: Series, step: int, values: dict[str, float]) -> None:
        # MLflow keeps NaN, and turns infinities into 1.8e308.
        kept = {k: v if math.isfinite(v) else math.nan for k, v in values.items()}
        self._outbox.add(Point(series, step, int(time.time() * 1000), kept))

    def _send_if_due(self) -> None:
        begun = "step" in self._snapshot
        if not begun or time.monotonic() - self._sent < SEND_SECONDS:
            return
        self._sent = time.monotonic()
        self._ranks = []
        points, snapshot = self._outbox.hand_over(), dict(self._snapshot)
        delivered = self._recorder.record(self._session, points, snapshot)
        if delivered is not None:
            self._note(delivered)

    @property
    def _session(self) -> str:
        return f"{self._worker_group}.{self._recorders}"

    def _note(self, delivered: Delivered) -> None:
        """Forgets the points that have arrived.

        A recorder that took over from a dead one has none of the points that were handed over, so
        they are handed over again, and counted anew: MLflow gets each once, whoever sends it.
        """
        self._known_recorder = self._known_recorder or delivered.recorder
        if delivered.recorder != self._known_recorder:
            self._known_recorder, self._acknowledged = delivered.recorder, 0
            self._recorders += 1
            self._outbox.take_back()
        elif delivered.session == self._session:
            self._outbox.acknowledge(delivered.points - self._acknowledged)
            self._acknowledged = delivered.points


def _memory_bytes() -> int:
    """The most that rank 0 has held so far: on its GPU where it has one, else of main memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _finite(values: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if math.isfinite(value)}
