import hashlib
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import StoreError
from pipeline.latents import LatentStore, verify_store
from pipeline.latents.receipt import RECEIPT, content_digest
from pipeline.latents.snapshot import SNAPSHOT, STORE
from tests.support.small_store import encode, small_dataset, small_vae


@pytest.fixture
def store(tmp_path: Path) -> LatentStore:
    return encode(small_vae(), small_dataset(tmp_path, range(40)), tmp_path / "s")


def rewrite(store: LatentStore, change: Any) -> None:
    """Applies `change` to the snapshot, and lets the pointer vouch for the result."""
    path = Path(store.url, store.snapshot.path)
    value = SNAPSHOT.parse(path.read_bytes(), "snapshot")
    change(value)
    data = SNAPSHOT.encode(value)
    path.write_bytes(data)
    point(store, sha256=content_digest(data))


def point(store: LatentStore, **changes: Any) -> None:
    """Changes the pointer and its copy, checksums fitting."""
    for pointer in (Path(store.url, "store.json"), Path(store.url, "published/000001.json")):
        value = {**STORE.parse(pointer.read_bytes(), "store"), **changes}
        pointer.write_bytes(STORE.encode(value))


def test_a_whole_store_has_no_problems(store: LatentStore) -> None:
    assert verify_store(store.url) == []


def test_a_file_that_is_missing_is_named_with_what_mends_it(store: LatentStore) -> None:
    file = next(Path(store.url).glob("latents/*/*.arrow"))
    file.unlink()
    (problem,) = verify_store(store.url)
    assert f"{file.name}: is missing. `rm {store.url}/store.json`, then `python -m jobs" in problem


def test_a_file_is_told_by_what_differs_its_length_or_its_content(store: LatentStore) -> None:
    file = next(Path(store.url).glob("latents/*/*.arrow"))
    data = file.read_bytes()
    file.write_bytes(data[:-1])
    assert any(
        f"{file.name}: holds {len(data) - 1} bytes, its receipt says {len(data)}. " in problem
        for problem in verify_store(store.url)
    )
    other = data[:2000] + bytes([data[2000] ^ 1]) + data[2001:]
    file.write_bytes(other)
    told, good = (hashlib.sha256(each).hexdigest()[:12] for each in (other, data))
    assert any(
        f"{file.name}: has sha256 {told}, its receipt says {good}. " in problem
        for problem in verify_store(store.url)
    )


def test_totals_that_do_not_follow_from_the_shards_are_refused(store: LatentStore) -> None:
    rewrite(store, lambda value: value.update(samples=41))
    with pytest.raises(StoreError, match="its totals are not those of its shards"):
        verify_store(store.url)


def test_a_deviation_that_does_not_follow_from_the_shards_is_found(store: LatentStore) -> None:
    def change(value: Any) -> None:
        value["statistics"]["std"][0] += 1e-9

    rewrite(store, change)
    (problem,) = verify_store(store.url)
    assert "states statistics" in problem


def test_statistics_that_are_not_those_of_the_rows_are_found_even_when_all_say_the_same(
    store: LatentStore,
) -> None:
    receipt = next(Path(store.url).glob("receipts/*/*.json"))
    stated: Any = RECEIPT.parse(receipt.read_bytes(), "receipt")
    stated["parts"][0]["statistics"]["mean"][0] += 1e-6
    receipt.write_bytes(RECEIPT.encode(stated))

    def change(value: Any) -> None:
        for shard in value["shards"]:
            if shard["receipt"]["source_sha256"] == receipt.stem:
                shard["receipt"] = stated

    rewrite(store, change)
    problems = verify_store(store.url)
    assert any("its statistics are not those of its receipt" in problem for problem in problems)


def test_a_key_that_is_there_twice_is_found_and_named(store: LatentStore) -> None:
    def change(value: Any) -> None:
        value["shards"].append(value["shards"][0])
        value["samples"] += value["shards"][0]["receipt"]["samples"]

    rewrite(store, change)
    key = store[0].key
    assert any(f"the key {key!r} is there twice" in problem for problem in verify_store(store.url))


def test_a_wrong_pointer_is_found(store: LatentStore) -> None:
    point(store, samples=7)
    (problem,) = verify_store(store.url)
    assert "its totals are not the snapshot's" in problem


def test_a_pointer_that_is_not_the_one_that_was_published_is_found(store: LatentStore) -> None:
    copy = Path(store.url, "store.json")
    value = {**STORE.parse(copy.read_bytes(), "store"), "model": "another"}
    copy.write_bytes(STORE.encode(value))
    (problem,) = verify_store(store.url)
    assert "is not what published/ keeps" in problem
