"""A namespace of the stand-in API server with the templates in it, and a training's command."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.config import SubmitConfig
from pipeline.submission.rayjob import base_template
from tests.k8s.schemas import CRDS, crd_validator
from tests.servers.api_server import ApiServer as StandIn


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(SubmitConfig, "poll_seconds", 0.05)
    folder = tmp_path / "server"
    folder.mkdir()
    with StandIn(folder).running() as server:
        if CRDS.exists():
            server.validator = crd_validator("RayJob")
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig()))
        for name in ("train", "encode", "cpu"):
            template: Any = base_template(name)
            (log,) = template["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"][
                "initContainers"
            ]
            log["env"] = [{"name": "JOB_LOGS", "value": str(tmp_path / "job-logs")}]
            server.put(template)
        yield server


@pytest.fixture
def train(tmp_path: Path) -> Any:
    return ("python", "-m", "jobs.train", "--data", "d", "--run", "My.Run", "--storage",
            str(tmp_path / "runs"), "--workers", "2")  # fmt: skip
