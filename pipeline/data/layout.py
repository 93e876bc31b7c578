"""How an order is laid out for reading: chunks and windows that fit into memory, shared lanes."""

import os

import numpy as np
import numpy.typing as npt

from pipeline.config import Tail
from pipeline.data.dataset import Dataset
from pipeline.data.order import Order
from pipeline.errors import DatasetError

CHUNK_BYTES = 4 * 2**20
"""Aim for one ranged read: small enough to mix, large enough for full bandwidth."""
OPEN_WINDOWS = 3
"""Windows of each lane that are in memory at once."""
MOST_SHARED = 0.1
"""Share of lanes that two ranks may both fetch; above it, each fetches its own samples alone."""


def plan_order(
    dataset: Dataset,
    global_batch_size: int,
    seed: int,
    memory_bytes: int,
    *,
    shuffle: bool,
    tail: Tail,
) -> Order:
    """Chooses chunk and window so that one rank alone would keep at most `memory_bytes` open."""
    samples = len(dataset)
    if samples == 0:
        raise DatasetError(f"{dataset.url}: holds no samples that count.")
    total = sum(shard.bytes for shard in dataset.shards)
    average = max(1, total // sum(shard.samples for shard in dataset.shards))
    lanes = Order(samples, global_batch_size, seed, 1, 1, shuffle=shuffle, tail=tail).lanes
    # Three windows of each lane: the one being read, the one fetched ahead, and one between.
    per_lane = memory_bytes // (OPEN_WINDOWS * lanes * average)
    if per_lane < 1:
        raise DatasetError(
            f"memory for {memory_bytes:,} bytes of encoded samples is too little for batches of "
            f"{global_batch_size} from {dataset.url} (samples of {average:,} bytes in {lanes} "
            f"lanes): give at least {OPEN_WINDOWS * lanes * average:,}."
        )
    chunk = max(1, min(64, CHUNK_BYTES // average, per_lane))
    window = max(1, min(8, per_lane // chunk))
    return Order(samples, global_batch_size, seed, chunk, window, shuffle=shuffle, tail=tail)


def alone_slots(order: Order, slots: range, world_size: int) -> npt.NDArray[np.bool_]:
    """Which of a rank's slots are fetched sample by sample: those of lanes that ranks share.

    A shared lane's chunks are fetched by both ranks. Where few lanes are shared that costs little;
    where many are (a batch size with few divisors has few lanes), each rank takes its own samples.
    """
    per_lane = order.batch_size // order.lanes
    borders = [rank * order.batch_size // world_size for rank in range(1, world_size)]
    shared = {border // per_lane for border in borders if border % per_lane}
    lanes = np.arange(slots.start, slots.stop) // per_lane
    if sum(border % per_lane != 0 for border in borders) <= MOST_SHARED * order.lanes:
        return np.zeros(len(slots), dtype=np.bool_)
    return np.isin(lanes, sorted(shared))


def local_ranks(world_size: int) -> int:
    """How many ranks share this machine's cores, as the launcher says."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
