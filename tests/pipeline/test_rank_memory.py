"""What training is said to need at least, compared with what a real one is seen to take."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.config import ModelConfig, TrainConfig
from pipeline.data import Dataset
from pipeline.errors import ConfigError
from pipeline.rank_memory import needs_of, refuse_ranks_beyond_memory
from pipeline.runs.run import Run
from pipeline.training.batches import training_loader
from pipeline.training.restore import restore
from pipeline.training.settings import TrainSettings, settings_of
from pipeline.training.step import train_step
from pipeline.training.world import World
from tests.support.digit_models import pack_digits

HERE = World(0, 1, torch.device("cpu"))


@pytest.fixture
def settings(tmp_path: Path) -> tuple[TrainSettings, Dataset]:
    data = str(pack_digits(tmp_path))
    config = TrainConfig(
        data=data, run="r", storage=str(tmp_path), global_batch_size=1024, image_size=64,
        precision="fp32", model=ModelConfig(kind="conv", width=8),
    )  # fmt: skip
    return settings_of(config), Dataset.open(data)


def test_a_real_step_takes_what_is_said_and_not_twice_as_much(
    settings: tuple[TrainSettings, Dataset], tmp_path: Path
) -> None:
    """By the kernel's own count of this process's pages, at their most."""
    needs = needs_of(*settings, ranks=1, device=HERE.device)
    said = sum(need.bytes for need in needs.host)
    assert needs.gpu == ()
    before = pages("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the most that was held begins anew
    state, _ = restore(settings[0].state, Run(str(tmp_path / "none")), HERE, settings[1])
    loader = training_loader(settings[1], settings[0].batches, HERE, None)
    batch = next(iter(loader))
    train_step(state, batch, HERE, settings[0].step, rate=1e-3, stop=False, data_wait_seconds=0.0)
    loader.close()
    assert 0.9 * said < pages("VmHWM") - before < 3 * said, said


def pages(name: str) -> int:
    """A size of this process in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split(f"{name}:")[1].split()[0])


def test_each_worker_on_a_machine_counts(settings: tuple[TrainSettings, Dataset]) -> None:
    needs = needs_of(*settings, ranks=1, device=HERE.device)
    refuse_ranks_beyond_memory(needs, 1)
    with pytest.raises(ConfigError, match=r"of 1000000 workers.* Give fewer `--workers N`, or "):
        refuse_ranks_beyond_memory(needs, 1_000_000)


@pytest.mark.parametrize("kind", ["linear", "mlp", "conv", "autoencoder_kl"])
def test_every_network_of_ours_is_counted_without_being_built(
    settings: tuple[TrainSettings, Dataset], kind: str
) -> None:
    model = ModelConfig.model_validate({"kind": kind})
    state = replace(settings[0].state, model=model)
    needs = needs_of(replace(settings[0], state=state), settings[1], 1, HERE.device)
    weights, step = needs.host[2:]
    # Of a step on 1024 images of 3 x 64 x 64 at least the images themselves are kept, in float32.
    assert step.bytes >= 1024 * 3 * 64 * 64 * 4
    assert weights.bytes > 0
