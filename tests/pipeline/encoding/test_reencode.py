from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.encoding.reencode import reencode
from pipeline.errors import StoreError
from pipeline.latents import LatentStore
from pipeline.latents.latent_file import LatentFileWriter, file_digest
from tests.support.small_store import encode, small_dataset, small_vae


@pytest.fixture
def world(tmp_path: Path) -> Any:
    dataset = small_dataset(tmp_path, range(30))
    return dataset, encode(small_vae(), dataset, tmp_path / "s")


def test_images_encoded_again_give_the_stored_latents_to_the_last_bit(world: Any) -> None:
    dataset, store = world
    found = reencode(small_vae(), dataset, store, 100, seed=0)
    assert (found.images, found.equal, found.largest_difference) == (30, 30, 0.0)
    assert found.problems == []


def test_rows_that_were_exchanged_are_refused_before_they_are_compared(
    world: Any, tmp_path: Path
) -> None:
    """Each record batch has its own checksum in the receipt."""
    dataset, store = world
    (rows, *_) = store.selection.rows
    with LatentFileWriter(tmp_path / "f", rows.identity, rows.part.shape) as writer:
        for number in range(len(rows.part.record_batches)):
            batch = rows.read(number)
            swapped = np.arange(len(batch))
            if number == 0:
                swapped[[0, 1]] = 1, 0
            tensors = {name: values[swapped] for name, values in batch.tensors.items()}
            writer.write(batch.keys, batch.positions.tolist(), tensors, {})
    Path(store.url, rows.part.path).write_bytes((tmp_path / "f").read_bytes())
    assert file_digest(tmp_path / "f") != rows.part.sha256
    with pytest.raises(StoreError, match=r"record batch at byte \d+ is damaged"):
        reencode(small_vae(), dataset, LatentStore.open(store.url), 30, seed=0)


def test_another_model_or_dataset_is_refused(world: Any, tmp_path: Path) -> None:
    dataset, store = world
    with pytest.raises(StoreError, match="was made by model"):
        reencode(small_vae(seed=1), dataset, store, 5, seed=0)
    other = small_dataset(tmp_path / "other", range(100, 110))
    with pytest.raises(StoreError, match="from dataset"):
        reencode(small_vae(), other, store, 5, seed=0)


def test_the_largest_difference_is_that_of_the_latents(world: Any, tmp_path: Path) -> None:
    """Other weights under the digest that the store names."""
    dataset, store = world
    other = small_vae(seed=1)
    theirs = encode(other, dataset, tmp_path / "theirs")
    other.digest = small_vae().digest
    pairs = zip(store.batches(), theirs.batches(), strict=True)
    expected = max(
        float(np.abs(ours.tensors[name].astype(np.float64) - rows.tensors[name]).max())
        for ours, rows in pairs
        for name in ours.tensors
    )
    found = reencode(other, dataset, store, 30, seed=0)
    assert expected > 0
    assert found.largest_difference == pytest.approx(expected, rel=1e-6)
