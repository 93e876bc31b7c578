import dataclasses
from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.data.manifest import Manifest, ShardRecord, commit, read_current
from pipeline.errors import DatasetError

RECORD = ShardRecord("shards/0.tar", 10240, "ab" * 32, 5, "index/0.arrow", "cd" * 32, (1,))


def test_a_manifest_reads_back_as_it_was_committed(tmp_path: Path) -> None:
    manifest = Manifest(1, None, (RECORD,))
    commit(str(tmp_path), manifest)
    assert read_current(str(tmp_path)) == manifest
    assert manifest.samples == 4


@pytest.mark.parametrize("path", ["../x.tar", "/etc/x.tar", "a/../../x.tar"])
def test_a_shard_path_that_leads_out_is_refused(tmp_path: Path, path: str) -> None:
    commit(str(tmp_path), Manifest(1, None, (dataclasses.replace(RECORD, path=path),)))
    with pytest.raises(DatasetError, match="leads out"):
        read_current(str(tmp_path))


def test_a_manifest_of_another_version_names_both_versions(tmp_path: Path) -> None:
    commit(str(tmp_path), Manifest(1, None, (RECORD,)))
    pointer = storage.read_json(str(tmp_path / "manifest.json"))
    storage.publish(
        str(tmp_path / "manifest.json"), storage.canonical_json({**pointer, "version": 99})
    )
    with pytest.raises(DatasetError, match=r"version 99.*version 2"):
        read_current(str(tmp_path))


def test_the_digest_tells_apart_every_field() -> None:
    other = dataclasses.replace(RECORD, sha256="ef" * 32)
    changed: dict[str, Any] = {
        "path": "shards/1.tar", "bytes": 1, "samples": 6, "index_path": "index/1.arrow",
        "index_sha256": "ee" * 32,
    }  # fmt: skip
    digests = {
        Manifest(1, None, (RECORD, other)).digest,
        Manifest(1, None, (other, RECORD)).digest,
        Manifest(1, None, (dataclasses.replace(RECORD, removed=()), other)).digest,
    }
    digests |= {
        Manifest(1, None, (dataclasses.replace(RECORD, **{name: value}), other)).digest
        for name, value in changed.items()
    }
    digests |= {Manifest(7, None, (RECORD, other)).digest, Manifest(1, "p", (RECORD, other)).digest}
    assert len(digests) == 10


def test_a_hundred_thousand_shards_are_one_manifest(tmp_path: Path) -> None:
    shards = tuple(
        dataclasses.replace(RECORD, path=f"shards/{n:06d}.tar", sha256=f"{n:064x}")
        for n in range(100_000)
    )
    commit(str(tmp_path), Manifest(1, None, shards))
    found = read_current(str(tmp_path))
    assert found is not None
    assert found.shards == shards
