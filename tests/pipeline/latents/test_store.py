import json
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pyarrow as pa
import pytest
import torch
from torch.utils.data import DataLoader

from pipeline import storage
from pipeline.config import PackConfig
from pipeline.data import Dataset
from pipeline.errors import ConfigError, StoreError
from pipeline.latents import LatentStore, verify_store
from pipeline.packing.pack import pack
from tests.servers import rgw
from tests.support.small_store import LATENT_SHAPE, encode, small_dataset, small_vae

COUNT = 60


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LatentStore:
    """60 images, 4 of them removed afterwards, in several shards."""
    folder = tmp_path_factory.mktemp("store")
    dataset = small_dataset(folder, range(COUNT))
    encode(small_vae(), dataset, folder / "s", columns=("label",))
    keys = [*dataset.read_index(1).keys, *dataset.read_index(2).keys]
    gone = (keys[0], keys[1], keys[5], keys[-1])
    source, output = (str(folder / "images"),), str(folder / "data")
    pack(PackConfig(source=source, output=output, append=True, remove=gone, workers=1))
    found = encode(small_vae(), Dataset.open(output), folder / "s", columns=("label",))
    assert len(found) == COUNT - 4
    return found


def test_by_number_by_key_and_in_batches_it_is_the_same_latent(store: LatentStore) -> None:
    batches = list(store.batches())
    keys = [key for batch in batches for key in batch.keys]
    means = np.concatenate([batch.tensors["mean"] for batch in batches])
    assert len(set(keys)) == len(keys) == len(store)
    for number, key in enumerate(keys):
        for latent in (store[number], store[number - len(store)], store.by_key(key)):
            assert latent.key == key
            assert latent.columns["label"] == key.split("/")[0]
            np.testing.assert_array_equal(latent.tensors["mean"], means[number])


def test_polars_gets_what_counts_and_no_more(store: LatentStore) -> None:
    frame = polars.from_arrow(pa.Table.from_batches([b.record for b in store.batches()]))
    assert isinstance(frame, polars.DataFrame)
    assert frame["key"].to_list() == list(store.keys())
    means = np.array(frame["mean"].to_list(), np.float16).reshape(len(store), *store.shapes[0])
    np.testing.assert_array_equal(means, np.stack([latent.tensors["mean"] for latent in store]))


def test_what_is_not_there_is_an_error(store: LatentStore) -> None:
    with pytest.raises(IndexError, match="holds 56, asked for number 56"):
        store[56]
    with pytest.raises(KeyError, match="there is no 'nobody'"):
        store.by_key("nobody")


def test_mean_and_deviation_are_those_of_all_rows_in_float64(store: LatentStore) -> None:
    means = np.concatenate([b.tensors["mean"] for b in store.batches()]).astype(np.float64)
    np.testing.assert_allclose(store.mean, means.mean((0, 2, 3)), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(store.std, means.std((0, 2, 3)), rtol=1e-9)


def test_batches_of_a_local_store_are_views_of_the_mapped_file(store: LatentStore) -> None:
    batch = next(store.batches(("mean",)))
    assert list(batch.tensors) == ["mean"]
    values = batch.tensors["mean"]
    assert not values.flags.owndata
    assert not values.flags.writeable


def test_as_a_torch_dataset_it_feeds_a_dataloader(store: LatentStore) -> None:
    loader = DataLoader(store.to_torch(), batch_size=8, shuffle=True)
    seen = [key for batch in loader for key in batch["key"]]
    assert sorted(seen) == sorted(key for batch in store.batches() for key in batch.keys)
    item: Any = store.to_torch()[3]
    assert item["mean"].shape == LATENT_SHAPE
    assert item["mean"].dtype == torch.float16
    assert item["label"] == store[3].columns["label"]


def test_a_torch_batch_is_read_at_once_and_in_workers_it_is_the_same(store: LatentStore) -> None:
    dataset = store.to_torch()
    items: list[Any] = dataset.__getitems__([5, 0, 5])
    assert [item["key"] for item in items] == [store[n].key for n in (5, 0, 5)]
    assert torch.equal(items[0]["logvar"], torch.tensor(store[5].tensors["logvar"]))
    assert dataset[-1]["key"] == store[len(store) - 1].key
    with pytest.raises(IndexError, match="asked for number 56"):
        dataset[56]
    for workers in (0, 2):
        loader = DataLoader(dataset, batch_size=8, num_workers=workers)
        found = torch.cat([batch["mean"] for batch in loader])
        expected = np.concatenate([batch.tensors["mean"] for batch in store.batches()])
        np.testing.assert_array_equal(found, expected)


def test_the_deviation_of_draws_is_that_of_draws(store: LatentStore) -> None:
    mean, log_variance = (
        np.concatenate([b.tensors[name] for b in store.batches()]).astype(np.float64)
        for name in ("mean", "logvar")
    )
    within = np.exp(log_variance).mean((0, 2, 3))
    expected = np.sqrt(mean.var((0, 2, 3)) + within)
    np.testing.assert_allclose(store.std_of_draws, expected, rtol=1e-9)


def test_with_where_a_store_is_its_latents_that_meet_it_and_nothing_else(
    store: LatentStore,
) -> None:
    some = LatentStore.open(store.url, where="label == 'label1'")
    keys = [key for key in list(store.keys()) if key.startswith("label1/")]
    assert list(some.keys()) == keys
    assert [some[number].key for number in range(len(some))] == keys
    assert [item["key"] for item in DataLoader(some.to_torch(), batch_size=None)] == keys
    assert some.by_key(keys[2]).key == keys[2]
    with pytest.raises(KeyError):
        some.by_key(next(key for key in list(store.keys()) if key not in keys))
    means = np.concatenate([b.tensors["mean"] for b in some.batches()]).astype(np.float64)
    assert len(means) == len(keys)
    np.testing.assert_allclose(some.mean, means.mean((0, 2, 3)), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(some.std, means.std((0, 2, 3)), rtol=1e-9)
    assert len(LatentStore.open(store.url, where="label == 'nobody'")) == 0
    by_key = LatentStore.open(store.url, where=f"key == '{keys[0]}'")
    assert list(by_key.keys()) == keys[:1]


def test_where_asks_for_columns_that_were_copied(store: LatentStore) -> None:
    with pytest.raises(ConfigError, match=r"has no column 'aesthetic'; it has label, key"):
        len(LatentStore.open(store.url, where="aesthetic > 5"))


def test_from_object_storage_it_reads_the_same_in_the_same_order(
    store: LatentStore, s3_server: rgw.S3Server, tmp_path: Path
) -> None:
    bucket = s3_server.bucket()
    for path in Path(store.url).rglob("*"):
        if path.is_file():
            storage.publish(f"{bucket}/s/{path.relative_to(store.url)}", path.read_bytes())
    far = LatentStore.open(f"{bucket}/s")
    for one, other in zip(far.batches(), store.batches(), strict=True):
        assert one.keys == other.keys
        np.testing.assert_array_equal(one.tensors["logvar"], other.tensors["logvar"])
    assert far[7].key == store[7].key


def test_an_older_snapshot_can_still_be_read(store: LatentStore) -> None:
    paths = {f"snapshots/{p}" for p in _snapshots(store)} - {store.snapshot.path}
    (old,) = [LatentStore.open(store.url, path) for path in paths]
    assert len(old) == COUNT


def _snapshots(store: LatentStore) -> list[str]:
    folder = Path(store.url) / "snapshots"
    return [str(path.relative_to(folder)) for path in folder.rglob("*.json")]


def test_no_store_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"there is no latent store here.*jobs.encode"):
        LatentStore.open(str(tmp_path))


def test_a_store_opened_by_a_relative_path_is_read_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode(small_vae(), small_dataset(tmp_path, range(12)), tmp_path / "s")
    monkeypatch.chdir(tmp_path)
    store = LatentStore.open("s")
    expected = store[0].key
    store = LatentStore.open("s")
    monkeypatch.chdir("/")
    assert store[0].key == expected


def test_a_store_of_another_version_is_refused_in_one_line_that_says_how_to_make_it_anew(
    tmp_path: Path,
) -> None:
    """By all that opens it, and nothing in it is changed."""
    data, store = small_dataset(tmp_path, range(10)), tmp_path / "store"
    encode(small_vae(), data, store)
    for path in store.rglob("*.json"):
        found = json.loads(path.read_bytes())
        if str(found.get("format", "")).startswith("vae-pipeline/latent"):
            kind = storage.DocumentKind(found.pop("format"), 99, StoreError, "")
            rest = {key: found[key] for key in found if key not in ("checksum", "version")}
            path.write_bytes(kind.encode(rest))
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    for opens in (
        lambda: LatentStore.open(str(store)),
        lambda: verify_store(str(store)),
        lambda: encode(small_vae(), data, store),
    ):
        with pytest.raises(StoreError) as refused:
            opens()
        said = str(refused.value)
        assert "\n" not in said
        assert "version 99; this program reads vae-pipeline/latent-store version" in said
        assert "encode the dataset anew, into another `--output`." in said
    assert before == {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
