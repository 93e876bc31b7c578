"""Where a step's time goes, which rank is slow, and what share of a GPU is used."""

import time
from pathlib import Path

import pytest
import torch
import torch.distributed
from torch import Tensor

from pipeline.config import ModelConfig, ObjectiveConfig, PreprocessConfig
from pipeline.training.step_time import (
    GpuShare,
    Slowest,
    Stopwatch,
    flops_per_image,
    parts_of_step,
    slowest_rank,
)
from pipeline.training.world import World
from pipeline.vae import build_vae
from tests.support.packed_digits import write_digits
from tests.support.worlds import train, train_config

CPU = torch.device("cpu")


def test_a_wait_is_split_by_what_the_threads_did_and_the_parts_add_up() -> None:
    parts = parts_of_step(1.0, waited=0.4, copied=0.1, fetching=9.0, decoding=3.0)
    assert parts == pytest.approx({"fetch": 0.3, "decode": 0.1, "copy": 0.1, "compute": 0.5})
    idle = parts_of_step(1.0, waited=0.4, copied=0.1, fetching=0.0, decoding=0.0)
    assert (idle["fetch"], idle["decode"]) == (0.4, 0.0)


def test_the_slowest_rank_is_told_against_the_median() -> None:
    assert slowest_rank([1.0, 1.0, 3.0, 1.0]) == Slowest(2, 3.0)
    assert slowest_rank([1.0]) is None
    assert slowest_rank([0.0, 0.0]) is None


def test_a_stopwatch_adds_up_what_ran_inside_and_begins_anew_when_taken() -> None:
    watch = Stopwatch()
    for _ in range(2):
        with watch.running(CPU):
            time.sleep(0.02)
    time.sleep(0.05)
    assert 0.04 <= watch.take() < 0.05
    assert watch.take() == 0.0


def slow_on_rank_1(images: Tensor, seeds: Tensor) -> Tensor:
    """A transform, as a user's own would be."""
    if torch.distributed.get_rank() == 1:
        time.sleep(0.05)
    return images


def test_every_rank_hears_which_rank_holds_them_up(tmp_path: Path) -> None:
    data = write_digits(tmp_path)
    config = train_config(
        data,
        tmp_path,
        "r",
        steps=8,
        transform="tests.pipeline.training.test_step_time:slow_on_rank_1",
    )
    ranks = [rank["rank_seconds"] for rank in train(config, 2)]
    assert ranks[0] == ranks[1]
    assert ranks[0][0] == [0.0, 0.0], "nothing is known before the first step"
    first, second = (sum(seconds) for seconds in zip(*ranks[0], strict=True))
    assert second > first


def test_the_counted_operations_of_an_mlp_are_those_of_its_matrices() -> None:
    config = ModelConfig(kind="mlp", width=16, latent_channels=2, likelihood="bernoulli")
    vae = build_vae(config, PreprocessConfig(image_size=8, channels=1))
    encoder, decoder = 64 * 16 + 16 * 16 + 16 * 4, 2 * 16 + 16 * 16 + 16 * 64
    # Each multiply-add is two; backwards once for the weights and once for the input of a layer,
    # which the first one's is not needed for.
    expected = 6 * (encoder + decoder) - 2 * 64 * 16
    state = torch.get_rng_state()
    assert flops_per_image(vae, ObjectiveConfig(), CPU) == expected
    assert torch.equal(torch.get_rng_state(), state)
    assert all(weight.grad is None for weight in vae.parameters())
    # Three samples of z: three decodings of one encoding.
    several = ObjectiveConfig(kind="iwae", samples=3)
    assert flops_per_image(vae, several, CPU) == expected + 2 * 6 * decoder


def test_on_a_cpu_no_share_of_a_gpu_is_told() -> None:
    vae = build_vae(ModelConfig(kind="mlp"), PreprocessConfig(image_size=8, channels=1))
    assert GpuShare(vae, ObjectiveConfig(), World(0, 1, CPU)).of(100, 1.0) is None
