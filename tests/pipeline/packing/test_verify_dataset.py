from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline import storage
from pipeline.config import PackConfig
from pipeline.data.dataset import Dataset
from pipeline.data.keys import path_of
from pipeline.data.order import Order
from pipeline.packing.pack import pack
from pipeline.packing.verify_dataset import prove_order, verify_dataset


@pytest.fixture
def dataset(tmp_path: Path) -> Any:
    for n in range(8):
        Image.new("RGB", (8, 8), (n, 2 * n, 3 * n)).save(tmp_path / f"{n}.bmp")
    source, output = str(tmp_path / "*.bmp"), str(tmp_path / "packed")
    return Dataset.open(pack(PackConfig(source=(source,), output=output)).dataset)


def test_a_fresh_dataset_is_whole(dataset: Any) -> None:
    assert verify_dataset(dataset.url) == []


def test_one_flipped_bit_names_the_sample_and_its_source(dataset: Any) -> None:
    index = dataset.read_index(0)
    url = dataset.shard_url(dataset.shards[0])
    data = bytearray(storage.read(url))
    data[index.offsets[3] + 60] ^= 1
    storage.publish(url, bytes(data))
    problems = verify_dataset(dataset.url)
    assert index.keys[3] in problems[0]
    assert sum(f"/{path_of(index.keys[3])}" in line for line in problems) == 1


def test_a_short_copy_a_missing_shard_and_a_changed_index_are_found(dataset: Any) -> None:
    shard = dataset.shards[0]
    url, index_url = dataset.shard_url(shard), f"{dataset.url}/{shard.index_path}"
    data = storage.read(url)
    storage.publish(url, data[:-512])
    assert "cut short" in verify_dataset(dataset.url)[0]
    storage.delete(url)
    assert "is missing" in verify_dataset(dataset.url)[0]
    storage.publish(url, data)
    storage.publish(index_url, storage.read(index_url) + b"x")
    assert "sha256" in verify_dataset(dataset.url)[0]


def test_each_sample_is_read_once_at_any_of_these_worlds(dataset: Any) -> None:
    assert prove_order(dataset, (1, 3, 8), 8) == []
    assert prove_order(dataset, (1, 2, 5), 5) == []


def test_progress_counts_each_sample_of_each_world(
    dataset: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    prove_order(dataset, (1, 3), 7)
    lines = capsys.readouterr().err.splitlines()
    ended = [line.split(" [")[0] for line in lines if line.startswith("order of")]
    assert ended == ["order of 1 ranks: 8/8 samples", "order of 3 ranks: 8/8 samples"]


def test_an_order_that_reads_one_sample_twice_and_one_never_is_found(
    dataset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Order.batch

    def wrong(self: Order, epoch: Any, index: Any, slots: Any) -> Any:
        ids = real(self, epoch, index, slots)
        return np.where(ids == 3, 4, ids)

    monkeypatch.setattr(Order, "batch", wrong)
    (problem,) = prove_order(dataset, (2,), 4)
    assert "with 2 ranks 2 samples are not read exactly once, such as number 3 (0 times)" in problem


def test_a_shuffle_that_maps_two_places_to_one_is_found(
    dataset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is proven is the order that training reads, which is shuffled."""
    real = Order._shuffled

    def wrong(self: Order, epoch: Any, lane: Any, place: Any, length: Any) -> Any:
        return np.maximum(real(self, epoch, lane, place, length), 1)

    monkeypatch.setattr(Order, "_shuffled", wrong)
    (problem,) = prove_order(dataset, (2,), 4)
    assert "are not read exactly once" in problem


def test_slots_that_hold_no_sample_do_not_count(dataset: Any) -> None:
    assert len(dataset) % 7, "the last batch is padded"
    assert prove_order(dataset, (3,), 7) == []


@pytest.mark.parametrize("holdout", [0.0, 0.4])
def test_the_command_that_is_told_mends_a_damaged_dataset(tmp_path: Path, holdout: float) -> None:
    (tmp_path / "in").mkdir()
    for n in range(30):
        Image.new("RGB", (20, 20), (n, 2 * n, 3 * n)).save(tmp_path / f"in/{n}.bmp")
    options = {"holdout": holdout, "shard_bytes": 12_000}
    config = PackConfig(source=(str(tmp_path / "in"),), output=str(tmp_path / "d"), **options)
    url = pack(config).dataset
    before = Dataset.open(url)
    damaged, lost = before.shards[1], before.shards[2]
    storage.publish(before.shard_url(damaged), storage.read(before.shard_url(damaged))[:-5000])
    storage.delete(before.shard_url(lost))
    lines = [line for line in verify_dataset(url) if "mend it: `python -m jobs.pack" in line]
    shards = tuple(line.split("--repack ")[1].rstrip("`").split(" ")[0] for line in lines)
    assert shards == (damaged.path, lost.path)
    assert all(f"--source {tmp_path}/in --output {tmp_path}/d --append" in line for line in lines)
    result = pack(config.model_copy(update={"append": True, "repack": shards}))
    assert verify_dataset(url) == []
    after = Dataset.open(url)
    keys = [
        sorted(
            key
            for number, shard in enumerate(dataset.shards)
            for position, key in enumerate(dataset.read_index(number).keys)
            if position not in shard.removed
        )
        for dataset in (before, after)
    ]
    assert keys[0] == keys[1]
    assert result.samples == len(before)
    assert result.added >= damaged.samples + lost.samples
