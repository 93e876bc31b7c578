import os
from pathlib import Path

import pytest

from jobs.train import main as train_job
from pipeline.commands import train_cost
from pipeline.commands.train_cost import dry_run
from pipeline.config import ModelConfig, PreprocessConfig
from pipeline.data import Dataset
from pipeline.errors import ModelError
from pipeline.vae import build_vae, save_bundle
from tests.support.digit_models import pack_digits
from tests.support.worlds import train, train_config


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_digits(tmp_path_factory.mktemp("digits"))


def test_a_dry_run_tells_the_cost_and_writes_nothing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = train_config(data, tmp_path, "planned", steps=1000, workers=2)
    cost = dry_run(config, probe_seconds=0.2)
    dataset = Dataset.open(str(data))
    assert cost.images == 120
    assert cost.images_seen == 24_000
    assert cost.bytes_read == 200 * sum(shard.bytes for shard in dataset.shards)
    assert cost.hours == pytest.approx(1000 * cost.seconds_per_step / 3600)
    assert cost.worker_hours == pytest.approx(2 * cost.hours)
    assert list(tmp_path.iterdir()) == []
    # A machine's load of minutes ago may be anything, and the hours depend on it.
    monkeypatch.setattr(os, "getloadavg", lambda: (7.25, 1.0, 1.0))
    monkeypatch.setattr(train_cost, "PROBE_SECONDS", 0.1)
    single = config.model_copy(update={"dry_run": True, "workers": 1})
    said = train_job(single).summary
    assert "on 1 worker, " in said[0]
    assert "beside a load of 7.2 on " in said[1]


def test_a_dry_run_of_a_run_that_begins_with_a_model_probes_that_model(
    data: Path, tmp_path: Path
) -> None:
    vae = build_vae(
        ModelConfig(kind="mlp", latent_channels=2, width=16),
        PreprocessConfig(image_size=8, channels=1),
    )
    save_bundle(vae, tmp_path / "given", {})
    runs = tmp_path / "runs"
    config = train_config(data, runs, "planned", init=str(tmp_path / "given"))
    assert dry_run(config, probe_seconds=0.1).probed_steps > 0
    assert not runs.exists()
    other = train_config(
        data, runs, "planned", init=str(tmp_path / "given"),
        model={"kind": "mlp", "latent_channels": 3, "width": 16},
    )  # fmt: skip
    with pytest.raises(ModelError, match="given"):
        dry_run(other, probe_seconds=0.1)


def test_a_span_of_steps_leaves_a_trace_in_the_runs_folder(data: Path, tmp_path: Path) -> None:
    train(train_config(data, tmp_path, "traced", profile="3:5", steps=6))
    trace = tmp_path / "traced" / "profile" / "trace-3-5.json"
    text = trace.read_text()
    # Two steps of AdamW, and none of the others.
    assert text.count('"name": "Optimizer.step#AdamW.step"') == 2


def test_a_run_that_ends_within_its_span_leaves_the_steps_that_it_made(
    data: Path, tmp_path: Path
) -> None:
    train(train_config(data, tmp_path, "short", profile="2:100", steps=3))
    (trace,) = (tmp_path / "short" / "profile").iterdir()
    assert trace.name == "trace-2-4.json"
    assert trace.read_text().count('"name": "Optimizer.step#AdamW.step"') == 2


@pytest.mark.parametrize("span", ["5:2000", "5:5", "0:3"])
def test_a_span_that_is_empty_or_outgrows_memory_is_refused(
    data: Path, tmp_path: Path, span: str
) -> None:
    with pytest.raises(ValueError, match=f"profile {span}: A:B needs"):
        train_config(data, tmp_path, "traced", profile=span, steps=3000)
