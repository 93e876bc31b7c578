"""MLflow's client as several processes make it."""

import math
import os
import re
import subprocess
from pathlib import Path

import pytest

from pipeline.errors import TrackingError
from pipeline.tracking import mlflow_client as client
from pipeline.tracking.mlflow_client import mlflow_client, name_is, tracking_uri
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


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("mssql+pyodbc://me:planted@h/x", "Install the driver `pyodbc`"),
        ("postgresql+nodriver://h/x", "Can't load plugin"),
        ("postgresql://h:port/x", "Give an address such as"),
        ("http://[::1", "Invalid IPv6 URL"),
        ("https://h:99999999", "Give an address such as"),
    ],
)
def test_an_address_that_cannot_be_opened_is_told_in_one_line(uri: str, said: str) -> None:
    with pytest.raises(TrackingError, match=re.escape(said)) as refused:
        mlflow_client(uri)
    assert "planted" not in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "export MLFLOW_TRACKING_URI" in str(refused.value)


def test_a_server_that_is_down_is_told_before_mlflows_client_gives_it_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(client, "_SILENT_SECONDS", 0.01)
    monkeypatch.setattr(client._Told, "at", -math.inf)
    uri = "http://127.0.0.1:9"
    for _ in range(2):
        with pytest.raises(TrackingError, match="Nothing answers"), client.tracking_errors(uri):
            client.mlflow_client(uri).search_registered_models()
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "MLflow is waited for, and tried again"
    ], "and once a minute"
