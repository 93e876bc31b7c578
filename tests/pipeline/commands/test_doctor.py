"""The doctor's findings on real servers: whole ones, closed ones, and ones that are not there."""

import re
import socket
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.commands.doctor import Check, examine
from pipeline.config import DoctorConfig
from tests.servers import rgw
from tests.servers.mlflow import MlflowServer


def found(url: str | Path, mlflow: str | None = None, ray: str | None = None) -> dict[str, Check]:
    with pytest.MonkeyPatch.context() as patched:
        if mlflow is not None:
            patched.setenv("MLFLOW_TRACKING_URI", mlflow)
        if ray is not None:
            patched.setenv("RAY_API_SERVER_ADDRESS", ray)
        return {check.name: check for check in examine(DoctorConfig(storage=str(url)))}


def test_an_empty_folder_is_enough_for_a_healthy_report(tmp_path: Path) -> None:
    checks = found(tmp_path / "runs", f"sqlite:///{tmp_path}/mlflow.db")
    bad = [check for check in checks.values() if check.level == "failed"]
    assert bad == []
    names = ("versions", "storage", "storage: create once", "mlflow", "shared memory", "disk")
    assert set(names) <= set(checks)
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_bucket_is_listed_read_in_parts_and_written_once_only(
    s3_server: rgw.S3Server, tmp_path: Path
) -> None:
    url = f"{s3_server.bucket()}/runs"
    checks = found(url, f"sqlite:///{tmp_path}/mlflow.db")
    levels = {name: check.level for name, check in checks.items()}
    assert [levels[n] for n in levels if n.startswith("storage")] == ["ok"] * 4
    assert levels["clock"] == "ok"


def test_a_wrong_secret_is_told_with_the_variables_that_mend_it_and_without_the_secret(
    s3_server: rgw.S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{s3_server.bucket()}/runs"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint.replace("127.0.0.1", "localhost"))
    checks = found(url, f"sqlite:///{tmp_path}/mlflow.db")
    assert checks["storage"].level == "failed"
    assert "AWS_SECRET_ACCESS_KEY" in checks["storage"].mend
    assert "planted-secret" not in str(checks)


def test_a_bucket_or_an_endpoint_that_is_not_there_is_told_at_once_with_what_mends_that(
    s3_server: rgw.S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = f"sqlite:///{tmp_path}/mlflow.db"
    check = found("s3://no-such-bucket-anywhere/runs", mlflow)["storage"]
    assert "its bucket does not exist" in check.found
    assert check.mend.startswith("aws s3 mb s3://no-such-bucket-anywhere, or")
    deleted: list[str] = []
    monkeypatch.setattr(storage, "delete", deleted.append)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    before = storage.set_retry_policy(storage.RetryPolicy())
    monkeypatch.setattr("pipeline.commands.doctor._ANSWER_SECONDS", 1.0)
    check = found("s3://runs/runs", mlflow)["storage"]
    assert re.search(r"writing failed for [01] s", check.found), check.found
    assert check.mend.startswith("start http://127.0.0.1:9")
    assert deleted == [], "what was never written"
    assert storage.set_retry_policy(before) == storage.RetryPolicy()


def test_mlflow_takes_a_run_and_an_artifact_and_keeps_no_run(
    mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    import mlflow

    checks = found(tmp_path, mlflow_server.uri)
    assert checks["mlflow"].level == "ok", checks["mlflow"]
    client = mlflow.MlflowClient(mlflow_server.uri)
    experiment = client.get_experiment_by_name("doctor").experiment_id
    assert client.search_runs([experiment]) == []


def test_a_host_name_that_mlflow_does_not_know_is_told_though_its_health_is_fine(
    mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    name = socket.gethostname()
    if socket.gethostbyname(name) != "127.0.0.1":
        pytest.skip("this machine's name does not lead to 127.0.0.1")
    checks = found(tmp_path, mlflow_server.uri.replace("127.0.0.1", name))
    assert checks["mlflow"].level == "failed"
    assert "--allowed-hosts" in checks["mlflow"].mend


def test_servers_that_are_not_there_are_named_with_what_to_do(tmp_path: Path) -> None:
    checks = found(tmp_path, "http://127.0.0.1:9", "http://127.0.0.1:9")
    assert checks["mlflow"].level == checks["ray"].level == "failed"
    assert "127.0.0.1:9" in checks["mlflow"].found
    assert "RAY_API_SERVER_ADDRESS" in checks["ray"].mend


@pytest.mark.parametrize(
    ("address", "dashboard"),
    [
        ("auto", "127.0.0.1:8265"), ("127.0.0.1:6379", "127.0.0.1:8265"),
        ("ray://127.0.0.2:10001", "127.0.0.2:8265"), ("local", None), ("", None),
    ],
)  # fmt: skip
def test_on_a_cluster_its_own_dashboard_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, dashboard: str | None
) -> None:
    """KubeRay names a head's address, and no dashboard."""
    monkeypatch.setenv("RAY_ADDRESS", address)
    check = found(tmp_path, f"sqlite:///{tmp_path}/mlflow.db")["ray"]
    if dashboard is None:
        assert check.level == "skipped"
    else:
        assert (check.level, dashboard in check.found) == ("failed", True)
