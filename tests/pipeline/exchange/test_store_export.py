import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from safetensors.numpy import load

from pipeline.errors import StoreError
from pipeline.exchange.store_export import export_store
from pipeline.latents import LatentStore
from tests.support.killing import tree
from tests.support.small_store import LATENT_SHAPE, encode, small_dataset, small_vae


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LatentStore:
    folder = tmp_path_factory.mktemp("store")
    dataset = small_dataset(folder, range(40))
    return encode(small_vae(), dataset, folder / "s", columns=("label",))


def read(folder: Any, shards: int) -> list[dict[str, Any]]:
    urls = [str(folder / f"{number:06d}.tar") for number in range(shards)]
    return list(webdataset.WebDataset(urls, shardshuffle=False).decode())


def test_stock_webdataset_reads_every_latent_and_label_from_npy(
    store: LatentStore, tmp_path: Path
) -> None:
    shards = export_store(store, str(tmp_path), "npy")
    found = read(tmp_path, shards)
    assert [sample["__key__"] for sample in found] == [latent.key for latent in store]
    for sample, latent in zip(found, store, strict=True):
        np.testing.assert_array_equal(sample["mean.npy"], latent.tensors["mean"])
        np.testing.assert_array_equal(sample["logvar.npy"], latent.tensors["logvar"])
        assert sample["json"] == {"label": latent.columns["label"]}


def test_safetensors_hold_the_same_tensors(store: LatentStore, tmp_path: Path) -> None:
    shards = export_store(store, str(tmp_path), "safetensors")
    for sample, latent in zip(read(tmp_path, shards), store, strict=True):
        tensors = load(sample["safetensors"])
        assert tensors["mean"].shape == LATENT_SHAPE
        np.testing.assert_array_equal(tensors["logvar"], latent.tensors["logvar"])


def test_the_same_snapshot_gives_the_same_bytes_and_may_be_gone_on_with(
    store: LatentStore, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        shards = export_store(store, str(tmp_path / name), "npy")
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    (tmp_path / "b" / f"{shards - 1:06d}.tar").unlink()
    export_store(store, str(tmp_path / "b"), "npy")
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_a_folder_of_something_else_is_refused(store: LatentStore, tmp_path: Path) -> None:
    export_store(store, str(tmp_path), "npy")
    with pytest.raises(StoreError, match="give an empty `--output URL`"):
        export_store(store, str(tmp_path), "safetensors")


def test_mean_and_deviation_go_with_the_tars(store: LatentStore, tmp_path: Path) -> None:
    export_store(store, str(tmp_path), "npy")
    stated = json.loads((tmp_path / "export.json").read_bytes())
    assert stated["mean"] == list(store.mean)
    assert stated["identity"]["model_digest"] == store.model_digest
