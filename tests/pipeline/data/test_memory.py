"""What a reader keeps in memory, and what it forgets."""

import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.data.manifest import ShardRecord
from pipeline.data.memory import DecodingMemory, IndexMemory
from pipeline.data.shard_index import ShardIndex
from pipeline.packing.shard_writer import index_of

SHARDS = [ShardRecord(f"{number}.tar", 1, "a", 10, "b", "c", ()) for number in range(4)]


@pytest.mark.parametrize(("room", "kept"), [(25, 2), (39, 3), (100, 4), (5, 1)])
def test_indexes_stay_as_long_as_their_samples_together_have_room(
    monkeypatch: pytest.MonkeyPatch, room: int, kept: int
) -> None:
    """Four indexes of 10 samples, read in turn: what is kept is not read again."""
    monkeypatch.setattr("pipeline.data.memory.INDEX_SAMPLES", room)
    reads: Counter[int] = Counter()
    empty = index_of([], {})

    def read(shard: int) -> ShardIndex:
        reads[shard] += 1
        return empty

    memory = IndexMemory(SHARDS, read)
    for shard in range(4):
        memory.get(shard)
    for shard in reversed(range(4)):
        memory.get(shard)
        if 4 - shard == kept:
            break
    assert reads == dict.fromkeys(range(4), 1)
    if kept < 4:
        memory.get(3 - kept)
        assert reads[3 - kept] == 2


def test_what_is_decoded_at_a_time_stays_below_the_limit_and_all_of_it_is_decoded() -> None:
    """Eight threads with images of every size; what needs more than all there is, is alone."""
    memory, held, seen = DecodingMemory(100), [0], []
    lock = threading.Lock()

    def decode(needed: int) -> None:
        with memory.taken(needed):
            with lock:
                held[0] += needed
                seen.append((held[0], needed))
            time.sleep(0.001)
            with lock:
                held[0] -= needed

    sizes = random.Random(0).choices((1, 10, 40, 60, 100, 300), k=200)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(decode, sizes))
    assert sorted(needed for _, needed in seen) == sorted(sizes)
    assert all(together <= 100 or together == needed for together, needed in seen)
    assert max(together for together, needed in seen if needed < 100) > 60  # some at a time


def test_an_image_that_fails_gives_back_what_it_took() -> None:
    memory = DecodingMemory(100)
    with pytest.raises(ValueError, match="bad"), memory.taken(100):
        raise ValueError("bad")
    with memory.taken(100):
        pass
