"""Random kills, many in one job; each row of the table in README.md is one of these tests."""

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from jobs.demo import write_digits
from pipeline.config import ModelConfig, PackConfig, PreprocessConfig
from pipeline.packing.pack import pack
from pipeline.vae import build_vae, save_bundle
from tests.support.killing import descendants, finish, kill_all, start_job, tree
from tests.support.packed_digits import write_digits as pack_digits

pytestmark = pytest.mark.chaos

TRAIN = (
    "--steps", "1500", "--global-batch-size", "64", "--image-size", "8", "--channels", "1",
    "--workers", "2", "--checkpoint-every", "25", "--evaluate-every", "5000", "--run", "r",
    "--max-failures", "20",
)  # fmt: skip


def test_a_training_whose_driver_is_killed_six_times_at_random_ends_with_the_same_bits(
    tmp_path: Path,
) -> None:
    data = pack_digits(tmp_path / "data")
    (tmp_path / "calm").mkdir()
    (tmp_path / "storm").mkdir()
    calm = finish(start_job(tmp_path / "calm", "jobs.train", "--data", str(data), *TRAIN))
    dice, kills = random.Random(1), 0
    while kills < 6:
        process = start_job(tmp_path / "storm", "jobs.train", "--data", str(data), *TRAIN)
        time.sleep(dice.uniform(1, 25))
        if process.poll() is not None:
            break
        kill_all(process)
        kills += 1
    result = finish(start_job(tmp_path / "storm", "jobs.train", "--data", str(data), *TRAIN))
    assert kills >= 3
    assert (result["digest"], result["samples"]) == (calm["digest"], calm["samples"])


def test_a_training_whose_workers_are_killed_four_times_ends_with_the_same_bits(
    tmp_path: Path,
) -> None:
    data = pack_digits(tmp_path / "data")
    (tmp_path / "calm").mkdir()
    (tmp_path / "storm").mkdir()
    calm = finish(start_job(tmp_path / "calm", "jobs.train", "--data", str(data), *TRAIN))
    process = start_job(tmp_path / "storm", "jobs.train", "--data", str(data), *TRAIN)
    dice, kills, deadline = random.Random(2), 0, time.monotonic() + 200
    while kills < 4 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(dice.uniform(1, 6))
        ranks = [p for p, line in descendants(process.pid).items() if "RayTrainWorker" in line]
        if ranks and any((tmp_path / "storm/runs/r/checkpoints").glob("step*.json")):
            os.kill(dice.choice(ranks), signal.SIGKILL)
            kills += 1
            time.sleep(12)
    result = finish(process)
    assert kills >= 2
    assert (result["digest"], result["samples"]) == (calm["digest"], calm["samples"])


def write_shapes(folder: Path, count: int) -> None:
    """Images of noise, square, wide and tall in turn."""
    folder.mkdir()
    for number in range(count):
        shape = [(32, 32), (32, 64), (64, 32)][number % 3]
        pixels = np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:04d}.png")


@pytest.mark.parametrize(
    "views",
    [(), ("--buckets", "32:16", "48:16")],
    ids=["one size", "buckets of two sizes"],
)  # fmt: skip
def test_an_encoding_killed_ten_times_at_random_ends_with_the_same_files(
    tmp_path: Path, views: tuple[str, ...]
) -> None:
    write_shapes(tmp_path / "images", 1200)
    pack(
        PackConfig(
            source=(str(tmp_path / "images"),), output=str(tmp_path / "d"), shard_bytes=40_000
        )
    )
    torch.manual_seed(0)
    grid = ModelConfig(kind="autoencoder_kl", widths=(16, 16), groups=4, latent_channels=2)
    size = PreprocessConfig(image_size=32, channels=1)
    vae = build_vae(grid if views else ModelConfig(width=48), size)
    save_bundle(vae, str(tmp_path / "bundle"), {})

    def encode(folder: Path) -> Any:
        folder.mkdir(exist_ok=True)
        return start_job(
            folder, "jobs.encode", "--model", str(tmp_path / "bundle"), "--data",
            str(tmp_path / "d"), "--output", "s", "--actors", "2", "--attempts", "10", *views,
        )  # fmt: skip

    finish(encode(tmp_path / "calm"))
    dice, kills, storm = random.Random(3), 0, tmp_path / "storm"
    while kills < 10:
        process = encode(storm)
        time.sleep(dice.uniform(2, 14))
        if process.poll() is not None:
            break
        actors = [p for p, line in descendants(process.pid).items() if "EncodeActor" in line]
        if actors and dice.random() < 0.5:
            os.kill(dice.choice(actors), signal.SIGKILL)
            kills += 1
            time.sleep(dice.uniform(1, 4))
        if process.poll() is None:
            kill_all(process)
            kills += 1
    finish(encode(storm))
    assert kills >= 2
    calm, found = tree(tmp_path / "calm/s"), tree(storm / "s")
    assert {name: found[name] for name in calm} == calm
    assert all(name.startswith("latents/") for name in found.keys() - calm.keys())


def test_of_two_encoders_at_once_both_end_and_the_store_is_that_of_one(tmp_path: Path) -> None:
    write_digits(tmp_path / "images", range(600))
    pack(
        PackConfig(
            source=(str(tmp_path / "images"),), output=str(tmp_path / "d"), shard_bytes=40_000
        )
    )
    torch.manual_seed(0)
    vae = build_vae(ModelConfig(width=32), PreprocessConfig(image_size=32, channels=1))
    save_bundle(vae, str(tmp_path / "bundle"), {})
    command = (
        "jobs.encode", "--model", str(tmp_path / "bundle"), "--data", str(tmp_path / "d"),
        "--actors", "0", "--output",
    )  # fmt: skip
    finish(start_job(tmp_path, *command, "calm"))
    both = [start_job(tmp_path, *command, "storm") for _ in range(2)]
    for process in both:
        finish(process)
    assert tree(tmp_path / "storm") == tree(tmp_path / "calm")
