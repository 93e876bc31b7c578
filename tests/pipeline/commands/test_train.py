import logging
import re
import shutil
import socket
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from jobs.demo import write_digits
from jobs.train import _encoding
from pipeline import storage
from pipeline.commands.train import resolve, run_training
from pipeline.commands.train_checks import check_size, refuse_beyond_memory_here
from pipeline.config import ModelConfig, PackConfig, TrainConfig
from pipeline.data import Dataset
from pipeline.errors import AccessDeniedError, ConfigError, DatasetError, PipelineError
from pipeline.packing.pack import pack
from pipeline.runs.result import TrainingResult
from pipeline.runs.run import Pins, Run
from pipeline.tracking.mlflow_client import mlflow_client, tracking_uri
from pipeline.training.stepper import Stepper
from tests.servers import rgw
from tests.support.digit_models import pack_digits


@pytest.fixture(autouse=True)
def _mlflow_of_its_own(mlflow_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_file)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return pack_digits(tmp_path)


def config(dataset: Path, steps: int, **changes: object) -> TrainConfig:
    values = {
        "data": str(dataset),
        "holdout": str(dataset),
        "run": "pinned",
        "storage": str(dataset.parent / "runs"),
        "steps": steps,
        "global_batch_size": 20,
        "image_size": 8,
        "channels": 1,
        "workers": 0,
        "model": ModelConfig(kind="mlp", latent_channels=2, width=8),
    }
    return TrainConfig.model_validate(values | changes)


def append(dataset: Path) -> None:
    late = dataset.parent / "images" / "late"
    late.mkdir()
    for image in list((dataset.parent / "images" / "3").glob("*.png")):
        (late / image.name).write_bytes(image.read_bytes() + b"\0")
    source = (str(dataset.parent / "images"),)
    pack(PackConfig(source=source, output=str(dataset), workers=1, append=True))


def test_an_append_does_not_disturb_a_run_that_is_continued(
    dataset: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    before = Dataset.open(str(dataset))
    first = run_training(config(dataset, 3))
    append(dataset)
    assert len(Dataset.open(str(dataset))) > len(before) == 120
    second = run_training(config(dataset, 14))
    assert f"the run stays with its {len(before)} samples" in caplog.text
    assert (first.samples, second.samples) == (3 * 20, 14 * 20)
    # Two epochs of six steps and two more: with the appended images there would be fewer epochs.
    pins = Run(second.run).pins()
    assert pins is not None
    assert (pins.dataset, pins.holdout) == (before.digest, before.digest)
    # The untrained model's numbers come from a first start, and must be of the same images.
    assert second.holdout_before == first.holdout_before


def test_a_run_whose_generation_is_gone_says_which_one_it_needs(dataset: Path) -> None:
    digest = Dataset.open(str(dataset)).digest
    run_training(config(dataset, 2))
    append(dataset)
    (dataset / "manifests" / f"{digest}.json").unlink()
    with pytest.raises(DatasetError, match=f"has no generation {digest}"):
        run_training(config(dataset, 4))


def test_a_run_that_an_error_of_any_kind_ends_is_failed_in_mlflow(
    dataset: Path, own_module: Any
) -> None:
    own_module(
        "class Odd(Mine):\n"
        "    def encode(self, images):\n"
        "        if len(images) > 2:  # which it is tried on\n"
        "            raise OSError('no disk')\n"
        "        return super().encode(images)\n"
    )
    with pytest.raises(OSError, match="no disk"):
        run_training(config(dataset, 2, model=custom("mynet:Odd")))
    client = mlflow_client(tracking_uri())
    (found,) = client.search_runs([client.get_experiment_by_name("vae").experiment_id])
    assert found.info.status == "FAILED"
    assert not (dataset.parent / "runs/pinned/metrics.json").exists()


def test_with_ray_a_port_that_is_taken_is_one_error_before_anything_starts(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.tracking.endpoint.RELEASE_SECONDS", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        tracking = {"metrics": f"127.0.0.1:{port}"}
        with pytest.raises(ConfigError, match=f":{port}: Address already in use"):
            run_training(config(dataset, 2, workers=1, tracking=tracking))
    assert not (dataset.parent / "runs/pinned/attempts").exists()


def test_a_run_that_diverged_ends_and_registers_no_model(
    dataset: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wild = config(dataset, 6, optimizer={"learning_rate": 1e8}, objective={"beta": 2})
    ended = run_training(wild)
    assert (ended.reason, ended.elbo, ended.model) == ("done", None, None)
    assert "not finite, so no model is registered" in caplog.text
    client = mlflow_client(tracking_uri())
    assert list(client.search_registered_models()) == []


def test_an_empty_hold_out_beside_the_data_is_none(tmp_path: Path) -> None:
    write_digits(tmp_path / "images", range(30))
    result = pack(
        PackConfig(source=(str(tmp_path / "images"),), output=str(tmp_path / "d"), holdout=1e-9)
    )
    assert result.holdout
    assert (result.holdout_samples, len(Dataset.open(result.holdout))) == (0, 0)
    asked = config(Path(result.dataset), 1, holdout=None)
    assert resolve(asked).holdout is None


def test_an_empty_dataset_and_a_batch_larger_than_it_are_said_before_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_digits(tmp_path / "images", range(30))
    result = pack(
        PackConfig(source=(str(tmp_path / "images"),), output=str(tmp_path / "d"), holdout=1e-9)
    )
    assert result.holdout
    with pytest.raises(DatasetError, match="holds no samples"):
        run_training(config(Path(result.holdout), 1, holdout=None))
    with caplog.at_level(logging.WARNING):
        check_size(Dataset.open(result.dataset), 64)
    assert "a batch of 64 is larger than the dataset of 30 images" in caplog.text


MINE = """
from torch import nn
from pipeline.vae.networks import Network

class Mine(Network):
    latent_shape = (2, 1, 1)
    channels = 4

    def __init__(self, shape, model):
        super().__init__()
        size = shape.image_size
        self.down = nn.Conv2d(shape.channels, self.channels, size)
        self.up = nn.ConvTranspose2d(2, shape.num_parameters, size)

    def encode(self, images):
        return self.down(images)

    def decode(self, latents):
        return self.up(latents)

    def start_at(self, parameters):
        pass
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes the module `mynet`: a network that is right, and what a test adds."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mynet", raising=False)

    def write(more: str = "") -> None:
        (tmp_path / "mynet.py").write_text(MINE + more)

    yield write
    sys.modules.pop("mynet", None)


def custom(path: str) -> ModelConfig:
    return ModelConfig(kind="custom", custom=path)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no such class": ({"model": custom("mynet:Nope")}, "no attribute 'Nope'"),
    "a module that fails": ({"model": custom("broken:Net")}, "SyntaxError"),
    "another constructor": ({"model": custom("mynet:Bare")}, r"__init__\(self, shape, model\)"),
    "another shape": ({"model": custom("mynet:Thin")}, r"gives \(2, 3, 1, 1\)"),
    "a forward that fails": (
        {"model": custom("mynet:Falls")},
        r"ZeroDivisionError.*mynet.py, line",
    ),
    "a transform that fails": ({"transform": "json:loads"}, "failed with TypeError"),
    "a transform of floats": ({"transform": "mynet:floats"}, "must give uint8 of the same shape"),
    "no such start": ({"init": "nowhere"}, "nowhere"),
}

MORE = """
class Bare(nn.Module):
    def __init__(self):
        super().__init__()

class Thin(Mine):
    channels = 3

class Falls(Mine):
    def decode(self, latents):
        return 1 / 0

def floats(images, seeds):
    return images.float()
"""


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_trained_is_refused_before_the_name_is_taken(
    dataset: Path, own_module: Any, tmp_path: Path, case: Any
) -> None:
    own_module(MORE)
    (tmp_path / "broken.py").write_text("class Net(:\n")
    changes, said = WRONG[case]
    with pytest.raises(PipelineError, match=f"(?s){said}"):
        run_training(config(dataset, 1, **changes))
    assert not (dataset.parent / "runs/pinned").exists()


def test_a_start_of_another_image_size_names_the_flags_that_fit(dataset: Path) -> None:
    run_training(config(dataset, 1))
    with pytest.raises(ConfigError, match="`--image-size 8 --channels 1`") as refused:
        run_training(config(dataset, 1, run="larger", image_size=16, init="pinned"))
    assert refused.value.exit_code == 2


def test_a_name_is_taken_by_the_first_step_and_not_by_a_start_before_it(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pipeline.runs.stop.StopSignal.requested", True)
    stopped = run_training(config(dataset, 2, seed=1))
    assert (stopped.reason, stopped.steps) == ("stopped", 0)
    monkeypatch.undo()
    assert run_training(config(dataset, 2, seed=2)).reason == "done"
    assert "made no step; it begins with this one: seed: was 1, is 2" in caplog.text
    with pytest.raises(ConfigError, match="seed: was 2, is 3"):
        run_training(config(dataset, 3, seed=3))


def test_a_deleted_experiment_is_refused_by_name_before_anything_is_trained(dataset: Path) -> None:
    client = mlflow_client(tracking_uri())
    client.delete_experiment(client.create_experiment("old"))
    with pytest.raises(ConfigError, match="experiments restore --experiment-id"):
        run_training(config(dataset, 1, tracking={"experiment": "old"}))
    assert not (dataset.parent / "runs/pinned").exists()


@pytest.mark.parametrize("name", ["vae@latest", "vae@v3", "vae@my.alias", "..@candidate"])
def test_a_name_or_alias_that_mlflow_would_refuse_is_refused_first(
    dataset: Path, name: Any
) -> None:
    with pytest.raises(ValidationError, match=r"MLflow (keeps|wants)"):
        config(dataset, 1, tracking={"model": name})


def test_a_batch_of_more_images_than_there_are_and_no_hold_out_are_told(
    dataset: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_training(config(dataset, 1, global_batch_size=150, holdout=None))
    assert "a batch of 150 is larger than the dataset of 120 images" in caplog.text
    assert "no hold-out: every number of this run is of the images that it trains on" in caplog.text


def test_a_continued_start_says_from_which_step_and_what_was_lost(
    dataset: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    make = Stepper.make

    def dies(self: Stepper, *, stop: Any) -> Any:
        if self._state.step == 3:
            raise OSError("no disk")
        return make(self, stop=stop)

    monkeypatch.setattr(Stepper, "make", dies)
    wanted = config(dataset, 4, checkpoint_every=2, holdout=None)
    with pytest.raises(OSError, match="no disk"):
        run_training(wanted)
    assert "continues run" not in caplog.text
    monkeypatch.setattr(Stepper, "make", make)
    run_training(wanted)
    told = re.search(
        r"continues run \S+ from step 2 \(started (.*) UTC; lost at least 1 step,", caplog.text
    )
    assert told, caplog.text
    began = datetime.strptime(told[1], "%Y-%m-%d %H:%M").replace(tzinfo=UTC)
    assert abs((datetime.now(UTC) - began).total_seconds()) < 600
    caplog.clear()
    run_training(wanted.model_copy(update={"steps": 5}))
    assert "lost no step" in caplog.text, "the start before ended, and said how far it had come"


def test_where_no_tally_could_be_written_nothing_says_that_no_step_was_lost(
    dataset: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    wanted = config(dataset, 2, checkpoint_every=1, holdout=None)
    run_training(wanted)
    shutil.rmtree(dataset.parent / "runs/pinned/time")  # as where storage answers each with 403
    run_training(wanted.model_copy(update={"steps": 3}))
    assert re.search(r"continues run \S+ from step 2 \(.*lost steps unknown", caplog.text)
    assert "lost no step" not in caplog.text


def test_a_batch_that_no_memory_holds_is_refused_with_one_that_does_before_the_run_has_a_name(
    dataset: Path,
) -> None:
    """A hundred thousand images of 256 pixels froze a machine for ten minutes."""
    huge: dict[str, Any] = {"global_batch_size": 100_000, "image_size": 256, "channels": 3}
    huge |= {"model": ModelConfig(kind="conv")}
    with pytest.raises(
        ConfigError, match=r"memory: at least [\d.,]+ GiB are needed here"
    ) as refused:
        run_training(config(dataset, 3, **huge))
    (fits,) = re.findall(r"Give `--global-batch-size (\d+)`", str(refused.value))
    dataset_digest = Dataset.open(str(dataset)).digest
    fitting = config(dataset, 3, **huge | {"global_batch_size": int(fits)})
    refuse_beyond_memory_here(fitting, Pins(dataset_digest, None))
    with pytest.raises(ConfigError, match=r"of 2 workers.* fewer `--workers N`"):
        run_training(config(dataset, 3, global_batch_size=10**9, workers=2))
    assert not (dataset.parent / "runs").exists()


def test_a_wrong_key_is_told_by_the_data_that_was_typed_and_not_by_a_hold_out_that_was_not(
    dataset: Path, s3_server: rgw.S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint.replace("127.0.0.1", "localhost"))
    data = f"{s3_server.bucket()}/photos/train"
    with pytest.raises(AccessDeniedError) as refused:
        resolve(config(dataset, 1, data=data, holdout=None))
    assert str(refused.value).startswith(f"`--data {data}`: whether a hold-out lies beside it")


def test_the_advice_to_encode_names_a_store_beside_the_runs(dataset: Path) -> None:
    wanted = config(dataset, 1, storage="s3://bucket/runs", data="s3://bucket/photos/train")
    result = TrainingResult(
        run="s3://bucket/runs/pinned", run_id=None, reason="done", steps=1, samples=20,
        bad_samples=0, converged=False, run_seconds={}, elbo=None, chosen_step=1,
        holdout_before=None, holdout_after=None, model="models:/pinned@candidate",
        model_version=1, bundle=None, digest=None,
    )  # fmt: skip
    with storage.retry_policy(storage.RetryPolicy(deadline_seconds=0)):
        assert "--output s3://bucket/runs/latents`" in _encoding(wanted, result)
