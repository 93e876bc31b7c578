import io
import tarfile
from pathlib import Path
from typing import Any

import pytest
import webdataset
from PIL import Image

from pipeline import storage
from pipeline.config import IndexConfig
from pipeline.data.dataset import Dataset
from pipeline.errors import DatasetError
from pipeline.packing.adopt import adopt, adopt_tar, expand_braces
from pipeline.packing.verify_dataset import verify_dataset
from tests.servers import rgw


def jpeg(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (12, 10), (value, value, value)).save(buffer, "JPEG")
    return buffer.getvalue()


def stock_tar(path: Any, numbers: Any, bad: Any = ()) -> str:
    """A tar by webdataset's own writer."""
    with webdataset.TarWriter(str(path), encoder=False) as writer:
        for n in numbers:
            image = b"no image" if n in bad else jpeg(n)
            writer.write({"__key__": f"{n:04d}", "jpg": image, "cls": b"1", "json": b"{}"})
    return str(path)


def test_stock_tars_are_adopted_where_they_lie(tmp_path: Path) -> None:
    for n in range(3):
        stock_tar(tmp_path / f"{n}.tar", range(n * 10, n * 10 + 10))
    output = str(tmp_path / "adopted")
    result = adopt(IndexConfig(source=(str(tmp_path / "{0..2}.tar"),), output=output))
    dataset = Dataset.open(output, None, [str(tmp_path)])
    assert len(dataset) == result.samples == 30
    index = dataset.read_index(1)
    assert index.keys[0] == "0010"
    assert (index.widths[0], index.heights[0]) == (12, 10)
    data = (tmp_path / "1.tar").read_bytes()
    assert data[index.offsets[0] :][: index.sizes[0]] == jpeg(10)
    assert verify_dataset(output, [str(tmp_path)]) == []


def test_a_cut_at_any_place_before_the_end_mark_is_found(tmp_path: Path) -> None:
    data = Path(stock_tar(tmp_path / "whole.tar", range(4))).read_bytes()
    index_end = len(data.rstrip(b"\0"))
    end = -(-index_end // 512) * 512
    for cut in range(256, end + 512, 256):
        (tmp_path / "cut.tar").write_bytes(data[:cut])
        with pytest.raises(DatasetError):
            adopt_tar(str(tmp_path / "cut.tar"), "none")
    for whole in (end + 512, end + 1024):  # one block of zeros tells that no member lay behind
        (tmp_path / "cut.tar").write_bytes(data[:whole])
        assert adopt_tar(str(tmp_path / "cut.tar"), "none").record.samples == 4


def test_a_sample_that_is_no_image_does_not_count_and_is_listed(tmp_path: Path) -> None:
    stock_tar(tmp_path / "a.tar", range(5), bad=(2,))
    output = str(tmp_path / "adopted")
    result = adopt(IndexConfig(source=(str(tmp_path / "a.tar"),), output=output, verify="full"))
    assert (result.samples, result.rejected) == (4, 1)
    assert Dataset.open(output, None, [str(tmp_path)]).shards[0].removed == (2,)


def test_a_key_in_two_tars_is_refused(tmp_path: Path) -> None:
    stock_tar(tmp_path / "a.tar", range(5))
    stock_tar(tmp_path / "b.tar", range(4, 9))
    with pytest.raises(DatasetError, match="0004"):
        adopt(IndexConfig(source=(str(tmp_path),), output=str(tmp_path / "adopted")))


def test_what_another_index_committed_meanwhile_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (stock_tar(tmp_path / f"{n}.tar", range(n, n + 1)) for n in range(2))
    output = str(tmp_path / "dataset")
    indexed = adopt_tar

    def while_another_commits(url: Any, *how: Any) -> Any:
        with monkeypatch.context() as once:
            once.setattr("pipeline.packing.adopt.adopt_tar", indexed)
            adopt(IndexConfig(source=(first, second), output=output))
        return indexed(url, *how)

    monkeypatch.setattr("pipeline.packing.adopt.adopt_tar", while_another_commits)
    with pytest.raises(DatasetError, match=r"holds another dataset"):
        adopt(IndexConfig(source=(first,), output=output))
    assert Dataset.open(output, None, [str(tmp_path)]).manifest.samples == 2


def test_a_key_that_one_tar_holds_twice_is_the_one_that_is_named(tmp_path: Path) -> None:
    stock_tar(tmp_path / "a.tar", [1, 2, 3, 2])
    with pytest.raises(DatasetError, match=r"the key '0002' is there twice"):
        adopt(IndexConfig(source=(str(tmp_path),), output=str(tmp_path / "adopted")))


def test_samples_without_an_image_were_seen_and_rejected_until_they_are_mended(
    tmp_path: Path,
) -> None:
    with webdataset.TarWriter(str(tmp_path / "a.tar"), encoder=False) as writer:
        writer.write({"__key__": "whole", "jpg": jpeg(1)})
        for n in range(3):
            writer.write({"__key__": f"text{n}", "cls": b"1"})
    output = tmp_path / "adopted"
    result = adopt(IndexConfig(source=(str(tmp_path / "a.tar"),), output=str(output)))
    assert (result.seen, result.added, result.rejected) == (4, 1, 3)
    assert len((output / "rejects.jsonl").read_text().splitlines()) == 3


def test_what_readers_refuse_beside_an_image_is_a_reject_and_a_class_has_no_newline(
    tmp_path: Path,
) -> None:
    beside = {
        "a": {"json": b"{"}, "b": {"json": b"[1]"}, "c": {"txt": b"\xff"}, "d": {"cls": b"4\n"},
        "e": {"cls": b"4", "txt": b"two\n"}, "f": {"json": b'{"x": NaN}'},
    }  # fmt: skip
    with webdataset.TarWriter(str(tmp_path / "a.tar"), encoder=False) as writer:
        for number, (key, members) in enumerate(beside.items()):
            writer.write({"__key__": key, "jpg": jpeg(number), **members})
    output = str(tmp_path / "adopted")
    result = adopt(IndexConfig(source=(str(tmp_path),), output=output, verify="header"))
    assert (result.seen, result.samples, result.reasons) == (6, 3, {"annotation": 3})
    dataset = Dataset.open(output, None, [str(tmp_path)])
    stock = webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False)
    decoded = stock.decode(handler=webdataset.ignore_and_continue)
    theirs = {sample["__key__"]: sample for sample in decoded}
    assert [dataset[number].columns.get("label") for number in range(2)] == ["4", "4"]
    assert int(theirs["d"]["cls"]) == int(theirs["e"]["cls"]) == 4
    assert dataset[1].columns["caption"] == theirs["e"]["txt"]
    unlooked = adopt(IndexConfig(source=(str(tmp_path),), output=f"{output}2", verify="none"))
    assert unlooked.samples == 6


def test_braces_expand_with_their_zeros() -> None:
    assert expand_braces("s3://b/{08..10}.tar") == [f"s3://b/{n}.tar" for n in ("08", "09", "10")]


def test_what_stands_behind_the_last_sample_does_not_make_a_tar_look_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    stock_tar(path, range(3))
    with tarfile.open(path, "a") as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        tar.addfile(tarfile.TarInfo("README"))
    shard = adopt_tar(str(path), "full")
    assert shard.keys == ["0000", "0001", "0002"]


def test_tars_on_object_storage_are_adopted_where_they_lie(
    s3_server: rgw.S3Server, tmp_path: Path
) -> None:
    bucket = s3_server.bucket()
    for n in range(2):
        data = Path(stock_tar(tmp_path / "x.tar", range(n * 10, n * 10 + 10))).read_bytes()
        storage.publish(f"{bucket}/tars/{n}.tar", data)
    before = {info.url: info.etag for info in storage.list_objects(f"{bucket}/tars")}
    result = adopt(IndexConfig(source=(f"{bucket}/tars",), output=f"{bucket}/d"))
    assert (result.samples, result.shards) == (20, 2)
    assert {info.url: info.etag for info in storage.list_objects(f"{bucket}/tars")} == before
    assert verify_dataset(result.dataset, [bucket]) == []
    storage.publish(f"{bucket}/tars/1.tar", data.rstrip(b"\0"))
    assert any("cut short" in problem for problem in verify_dataset(result.dataset, [bucket]))
    left = adopt(IndexConfig(source=(f"{bucket}/tars",), output=f"{bucket}/e"))
    assert (left.samples, left.reasons) == (10, {"unreadable": 1})
    with pytest.raises(DatasetError, match=r"1\.tar.*cut short|1\.tar.*no end mark"):
        adopt(IndexConfig(source=(f"{bucket}/tars/1.tar",), output=f"{bucket}/f"))


def test_a_dataset_of_adopted_tars_grows_by_one_more_and_keeps_its_own(tmp_path: Path) -> None:
    tars = [stock_tar(tmp_path / f"{n}.tar", range(10 * n, 10 * n + 10)) for n in range(3)]
    output = str(tmp_path / "adopted")
    adopt(IndexConfig(source=tuple(tars[:2]), output=output))
    adopt(IndexConfig(source=tuple(tars), output=output))
    grown = Dataset.open(output, None, [str(tmp_path)])
    keys = [key for shard in range(3) for key in grown.read_index(shard).keys]
    assert keys == [f"{n:04d}" for n in range(30)]
