import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.errors import PipelineError, StoreError
from pipeline.latents import receipt
from pipeline.latents.latent_file import RecordBatchPlace
from pipeline.latents.positions import Positions
from pipeline.latents.receipt import (
    FailedSample,
    LatentPart,
    Receipt,
    claim,
    latent_path,
    read_receipt,
    receipt_path,
    receipts_present,
    shard_name,
)
from pipeline.latents.statistics import ChannelStatistics

PART = LatentPart(
    size=16, shape=(2, 2, 2), held=Positions(5), path="latents/x.arrow", bytes=999, sha256="f" * 64,
    record_batches=(RecordBatchPlace(8, 100, 3, "7" * 16), RecordBatchPlace(108, 60, 1, "8" * 16)),
    failed=(FailedSample(2, "k2", "truncated"),),
    statistics=ChannelStatistics(4, 16, (0.1, 1 / 3), (2.0, 1e-300), (1.0, 2.0)),
)  # fmt: skip
RECEIPT = Receipt(
    identity="i" * 32, shard="000001", source_sha256="s" * 64, samples=5, parts=(PART,),
    redone_batches=1,
)  # fmt: skip


def test_json_keeps_every_bit(tmp_path: Path) -> None:
    claim(str(tmp_path), RECEIPT)
    assert read_receipt(str(tmp_path), RECEIPT.identity, RECEIPT.source_sha256) == RECEIPT


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (replace(PART, failed=()), "5 samples in, but 4 rows out and 0 failed"),
        (replace(PART, failed=(FailedSample(7, "k", "r"),)), "lost samples that it never held"),
        (replace(PART, held=Positions.of(5, [0, 1, 2])), "3 samples in, but 4 rows"),
        (replace(PART, held=Positions(4)), "a part is of 4 samples"),
        (replace(PART, shape=(2, 2, 1)), "of another shape"),
        (replace(PART, path="../x.arrow"), "leads out"),
    ],
)
def test_a_receipt_that_breaks_the_law_is_neither_written_nor_read(
    tmp_path: Path, part: LatentPart, said: str
) -> None:
    wrong = replace(RECEIPT, parts=(part,))
    with pytest.raises(PipelineError, match=said):
        claim(str(tmp_path), wrong)
    with pytest.raises(StoreError, match=said):
        Receipt.from_json(wrong.to_json(), "x")
    assert list(tmp_path.iterdir()) == []


def test_no_two_parts_hold_the_same_sample_and_what_none_holds_was_left_out() -> None:
    three = replace(
        PART, held=Positions.of(5, [0, 2]), record_batches=PART.record_batches[1:],
        statistics=ChannelStatistics(1, 4, (0.0, 0.0), (0.0, 0.0), (0.0, 0.0)),
    )  # fmt: skip
    assert replace(RECEIPT, parts=(three,)).check("x").filtered == 3
    with pytest.raises(StoreError, match="hold the same sample"):
        replace(RECEIPT, parts=(three, three)).check("x")
    with pytest.raises(StoreError, match="its sizes do not hold the same samples"):
        replace(RECEIPT, parts=(PART, replace(three, size=32))).check("x")
    both = replace(RECEIPT, parts=(PART, replace(PART, size=32))).check("x")
    assert (both.rows, both.filtered) == (8, 0)


def test_of_many_writers_one_wins_and_all_get_the_receipt_that_counts(tmp_path: Path) -> None:
    start, found = threading.Barrier(8), []

    def write(number: int) -> None:
        start.wait()
        found.append(claim(str(tmp_path), replace(RECEIPT, redone_batches=number)))

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
    with pytest.raises(StoreError, match="reads vae-pipeline/latent-receipt version 3"):
        read_receipt(store, "i", "s")
    damaged = receipt.RECEIPT.encode({**RECEIPT.to_json(), "parts": None})
    storage.publish(storage.join(store, receipt_path("i", "s")), damaged)
    with pytest.raises(StoreError, match=r"makes no sense.*Delete it"):
        read_receipt(store, "i", "s")


def test_a_latent_file_is_named_for_its_shard_and_its_content() -> None:
    assert shard_name("s3://b/x/000007.tar") == "000007"
    assert latent_path("ID", "000007", "ab" * 32) == f"latents/ID/000007.{'ab' * 8}.arrow"


@pytest.mark.parametrize("value", [[1], {**RECEIPT.to_json(), "parts": "cake"}, None])
def test_what_is_no_receipt_of_ours_is_refused_by_its_place(value: Any) -> None:
    with pytest.raises(StoreError, match="x: makes no sense"):
        Receipt.from_json(value, "x")
