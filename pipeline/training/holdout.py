"""The hold-out through a run: each look at it, what it leaves behind, and when it says enough."""

import logging
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from pipeline.data import Dataset
from pipeline.evaluation.health import check_course
from pipeline.evaluation.sums import Importance, evaluate_elbo
from pipeline.runs.best import has_converged, keep_if_best, save_final
from pipeline.runs.facts import RunFacts
from pipeline.runs.history import HeldOut, Validation
from pipeline.runs.run import Run
from pipeline.training.batches import BatchSettings, holdout_loader
from pipeline.training.history_writer import HistoryWriter
from pipeline.training.state import TrainState
from pipeline.training.world import World
from pipeline.vae import VAE

logger = logging.getLogger(__name__)

_IMPORTANCE = Importance(samples=16, images=256)
"""What the gap is measured on: cheap enough to be asked for at every validation."""


@dataclass(frozen=True)
class HoldOutSettings:
    """When it is looked at, when it says enough, and whether the best look's weights are kept."""

    every_steps: int
    patience: int | None
    keeps_best: bool


class HoldOut:
    """All ranks look together; rank 0 alone writes. `validations` go on from a checkpoint's."""

    def __init__(
        self,
        run: Run,
        world: World,
        dataset: Dataset | None,
        *,
        settings: HoldOutSettings,
        batches: BatchSettings,
        validations: Sequence[Validation],
    ) -> None:
        """`dataset` None: there is none, and no look is ever due."""
        self._run, self._world, self._dataset = run, world, dataset
        self._settings, self._batches = settings, batches
        self._history: HistoryWriter | None = None
        self.validations = list(validations)

    def is_due(self, step: int, *, last: bool) -> bool:
        """Whether the hold-out is looked at after this step (0: before any)."""
        if self._dataset is None:
            return False
        if step == 0:
            return not self.validations
        return last or step % self._settings.every_steps == 0

    def look(self, state: TrainState) -> Validation:
        """Measures the averaged weights on the whole hold-out, and keeps what it saw."""
        assert self._dataset is not None, "there is something to look at"
        held = validate(state, self._dataset, self._batches, self._world)
        self.validations.append(held.validation)
        if self._world.rank == 0:
            for warning in check_course([look.terms for look in self.validations]):
                logger.warning("step %d: %s", state.step, warning)
            averaged = averaged_of(state)
            if self._history is None:
                self._history = HistoryWriter(self._run, self._dataset, averaged)
            self._history.write(held, averaged)
            if self._settings.keeps_best:
                keep_if_best(self._run, self.validations, averaged)
        return held.validation

    @property
    def has_converged(self) -> bool:
        """Whether `patience` is at an end."""
        return has_converged(self._settings.patience, self.validations)

    @property
    def newest(self) -> Validation | None:
        """The last look, if there was one."""
        return self.validations[-1] if self.validations else None

    def save_final(self, state: TrainState, facts: RunFacts) -> tuple[str, Validation | None]:
        """Rank 0's last act: the run's bundle; its digest, and the look at the same weights."""
        keeps_best = self._settings.keeps_best
        return save_final(
            self._run, averaged_of(state), self.validations, facts, keeps_best=keeps_best
        )


def averaged_of(state: TrainState) -> VAE:
    """The model with the averaged weights."""
    averaged = state.ema.module
    assert isinstance(averaged, VAE), "the average of a VAE is one"
    return averaged


def validate(state: TrainState, holdout: Dataset, settings: BatchSettings, world: World) -> HeldOut:
    """Each rank takes its slots of each batch, and the sums are added: exact at any world size."""
    with closing(holdout_loader(holdout, settings, world)) as loader:
        vae = state.ema.module
        assert isinstance(vae, VAE)
        sums = evaluate_elbo(
            vae, loader, settings.seed, settings.global_batch_size, world.device, _IMPORTANCE
        )
    total = sums.with_values(world.sum(sums.to_tensor().to(world.device)))
    means = {name: value for name, value in total.means().items() if value is not None}
    terms = means | {"active_units": total.active_units()}
    return HeldOut(Validation(state.step, total.images, terms), total.kl_per_dimension())
