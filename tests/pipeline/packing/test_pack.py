import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from pipeline import storage
from pipeline.config import PackConfig
from pipeline.data.dataset import Dataset
from pipeline.errors import DatasetError, StorageError
from pipeline.packing.cost import probe
from pipeline.packing.pack import pack


def png(seed: int, size: tuple[int, int] = (9, 7)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write(folder: Any, images: dict[str, bytes]) -> str:
    for name, data in images.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return str(folder)


def config(source: Any, output: Any, **options: Any) -> PackConfig:
    return PackConfig(
        source=tuple(source) if isinstance(source, list) else (source,), output=str(output),
        **{"shard_bytes": 20_000, "workers": 1, **options},
    )  # fmt: skip


def contents(url: str) -> dict[str, tuple[bytes, dict[str, Any], bytes | None]]:
    """Image, json and cls by key, read by Python's tarfile; removed positions left out."""
    dataset = Dataset.open(url)
    found = {}
    for number, record in enumerate(dataset.shards):
        keys = dataset.read_index(number).keys
        members = {}
        with tarfile.open(storage.local_path(dataset.shard_url(record))) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                members[member.name] = file.read()
        for position, key in enumerate(keys):
            if position not in record.removed:
                assert key not in found
                image = next(members[f"{key}.{e}"] for e in ("png", "jpg", "webp")
                             if f"{key}.{e}" in members)  # fmt: skip
                found[key] = (image, json.loads(members[f"{key}.json"]), members.get(f"{key}.cls"))
    return found


def test_every_image_is_packed_with_its_label_and_its_path(tmp_path: Path) -> None:
    images = {f"{label}/{n}.png": png(n) for n, label in enumerate(["7", "7", "3", "0"])}
    result = pack(config(write(tmp_path / "in", images), tmp_path / "out"))
    found = contents(result.dataset)
    assert {meta["path"]: image for image, meta, _ in found.values()} == images
    assert found["3/2%2Epng"][1]["label"] == "3"
    assert found["3/2%2Epng"][2] == b"3"


def test_stock_webdataset_reads_the_shards(tmp_path: Path) -> None:
    images = {f"cats/{n}.png": png(n) for n in range(40)}
    result = pack(config(write(tmp_path / "in", images), tmp_path / "out"))
    dataset = Dataset.open(result.dataset)
    assert len(dataset.shards) > 1
    urls = [dataset.shard_url(shard) for shard in dataset.shards]
    stock = webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8")
    seen = {sample["__key__"]: sample for sample in stock}
    assert len(seen) == 40
    assert seen["cats/5%2Epng"]["cls"] == 0
    assert np.array_equal(seen["cats/5%2Epng"]["png"], np.asarray(Image.open(io.BytesIO(png(5)))))


def test_the_same_input_gives_the_same_bytes_with_any_number_of_workers(tmp_path: Path) -> None:
    source = write(tmp_path / "in", {f"{n}.png": png(n) for n in range(60)})
    results = [
        pack(config(source, tmp_path / f"out{workers}", workers=workers)) for workers in (1, 3)
    ]
    assert results[0].digest == results[1].digest
    assert results[0].shards > 2


def test_processes_make_the_same_bytes_as_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "in", {f"{n}.png": png(n) for n in range(60)})
    threads = pack(config(source, tmp_path / "out"))
    monkeypatch.setattr("pipeline.packing.workers._WORTH_PROCESSES", 0)
    monkeypatch.setattr("pipeline.packing.workers._THREADS_SUFFICE", 1)
    assert pack(config(source, tmp_path / "again", workers=2)).digest == threads.digest


def test_packing_again_changes_no_byte_and_is_no_error(tmp_path: Path) -> None:
    source = write(tmp_path / "in", {f"{n}.png": png(n) for n in range(5)})
    first = pack(config(source, tmp_path / "out"))
    before = {info.url: info.etag for info in storage.list_objects(str(tmp_path / "out"))}
    (tmp_path / "in/0.png").touch()
    assert pack(config(source, tmp_path / "out")).digest == first.digest
    assert {i.url: i.etag for i in storage.list_objects(str(tmp_path / "out"))} == before


def test_other_inputs_into_a_dataset_without_append_are_refused(tmp_path: Path) -> None:
    pack(config(write(tmp_path / "a", {"0.png": png(0)}), tmp_path / "out"))
    other = write(tmp_path / "b", {"1.png": png(1)})
    with pytest.raises(DatasetError, match="--append"):
        pack(config(other, tmp_path / "out"))


def test_what_is_no_image_is_listed_with_its_reason(tmp_path: Path) -> None:
    images = {"good.png": png(0), "text.jpg": b"not an image", "cut.png": png(1)[:-30]}
    result = pack(config(write(tmp_path / "in", images), tmp_path / "out"))
    assert (result.samples, result.rejected) == (1, 2)
    assert result.rejects_url
    lines = [json.loads(line) for line in storage.read(result.rejects_url).splitlines()]
    assert {line["path"]: line["reason"] for line in lines} == {
        "text.jpg": "not-an-image", "cut.png": "truncated",
    }  # fmt: skip


def test_sources_of_which_nothing_is_an_image_are_an_error(tmp_path: Path) -> None:
    source = write(tmp_path / "in", {"text.jpg": b"not an image"})
    with pytest.raises(DatasetError, match="none of the 1 inputs"):
        pack(config(source, tmp_path / "out"))
    assert not (tmp_path / "out/manifest.json").exists()


def test_copies_of_an_image_fall_on_the_same_side_of_the_holdout(tmp_path: Path) -> None:
    images = {f"{copy}/{n}.png": png(n) for n in range(60) for copy in "ab"}
    result = pack(config(write(tmp_path / "in", images), tmp_path / "out", holdout=0.3))
    assert result.holdout
    train, held = contents(result.dataset), contents(result.holdout)
    assert len(train) + len(held) == 120
    assert not {image for image, *_ in train.values()} & {image for image, *_ in held.values()}
    assert 10 < len(held) < 70, "0.3 of 60 distinct images in two copies is 36"


def test_folder_tar_zip_and_glob_are_packed_together(tmp_path: Path) -> None:
    write(tmp_path / "folder", {"f.png": png(0)})
    write(tmp_path / "globbed", {"g.png": png(1), "h.txt": b""})
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        info = tarfile.TarInfo("../up/t.png")
        info.size = len(png(2))
        tar.addfile(info, io.BytesIO(png(2)))
    with zipfile.ZipFile(tmp_path / "z.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("/etc/z.png", png(3))
    sources = [str(tmp_path / name) for name in ("folder", "globbed/*.png", "t.tar", "z.zip")]
    found = contents(pack(config(sources, tmp_path / "out")).dataset)
    assert {key: image for key, (image, *_) in found.items()} == {
        "f%2Epng": png(0), "g%2Epng": png(1), "%2E%2E/up/t%2Epng": png(2), "etc/z%2Epng": png(3),
    }  # fmt: skip


def test_a_zip_member_that_unpacks_to_more_than_it_says_is_rejected(tmp_path: Path) -> None:
    write(tmp_path / "in", {"ok.png": png(0)})
    path = tmp_path / "in/bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", bytes(5_000_000))
    data = path.read_bytes().replace((5_000_000).to_bytes(4, "little"), (100).to_bytes(4, "little"))
    path.write_bytes(data)
    result = pack(config(str(tmp_path / "in"), tmp_path / "out"))
    assert result.reasons == {"archive": 1}


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_labels_and_captions_come_from_a_table(tmp_path: Path, suffix: str) -> None:
    import pyarrow as pa
    from pyarrow import csv, parquet

    source = write(tmp_path / "in", {f"{n}.png": png(n) for n in range(3)})
    rows = [{"file": f"{n}.png", "label": "ab"[n % 2], "caption": f"image {n}"} for n in range(3)]
    table = str(tmp_path / f"labels.{suffix}")
    if suffix == "jsonl":
        storage.publish(table, "\n".join(map(json.dumps, rows)).encode())
    elif suffix == "csv":
        csv.write_csv(pa.Table.from_pylist(rows), table)
    else:
        parquet.write_table(pa.Table.from_pylist(rows), table)
    found = contents(pack(config(source, tmp_path / "out", annotations=table)).dataset)
    assert {meta["path"]: meta["label"] for _, meta, _ in found.values()} == {
        "0.png": "a", "1.png": "b", "2.png": "a",
    }  # fmt: skip
    assert found["1%2Epng"][1]["caption"] == "image 1"
    assert found["1%2Epng"][2] == b"1"


def test_a_table_that_meets_no_image_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    source = write(tmp_path / "in", {"0.png": png(0)})
    storage.publish(str(tmp_path / "t.csv"), b"file,label\nother.png,a\n")
    with pytest.raises(DatasetError, match="none of its 1 rows names an image"):
        pack(config(source, tmp_path / "out", annotations=str(tmp_path / "t.csv")))
    assert not (tmp_path / "out").exists()


def test_reencoding_keeps_the_shape_and_the_short_side(tmp_path: Path) -> None:
    source = write(tmp_path / "in", {"a.png": png(0, (100, 50)), "b.png": png(1, (20, 30))})
    options = {"encoding": "jpeg", "short_side": 25, "shard_bytes": 10**6}
    dataset = Dataset.open(pack(config(source, tmp_path / "out", **options)).dataset)
    index = dataset.read_index(0)
    sizes = dict(zip(index.keys, zip(index.widths, index.heights, strict=True), strict=True))
    assert sizes == {"a%2Epng": (50, 25), "b%2Epng": (20, 30)}
    assert index.extensions == ["jpg", "jpg"]


def test_a_killed_pack_goes_on_with_its_plan_and_ends_as_if_it_never_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "in", {f"{n}.png": png(n) for n in range(60)})
    whole = pack(config(source, tmp_path / "whole"))
    real, calls = storage.publish, []

    def dies(url: Any, data: Any) -> None:
        calls.append(url)
        if len(calls) == 5:
            raise KeyboardInterrupt
        real(url, data)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "publish", dies)
        with pytest.raises(KeyboardInterrupt):
            pack(config(source, tmp_path / "out"))
    assert not (tmp_path / "out/manifest.json").exists()
    write(tmp_path / "in", {"late.png": png(99)})
    assert pack(config(source, tmp_path / "out")).digest == whole.digest
    assert pack(config(source, tmp_path / "out", append=True)).samples == 61


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("pack.json", b'{"format": "vae-pipeline/pack", "version": 1}'),
        ("ledger/000001-*.arrow", b"half of it"),
        ("plans/000002.json", b"{}"),
        ("plans/000002/*.arrow", b""),
        ("plans/000002/000000-*.json", b"{}"),
    ],
)
def test_what_packing_remembers_is_named_when_it_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, damage: bytes
) -> None:
    source, output = write(tmp_path / "in", {"a.png": png(0)}), tmp_path / "out"
    pack(config(source, output))
    write(tmp_path / "in", {"b.png": png(1)})
    monkeypatch.setattr("pipeline.packing.pack.commit_generation", killed)
    with pytest.raises(KeyboardInterrupt):
        pack(config(source, output, append=True))
    (path,) = output.glob(name)
    path.write_bytes(damage)
    with pytest.raises(DatasetError, match=str(path)):
        pack(config(source, output, append=True))


def killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_an_append_does_not_touch_what_a_run_has_open(tmp_path: Path) -> None:
    source = write(tmp_path / "in", {"a.png": png(0)})
    opened = Dataset.open(pack(config(source, tmp_path / "out")).dataset)
    write(tmp_path / "in", {"a.png": png(1), "b.png": png(2)})
    result = pack(config(source, tmp_path / "out", append=True))
    assert result.generation == 2
    assert Dataset.open(result.dataset).manifest.parent == opened.digest
    data = storage.read(opened.shard_url(opened.shards[0]))
    assert png(0) in data
    assert len(opened) == 1


def test_files_that_differ_by_their_suffix_alone_all_go_in_in_whichever_generation(
    tmp_path: Path,
) -> None:
    source = write(tmp_path / "in", {"a.png": png(0), "a": png(2)})
    pack(config(source, tmp_path / "grown"))
    write(tmp_path / "in", {"a.jpg": png(1), "a.PNG": png(3)})
    once = contents(pack(config(source, tmp_path / "once")).dataset)
    added = contents(pack(config(source, tmp_path / "grown", append=True)).dataset)
    assert {meta["path"]: image for image, meta, _ in once.values()} == {
        "a.png": png(0), "a.jpg": png(1), "a": png(2), "a.PNG": png(3),
    }  # fmt: skip
    assert {key: image for key, (image, *_) in added.items()} == {
        key: image for key, (image, *_) in once.items()
    }


def test_two_sources_that_give_one_path_are_an_error_that_names_both(tmp_path: Path) -> None:
    sources = [write(tmp_path / name, {"a.png": png(0)}) for name in ("one", "two")]
    with pytest.raises(DatasetError, match=r"one/a\.png and .*two/a\.png"):
        pack(config(sources, tmp_path / "out"))


def test_a_file_that_lies_in_two_sources_is_refused_and_not_packed_twice(tmp_path: Path) -> None:
    source = write(tmp_path / "in", {"a/1.png": png(1), "b/2.png": png(2)})
    words = r"1\.png: lies in two of the sources.*'a/1.png' and as '1.png'"
    with pytest.raises(DatasetError, match=words):
        pack(config([source, f"{source}/a"], tmp_path / "out"))
    assert pack(config([source, source], tmp_path / "out")).samples == 2


def test_a_glob_that_takes_in_its_own_output_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"a/1.png": png(1)})
    with pytest.raises(DatasetError, match="lies inside the source"):
        pack(config(f"{tmp_path}/*", tmp_path / "out"))


def test_an_output_below_a_file_says_so(tmp_path: Path) -> None:
    source = write(tmp_path / "in", {"1.png": png(1)})
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file is a file.*`--output URL`"):
        pack(config(source, tmp_path / "file" / "out"))


def test_a_dry_run_counts_and_writes_nothing(tmp_path: Path) -> None:
    source = write(tmp_path / "in", {f"{n}.png": png(n) for n in range(6)})
    estimate = probe(config(source, tmp_path / "out"))
    assert estimate.images == 6
    assert estimate.bytes == sum(len(png(n)) for n in range(6))
    assert not (tmp_path / "out").exists()


def test_packing_again_after_a_file_was_deleted_is_refused_with_the_number_of_its_keys(
    tmp_path: Path,
) -> None:
    source = write(tmp_path / "in", {f"{n}.png": png(n) for n in range(3)})
    first = pack(config(source, tmp_path / "out"))
    (tmp_path / "in/1.png").unlink()
    with pytest.raises(
        DatasetError, match=r"changed: 0 files; of its own not among them: 1 key; .*1%2Epng"
    ):
        pack(config(source, tmp_path / "out"))
    assert len(contents(first.dataset)) == 3
