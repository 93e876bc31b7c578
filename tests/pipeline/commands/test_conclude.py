"""Each end of a training is written into its folder, for whoever waits for it elsewhere."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.commands.conclude import conclude
from pipeline.errors import RunError
from pipeline.rank import RunEnd
from pipeline.runs.run import Run
from pipeline.tracking.recorder import Settled
from pipeline.training.loop import Ended


def end(reason: Any, step: int) -> RunEnd:
    ended = Ended(
        reason=reason, converged=False, step=step, images_seen=8 * step, bad_images=0,
        terms={"elbo": float("nan")}, validations=(), chosen=None, digest=None, run_seconds={},
    )  # fmt: skip
    return RunEnd(ended, Settled(None, ()))


@pytest.mark.parametrize("reason", ["stopped", "done"])
def test_how_a_start_ended_stands_in_its_folder_and_a_result_only_of_what_is_done(
    tmp_path: Path, reason: Any
) -> None:
    run = Run(str(tmp_path))
    result = conclude(run, run.claim(), end(reason, 780))
    assert run.ended() == result
    assert (result.reason, result.steps, result.elbo) == (reason, 780, None)
    assert (run.result() is None) == (reason == "stopped")
    # The next start has not ended, whatever the one before came to.
    run.claim()
    assert run.ended() is None


def test_a_start_that_another_one_took_over_says_nothing_of_the_runs_end(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    first = run.claim()
    run.claim()
    with pytest.raises(RunError, match="started again elsewhere"):
        conclude(run, first, end("superseded", 5))
    assert run.ended() is None
