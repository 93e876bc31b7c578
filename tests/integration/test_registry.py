"""A run tracked, registered and served by a real MLflow server; the client has its URL alone."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch

import pipeline
from pipeline.commands.train import run_training
from pipeline.config import ModelConfig, TrainConfig
from pipeline.data import Dataset, load_images
from pipeline.registry.catalogue import lineage
from pipeline.registry.promotion import promote
from pipeline.runs.result import TrainingResult
from tests.servers.mlflow import MlflowServer
from tests.servers.rgw import free_ports
from tests.support.packed_digits import write_digits
from tests.support.warm import ROOT


@pytest.fixture
def trained(mlflow_server: MlflowServer, tmp_path: Path) -> tuple[TrainConfig, TrainingResult]:
    config = TrainConfig(
        data=str(write_digits(tmp_path, 200)), run="r", storage=str(tmp_path / "runs"), steps=8,
        global_batch_size=32, image_size=8, channels=1, workers=0, evaluate_every=4,
        model=ModelConfig(kind="linear"),
    )  # fmt: skip
    return config, run_training(config)


def served(port: int, images: np.ndarray, process: subprocess.Popen[bytes]) -> np.ndarray:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations",
        json.dumps({"inputs": images.tolist()}).encode(),
        {"Content-Type": "application/json"},
    )
    deadline = time.monotonic() + 600
    while True:
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return np.array(json.load(answer)["predictions"], np.float32)
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from error
        except (urllib.error.URLError, ConnectionError):
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def test_a_champion_serves_what_it_encodes_and_can_be_traced_to_its_images(
    trained: tuple[TrainConfig, TrainingResult], mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    config, result = trained
    assert result.model
    assert result.holdout_after
    assert promote(result.model).version == result.model_version
    vae = pipeline.load_model("models:/r@champion")
    batch = load_images(Dataset.open(config.data), 5, vae.preprocess)
    with torch.no_grad():
        posterior = vae.encode(batch.images)
    expected = torch.cat([posterior.mean, posterior.log_variance], 1).numpy()
    images = batch.images.numpy()
    model = mlflow.pyfunc.load_model("models:/r@champion")
    np.testing.assert_allclose(model.predict(images), expected, rtol=1e-6, atol=1e-6)
    (port,) = free_ports(1)
    with (tmp_path / "serve.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/r@champion",
             "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_DISABLE_TELEMETRY": "true",
                 "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"},
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        answer = served(port, images, process)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    np.testing.assert_allclose(answer, expected, rtol=1e-6, atol=1e-6)

    found = lineage("models:/r@champion")
    assert found.dataset_digest == Dataset.open(config.data).digest
    assert (found.run, found.run_id) == (result.run, result.run_id)
    client = mlflow.MlflowClient(mlflow_server.uri)
    figures = {item.path for item in client.list_artifacts(result.run_id, "figures")}
    assert "figures/training_curves.png" in figures
    artifact = client.download_artifacts(result.run_id, "figures/kl_per_dimension.json")
    nats = json.loads(Path(artifact).read_text())["nats"]
    assert len(nats) == 8
    assert sum(nats) == pytest.approx(result.holdout_after["kl"], rel=1e-5)
