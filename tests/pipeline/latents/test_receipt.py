import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.errors import StoreError
from pipeline.latents import receipt
from pipeline.latents.latent_file import RecordBatchPlace
from pipeline.latents.receipt import (
    FailedSample,
    Receipt,
    claim,
    latent_path,
    read_receipt,
    receipt_path,
    receipts_present,
    shard_name,
)
from pipeline.latents.statistics import ChannelStatistics

RECEIPT = Receipt(
    identity="i" * 32, shard="000001", source_sha256="s" * 64, samples=5, path="latents/x.arrow",
    bytes=999, sha256="f" * 64,
    record_batches=(RecordBatchPlace(8, 100, 3, 7), RecordBatchPlace(108, 60, 1, 8)),
    failed=(FailedSample(2, "k2", "truncated"),), redone_batches=1,
    statistics=ChannelStatistics(4, 4, (0.1, 1 / 3), (2.0, 1e-300), (1.0, 2.0)),
)  # fmt: skip


def test_json_keeps_every_bit(tmp_path: Path) -> None:
    claim(str(tmp_path), RECEIPT)
    assert read_receipt(str(tmp_path), RECEIPT.identity, RECEIPT.source_sha256) == RECEIPT


def test_a_receipt_that_breaks_the_law_cannot_exist() -> None:
    with pytest.raises(StoreError, match="5 samples in, but 4 rows out and 0 failed"):
        replace(RECEIPT, failed=())


def test_of_many_writers_one_wins_and_all_get_the_receipt_that_counts(tmp_path: Path) -> None:
    start, found = threading.Barrier(8), []

    def write(number: int) -> None:
        start.wait()
        found.append(claim(str(tmp_path), replace(RECEIPT, bytes=number)))

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {read_receipt(str(tmp_path), RECEIPT.identity, RECEIPT.source_sha256)}


def test_no_receipt_is_no_error_and_a_foreign_or_damaged_one_is(tmp_path: Path) -> None:
    store = str(tmp_path)
    assert read_receipt(store, "i", "s") is None
    assert receipts_present(store, "i") == set()
    storage.publish(storage.join(store, receipt_path("i", "s")), b'{"format": "x"}')
    assert receipts_present(store, "i") == {"s"}
    with pytest.raises(StoreError, match="reads vae-pipeline/latent-receipt version 2"):
        read_receipt(store, "i", "s")
    damaged = receipt.RECEIPT.encode({**RECEIPT.to_json(), "statistics": None})
    storage.publish(storage.join(store, receipt_path("i", "s")), damaged)
    with pytest.raises(StoreError, match=r"makes no sense.*Delete it"):
        read_receipt(store, "i", "s")


def test_a_latent_file_is_named_for_its_shard_and_its_content() -> None:
    assert shard_name("s3://b/x/000007.tar") == "000007"
    assert latent_path("ID", "000007", "ab" * 32) == f"latents/ID/000007.{'ab' * 8}.arrow"


@pytest.mark.parametrize("value", [[1], {**RECEIPT.to_json(), "record_batches": "cake"}, None])
def test_what_is_no_receipt_of_ours_is_refused_by_its_place(value: Any) -> None:
    with pytest.raises(StoreError, match="x: makes no sense"):
        Receipt.from_json(value, "x")
