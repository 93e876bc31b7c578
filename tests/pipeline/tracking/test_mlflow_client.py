"""MLflow's client as several processes make it."""

import os
import subprocess
from pathlib import Path

import pytest

from pipeline.errors import TrackingError
from pipeline.tracking.mlflow_client import name_is, tracking_uri
from tests.support.warm import ROOT, WarmJob

CLIENT = """
import sys
from pipeline.tracking.mlflow_client import mlflow_client
print(len(mlflow_client(sys.argv[1]).search_experiments()))
"""


def test_three_processes_may_make_one_sqlite_file_at_once(tmp_path: Path) -> None:
    (tmp_path / "client.py").write_text(CLIENT)
    known = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = ("client", f"sqlite:///{tmp_path}/mlflow.db")
    started = [
        WarmJob(command, cwd=tmp_path, env=known, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    found = [process.communicate()[0].strip() for process in started]
    assert [process.returncode for process in started] == [0, 0, 0]
    assert found == ["1", "1", "1"]


def test_a_name_with_what_no_filter_can_hold_is_refused_with_the_reason() -> None:
    assert name_is("it's") == """name = "it's\""""
    for name in ("a\\b", "'\""):
        with pytest.raises(TrackingError, match="both kinds of quotes, or a backslash"):
            name_is(name)


def test_an_empty_variable_names_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a container whose template had no value for it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert tracking_uri() == f"sqlite:///{tmp_path}/runs/mlflow.db"
