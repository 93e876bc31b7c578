"""Who reads which sample when: a pure function of (counts, seed, epoch, batch, slot), without I/O.

Chunks of consecutive samples are permuted by a seekable permutation. The permuted sequence is cut
into L lanes of equal length (to one sample), and each batch takes equally many samples of each
lane; inside a lane samples are shuffled within windows of several chunks. Nothing here knows a
rank: rank r of W owns the slots [rB/W, (r+1)B/W) of every batch, so any world reads the same.
"""

import hashlib
import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from pipeline.config import Tail
from pipeline.errors import ConfigError
from pipeline.json_value import Json

Ids = npt.NDArray[np.int64]
PADDED = -1
"""The id of a slot that holds no sample."""
MAX_LANES = 64
"""Each lane keeps its own window of chunks in memory: more of them would be narrower windows."""


@dataclass(frozen=True)
class Order:
    """The order of `samples` samples in batches of `batch_size`; ids count live samples.

    `chunk` consecutive samples are one ranged read; `window` chunks of a lane are shuffled
    together. With `shuffle` False every epoch is the ids in ascending order. `tail`: an epoch's
    last batch is padded, dropped, or filled with samples from the start of each lane.
    """

    samples: int
    batch_size: int
    seed: int
    chunk: int
    window: int
    shuffle: bool = True
    tail: Tail = "pad"

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"global_batch_size: {self.batch_size}; a batch holds 1 or more.")
        if self.tail not in get_args(Tail):
            raise ConfigError(f"tail: {self.tail!r}; one of {', '.join(get_args(Tail))}.")

    @cached_property
    def lanes(self) -> int:
        """The largest divisor of the batch size up to 64; 1 without shuffling."""
        if not self.shuffle:
            return 1
        return max(n for n in range(1, MAX_LANES + 1) if self.batch_size % n == 0)

    @property
    def steps(self) -> int:
        """Batches per epoch, n, the same for every rank.

        Step s of a run (the first is 1) reads batch (s - 1) % n of epoch (s - 1) // n.
        """
        if self.tail == "drop":
            return self.samples // self.batch_size
        return -(-self.samples // self.batch_size)

    def batch(self, epoch: int, index: int, slots: range) -> Ids:
        """The ids of these slots of batch `index` of `epoch`: int64 [len(slots)], -1 if padded."""
        slot = np.arange(slots.start, slots.stop, dtype=np.int64)
        per_lane = self.batch_size // self.lanes
        lane = slot // per_lane
        place = index * per_lane + slot % per_lane
        return self.lane_samples(epoch, lane, place)

    def lane_samples(self, epoch: int, lane: Ids, place: Ids) -> Ids:
        """The ids at these places (0, 1, ...) of lanes; beyond a lane's end as `tail` says."""
        first = lane * self.samples // self.lanes
        length = (lane + 1) * self.samples // self.lanes - first
        beyond = place >= length
        # A lane without samples has no place to wrap to: it stays padded.
        place = np.where(beyond, place % np.maximum(length, 1), place)
        padded = beyond if self.tail != "wrap" else length == 0
        place = np.where(padded, 0, place)
        if self.shuffle:
            place = self._shuffled(epoch, lane, place, length)
            position = np.minimum(first + place, self.samples - 1)
            ids = self._at_position(epoch, position)
        else:
            ids = first + place
        return np.where(padded, PADDED, ids)

    def _shuffled(self, epoch: int, lane: Ids, place: Ids, length: Ids) -> Ids:
        """Each place exchanged with another of its window; a permutation of each lane.

        Lane i's windows begin i/L of a window earlier than lane 0's: were they to begin together,
        all lanes would ask for new chunks at one moment, and for none until the next.
        """
        size = self.chunk * self.window
        shift = lane * size // self.lanes
        window = (place + shift) // size
        start = np.maximum(window * size - shift, 0)
        count = np.minimum((window + 1) * size - shift, length) - start
        tag = lane * 2**32 + window
        keys = _keys(self.seed, epoch, 1)
        shuffled: Ids = start + permute(place - start, np.maximum(count, 1), keys, tag)
        return shuffled

    def _at_position(self, epoch: int, position: Ids) -> Ids:
        """The id at each place of the sequence of permuted chunks; the last chunk may be short."""
        chunk, count = self.chunk, -(-self.samples // self.chunk)
        short = self.samples - (count - 1) * chunk
        keys = _keys(self.seed, epoch, 0)
        # Where the short chunk went: everything behind it stands `chunk - short` places earlier.
        at = self._slot_of_last(epoch, count)
        late = position >= at * chunk + short
        shifted = np.where(late, position + (chunk - short), position)
        slot = shifted // chunk
        counts = np.full_like(slot, count)
        ids: Ids = permute(slot, counts, keys, np.zeros_like(slot)) * chunk + shifted % chunk
        return ids

    def _slot_of_last(self, epoch: int, count: int) -> int:
        last = np.array([count - 1], dtype=np.int64)
        counts = np.array([count], dtype=np.int64)
        keys = _keys(self.seed, epoch, 0)
        return int(permute(last, counts, keys, np.zeros(1, np.int64), inverse=True)[0])

    def to_json(self) -> Json:
        """Every argument, as kept in a loader's state."""
        names = ("samples", "batch_size", "seed", "chunk", "window", "shuffle", "tail")
        return {name: getattr(self, name) for name in names}


def slots_of(rank: int, world_size: int, batch_size: int) -> range:
    """The slots of every batch that a rank owns: neighbours, and all ranks' together are all."""
    if not 0 <= rank < world_size:
        raise ConfigError(f"rank: {rank}; the ranks of a world of {world_size} begin with 0.")
    return range(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)


def shuffled(count: int, seed: int, epoch: int) -> Ids:
    """The numbers from 0 to `count` - 1 in an order of this epoch."""
    numbers = np.arange(count, dtype=np.int64)
    counts, tags = np.full_like(numbers, max(count, 1)), np.zeros_like(numbers)
    return permute(numbers, counts, _keys(seed, epoch, 2), tags)


def permute(
    values: Ids, counts: Ids, keys: npt.NDArray[np.uint64], tags: Ids, *, inverse: bool = False
) -> Ids:
    """A pseudo-random permutation of [0, count) for each tag, evaluated at `values`.

    A four-round Feistel network on the smallest even number of bits that holds the count; values
    that fall outside walk on along their cycle until they are inside (Black & Rogaway 2002).
    """
    bits = np.maximum(1, (np.ceil(np.log2(np.maximum(counts, 2)) / 2)).astype(np.uint64))
    # log2 in float64 may round a count just above a power of 4 down to it.
    bits = np.where(
        (np.uint64(1) << (bits * np.uint64(2))) < counts.astype(np.uint64), bits + 1, bits
    )
    bits = bits.astype(np.uint64)
    order = range(len(keys)) if not inverse else range(len(keys) - 1, -1, -1)
    result = values.astype(np.uint64)
    limit, tag = counts.astype(np.uint64), tags.astype(np.uint64)
    outside: Any = np.ones(len(result), dtype=np.bool_)
    while outside.any():
        result[outside] = _feistel(
            result[outside], bits[outside], tag[outside], keys, order, inverse=inverse
        )
        outside = result >= limit
    return result.astype(np.int64)


def _feistel(
    values: npt.NDArray[np.uint64],
    bits: npt.NDArray[np.uint64],
    tags: npt.NDArray[np.uint64],
    keys: npt.NDArray[np.uint64],
    order: range,
    *,
    inverse: bool,
) -> npt.NDArray[np.uint64]:
    mask = (np.uint64(1) << bits) - np.uint64(1)
    left: Any = values >> bits
    right: Any = values & mask
    for index in order:
        if inverse:
            left, right = right ^ (_mix(left ^ (tags * keys[index]), keys[index]) & mask), left
        else:
            left, right = right, left ^ (_mix(right ^ (tags * keys[index]), keys[index]) & mask)
    joined: npt.NDArray[np.uint64] = (left << bits) | right
    return joined


def _mix(values: npt.NDArray[np.uint64], key: np.uint64) -> npt.NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele et al. 2014): every input bit changes half of the output's."""
    mixed = values + key
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _keys(seed: int, epoch: int, purpose: int) -> npt.NDArray[np.uint64]:
    """Four odd round keys."""
    digest = hashlib.blake2b(struct.pack("<qqq", seed, epoch, purpose), digest_size=32).digest()
    return np.frombuffer(digest, dtype=np.uint64) | np.uint64(1)
