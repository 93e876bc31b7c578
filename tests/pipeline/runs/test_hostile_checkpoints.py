"""A run's folder into which another hand has put checkpoints."""

import hashlib
from pathlib import Path

import pytest

from pipeline.runs.checkpoint import RECEIPT, newest_checkpoint
from pipeline.runs.run import Run
from tests.support.hostile import pickled


def test_a_poisoned_checkpoint_and_one_that_leads_out_are_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(str(tmp_path / "r"))
    data = pickled(tmp_path / "ran")
    digest = hashlib.sha256(data).hexdigest()
    folder = tmp_path / "r/checkpoints"
    folder.mkdir(parents=True)
    for step, name in ((1, "step-00000001.pt"), (2, "../../outside.pt")):
        (folder / name).resolve().write_bytes(data)
        receipt = RECEIPT.encode({"step": step, "file": name, "bytes": len(data), "sha256": digest})
        (folder / f"step-{step:08d}.json").write_bytes(receipt)
    with pytest.raises(Exception, match="none of its 2 checkpoints is whole"):
        newest_checkpoint(run)
    assert "holds more than tensors" in caplog.text
    assert "leads out" in caplog.text
    assert not (tmp_path / "ran").exists()
