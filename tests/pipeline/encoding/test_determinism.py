import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipeline.config import ModelConfig, PackConfig, PreprocessConfig
from pipeline.data import Dataset
from pipeline.encoding.determinism import exact_numerics
from pipeline.encoding.driver import ThreadCrew, drive
from pipeline.encoding.schedule import ShardSchedule
from pipeline.encoding.shard import encode_shard
from pipeline.latents.identity import View
from pipeline.latents.receipt import Receipt
from pipeline.packing.pack import pack
from pipeline.vae import build_vae
from tests.support.killing import tree
from tests.support.small_store import identity_of


def settings() -> tuple[Any, ...]:
    return (
        torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.matmul.allow_tf32,
    )  # fmt: skip


EXACT = (1, True, True, False, False)


def test_inside_everything_is_exact_and_outside_as_it_was() -> None:
    before = settings()
    torch.set_num_threads(2)
    try:
        with exact_numerics():
            assert settings() == EXACT
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before[0])
    assert settings() == before


def test_a_thread_that_leaves_does_not_loosen_the_numerics_of_one_that_stays() -> None:
    before, seen = settings(), []
    inside, leave = threading.Event(), threading.Event()

    def stay() -> None:
        with exact_numerics():
            inside.set()
            assert leave.wait(60)
            seen.append(settings())

    thread = threading.Thread(target=stay)
    thread.start()
    assert inside.wait(60)
    with exact_numerics():
        pass
    leave.set()
    thread.join()
    assert seen == [EXACT]
    assert settings() == before


def test_whoever_enters_second_has_one_thread_too_and_its_own_number_afterwards() -> None:
    """The number is a thread's own: an encoding's second thread kept 2, and other last bits."""
    seen: list[int] = []

    def second() -> None:
        torch.set_num_threads(3)
        with exact_numerics():
            seen.append(torch.get_num_threads())
        seen.append(torch.get_num_threads())

    with exact_numerics():
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        assert settings() == EXACT
    assert seen == [1, 3]


def test_shards_in_two_threads_have_the_bytes_of_one_thread_alone(tmp_path: Path) -> None:
    """Of images in sizes, whose last batches are no full ones."""
    torch.manual_seed(0)
    config = ModelConfig(kind="autoencoder_kl", widths=(8, 16), groups=4)
    vae = build_vae(config, PreprocessConfig(image_size=64, channels=3)).eval()
    vae.digest = "a" * 64
    for number in range(96):
        dice = np.random.default_rng(number)
        coarse = Image.fromarray(dice.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        (tmp_path / "images").mkdir(exist_ok=True)
        coarse.resize((80, 70)).save(tmp_path / f"images/{number:02d}.jpg", quality=90)
    output = str(tmp_path / "data")
    source = (str(tmp_path / "images"),)
    pack(PackConfig(source=source, output=output, shard_bytes=30_000, workers=1))
    dataset = Dataset.open(output)
    identity = identity_of(vae, views=(View(64),), batch_size=16)
    assert len(dataset.shards) > 5
    assert any(shard.samples % 16 for shard in dataset.shards)

    def encode(store: str, threads: int) -> dict[str, str]:
        def one(number: int) -> Receipt:
            torch.get_num_threads()  # a thread's first call gives it its number
            return encode_shard(vae, dataset, dataset.shards[number], identity, store, threads=1)

        with closing(ThreadCrew(one, threads)) as crew:
            drive(ShardSchedule(tuple(range(len(dataset.shards)))), crew, lambda done: None)
        return tree(Path(store))

    assert encode(str(tmp_path / "two"), 2) == encode(str(tmp_path / "one"), 1)
