"""Why the loop stops, by what lies in the run's folder; one rank, and no step is made."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import torch

from pipeline import storage
from pipeline.config import LoaderConfig, PreprocessConfig
from pipeline.runs.history import Validation, no_course
from pipeline.runs.reason import Reason
from pipeline.runs.run import Run
from pipeline.runs.stop import StopSignal
from pipeline.training.batches import BatchSettings
from pipeline.training.holdout import HoldOut, HoldOutSettings
from pipeline.training.step import StepReport
from pipeline.training.stopping import Stopping
from pipeline.training.world import World

BATCHES = BatchSettings(
    preprocess=PreprocessConfig(), global_batch_size=1, seed=0, flip=False,
    transform=None, stall_seconds=1, loader=LoaderConfig(),
)  # fmt: skip
WORLD = World(0, 1, torch.device("cpu"))


@contextmanager
def stopping(
    folder: Path, elbos: tuple[float, ...] = (), *, drained: bool = False
) -> Iterator[Stopping]:
    """Of a run of 10 steps, which two looks in a row that are no better would end."""
    run = Run(str(folder))
    start = run.claim()
    settings = HoldOutSettings(every_steps=1, patience=2, keeps_best=False, warmup_steps=0)
    seen = [Validation(step, 1, {"elbo": elbo}) for step, elbo in enumerate(elbos)]
    holdout = HoldOut(
        run, WORLD, None, settings=settings, batches=BATCHES, validations=seen, course=no_course()
    )
    with closing(StopSignal(run, start, lambda: drained)) as signal:
        yield Stopping(10, run, start, WORLD, holdout, signal)


def report(step: int, *, asked: bool = False) -> StepReport:
    return StepReport(
        step=step, epoch=0, images=1, bad_images=0, images_seen=step, terms={}, objective=0.0,
        beta=1.0, gradient_norm=0.0, learning_rate=0.0, skipped=False, stop_requested=asked,
        seconds=1.0, data_wait_seconds=0.0,
    )  # fmt: skip


def after(decide: Stopping, report: StepReport) -> Reason | None:
    return decide.after(report.step, decide.asked(report))


def test_a_run_is_done_at_its_last_step_or_when_the_hold_out_has_got_no_better(
    tmp_path: Path,
) -> None:
    with stopping(tmp_path) as decide:
        assert [decide.at_start(9), decide.at_start(10)] == [None, "done"]
        assert [after(decide, report(9)), after(decide, report(10))] == [None, "done"]
    with stopping(tmp_path, (-3.0, -1.0, -2.0)) as decide:
        assert after(decide, report(3)) is None
    with stopping(tmp_path, (-1.0, -3.0, -2.0)) as decide:
        assert after(decide, report(3)) == decide.at_start(3) == "done"


def test_who_is_told_to_stop_stops_but_is_done_where_that_was_the_last_step(tmp_path: Path) -> None:
    with stopping(tmp_path, drained=True) as decide:
        assert decide.is_wished
        assert after(decide, report(5, asked=True)) == "drained"
        storage.publish(decide.run.path("STOP"), b"")
        assert after(decide, report(5, asked=True)) == "stopped"
        assert after(decide, report(10, asked=True)) == "done"


@pytest.mark.parametrize("step", [5, 10])
def test_a_start_that_was_replaced_is_superseded_even_at_its_last_step(
    tmp_path: Path, step: int
) -> None:
    with stopping(tmp_path) as decide:
        assert decide.at_end("done") == "done"
        decide.run.claim()
        assert after(decide, report(step, asked=True)) == "superseded"
        assert decide.at_end("done") == "superseded"
        assert decide.at_end("stopped") == "stopped"
