"""What has gone wrong in a training: divergence, overfitting and collapse, told apart.

The hold-out is measured with the same noise at each look, so two looks are compared image by image:
what makes an image hard goes out of the difference, and its error is that of the difference alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pipeline.runs.history import (
    COURSE,
    HeldOut,
    read_course,
    read_elbos,
    read_kl_per_dimension,
    read_validations,
)
from pipeline.runs.run import Run

Illness = Literal["divergence", "overfitting", "collapse"]

COLLAPSED_NATS = 0.1
"""A mean KL below this says that z tells nothing about x."""


_SURE = 3.0
"""Standard errors by which a difference must exceed zero: once in 700 looks by chance."""


@dataclass(frozen=True)
class Look:
    """The hold-out after `step` steps: means in nats, and the ELBO of its first images `[N]`.

    training_elbo: the mean over training batches since the look before; None: there was no step.
    """

    step: int
    kl: float
    active_units: float
    elbos: npt.NDArray[np.float64]
    training_elbo: float | None

    @property
    def elbo(self) -> float:
        """The mean over the same images in every look; NaN where any is no number."""
        return float(self.elbos.mean()) if len(self.elbos) else math.nan


@dataclass(frozen=True)
class Alarm:
    """What was found and what to do."""

    illness: Illness
    words: str


def look_of(held: HeldOut, course: Tensor) -> Look:
    """A look at the hold-out and the training steps `[T, 6]` that led to it."""
    terms = held.validation.terms
    own = held.elbos[held.elbos != 0].numpy()  # 0: there is no such image
    known = float(course[:, COURSE.index("elbo")].mean()) if len(course) else None
    nothing = math.nan  # a run that diverged has points without a value
    kl, active = terms.get("kl", nothing), terms.get("active_units", nothing)
    return Look(held.validation.step, kl, active, own, known)


def read_looks(run: Run) -> list[Look]:
    """Every look of a run that its folder holds, in the order of steps."""
    return [
        look_of(
            HeldOut(found, read_kl_per_dimension(run, found), read_elbos(run, found)),
            read_course(run, found),
        )
        for found in read_validations(run)
    ]


def new_alarms(looks: Sequence[Look], warmup_steps: int) -> list[Alarm]:
    """Those of the newest look that the look before did not give; each illness is told once.

    The first look is of the model as it began. `warmup_steps`: of learning rate and KL weight; what
    happens before their end is no illness yet.
    """
    known = {alarm.illness for alarm in _alarms(looks[:-1], warmup_steps)}
    return [alarm for alarm in _alarms(looks, warmup_steps) if alarm.illness not in known]


def last_word(looks: Sequence[Look], chosen_step: int) -> str | None:
    """What to say of a run that has ended below the look that was chosen, or below no training."""
    if len(looks) < 2:
        return None
    begun, newest = looks[0], looks[-1]
    best = max(looks, key=lambda look: _or_least(look.elbo))
    if not _is_below(newest, best):
        return None
    kept = f"the weights of step {chosen_step:,} are kept"
    if chosen_step == newest.step:
        kept = "and its last weights are kept, as its objective is not the ELBO"
    if _is_below(newest, begun):
        return (
            f"It ends below what it began with on the hold-out ({newest.elbo:.2f} against "
            f"{begun.elbo:.2f} nats; best {best.elbo:.2f} at step {best.step:,}): it has "
            f"{_how(newest, best)}; {kept}."
        )
    return (
        f"On the hold-out it was best at step {best.step:,} ({best.elbo:.2f} nats, at the end "
        f"{newest.elbo:.2f}): since then it has {_how(newest, best)}; {kept}."
    )


def _alarms(looks: Sequence[Look], warmup_steps: int) -> list[Alarm]:
    if len(looks) < 2 or looks[-1].step <= warmup_steps:
        return []
    newest = looks[-1]
    trained = [look for look in looks[1:] if look.step > warmup_steps]
    before = [looks[0], *(look for look in trained[:-1])]
    best = max(before, key=lambda look: _or_least(look.elbo))
    found = []
    if not math.isfinite(newest.elbo):
        found.append(_divergence(newest, best))
    elif _is_below(newest, best):
        if _training_fell(newest, best):
            found.append(_divergence(newest, best))
        # Once is chance or a restart of the schedule; twice, while training gains, is a trend.
        elif len(trained) > 1 and _is_below(trained[-2], best):
            found.append(_overfitting(newest, best))
    if _is_collapsed(newest) and len(trained) > 1 and _is_collapsed(trained[-2]):
        found.append(
            Alarm(
                "collapse",
                f"Posterior collapse: at two looks after the warm-up the held-out KL is "
                f"{newest.kl:.4f} nats and {newest.active_units:.0f} dimensions are active, so z "
                "says nothing. Try `--objective.beta` below 1, `--objective.warmup linear:1000`, "
                "or a higher learning rate.",
            )
        )
    return found


def _divergence(newest: Look, best: Look) -> Alarm:
    return Alarm(
        "divergence",
        f"Training diverges: the held-out ELBO is {newest.elbo:.2f} nats, it was {best.elbo:.2f} "
        f"at step {best.step:,}, and that of the training images has fallen too. Try a lower "
        "`--optimizer.learning-rate` or `--optimizer.clip-norm`; `--patience` ends such a run.",
    )


def _overfitting(newest: Look, best: Look) -> Alarm:
    return Alarm(
        "overfitting",
        f"Overfitting: the held-out ELBO is {newest.elbo:.2f} nats and was {best.elbo:.2f} at step "
        f"{best.step:,}, while that of the training images rises. More images, `--flip` or a "
        "smaller model help; `--patience` ends such a run, and the best weights are kept.",
    )


def _how(newest: Look, best: Look) -> str:
    if not math.isfinite(newest.elbo) or _training_fell(newest, best):
        return "diverged (a lower `--optimizer.learning-rate RATE` helps)"
    return "overfitted (more images or `--flip` help, `--patience` ends such a run)"


def _training_fell(newest: Look, best: Look) -> bool:
    """Whether the training images are described worse than at the best look, too.

    By half of what the hold-out lost at least: a batch's ELBO is noisy.
    """
    now = newest.training_elbo
    # An untrained model describes no image better than another: its hold-out stands for both.
    then = best.elbo if best.training_elbo is None else best.training_elbo
    if now is None:
        return False
    if not math.isfinite(now):
        return True
    return now < then - 0.5 * (best.elbo - newest.elbo)


def _is_below(look: Look, other: Look) -> bool:
    """Whether the same images' ELBO is lower, chance apart."""
    if not math.isfinite(look.elbo):
        return True
    count = len(look.elbos)
    if len(other.elbos) != count:
        return False  # an image could not be read this time: these are no pairs
    difference = look.elbos - other.elbos
    if count < 2 or not np.isfinite(difference).all():
        return False
    error = float(difference.std(ddof=1)) / math.sqrt(count)
    return float(difference.mean()) < -_SURE * error


def _is_collapsed(look: Look) -> bool:
    # Over one image nothing varies, whatever z says of it.
    return look.kl < COLLAPSED_NATS or (look.active_units == 0 and len(look.elbos) > 1)


def _or_least(value: float) -> float:
    return value if math.isfinite(value) else -math.inf
