"""Stores of buckets and sizes: ended anywhere, raced and damaged they are as plain ones."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest

from pipeline.data import Dataset
from pipeline.encoding.driver import finish, plan_encoding, publish
from pipeline.encoding.shard import encode_shard
from pipeline.errors import StoreError
from pipeline.latents import LatentStore, verify_store
from pipeline.latents.identity import View
from tests.pipeline.encoding.test_views import grid_vae, photos
from tests.support.ended import ended_after
from tests.support.killing import tree
from tests.support.small_store import encode, identity_of

VIEWS = {"views": (View(8), View(16, 4))}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return photos(tmp_path_factory.mktemp("photos"), range(18))


@pytest.fixture(scope="module")
def calm(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calm")
    encode(grid_vae(), dataset, folder, **VIEWS)
    return folder


def test_ended_at_any_write_the_same_command_ends_in_the_bytes_of_a_calm_day(
    dataset: Dataset, calm: Path, tmp_path: Path
) -> None:
    for survives in count(0, 3):
        store = tmp_path / str(survives)
        with ended_after(survives) as refused:
            encode(grid_vae(), dataset, store, **VIEWS)
        encode(grid_vae(), dataset, store, **VIEWS)
        assert kept(store) == kept(calm)
        if not refused:
            break
    assert survives > 14


def kept(store: Path) -> dict[str, str]:
    """What does not tell how often somebody published."""
    parts = ("latents/", "receipts/", "snapshots/")
    return {name: digest for name, digest in tree(store).items() if name.startswith(parts)}


def test_two_encoders_at_once_leave_the_store_of_one(
    dataset: Dataset, calm: Path, tmp_path: Path
) -> None:
    url, vae = str(tmp_path / "s"), grid_vae()
    identity = identity_of(vae, **VIEWS)
    with ThreadPoolExecutor(2) as pool:
        each = [
            pool.submit(encode_shard, vae, dataset, shard, identity, url)
            for shard in dataset.shards
            for _ in range(2)
        ]
        receipts = [future.result() for future in each]
    assert receipts[::2] == receipts[1::2]
    known = plan_encoding(url, dataset, identity).known
    publish(url, finish(url, dataset, identity, known, {}), data=dataset.url, model="m")
    assert tree(tmp_path / "s") == tree(calm)


def test_each_part_that_is_damaged_or_gone_is_told_and_encoded_anew(
    dataset: Dataset, calm: Path, tmp_path: Path
) -> None:
    store = tmp_path / "s"
    shutil.copytree(calm, store)
    files = sorted((store / "latents").rglob("*.arrow"))
    assert len(files) > 4
    for path in files[::3]:
        data = path.read_bytes()
        path.write_bytes(data[:-200] + bytes(200))
        assert any(path.name in problem for problem in verify_store(str(store)))
        path.write_bytes(data[:-1])
        with pytest.raises(StoreError, match=f"{path.name}.*jobs.verify"):
            list(LatentStore.open_all(str(store)))
        path.unlink()
        assert any("is missing" in problem for problem in verify_store(str(store)))
        plan = plan_encoding(str(store), dataset, identity_of(grid_vae(), **VIEWS))
        assert len(plan.orphans) == 1
        for source in plan.orphans:
            receipts = sorted((store / "receipts").rglob(f"{source}.json"))
            receipts[0].unlink()
        encode(grid_vae(), dataset, store, **VIEWS)
        assert tree(store / "latents") == tree(calm / "latents")
        assert verify_store(str(store)) == []
