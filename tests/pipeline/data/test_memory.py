"""What a reader keeps in memory, and what it forgets."""

from collections import Counter

import pytest

from pipeline.data.manifest import ShardRecord
from pipeline.data.memory import IndexMemory
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
