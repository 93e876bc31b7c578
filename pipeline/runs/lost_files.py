"""What a run has lost: told before it goes on, so that nothing falls back in silence."""

import logging

from pipeline import storage
from pipeline.errors import AccessDeniedError, PipelineError, RunError, ShortageError
from pipeline.masking import shell_word
from pipeline.runs.checkpoint import (
    MOST_FAILURES,
    newest_checkpoint,
    newest_step,
    refuse_lost,
    refuse_other_format,
    removed_up_to,
)
from pipeline.runs.history import newest_validation, refuse_other_validations
from pipeline.runs.run import Run

logger = logging.getLogger(__name__)


def refuse_lost_work(
    run: Run, *, steps: int, checkpoint_every: int, keeps_best: bool, begin_anew: bool
) -> None:
    """Raises `RunError` naming what is gone of a run that had got further.

    A finished run whose checkpoints `jobs.runs` removed has lost nothing, unless it is to go on to
    more `steps`.

    With `begin_anew` such a run, and one none of whose checkpoints is whole, is removed instead;
    one that has lost nothing is left as it is, so that the flag may stay in a script. `keeps_best`:
    such a run keeps the weights of its best look at the hold-out.
    """
    try:
        _check(run, steps, checkpoint_every, keeps_best=keeps_best)
        if begin_anew:
            newest_checkpoint(run)
    except PipelineError as error:
        # What can't be reached now is not lost.
        if not begin_anew or isinstance(error, ShortageError | AccessDeniedError):
            raise
        logger.warning("--begin-anew: what is left of run %s is removed: %s", run.url, error)
        run.begin_anew()


def _check(run: Run, asked: int, checkpoint_every: int, *, keeps_best: bool) -> None:
    run.refuse_lost_identity()
    refuse_other_format(run)
    run.refuse_other_claims()
    refuse_other_validations(run)
    result, validated = run.result(), newest_validation(run)
    # Three checkpoints in a row may fail to be written, and the fourth be under way at a death.
    stated = run.config().checkpoint_every if storage.exists(run.path("run.json")) else 0
    every = max(checkpoint_every, stated)
    reached = validated - (MOST_FAILURES + 1) * every
    steps = result.steps if result else 0
    removed = removed_up_to(run)
    if result is None or removed is None or max(reached, steps) > removed:
        refuse_lost(run, max(reached, steps))
    elif asked > steps:
        raise RunError(
            f"{run.path('checkpoints')}: were removed (jobs.runs) when the run was finished, at "
            f"step {removed}, so it can't go on to step {asked}. Begin another run with its "
            f"weights, `--run NAME --init {shell_word(run.path('bundle'))}`, or this "
            "one anew: `--begin-anew`."
        )
    if result is not None and result.holdout_after and validated < steps:
        raise _gone(run, "history", f"the validation of step {steps}")
    if result is not None and result.digest:
        _refuse_without(run, "bundle")
    if keeps_best and validated > 0 and newest_step(run) > 0:
        _refuse_without(run, "best")


def _refuse_without(run: Run, folder: str) -> None:
    if not storage.exists(run.path(folder, "bundle.json")):
        raise _gone(run, folder, "the model in it")


def _gone(run: Run, name: str, what: str) -> RunError:
    return RunError(
        f"{run.path(name)}: {what} is gone, which the run had. Restore it, or begin anew on "
        "purpose: `--begin-anew`."
    )
