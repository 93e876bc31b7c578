"""Receipts that are too many for memory wait on the disk, and nothing else changes."""

from pathlib import Path

import pytest

from pipeline import storage
from pipeline.packing import workers
from pipeline.packing.pack import pack
from pipeline.packing.unit import UnitReceipt, read_receipt
from tests.pipeline.packing.test_pack import config, png, write


def test_a_pack_whose_receipts_do_not_fit_into_memory_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"{n % 3}/{n}.png": png(n) for n in range(12)} | {"bad.png": b"no image"}
    folder = write(tmp_path / "in", files)
    usual = pack(config(folder, tmp_path / "usual", shard_bytes=9000, holdout=0.3))
    read = []
    monkeypatch.setattr(workers, "_MOST_ROWS", 3)

    def told(url: str) -> UnitReceipt:
        read.append(url)
        return read_receipt(url)

    monkeypatch.setattr(workers, "read_receipt", told)
    result = pack(config(folder, tmp_path / "out", shard_bytes=9000, holdout=0.3))
    assert len([url for url in read if "receipt-" in url]) >= 2
    assert (result.digest, result.counts) == (usual.digest, usual.counts)
    assert (result.found, result.copies) == (usual.found, usual.copies)
    for name in ("rejects.jsonl", "holdout/manifest.json"):
        assert storage.read(str(tmp_path / "out" / name)).replace(
            b"/out", b"/usual"
        ) == storage.read(str(tmp_path / "usual" / name))
