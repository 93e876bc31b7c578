import hashlib
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import storage
from pipeline.errors import AccessDeniedError, RunError, StorageShortageError
from pipeline.runs.checkpoint import (
    RECEIPT,
    Cadence,
    Checkpoint,
    CheckpointWriter,
    newest_checkpoint,
    refuse_lost,
)
from pipeline.runs.history import Validation
from pipeline.runs.outbox import Point
from pipeline.runs.run import Run, Start
from pipeline.vae import ObjectiveState

FIRST = Checkpoint(
    step=1,
    images_seen=10,
    bad_images=0,
    model={"weight": torch.arange(4.0)},
    ema={"weight": torch.zeros(4)},
    optimizer={"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]},
    objective=ObjectiveState(2.0, 0.5),
    order={"seed": 0},
    points=(Point("elbo", 1, 1000, {"elbo": -1.0}),),
    validations=(Validation(1, 10, {"elbo": -2.0}),),
)


def write(run: Run, *steps: int, keep: int = 3, start: Start | None = None) -> None:
    with closing(CheckpointWriter(run, start or run.newest_start(), keep)) as writer:
        for step in steps:
            writer.save(replace(FIRST, step=step))
        writer.finish()


def files(run: Run) -> list[str]:
    return sorted(path.name for path in Path(run.path("checkpoints")).iterdir())


def test_what_was_saved_comes_back_although_the_loop_went_on(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    weight = torch.arange(4.0)
    with closing(CheckpointWriter(run, Start(0), 3)) as writer:
        writer.save(replace(FIRST, model={"weight": weight}))
        weight.zero_()
    found = newest_checkpoint(run)
    assert found is not None
    kept = found.model["weight"]
    assert isinstance(kept, torch.Tensor)
    assert torch.equal(kept, torch.arange(4.0))
    assert found.images_seen == 10
    assert (found.points, found.validations) == (FIRST.points, FIRST.validations)
    assert found.objective == FIRST.objective


def step_of(run: Run, step: int | None = None) -> int:
    """Of the newest checkpoint that is whole, or of the one asked for."""
    found = newest_checkpoint(run, step=step)
    assert found is not None
    return found.step


def test_a_start_that_slept_while_it_wrote_does_not_set_back_what_a_newer_one_reached(
    tmp_path: Path,
) -> None:
    run = Run(str(tmp_path))
    write(run, 4, start=Start(1))
    (its_word,) = Path(run.path("checkpoints")).glob("newest-*.json")
    kept = its_word.read_bytes()
    write(run, 8, start=Start(2))
    its_word.write_bytes(kept)  # what it was about to rename when it fell asleep
    for file in Path(run.path("checkpoints")).glob("step-00000008*"):
        file.unlink()
    with pytest.raises(RunError, match=r"the checkpoint of step 8 is gone; the newest.* of step 4"):
        refuse_lost(run, 0)


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    write(run, 1, 2, 3, 4, keep=2)
    assert len(files(run)) == 5
    assert step_of(run) == 4
    assert step_of(run, 3) == 3


def test_a_truncated_checkpoint_is_skipped_for_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(str(tmp_path))
    write(run, 1, 2)
    (newest,) = Path(run.path("checkpoints")).glob("step-00000002-*.pt")
    newest.write_bytes(newest.read_bytes()[:-1])
    assert step_of(run) == 1
    assert "is skipped" in caplog.text


def test_if_no_checkpoint_is_whole_the_run_does_not_start_anew(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    write(run, 1)
    for path in Path(run.path("checkpoints")).glob("*.pt"):
        path.write_bytes(b"")
    with pytest.raises(RunError, match="none of its 1 checkpoints is whole"):
        newest_checkpoint(run)


def test_a_superseded_attempt_writes_nothing(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    mine = run.claim()
    run.claim()
    write(run, 1, start=mine)
    assert newest_checkpoint(run) is None


def test_a_replaced_writer_that_is_late_deletes_nothing_of_the_start_that_took_over(
    tmp_path: Path,
) -> None:
    run = Run(str(tmp_path))
    write(run, 1, 2)
    unreceipted = Path(run.path("checkpoints"), "step-00000004-0123456789ab.pt")
    unreceipted.touch()
    write(run, 3, keep=1)
    assert unreceipted.exists()
    write(run, 5, keep=1)
    assert len(files(run)) == 3
    assert step_of(run) == 5


def test_a_poisoned_checkpoint_is_refused_without_running_its_code(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Poison:
        def __reduce__(self) -> Any:
            return Path(tmp_path / "ran").touch, ()

    run = Run(str(tmp_path))
    write(run, 1)
    (data,) = Path(run.path("checkpoints")).glob("*.pt")
    torch.save({"version": 1, "poison": Poison()}, data)
    (receipt,) = Path(run.path("checkpoints")).glob("step-*.json")
    digest = hashlib.sha256(data.read_bytes()).hexdigest()
    value = {**RECEIPT.parse(receipt.read_bytes(), "receipt"), "sha256": digest}
    receipt.write_bytes(RECEIPT.encode(value))
    with pytest.raises(RunError):
        newest_checkpoint(run)
    assert "holds more than tensors" in caplog.text
    assert not (tmp_path / "ran").exists()


def test_an_old_checkpoint_that_may_not_be_deleted_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(url: str) -> None:
        raise AccessDeniedError(f"{url}: deleting was refused.")

    run = Run(str(tmp_path))
    monkeypatch.setattr("pipeline.storage.delete", refuse)
    write(run, 1, 2, 3, 4, 5, keep=1)
    newest = newest_checkpoint(run)
    assert newest is not None
    assert newest.step == 5
    assert "deleting was refused" in caplog.text


def test_a_checkpoint_is_due_by_the_clock_however_long_a_step_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    cadence = Cadence(500)
    due = []
    for step in range(1, 1001):
        now += 7.0
        if cadence.is_due(step):
            due.append(step)
    # One minute, then ten minutes after the last one: 86 steps of 7 s are 602 s.
    assert due == [9, 95, 181, 267, 353, 439, 500, 586, 672, 758, 844, 930, 1000]


def test_the_third_refusal_in_a_row_says_so_and_what_is_saved_and_that_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(str(tmp_path))
    full = StorageShortageError("s3://runs/x: writing failed. Run the same command again.")
    full.fact = "s3://runs/x: writing failed"
    with closing(CheckpointWriter(run, Start(0), saved=2)) as writer:
        writer.save(replace(FIRST, step=4))
        writer._settle(patience=1)

        def refuses(url: str, data: bytes) -> None:
            raise full

        monkeypatch.setattr(storage, "publish", refuses)
        for step in (6, 8, 10):
            writer.save(replace(FIRST, step=step))
        with pytest.raises(StorageShortageError) as ended:
            writer.save(replace(FIRST, step=12))
    assert [record.getMessage() for record in caplog.records] == [
        f"a checkpoint was not written ({n} in a row; 3 end the run), the next one is tried: "
        "s3://runs/x: writing failed"
        for n in (1, 2)
    ]
    assert str(ended.value) == (
        "s3://runs/x: writing failed. So 3 checkpoints in a row were not written, and the run "
        "ends: saved is step 4. Once one can be written, the same command goes on from there."
    )
