import json
from pathlib import Path

import pytest

from pipeline.latents import LatentStore, verify_store
from pipeline.latents.receipt import content_digest
from tests.support.small_store import encode, small_dataset, small_vae


@pytest.fixture
def store(tmp_path) -> LatentStore:
    return encode(small_vae(), small_dataset(tmp_path, range(40)), tmp_path / "s")


def rewrite(store: LatentStore, change) -> None:
    """Applies `change` to the snapshot, and lets the pointer vouch for the result."""
    path, pointer = Path(store.url, store.snapshot.path), Path(store.url, "store.json")
    value = json.loads(path.read_bytes())
    change(value)
    data = json.dumps(value).encode()
    path.write_bytes(data)
    stated = json.loads(pointer.read_bytes()) | {"sha256": content_digest(data)}
    pointer.write_text(json.dumps(stated))


def test_a_whole_store_has_no_problems(store):
    assert verify_store(store.url) == []


def test_a_file_that_is_missing_is_named_with_what_mends_it(store):
    file = next(Path(store.url).glob("latents/*/*.arrow"))
    file.unlink()
    (problem,) = verify_store(store.url)
    assert f"{file.name}: is missing. Delete {store.url}/store.json, and run the same" in problem


def test_totals_that_do_not_follow_from_the_shards_are_found(store):
    def change(value):
        value["statistics"]["std"][0] += 1e-9
        value["samples"] = 41

    rewrite(store, change)
    problems = verify_store(store.url)
    assert len(problems) == 2
    assert "states samples 41, its shards give 40" in problems[0]
    assert "states statistics" in problems[1]


def test_statistics_that_are_not_those_of_the_rows_are_found_even_when_all_say_the_same(store):
    receipt = next(Path(store.url).glob("receipts/*/*.json"))
    stated = json.loads(receipt.read_bytes())
    stated["statistics"]["mean"][0] += 1e-6
    receipt.write_text(json.dumps(stated))

    def change(value):
        for shard in value["shards"]:
            if shard["receipt"]["source_sha256"] == receipt.stem:
                shard["receipt"] = stated

    rewrite(store, change)
    problems = verify_store(store.url)
    assert any("its statistics are not those of its receipt" in problem for problem in problems)


def test_a_key_that_is_there_twice_is_found_and_named(store):
    def change(value):
        value["shards"].append(value["shards"][0])

    rewrite(store, change)
    key = store[0].key
    assert any(f"the key {key!r} is there twice" in problem for problem in verify_store(store.url))


def test_a_wrong_pointer_is_found(store):
    pointer = Path(store.url, "store.json")
    pointer.write_text(json.dumps(json.loads(pointer.read_bytes()) | {"samples": 7}))
    (problem,) = verify_store(store.url)
    assert "its totals are not the snapshot's" in problem
