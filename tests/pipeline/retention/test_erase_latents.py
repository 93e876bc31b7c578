"""Latents of erased images: nowhere in the store, and all others as they were, bit by bit."""

from itertools import count
from pathlib import Path

import numpy as np
import pytest

from jobs.stores import main
from pipeline.config import StoresConfig
from pipeline.data import Dataset
from pipeline.errors import StoreError
from pipeline.latents import LatentStore, verify_store
from pipeline.latents.marks import begin
from tests.support.ended import ended_after
from tests.support.erasing import GONE, KEY, files_below, grown_dataset, holding
from tests.support.small_store import encode, small_dataset, small_vae


def test_a_store_loses_the_latents_and_keeps_all_others_bit_by_bit(
    place: str, tmp_path: Path
) -> None:
    dataset = grown_dataset(tmp_path, f"{place}/data")
    url, vae = f"{place}/store", small_vae()
    store = encode(vae, dataset, url)
    rows = {latent.key: latent for latent in store}
    gone = rows[KEY].tensors["mean"].tobytes()
    assert len(holding(url, gone)) == 1
    assert len(holding(url, KEY.encode())) == 1
    main(StoresConfig(store=url, erase=(GONE,)))
    assert len(holding(url, gone)) == 1, "a dry run"
    main(StoresConfig(store=url, erase=(GONE,), delete=True))
    assert (holding(url, gone), holding(url, KEY.encode())) == ([], [])
    assert verify_store(url) == []
    after = LatentStore.open(url)
    assert [latent.key for latent in after] == [key for key in rows if key != KEY]
    for latent in after:
        for name, values in latent.tensors.items():
            np.testing.assert_array_equal(values, rows[latent.key].tensors[name])
    assert after.snapshot.failed == 1


@pytest.mark.parametrize("options", [{}, {"dtype": "int8"}, {"content": "mean", "flip": True}])
def test_an_erased_store_is_the_one_that_the_erased_dataset_is_encoded_to(
    tmp_path: Path, options: dict[str, object]
) -> None:
    """The latent files byte for byte: what erasing makes is what an encoding would."""
    data, vae = str(tmp_path / "data"), small_vae()
    dataset = grown_dataset(tmp_path, data)
    encode(vae, dataset, tmp_path / "store", **options)
    main(StoresConfig(store=str(tmp_path / "store"), dataset=data, erase=(GONE,), delete=True))
    encode(vae, Dataset.open(data), tmp_path / "fresh", **options)
    erased, fresh = (
        {name.rsplit("/")[-1]: data for name, data in files_below(str(tmp_path / name)).items()
         if name and "/latents/" in name}
        for name in ("store", "fresh")
    )  # fmt: skip
    assert erased == fresh
    encode(vae, Dataset.open(data), tmp_path / "store", **options)
    assert verify_store(str(tmp_path / "store")) == []


def test_erasing_latents_that_is_killed_at_any_write_ends_the_same(tmp_path: Path) -> None:
    dataset, vae, ends = small_dataset(tmp_path, range(40)), small_vae(), set()
    for survives in count():
        url = str(tmp_path / f"store{survives}")
        encode(vae, dataset, url)
        with ended_after(survives) as refused:
            main(StoresConfig(store=url, erase=(GONE,), delete=True))
        main(StoresConfig(store=url, erase=(GONE,), delete=True))
        assert verify_store(url) == []
        assert holding(url, KEY.encode()) == []
        kept = ("/latents", "/receipts", "/snapshots")
        ends.add(tuple(sorted(n for n in files_below(url) if n.startswith(kept))))
        if not refused:
            break
    assert survives > 4
    assert len(ends) == 1


def test_no_latents_are_erased_beside_an_encoding_that_has_not_ended(tmp_path: Path) -> None:
    dataset, url = small_dataset(tmp_path, range(40)), str(tmp_path / "store")
    store = encode(small_vae(), dataset, url)
    begin(url, store.snapshot.identity.digest, dataset.digest)
    with pytest.raises(StoreError, match=r"an encoding has begun here and not ended"):
        main(StoresConfig(store=url, erase=(GONE,), delete=True))
    main(StoresConfig(store=url, erase=(GONE,), delete=True, unfinished=True))
    assert holding(url, KEY.encode()) == []
    again = main(StoresConfig(store=url, erase=(GONE,), delete=True, unfinished=True))
    assert any("no latents of it are here" in line for line in again.summary)
