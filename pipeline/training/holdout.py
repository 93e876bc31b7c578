"""The hold-out through a run: each look at it, what it leaves behind, and when it says enough."""

import logging
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import torch

from pipeline.data import Dataset
from pipeline.evaluation.alarms import Look, look_of, new_alarms, read_looks
from pipeline.evaluation.sums import Importance, evaluate_elbo
from pipeline.runs.best import has_converged, keep_if_best, save_final
from pipeline.runs.facts import RunFacts
from pipeline.runs.history import COURSE, HeldOut, Validation
from pipeline.runs.run import Run
from pipeline.training.batches import BatchSettings, holdout_loader
from pipeline.training.history_writer import HistoryWriter
from pipeline.training.state import TrainState
from pipeline.training.step import StepReport
from pipeline.training.world import World
from pipeline.vae import VAE

logger = logging.getLogger(__name__)

_IMPORTANCE = Importance(samples=16, images=256)
"""What the gap is measured on: cheap enough to be asked for at every validation."""
_POINTS = 200
"""Of training steps that are kept for each look: more than a curve can show."""


@dataclass(frozen=True)
class HoldOutSettings:
    """When it is looked at, when it says enough, and whether the best look's weights are kept."""

    every_steps: int
    patience: int | None
    keeps_best: bool
    warmup_steps: int
    """Of learning rate and KL weight: before their end nothing is an illness yet."""


class HoldOut:
    """All ranks look together; rank 0 alone writes. It goes on from what a checkpoint kept."""

    def __init__(
        self,
        run: Run,
        world: World,
        dataset: Dataset | None,
        *,
        settings: HoldOutSettings,
        batches: BatchSettings,
        validations: Sequence[Validation],
        course: torch.Tensor,
    ) -> None:
        """`dataset` None: there is none, and no look is ever due. `course`: as the property."""
        self._run, self._world, self._dataset = run, world, dataset
        self._settings, self._batches = settings, batches
        self._history: HistoryWriter | None = None
        self._looks: list[Look] | None = None
        self._course = [tuple(row) for row in course.tolist()]
        self.validations = list(validations)

    def is_due(self, step: int, *, last: bool) -> bool:
        """Whether the hold-out is looked at after this step (0: before any)."""
        if self._dataset is None:
            return False
        if step == 0:
            return not self.validations
        return last or step % self._settings.every_steps == 0

    def note(self, report: StepReport) -> None:
        """Keeps a training step's means for the next look, which sets them beside the hold-out."""
        if self._dataset is not None and self._world.rank == 0:
            terms = report.terms
            means = (terms["elbo"], terms["log_likelihood"], terms["kl"])
            self._course.append((report.step, *means, report.learning_rate, report.beta))

    def look(self, state: TrainState) -> Validation:
        """Measures the averaged weights on the whole hold-out, and keeps what it saw."""
        assert self._dataset is not None, "there is something to look at"
        held = validate(state, self._dataset, self._batches, self._world)
        self.validations.append(held.validation)
        if self._world.rank == 0:
            course, self._course = self.course, []
            self._warn(held, course)
            averaged = averaged_of(state)
            if self._history is None:
                self._history = HistoryWriter(self._run, self._dataset, averaged)
            stride = -(-len(course) // _POINTS) or 1
            self._history.write(held, averaged, course[stride - 1 :: stride].contiguous())
            if self._settings.keeps_best:
                keep_if_best(self._run, self.validations, averaged)
        return held.validation

    def _warn(self, held: HeldOut, course: torch.Tensor) -> None:
        if self._looks is None:
            known = {look.step for look in self.validations[:-1]}
            self._looks = [look for look in read_looks(self._run) if look.step in known]
        self._looks.append(look_of(held, course))
        for alarm in new_alarms(self._looks, self._settings.warmup_steps):
            logger.warning("step %d: %s", held.validation.step, alarm.words)

    @property
    def course(self) -> torch.Tensor:
        """The training steps since the last look, `[T, 6]` float64: a checkpoint keeps them, so
        that the next look tells of those before a kill, too."""
        return torch.tensor(self._course, dtype=torch.float64).view(-1, len(COURSE))

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
            vae,
            loader,
            settings.seed,
            global_batch_size=settings.global_batch_size,
            device=world.device,
            importance=_IMPORTANCE,
        )
    total = sums.with_values(world.sum(sums.to_tensor().to(world.device)))
    means = {name: value for name, value in total.means().items() if value is not None}
    terms = means | {"active_units": total.active_units()}
    validation = Validation(state.step, total.images, terms)
    return HeldOut(validation, total.kl_per_dimension(), total.elbos)
