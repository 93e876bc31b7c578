"""From Python: a warning of ours is heard whatever another library did to the root's level."""

import logging
from pathlib import Path

import pytest

import pipeline
from pipeline.errors import ConfigError


@pytest.mark.parametrize(("own", "heard"), [(logging.NOTSET, True), (logging.ERROR, False)])
def test_a_root_at_error_mutes_no_warning_but_ones_own_word_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own: int, heard: bool
) -> None:
    ours, root = logging.getLogger("pipeline"), logging.getLogger()
    monkeypatch.setattr(root, "level", root.level)
    monkeypatch.setattr(ours, "level", ours.level)
    root.setLevel(logging.ERROR)  # as `import mlflow.pytorch` does
    ours.setLevel(own)
    with pytest.raises(ConfigError, match="no_such_key"):
        pipeline.pack(tmp_path, output=tmp_path / "data", no_such_key=1)
    assert logging.getLogger("pipeline.commands").isEnabledFor(logging.WARNING) == heard
    root.setLevel(logging.WARNING)
    ours.setLevel(logging.NOTSET)
