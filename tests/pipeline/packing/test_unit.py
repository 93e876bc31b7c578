import hashlib
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.data.shard_index import ShardIndex
from pipeline.errors import StorageError
from pipeline.packing.inspect_image import PackOptions
from pipeline.packing.unit import UnitJob, pack_unit, read_receipt, receipt_url, split_of
from pipeline.sources.annotations import Annotation
from pipeline.sources.source_file import SourceFile
from tests.pipeline.packing.test_pack import png, write

OPTIONS = PackOptions("full", "keep", 90, None, 1, pixel_limit=10**6, holdout=0.0)


@pytest.fixture
def job(tmp_path: Path) -> UnitJob:
    """Four files: a good one, one that is known, one that is no image, one with a caption."""
    data = {"a/1.png": png(1), "a/2.png": png(2), "b/3.png": b"no image", "b/4.png": png(4)}
    write(tmp_path / "in", data)
    files = tuple(
        SourceFile(name, str(tmp_path / "in" / name), len(content), "tag")
        for name, content in data.items()
    )
    known = ("", hashlib.sha256(png(2)).hexdigest(), "", "")
    said = Annotation("seven", "a caption", {"year": 1999}).to_text()
    files = (*files[:3], replace(files[3], annotation=said))
    return UnitJob(
        str(tmp_path / "out"), 1, "plan", 0, files, known, {"a": 0, "seven": 7},
        OPTIONS, 2,
    )  # fmt: skip


def test_each_file_gets_a_row_in_its_place_and_the_good_ones_a_sample(job: UnitJob) -> None:
    receipt = pack_unit(job)
    assert [row.status for row in receipt.rows] == ["packed", "same", "rejected", "packed"]
    assert [row.position for row in receipt.rows] == [0, -1, -1, 1]
    assert receipt.rows[2].reason == "not-an-image"
    assert receipt.rows[0].sha256 == hashlib.sha256(png(1)).hexdigest()
    assert receipt.shards[""].samples == 2


def test_the_receipt_is_written_last_and_read_back_as_it_was(job: UnitJob) -> None:
    receipt = pack_unit(job)
    assert read_receipt(receipt_url(job.output, 1, "plan", 0)) == receipt


def test_labels_captions_and_other_columns_lie_beside_the_image(job: UnitJob) -> None:
    record = pack_unit(job).shards[""]
    members = {}
    with tarfile.open(f"{job.output}/{record.path}") as tar:
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None
            members[member.name] = file.read()
    assert members["b/4%2Epng.txt"] == b"a caption"
    assert members["b/4%2Epng.cls"] == b"7"
    assert json.loads(members["b/4%2Epng.json"]) == {
        "path": "b/4.png", "label": "seven", "caption": "a caption", "year": 1999,
    }  # fmt: skip
    # Not a word of what nobody said.
    assert json.loads(members["a/1%2Epng.json"]) == {"path": "a/1.png", "label": "a"}
    assert members["a/1%2Epng.cls"] == b"0"


def test_the_record_holds_the_checksums_of_shard_and_index(job: UnitJob) -> None:
    record = pack_unit(job).shards[""]
    shard = storage.read(f"{job.output}/{record.path}")
    assert (hashlib.sha256(shard).hexdigest(), len(shard)) == (record.sha256, record.bytes)
    url = f"{job.output}/{record.index_path}"
    index = ShardIndex.from_bytes(storage.read(url), record.index_sha256, url)
    assert index.keys == ["a/1%2Epng", "b/4%2Epng"]
    for n, content in enumerate((png(1), png(4))):
        assert shard[index.offsets[n] :][: index.sizes[n]] == content


def test_the_first_receipt_of_a_unit_counts_for_a_twin_that_reads_a_changed_source(
    job: UnitJob,
) -> None:
    first = pack_unit(job)
    (path,) = [file.url for file in job.files if file.path == "b/4.png"]
    storage.publish(path, png(5)[: job.files[3].size].ljust(job.files[3].size, b"\0"))
    shard = storage.read(f"{job.output}/{first.shards[''].path}")
    assert pack_unit(job) == first
    assert storage.read(f"{job.output}/{first.shards[''].path}") == shard


def test_a_failing_write_leaves_no_receipt_and_no_scratch_file(
    job: UnitJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = storage.publish

    def full(url: Any, data: Any) -> None:
        if url.endswith(".arrow"):
            raise OSError(28, "No space left on device")
        real(url, data)

    monkeypatch.setattr(storage, "publish", full)
    words = "writing a shard failed: No space left on device. See to it, and run the same command"
    with pytest.raises(StorageError, match=words):
        pack_unit(job)
    assert not storage.exists(receipt_url(job.output, 1, "plan", 0))
    (left,) = storage.list_objects(job.output)
    sha256 = hashlib.sha256(storage.read(left.url)).hexdigest()
    assert left.url == f"{job.output}/shards/001-000000-{sha256[:12]}.tar"


def test_the_holdout_takes_its_share_by_content_alone() -> None:
    hashes = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(4000)]
    held = [split_of(sha, 0.2) for sha in hashes].count("holdout")
    assert abs(held - 800) < 5 * (4000 * 0.2 * 0.8) ** 0.5, "five standard deviations"
    assert {split_of(sha, 0.0) for sha in hashes} == {""}
    smaller = {sha for sha in hashes if split_of(sha, 0.1) == "holdout"}
    assert smaller <= {sha for sha in hashes if split_of(sha, 0.2) == "holdout"}
