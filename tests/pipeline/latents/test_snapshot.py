from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import StoreError
from pipeline.latents.snapshot import (
    STORE,
    LostShard,
    point_to,
    publish_snapshot,
    read_pointer,
    read_snapshot,
)
from pipeline.latents.stored_shard import StoredPart
from tests.support.small_store import encode, small_dataset, small_vae


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("store")
    return encode(small_vae(), small_dataset(folder, range(40)), folder / "s").snapshot


def test_written_and_read_it_is_the_same_and_complete(snapshot: Any, tmp_path: Path) -> None:
    digest = publish_snapshot(str(tmp_path), snapshot)
    found = read_snapshot(str(tmp_path), snapshot.path, digest)
    assert found == snapshot
    assert found.complete
    assert found.samples == 40
    assert found.statistics == snapshot.statistics


def test_removed_and_failed_samples_are_counted_once_each(snapshot: Any) -> None:
    first = snapshot.parts[0]
    part = StoredPart(first.part, (0, 3), first.statistics)
    assert (len(part.counted), part.rows) == (len(first.part.held) - 2, len(first.part.held) - 2)
    assert part.counted.ranks(np.arange(3)).tolist() == [1, 2, 4]
    every = np.arange(len(first.part.held))
    np.testing.assert_array_equal(first.counted.ranks(every), every)


def test_a_snapshot_with_lost_shards_is_partial_and_never_takes_the_whole_ones_name(
    snapshot: Any,
) -> None:
    lost = LostShard("000000", "s" * 64, 15, "raised")
    partial = replace(snapshot, shards=snapshot.shards[1:], lost=(lost,))
    assert not partial.complete
    assert partial.failed == 15
    assert partial.path != snapshot.path
    assert ".partial-" in partial.path


def test_publishing_again_writes_nothing_and_other_content_is_refused(
    snapshot: Any, tmp_path: Path
) -> None:
    publish_snapshot(str(tmp_path), snapshot)
    file = tmp_path / snapshot.path
    before = file.stat().st_mtime_ns
    publish_snapshot(str(tmp_path), snapshot)
    assert file.stat().st_mtime_ns == before
    file.write_bytes(b"{}")
    with pytest.raises(StoreError, match="exists with other content"):
        publish_snapshot(str(tmp_path), snapshot)


def test_a_damaged_snapshot_is_refused_by_its_checksum(snapshot: Any, tmp_path: Path) -> None:
    digest = publish_snapshot(str(tmp_path), snapshot)
    file = tmp_path / snapshot.path
    file.write_bytes(file.read_bytes().replace(b'"failed":0', b'"failed":1'))
    with pytest.raises(StoreError, match="the store's pointer says"):
        read_snapshot(str(tmp_path), snapshot.path, digest)


def test_the_pointer_tells_the_totals_and_is_not_written_twice(
    snapshot: Any, tmp_path: Path
) -> None:
    store = str(tmp_path)
    assert read_pointer(store) is None
    digest = publish_snapshot(store, snapshot)
    pointer = point_to(store, snapshot, digest, data="d", model="m")
    before = (tmp_path / "store.json").stat().st_mtime_ns
    assert point_to(store, snapshot, digest, data="d", model="m") == pointer == read_pointer(store)
    assert (tmp_path / "store.json").stat().st_mtime_ns == before
    assert (pointer.samples, pointer.failed, pointer.complete) == (40, 0, True)


def test_a_part_does_not_take_the_place_of_the_whole_that_was_published_meanwhile(
    snapshot: Any, tmp_path: Path
) -> None:
    store, data, model = str(tmp_path), "d", "m"
    lost = LostShard("shards/x.tar", snapshot.shards[0].receipt.source_sha256, 1, "not asked for")
    part = replace(snapshot, shards=snapshot.shards[1:], lost=(lost,))
    whole = point_to(store, snapshot, publish_snapshot(store, snapshot), data=data, model=model)
    late = point_to(store, part, publish_snapshot(store, part), data=data, model=model, since=0)
    assert late == whole == read_pointer(store)
    # Whoever looked at the whole and found less says so.
    digest = publish_snapshot(store, part)
    less = point_to(store, part, digest, data=data, model=model, since=whole.number)
    assert (less.complete, read_pointer(store)) == (False, less)


def test_a_pointer_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store.json").write_text('{"format": "cake"}')
    with pytest.raises(StoreError, match="cake"):
        read_pointer(str(tmp_path))


@pytest.mark.parametrize("wrong", [None, 5, []])
def test_a_pointer_that_names_no_snapshot_says_what_mends_it(
    snapshot: Any, tmp_path: Path, wrong: int | list[Any] | None
) -> None:
    store = str(tmp_path)
    point_to(store, snapshot, publish_snapshot(store, snapshot), data="d", model="m")
    pointer = tmp_path / "store.json"
    value = {**STORE.parse(pointer.read_bytes(), "store"), "snapshot": wrong}
    pointer.write_bytes(STORE.encode(value))
    with pytest.raises(StoreError, match=r"store\.json: makes no sense .* Delete it"):
        read_pointer(store)
