"""How an encoding ended is told beside its store and to a real Pushgateway, and outlives it."""

import logging
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from pipeline import storage
from pipeline.commands.encode import Encoded, run_encoding
from pipeline.config import EncodeConfig, EncodingTrackingConfig, ModelConfig, PreprocessConfig
from pipeline.data import Dataset
from pipeline.errors import PipelineError
from pipeline.vae import build_vae, save_bundle
from pipeline.web import ask
from tests.servers.prometheus import PrometheusServer
from tests.support.killing import tree
from tests.support.packed_digits import write_digits
from tests.support.warm import ROOT


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("world")
    data = write_digits(folder, 60)
    torch.manual_seed(0)
    vae = build_vae(ModelConfig(kind="mlp"), PreprocessConfig(image_size=8, channels=1))
    save_bundle(vae, str(folder / "bundle"), {})
    return {"data": str(data), "model": str(folder / "bundle")}


def encode(
    world: dict[str, str], store: Any, pushgateway: str | None = None,
    hours: float | None = None, **more: Any,
) -> Encoded:  # fmt: skip
    tracking = EncodingTrackingConfig(pushgateway=pushgateway, expected_hours=hours)
    given = {**world, "actors": 0, **more}
    return run_encoding(EncodeConfig(output=str(store), tracking=tracking, **given))


def outcome(store: Any) -> dict[str, float]:
    text = (store / "attempts/outcome.prom").read_text()
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_success_and_failure_are_told_beside_the_store_and_the_last_success_stays(
    world: dict[str, str], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    assert encode(world, store).encoded == len(Dataset.open(world["data"]))
    first = outcome(store)
    assert first["vae_encode_last_images"] == len(Dataset.open(world["data"]))
    assert first["vae_encode_last_lost_shards"] == 0
    succeeded = first["vae_encode_last_success_timestamp_seconds"]
    assert succeeded == first["vae_encode_last_end_timestamp_seconds"]
    assert storage.read_json(str(store / "attempts/outcome.json"))["succeeded"] == succeeded
    assert not (store / "attempts/metrics.json").exists(), "the endpoint is gone, and so its name"
    with pytest.raises(PipelineError):
        encode(world | {"model": str(tmp_path / "none")}, store)
    second = outcome(store)
    assert second["vae_encode_last_success_timestamp_seconds"] == succeeded
    assert second["vae_encode_last_end_timestamp_seconds"] > succeeded


def test_an_encoding_that_had_nothing_to_do_writes_how_it_ended_and_nothing_else(
    world: dict[str, str], tmp_path: Path
) -> None:
    store, last = tmp_path / "store", "vae_encode_last_success_timestamp_seconds"

    def others() -> dict[str, str]:
        return {name: told for name, told in tree(tmp_path).items() if "outcome." not in name}

    encode(world, store)
    before, first = others(), outcome(store)
    assert encode(world, store).encoded == 0
    assert others() == before
    assert outcome(store)[last] > first[last]


def test_a_good_encoding_with_nothing_new_ends_what_a_refused_one_before_it_told(
    world: dict[str, str], tmp_path: Path
) -> None:
    store, last = tmp_path / "store", "vae_encode_last_success_timestamp_seconds"
    encode(world, store, hours=26)
    with pytest.raises(PipelineError):
        encode(world | {"model": str(tmp_path / "none")}, store)
    refused = outcome(store)
    assert refused[last] < refused["vae_encode_last_end_timestamp_seconds"], "VaeEncodeFailed"
    assert encode(world, store).encoded == 0
    told = outcome(store)
    assert told[last] == told["vae_encode_last_end_timestamp_seconds"]
    assert told["vae_encode_expected_seconds"] == 26 * 3600, "by hand, nobody unsaid it"


def test_the_pushgateway_hears_of_each_encoding_also_of_one_that_had_nothing_to_do(
    world: dict[str, str], tmp_path: Path, prometheus: PrometheusServer
) -> None:
    store, last = tmp_path / "store", "vae_encode_last_success_timestamp_seconds"
    name = f'{{store="{store}",job="vae-encode"}}'

    def told(metric: str) -> float:
        return prometheus.value(f"{metric}{name}") or 0

    encode(world, store, prometheus.pushgateway)
    prometheus.until(lambda: told("vae_encode_last_images") == len(Dataset.open(world["data"])))
    first = told(last)
    encode(world, store, prometheus.pushgateway)
    prometheus.until(lambda: told("vae_encode_last_images") == 0)
    assert told(last) > first
    second = told(last)
    with pytest.raises(PipelineError):
        encode(world | {"model": str(tmp_path / "none")}, store, prometheus.pushgateway)
    prometheus.until(lambda: told("vae_encode_last_end_timestamp_seconds") > second)
    assert told(last) == second


def test_only_a_store_that_is_expected_again_says_when_and_one_by_hand_does_not_unsay_it(
    world: dict[str, str], tmp_path: Path, prometheus: PrometheusServer
) -> None:
    def expected(store: Path) -> float | None:
        return prometheus.value(f'vae_encode_expected_seconds{{store="{store}"}}')

    once, nightly = tmp_path / "once", tmp_path / "nightly"
    encode(world, once, prometheus.pushgateway)
    encode(world, nightly, prometheus.pushgateway, hours=26)
    prometheus.until(lambda: expected(nightly) == 26 * 3600)
    assert outcome(nightly)["vae_encode_expected_seconds"] == 26 * 3600
    encode(world, nightly, prometheus.pushgateway)
    last = f'vae_encode_last_images{{store="{nightly}"}}'
    prometheus.until(lambda: prometheus.value(last) == 0)
    assert expected(nightly) == 26 * 3600
    assert expected(once) is None


def test_a_store_is_forgotten_by_the_command_that_the_readme_gives(
    world: dict[str, str], tmp_path: Path, prometheus: PrometheusServer
) -> None:
    store = tmp_path / "forgotten"
    encode(world, store, prometheus.pushgateway)

    def is_known() -> bool:
        return f'store="{store}"' in ask("GET", f"{prometheus.pushgateway}/metrics").body.decode()

    assert is_known()
    readme = (ROOT / "k8s/base/monitoring/README.md").read_text()
    (command,) = re.findall(r"^curl --request DELETE .*$", readme, flags=re.M)
    here = command.replace("s3://latents/photos", str(store))
    here = here.replace("http://localhost:9091", prometheus.pushgateway)
    subprocess.run(["bash", "-c", f"{here} --fail --silent"], check=True)
    prometheus.until(lambda: not is_known(), 60)  # it answers 202: queued


def test_a_pushgateway_that_is_away_is_a_warning(
    world: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert encode(world, tmp_path / "store", "http://127.0.0.1:9").complete
    assert "127.0.0.1:9" in caplog.text
