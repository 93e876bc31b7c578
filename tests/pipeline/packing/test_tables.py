"""Parquet and Arrow tables as sources, and tables that list inputs."""

import io
import json
import random
from contextlib import closing
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from pipeline import storage
from pipeline.data import Dataset, Loader
from pipeline.errors import DatasetError
from pipeline.packing.ledger import read_ledger, read_state
from pipeline.packing.pack import pack
from tests.pipeline.packing.test_odd_inputs import packed
from tests.pipeline.packing.test_pack import config, png, write

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def image_table(numbers: Any, **columns: Any) -> pa.Table:
    images = [{"bytes": png(n), "path": f"photo{n}.png"} for n in numbers]
    return pa.table({"image": pa.array(images, STRUCT), **columns})


def read(dataset: Dataset, *columns: str) -> dict[str, list[Any]]:
    """The columns of all samples, by key, as the loader gives them."""
    found = {}
    options: dict[str, Any] = {
        "global_batch_size": 4,
        "image_size": 8,
        "shuffle": False,
        "threads": 1,
    }
    with closing(Loader(dataset, **options, columns=columns)) as loader:
        for batch in loader:
            for at, key in enumerate(batch.keys):
                if key:
                    found[key] = [batch.columns[name][at] for name in columns]
    return found


def test_a_folder_of_the_datasets_library_packs_with_its_bytes_labels_and_captions(
    tmp_path: Path,
) -> None:
    datasets = pytest.importorskip("datasets")
    rng = random.Random(3)
    names = ["zebra", "ant", "cow"]
    rows: list[dict[str, Any]] = [
        {"image": png(n, (6, 5)), "label": rng.randrange(3), "caption": f"picture {n}"}
        for n in range(1000)
    ]
    features = datasets.Features(
        image=datasets.Image(),
        label=datasets.ClassLabel(names=names),
        caption=datasets.Value("string"),
    )
    made = datasets.Dataset.from_list(
        [row | {"image": {"bytes": row["image"], "path": None}} for row in rows], features=features
    )
    (tmp_path / "in").mkdir()
    for shard in range(3):
        name = f"train-{shard:05d}-of-00003.parquet"
        made.shard(3, shard, contiguous=True).to_parquet(tmp_path / "in" / name, batch_size=100)
    result = pack(config(str(tmp_path / "in"), tmp_path / "out", shard_bytes=200_000))
    assert (result.seen, result.samples, result.shards > 3) == (1000, 1000, True)
    found = packed(result)
    first = 0
    for shard in range(3):
        count = len(made.shard(3, shard, contiguous=True))
        for row in range(count):
            image, label = found[f"train-{shard:05d}-of-00003/{row:08d}"]
            assert image == rows[first + row]["image"]
            assert label == names[rows[first + row]["label"]]
        first += count
    captions = read(Dataset.open(result.dataset), "caption")
    assert sorted(value for (value,) in captions.values()) == sorted(r["caption"] for r in rows)


@pytest.mark.parametrize("form", ["parquet", "file", "stream"])
@pytest.mark.parametrize("column", ["struct", "bytes"])
def test_images_in_parquet_and_arrow_go_in_with_every_other_column(
    tmp_path: Path, form: Any, column: Any
) -> None:
    table = image_table(
        range(6), n=pa.array(range(6)), score=pa.array([n / 2 for n in range(6)]),
        tags=pa.array([["a"] * n for n in range(6)]),
        text=pa.array([["x", str(n)] for n in range(6)]),
        embedding=pa.array([[n, n + 0.5] for n in range(6)], pa.list_(pa.float32(), 2)),
        label=pa.array(["00", "1.10"] * 3), mask=pa.array([b"no image"] * 6),
    )  # fmt: skip
    if column == "bytes":
        table = table.set_column(0, "image", pa.array([png(n) for n in range(6)]))
    name = tmp_path / ("t.parquet" if form == "parquet" else "t.arrow")
    if form == "parquet":
        parquet.write_table(table, name, row_group_size=4)
    else:
        make = pa.ipc.new_file if form == "file" else pa.ipc.new_stream
        with pa.OSFile(str(name), "wb") as sink, make(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=4)
    result = pack(config(str(name), tmp_path / "out"))
    assert packed(result) == {f"t/{n:08d}": (png(n), ["00", "1.10"][n % 2]) for n in range(6)}
    names = ("n", "score", "tags", "caption", "embedding")
    found = read(Dataset.open(result.dataset), *names)
    assert found == {
        f"t/{n:08d}": [n, n / 2, ["a"] * n, ["x", str(n)], [n, n + 0.5]] for n in range(6)
    }
    assert all(isinstance(row[0], int) and isinstance(row[1], float) for row in found.values())


def test_a_column_that_no_sample_has_is_an_error_that_names_those_there(tmp_path: Path) -> None:
    result = pack(config(write(tmp_path / "in", {"a/1.png": png(1)}), tmp_path / "out"))
    with pytest.raises(DatasetError, match=r"no sample has the column 'lable'.*label, path"):
        read(Dataset.open(result.dataset), "lable")


def test_of_two_columns_of_images_one_must_be_named(tmp_path: Path) -> None:
    table = image_table(range(3)).append_column("depth", image_table(range(10, 13))["image"])
    parquet.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(DatasetError, match=r"image, depth.*--image-column"):
        pack(config(str(tmp_path / "t.parquet"), tmp_path / "out"))
    result = pack(config(str(tmp_path / "t.parquet"), tmp_path / "out", image_column="depth"))
    assert [image for image, _ in packed(result).values()].count(png(10)) == 1


def test_rows_without_bytes_and_broken_ones_are_rejected_and_counted(tmp_path: Path) -> None:
    images = [{"bytes": png(1), "path": None}, {"bytes": None, "path": "gone.png"}, None,
              {"bytes": b"no image", "path": None}]  # fmt: skip
    parquet.write_table(pa.table({"image": pa.array(images, STRUCT)}), tmp_path / "t.parquet")
    result = pack(config(str(tmp_path / "t.parquet"), tmp_path / "out"))
    assert (result.samples, result.reasons) == (1, {"missing": 2, "not-an-image": 1})


def test_tables_without_images_are_no_inputs_and_a_cut_one_is_a_reject(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", {"a.png": png(1)})
    parquet.write_table(pa.table({"x": [1]}), tmp_path / "in/t.parquet")
    result = pack(config(folder, tmp_path / "out"))
    assert (result.seen, result.counts.others) == (1, {".parquet": 1})
    data = (tmp_path / "in/t.parquet").read_bytes()
    (tmp_path / "in/u.parquet").write_bytes(data[:-4])
    result = pack(config(folder, tmp_path / "again"))
    assert (result.samples, result.reasons) == (1, {"unreadable": 1})
    with pytest.raises(DatasetError, match=r"u\.parquet: can't be read"):
        pack(config(str(tmp_path / "in/u.parquet"), tmp_path / "alone"))


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_a_table_of_paths_is_the_list_of_inputs(tmp_path: Path, suffix: Any) -> None:
    write(tmp_path / "data", {"a/1.png": png(1), "b/2.png": png(2), "c.png": png(3)})
    write(tmp_path / "else", {"4.png": png(4)})
    rows = [
        {"path": "a/1.png", "label": "00", "caption": "one"}, {"path": "./b/2.png", "label": "x"},
        {"path": "gone.png", "label": "y"}, {"path": "../else/4.png", "label": "z"},
        {"path": "/etc/passwd", "label": "w"}, {"path": str(tmp_path / "data/c.png"), "label": "v"},
    ]  # fmt: skip
    table = tmp_path / f"data/list.{suffix}"
    names = ("path", "label", "caption")
    if suffix == "parquet":
        parquet.write_table(
            pa.Table.from_pylist([{n: r.get(n) for n in names} for r in rows]), table
        )
    elif suffix == "jsonl":
        table.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    else:
        sign = "," if suffix == "csv" else "\t"
        lines = [sign.join(row.get(name, "") for name in names) for row in rows]
        table.write_text("\n".join([sign.join(names), *lines]))
    result = pack(config(str(table), tmp_path / "out"))
    assert packed(result) == {
        "a/1.png": (png(1), "00"),
        "b/2.png": (png(2), "x"),
        "c.png": (png(3), "v"),
    }
    assert (result.seen, result.reasons) == (6, {"missing": 1, "outside": 2})
    wider = pack(config(str(table), tmp_path / "wide", below=(str(tmp_path / "else"),)))
    assert wider.reasons == {"missing": 1, "outside": 1}


def test_thirty_nightly_appends_of_tables_tars_and_folders_equal_one_pack(tmp_path: Path) -> None:
    from tests.pipeline.packing.test_odd_inputs import file, tar

    rng, members = random.Random(1), []
    rows: list[int] = []
    sources = [str(tmp_path / "in")]
    options = {"holdout": 0.3, "shard_bytes": 20_000}
    for night in range(30):
        write(tmp_path / "in", {f"f{night % 3}/{night}.png": png(night)})
        write(tmp_path / "in", {f"bad{night}.png": b"no image"} if night % 7 == 0 else {})
        members.append(file(f"m{night}.png", png(100 + night)))
        if night % 5 == 4:  # what was packed before is another image now
            write(tmp_path / "in", {"f0/0.png": png(1000 + night)})
            members[1] = file("m1.png", png(1100 + night))
            rows[2] = 1200 + night
        (tmp_path / "in/t.tar").write_bytes(tar(*members))
        rows.append(200 + night)
        table = image_table(
            rows, label=pa.array([str(n % 4) for n in rows]), n=pa.array(rows),
            caption=pa.array([f"no {n}" for n in rows]),
        )  # fmt: skip
        parquet.write_table(table, tmp_path / "in/p.parquet", row_group_size=7)
        if rng.random() < 0.2:
            continue
        grown = pack(config(sources, tmp_path / "grown", append=True, **options))
    grown = pack(config(sources, tmp_path / "grown", append=True, **options))
    once = pack(config(sources, tmp_path / "once", **options))
    assert grown.generation > 15
    assert grown.counts == once.counts
    assert grown.found == once.found
    for one, other in ((grown.dataset, once.dataset), (grown.holdout, once.holdout)):
        assert one
        assert other
        both = [Dataset.open(url) for url in (one, other)]
        assert read(both[0], "path", "label", "caption", "n") == read(
            both[1], "path", "label", "caption", "n"
        )
        assert sorted(both[0].keys()) == sorted(both[1].keys())
    assert packed(grown) == packed(once)
    outputs = [str(tmp_path / name) for name in ("grown", "once")]
    ledgers = [read_ledger(output, read_state(output)) for output in outputs]
    kept = attrgetter("path", "key", "split", "status", "reason", "sha256", "label")
    assert sorted(map(kept, ledgers[0].values())) == sorted(map(kept, ledgers[1].values()))
    assert (once.samples + once.holdout_samples, once.rejected) == (90, 5)


def test_a_table_of_images_of_any_format_keeps_their_bytes(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(buffer, "TIFF")
    images = pa.array([{"bytes": buffer.getvalue(), "path": "x"}], STRUCT)
    parquet.write_table(pa.table({"image": images}), tmp_path / "t.parquet")
    result = pack(config(str(tmp_path / "t.parquet"), tmp_path / "out"))
    assert [image for image, _ in packed(result).values()] == [buffer.getvalue()]
    assert storage.exists(f"{result.dataset}/manifest.json")


def test_a_table_that_names_some_of_the_images_tells_of_those(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for n in range(2):
        (folder / f"{n}.png").write_bytes(png(n, (6, 5)))
    (tmp_path / "t.csv").write_text("path,label\n1.png,cat\n")
    asked = config(str(folder), tmp_path / "out", annotations=str(tmp_path / "t.csv"))
    result = pack(asked.model_copy(update={"unmatched": 0.5}))
    found = read(Dataset.open(result.dataset), "label")
    assert found == {"0%2Epng": [None], "1%2Epng": ["cat"]}
