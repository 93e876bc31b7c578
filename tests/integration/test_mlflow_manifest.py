"""The MLflow of k8s/base, with its own arguments, really serves those it should and no others."""

import base64
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest

from pipeline.errors import UnreachableError
from pipeline.web import Answer, ask
from tests.k8s.manifests import K8S, build, find
from tests.servers import postgres as postgresql
from tests.servers import rgw
from tests.servers.mlflow import READY_SECONDS
from tests.servers.postgres import PASSWORD
from tests.servers.rgw import free_ports

ADMIN = ("admin", "the administrator's password")


@dataclass
class Served:
    url: str
    user: str
    password: str

    def ask(
        self, path: str, *, host: str | None = None, user: tuple[str, str] | None = None,
        body: object = None,
    ) -> Answer:  # fmt: skip
        headers = {"Content-Type": "application/json"} | ({"Host": host} if host else {})
        if user is not None:
            headers["Authorization"] = f"Basic {base64.b64encode(':'.join(user).encode()).decode()}"
        data = None if body is None else json.dumps(body).encode()
        return ask("POST" if data else "GET", self.url + path, data, headers=headers)


def command_line(port: int, bucket: str, folder: Path) -> list[str]:
    (container,) = find(build("gpu"), "Deployment", "mlflow")["spec"]["template"]["spec"][
        "containers"
    ]
    assert container["command"] == ["mlflow", "server"]
    here = {
        "--host=0.0.0.0": "--host=127.0.0.1",
        "--port=5000": f"--port={port}",
        "--artifacts-destination=s3://mlflow/artifacts": f"--artifacts-destination={bucket}/mlflow",
        "--expose-prometheus=/tmp/prometheus": f"--expose-prometheus={folder}/prometheus",
    }
    assert set(here) <= set(container["args"])
    return [
        sys.executable,
        "-m",
        *container["command"],
        *(here.get(a, a) for a in container["args"]),
    ]


def environment(postgres_port: int, folder: Path) -> dict[str, str]:
    """The manifest's variables, with what Secrets and addresses are here."""
    objects = build("gpu")
    (container,) = find(objects, "Deployment", "mlflow")["spec"]["template"]["spec"]["containers"]
    settings = find(objects, "ConfigMap", "mlflow-authentication")["data"]
    (folder / "basic_auth.ini").write_text(settings["basic_auth.ini"])
    secrets = {"password": PASSWORD, "username": ADMIN[0], "form-key": "a key of the tests"}
    found = {"PGPORT": str(postgres_port)}
    for variable in container["env"]:
        source = variable.get("valueFrom", {})
        if "secretKeyRef" in source:
            secret = source["secretKeyRef"]
            of_admin = secret == {"name": "mlflow-admin", "key": "password"}
            found[variable["name"]] = ADMIN[1] if of_admin else secrets[secret["key"]]
        elif "value" in variable:
            found[variable["name"]] = variable["value"]
    return found | {
        "PGHOST": "127.0.0.1",
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "basic_auth.ini"),
    }


@pytest.fixture(scope="module")
def served(
    _s3_process: rgw.S3Server,
    postgres: postgresql.PostgresServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("mlflow-of-the-manifest")
    (port,) = free_ports(1)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in _s3_process.environment.items():
            patch.setenv(name, value)
        variables = os.environ | environment(postgres.port, folder)
        bucket = _s3_process.bucket()
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command_line(port, bucket, folder), cwd=folder, env=variables, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    served = Served(f"http://127.0.0.1:{port}", f"pipeline-{uuid.uuid4().hex[:6]}", "its password")
    deadline = time.monotonic() + READY_SECONDS
    while not _answers(served):
        assert process.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.1)
    yield served
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _answers(served: Served) -> bool:
    (container,) = find(build("gpu"), "Deployment", "mlflow")["spec"]["template"]["spec"][
        "containers"
    ]
    try:
        return served.ask(container["readinessProbe"]["httpGet"]["path"]).status == 200
    except UnreachableError:
        return False


@pytest.fixture(scope="module")
def user(served: Served) -> tuple[str, str]:
    """Made in the way of the README's third step."""
    (path,) = re.findall(
        r"http://localhost:5000(/api\S+users/create)", (K8S / "README.md").read_text()
    )
    body = {"username": served.user, "password": served.password}
    assert served.ask(path, user=ADMIN, body=body).status == 200
    return served.user, served.password


SEARCH = "/api/2.0/mlflow/experiments/search?max_results=1"


def test_nobody_gets_in_without_a_password(served: Served) -> None:
    assert served.ask(SEARCH).status == 401
    assert served.ask(SEARCH, user=("admin", "admin")).status == 401
    assert served.ask(SEARCH, user=ADMIN).status == 200


@pytest.mark.parametrize(
    "host", ["mlflow:5000", "mlflow.vae.svc.cluster.local:5000", "mlflow", "10.42.0.7:5000"]
)
def test_the_services_names_are_answered(served: Served, user: tuple[str, str], host: str) -> None:
    assert served.ask(SEARCH, host=host, user=user).status == 200


def test_a_foreign_host_is_refused(served: Served, user: tuple[str, str]) -> None:
    assert served.ask(SEARCH, host="evil.example:5000", user=user).status == 403


def test_the_jobs_user_tracks_and_stores_artifacts_without_keys_of_the_storage(
    served: Served, user: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user[0])
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", user[1])
    client = mlflow.MlflowClient(served.url)
    run = client.create_run(client.create_experiment(f"of {user[0]}"))
    client.log_metric(run.info.run_id, "elbo", -1.5)
    (tmp_path / "artifact").write_bytes(b"bytes")
    client.log_artifact(run.info.run_id, str(tmp_path / "artifact"))
    assert client.get_run(run.info.run_id).data.metrics == {"elbo": -1.5}
    back = client.download_artifacts(run.info.run_id, "artifact", str(tmp_path))
    assert Path(back).read_bytes() == b"bytes"
    assert client.create_registered_model(f"vae-{user[0]}").name


def test_prometheus_reads_its_metrics_as_the_monitor_says(
    served: Served, user: tuple[str, str]
) -> None:
    (endpoint,) = find(build("gpu"), "ServiceMonitor", "mlflow")["spec"]["endpoints"]
    assert {secret["name"] for secret in endpoint["basicAuth"].values()} == {"mlflow-admin"}
    assert served.ask("/metrics").status == 401
    assert served.ask("/metrics", user=user).status == 403
    answer = served.ask("/metrics", user=ADMIN, host="10.42.0.7:5000")
    assert answer.status == 200
    assert b"mlflow_http_request_total" in answer.body
