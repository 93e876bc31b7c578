"""The hold-out through a run: each look at it, what it leaves behind, and when it says enough."""

import logging
from typing import Any

from pipeline.config import TrainConfig
from pipeline.data import Dataset
from pipeline.evaluation.health import check_course
from pipeline.runs.best import chooses_best, has_converged, keep_if_best, save_final
from pipeline.runs.history import Validation
from pipeline.runs.run import Run
from pipeline.training.history_writer import HistoryWriter
from pipeline.training.state import TrainState
from pipeline.training.validation import validate
from pipeline.training.world import World
from pipeline.vae import VAE

logger = logging.getLogger(__name__)


class Watch:
    """All ranks look together; rank 0 alone writes. `validations` go on from a checkpoint's."""

    def __init__(
        self,
        config: TrainConfig,
        run: Run,
        world: World,
        holdout: Dataset | None,
        validations: list[Validation],
    ) -> None:
        self._config, self._run, self._world, self._holdout = config, run, world, holdout
        self._history: HistoryWriter | None = None
        self.validations = validations

    def is_due(self, step: int, *, last: bool) -> bool:
        """Whether the hold-out is looked at after this step (0: before any)."""
        if self._holdout is None:
            return False
        if step == 0:
            return not self.validations
        return last or step % self._config.evaluate_every == 0

    def look(self, state: TrainState) -> Validation:
        """Measures the averaged weights on the whole hold-out, and keeps what it saw."""
        assert self._holdout is not None, "there is something to look at"
        held = validate(self._config, state, self._holdout, self._world)
        self.validations.append(held.validation)
        if self._world.rank == 0:
            for warning in check_course([look.terms for look in self.validations]):
                logger.warning("step %d: %s", state.step, warning)
            averaged = averaged_of(state)
            if self._history is None:
                self._history = HistoryWriter(self._run, self._holdout, averaged)
            self._history.write(held, averaged)
            if chooses_best(self._config):
                keep_if_best(self._run, self.validations, averaged)
        return held.validation

    @property
    def has_converged(self) -> bool:
        """Whether `patience` is at an end."""
        return has_converged(self._config, self.validations)

    @property
    def newest(self) -> Validation | None:
        """The last look, if there was one."""
        return self.validations[-1] if self.validations else None

    def save_final(self, state: TrainState, facts: dict[str, Any]) -> tuple[str, Validation | None]:
        """Rank 0's last act: the run's bundle; its digest, and the look at the same weights."""
        return save_final(self._config, self._run, averaged_of(state), self.validations, facts)


def averaged_of(state: TrainState) -> VAE:
    """The model with the averaged weights."""
    averaged = state.ema.module
    assert isinstance(averaged, VAE), "the average of a VAE is one"
    return averaged
