"""What went wrong in a run and did not end it, written down by each rank; and when it is too much.

RUN/bad_samples/START.RANK.json   key -> reason, of the samples that this rank could not read
RUN/skipped/STEP.RANK.json          the keys of a batch whose loss or gradient was not finite
"""

import logging

from pipeline import storage
from pipeline.data import Batch, Dataset
from pipeline.errors import RunError, StorageError, without_advice
from pipeline.masking import shell_word
from pipeline.runs.run import Run, Start
from pipeline.training.state import TrainState
from pipeline.training.step import StepReport
from pipeline.training.world import World

logger = logging.getLogger(__name__)

_NONFINITE_LIMIT = 20
"""Steps in a row whose loss or gradient is not finite, after which the run ends: an fp16 scale that
begins far too high needs about ten; more than that has never come back by itself."""


class Incidents:
    """Collects them for one rank; `check` raises alike on every rank."""

    def __init__(
        self, run: Run, start: Start, world: World, dataset: Dataset, bad_fraction: float
    ) -> None:
        """`bad_fraction`: the part of all images seen, at least of one epoch's, that may be bad."""
        self._run, self._start, self._world = run, start, world
        self._dataset, self._bad_fraction = dataset, bad_fraction
        self._reasons: dict[str, str] = {}
        self._published = 0

    def check(self, batch: Batch, report: StepReport, state: TrainState) -> None:
        """Takes a step; raises `RunError` when its budget or its patience is at an end."""
        self._reasons |= batch.errors
        if report.skipped and report.images:
            keys = [
                key for key, valid in zip(batch.keys, batch.valid.tolist(), strict=True) if valid
            ]
            self._write(f"skipped/{report.step:010d}.{self._world.rank}.json", keys)
        limit = _NONFINITE_LIMIT
        if state.skipped_in_a_row >= limit:
            raise RunError(
                f"run {self._run.url}: loss or gradient was not finite in {limit} steps in a row, "
                f"the last of them {report.step}; none of them moved a weight. The keys of their "
                f"batches lie in {self._run.path('skipped')}. Try a smaller "
                "`--optimizer.learning-rate`, `--precision fp32`, or look at those images."
            )
        budget = self._bad_fraction
        seen = max(len(self._dataset), state.images_seen + state.bad_images)
        if state.bad_images > budget * seen:
            self.publish()
            raise RunError(
                f"{self._dataset.url}: {state.bad_images} samples up to step {state.step} could "
                f"not be read, more than --loader.bad-fraction {budget} of {seen}. "
                f"They are listed in {self._run.path('bad_samples')}; `python -m jobs.verify "
                f"--dataset {shell_word(self._dataset.url)}` says which shards to pack "
                "again. Or raise the budget."
            )

    def publish(self) -> None:
        """Writes this rank's list of bad samples, if it has grown."""
        if len(self._reasons) > self._published:
            self._published = len(self._reasons)
            self._write(f"bad_samples/{self._start.name}.{self._world.rank}.json", self._reasons)

    def _write(self, name: str, content: object) -> None:
        try:
            storage.publish(self._run.path(name), storage.canonical_json(content))
        except StorageError as error:
            logger.warning("%s can't be written: %s", self._run.path(name), without_advice(error))
