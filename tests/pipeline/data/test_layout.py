import numpy as np
import pytest

from pipeline.data.dataset import Dataset
from pipeline.data.layout import OPEN_WINDOWS, alone_slots, plan_order
from pipeline.data.manifest import Manifest, ShardRecord
from pipeline.data.order import PADDED, Order, slots_of
from pipeline.errors import DatasetError

MEMORY = 512 * 2**20


def dataset(samples: int, sample_bytes: int) -> Dataset:
    shard = ShardRecord(
        path="shards/0.tar", bytes=samples * sample_bytes, sha256="0" * 64, samples=samples,
        index_path="index/0.arrow", index_sha256="0" * 64, removed=(),
    )  # fmt: skip
    return Dataset("/nowhere", Manifest(1, None, (shard,)))


@pytest.mark.parametrize("sample_bytes", [600, 4_000, 100_000, 1_000_000])
@pytest.mark.parametrize("batch", [1, 64, 96, 256, 1000])
def test_the_open_windows_of_one_rank_alone_fit_into_memory(sample_bytes: int, batch: int) -> None:
    order = plan_order(dataset(10**6, sample_bytes), batch, 0, MEMORY, shuffle=True, tail="pad")
    held = order.lanes * OPEN_WINDOWS * order.window * order.chunk * sample_bytes
    assert held <= MEMORY
    assert order.chunk * sample_bytes <= 4 * 2**20 or order.chunk == 1


@pytest.mark.parametrize(("batch", "sample_bytes"), [(64, 100_000), (256, 100_000), (256, 4_000)])
def test_chunks_kept_for_three_windows_are_each_fetched_once(batch: int, sample_bytes: int) -> None:
    """A simulated least-recently-used memory of the stated size, one rank, without any I/O."""
    samples = 200_000
    order = plan_order(dataset(samples, sample_bytes), batch, 0, MEMORY, shuffle=True, tail="pad")
    room = MEMORY // (order.chunk * sample_bytes)
    last: dict[int, int] = {}
    fetched = clock = 0
    for index in range(order.steps // 4):
        ids = order.batch(0, index, range(batch))
        for chunk in np.unique(ids[ids != PADDED] // order.chunk).tolist():
            clock += 1
            if chunk not in last:
                fetched += 1
                if len(last) >= room:
                    del last[min(last, key=last.__getitem__)]
            last[chunk] = clock
    needed = batch * (order.steps // 4) / order.chunk
    assert fetched / needed < 1.1 + order.lanes * order.window / needed


def test_a_limit_that_nothing_fits_into_is_refused_with_the_least_that_would_do() -> None:
    with pytest.raises(DatasetError, match="give at least 19,200,000"):
        plan_order(dataset(10**6, 100_000), 64, 0, 2**20, shuffle=True, tail="pad")


@pytest.mark.parametrize("world_size", [2, 3, 5, 7, 8, 16])
def test_few_lanes_are_read_by_own_samples_and_many_by_chunks(world_size: int) -> None:
    # A prime batch size has a single lane: all ranks share it.
    single, many = Order(1000, 97, 0, 8, 2), Order(1000, 256, 0, 8, 2)
    for rank in range(world_size):
        assert alone_slots(single, slots_of(rank, world_size, 97), world_size).all()
        assert not alone_slots(many, slots_of(rank, world_size, 256), world_size).any()


def test_one_rank_shares_with_nobody() -> None:
    assert not alone_slots(Order(1000, 97, 0, 8, 2), slots_of(0, 1, 97), 1).any()
