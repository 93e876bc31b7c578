from pathlib import Path

import pytest

from pipeline import storage
from pipeline.data import Dataset
from pipeline.encoding.driver import finish, plan_encoding, publish
from pipeline.encoding.shard import encode_shard
from pipeline.errors import StoreError
from pipeline.latents import LatentStore, verify_store
from pipeline.latents.garbage import describe, find_garbage, remove_garbage
from pipeline.latents.marks import begin
from pipeline.storage.marks import removing
from tests.servers import rgw
from tests.support.killing import tree
from tests.support.small_store import encode, identity_of, small_dataset, small_vae


def lasting(store: Path) -> dict[str, str]:
    """Every file but the pointers, of which each has a number of its own."""
    names = tree(store)
    return {n: v for n, v in names.items() if n != "store.json" and "published" not in n}


@pytest.fixture
def world(tmp_path: Path) -> tuple[Dataset, Path]:
    """A dataset, and a whole store of it."""
    dataset, store = small_dataset(tmp_path, range(40)), tmp_path / "s"
    encode(small_vae(), dataset, store)
    return dataset, store


def test_a_store_that_is_all_named_has_no_garbage_and_removing_changes_no_byte(
    world: tuple[Dataset, Path],
) -> None:
    _, store = world
    before = tree(store)
    assert remove_garbage(str(store)).files == {}
    assert tree(store) == before


def test_what_only_a_deleted_snapshot_named_goes_and_the_rest_stays_whole(
    world: tuple[Dataset, Path],
) -> None:
    dataset, store = world
    kept = lasting(store)
    old = encode(small_vae(), dataset, store, flip=True).snapshot
    encode(small_vae(), dataset, store)
    (store / old.path).unlink()
    found = find_garbage(str(store))
    assert len(found.files) == 2 * len(dataset.shards)
    assert found.bytes > sum(shard.receipt.bytes for shard in old.shards)
    assert lasting(store).keys() > kept.keys(), "looking removes nothing"
    assert remove_garbage(str(store)).files == found.files
    assert lasting(store) == kept
    assert verify_store(str(store)) == []


def test_files_of_killed_encoders_that_no_receipt_names_are_garbage(
    world: tuple[Dataset, Path],
) -> None:
    _, store = world
    stray = next((store / "latents").iterdir()) / "000000.0123456789abcdef.arrow"
    stray.write_bytes(b"x" * 10)
    assert find_garbage(str(store)).files == {str(stray.relative_to(store)): 10}


def test_what_a_running_encoding_has_made_is_left_alone_until_its_snapshot_names_it(
    world: tuple[Dataset, Path],
) -> None:
    dataset, store = world
    vae, url = small_vae(), str(store)
    identity = identity_of(vae, flip=True)
    begin(url, identity.digest, dataset.digest)
    encode_shard(vae, dataset, dataset.shards[0], identity, url)
    found = remove_garbage(url)
    assert (found.files, found.busy) == ({}, (identity.digest,))
    for shard in dataset.shards[1:]:
        encode_shard(vae, dataset, shard, identity, url)
    publish(url, finish(url, dataset, identity, {}, {}), data=dataset.url, model="m")
    assert verify_store(url) == []


def test_what_a_dead_encoding_left_goes_only_when_the_user_says_that_none_runs(
    world: tuple[Dataset, Path],
) -> None:
    dataset, store = world
    vae, url, kept = small_vae(), str(store), lasting(store)
    identity = identity_of(vae, flip=True)
    begin(url, identity.digest, dataset.digest)
    encode_shard(vae, dataset, dataset.shards[0], identity, url)
    assert len(remove_garbage(url, unfinished=True).files) == 2
    assert {name: digest for name, digest in lasting(store).items() if "begun" not in name} == kept


def test_an_encoding_whose_files_somebody_removed_never_publishes_a_missing_file(
    world: tuple[Dataset, Path],
) -> None:
    """The worst moment: it has found old receipts just before they go, and here has no mark."""
    dataset, store = world
    vae, url = small_vae(), str(store)
    identity = identity_of(vae, flip=True)
    for shard in dataset.shards:
        encode_shard(vae, dataset, shard, identity, url)
    known = plan_encoding(url, dataset, identity).known
    remove_garbage(url)
    snapshot = finish(url, dataset, identity, known, {})
    assert len(snapshot.lost) == len(dataset.shards), "said, and made again by the next run"
    assert not snapshot.complete
    for shard in dataset.shards:
        encode_shard(vae, dataset, shard, identity, url)
    publish(url, finish(url, dataset, identity, {}, {}), data=dataset.url, model="m")
    assert verify_store(url) == []


def test_a_partial_snapshot_goes_once_the_whole_one_is_there(world: tuple[Dataset, Path]) -> None:
    dataset, store = world
    vae, url = small_vae(), str(store)
    identity = identity_of(vae, flip=True)
    encode_shard(vae, dataset, dataset.shards[0], identity, url)
    partial = finish(url, dataset, identity, {}, {})
    publish(url, partial, data=dataset.url, model="m")
    assert find_garbage(url).files == {}, "it is all there is of that dataset and identity"
    encode(vae, dataset, store, flip=True)
    assert list(find_garbage(url).files) == [partial.path]


def test_snapshots_are_described_with_the_current_one_first(world: tuple[Dataset, Path]) -> None:
    dataset, store = world
    encode(small_vae(), dataset, store, content="mean")
    rows = describe(str(store))
    assert [row.current for row in rows] == [True, False]
    assert [row.options["content"] for row in rows] == ["mean", "moments"]
    assert rows[0].samples == 40
    files = Path(store, "latents", rows[0].identity).glob("*.arrow")
    assert rows[0].bytes == sum(file.stat().st_size for file in files)
    assert len(LatentStore.open(str(store), rows[1].snapshot)) == 40


def test_on_object_storage_it_is_the_same(
    world: tuple[Dataset, Path], s3_server: rgw.S3Server
) -> None:
    _, store = world
    url = f"{s3_server.bucket()}/s"
    for path in store.rglob("*"):
        if path.is_file():
            storage.publish(f"{url}/{path.relative_to(store)}", path.read_bytes())
    stray = f"{next(iter(find_named(url)))}.stray"
    storage.publish(f"{url}/{stray}", b"xyz")
    assert remove_garbage(url).files == {stray: 3}
    assert describe(url)[0].samples == 40
    assert verify_store(url) == []


def find_named(url: str) -> list[str]:
    snapshot = LatentStore.open(url).snapshot
    return [part.part.path for part in snapshot.parts]


def test_where_there_is_no_store_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no latent store here"):
        describe(str(tmp_path))


def test_no_encoding_begins_beside_a_removal_and_a_killed_ones_mark_is_named(
    world: tuple[Dataset, Path],
) -> None:
    """Whichever looks second sees the other, so that neither takes what the other counts on."""
    dataset, store = world
    url = str(store)
    with removing(url):
        with pytest.raises(
            StoreError, match=r"garbage is being removed here .* then delete (.*)\.$"
        ):
            begin(url, "a" * 64, dataset.digest)
        (mark,) = (store / "removing").iterdir()
        assert list((store / "begun").rglob("*.json")) == []
    assert not mark.exists()
    begin(url, "a" * 64, dataset.digest)
    with removing(url):
        assert find_garbage(url).busy == ("a" * 64,)
