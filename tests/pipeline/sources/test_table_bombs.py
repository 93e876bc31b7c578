"""A table that is small on disk and unpacks to more than memory holds is refused by its footer."""

import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import feather, parquet

from pipeline.config import PackConfig
from pipeline.errors import DatasetError
from pipeline.packing.pack import pack
from pipeline.sources import table_rows
from pipeline.sources.annotations import read_annotations
from pipeline.sources.table_rows import arrow_batches, open_parquet
from pipeline.storage import tables

ZEROS = pa.table({"path": ["a.png"] * 2**17, "zeros": np.zeros(2**17, np.int64)})
ZSTD = b"\x28\xb5\x2f\xfd"
COMPRESSED = pa.ipc.IpcWriteOptions(compression="lz4")


def write_stream(path: Path) -> None:
    with (
        pa.OSFile(str(path), "wb") as sink,
        pa.ipc.new_stream(sink, ZEROS.schema, options=COMPRESSED) as writer,
    ):
        writer.write_table(ZEROS)


@pytest.mark.parametrize("form", ["zstd", "lz4", "stream"])
def test_a_compressed_arrow_table_may_unpack_to_so_much_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    path = tmp_path / "t.feather"
    if form == "stream":
        write_stream(path)
    else:
        feather.write_feather(ZEROS, path, compression=form)
    assert sum(batch.num_rows for _, batch in arrow_batches(str(path))) == 2**17
    monkeypatch.setattr(tables, "UNPACKED_BYTES", 2**20)
    with pytest.raises(DatasetError, match="a record batch unpacks to"):
        list(read_annotations(str(path)))


def test_what_a_buffer_claims_is_enough_to_refuse_it(tmp_path: Path) -> None:
    path = tmp_path / "t.feather"
    image = b"\x89PNG\r\n\x1a\n" + bytes(5000)
    feather.write_feather(pa.table({"image": [image]}), path, compression="zstd")
    data = bytearray(path.read_bytes())
    at = data.find(struct.pack("<q", len(image)) + ZSTD)
    data[at : at + 8] = struct.pack("<q", 2**40)
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=r"unpacks to 1,024\.0 GiB, over 2"):
        pack(PackConfig(source=(str(path),), output=str(tmp_path / "out"), workers=1))
    assert not (tmp_path / "out").exists()


def test_a_dictionary_that_unpacks_is_seen_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.feather"
    words = pa.DictionaryArray.from_arrays(pa.array([0, 0]), pa.array(["a" * 2**20]))
    feather.write_feather(pa.table({"path": words}), path, compression="zstd")
    monkeypatch.setattr(tables, "UNPACKED_BYTES", 2**19)
    with pytest.raises(DatasetError, match="unpacks to"):
        list(read_annotations(str(path)))


def test_a_parquet_column_that_packs_as_no_images_do_is_refused_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.parquet"
    parquet.write_table(ZEROS, path, compression="zstd", use_dictionary=["path"])
    with open_parquet(str(path)) as file:
        assert file.metadata.num_rows == 2**17
    monkeypatch.setattr(table_rows, "_BOMB_BYTES", 2**19)
    with pytest.raises(DatasetError, match=r"the column zeros of its row group 0 unpacks from"):
        list(read_annotations(str(path)))


def test_the_same_word_in_every_row_is_no_bomb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_rows, "_BOMB_BYTES", 2**19)
    path = tmp_path / "t.parquet"
    parquet.write_table(pa.table({"path": ["a" * 30] * 2**17}), path)
    with open_parquet(str(path)) as file:
        assert file.metadata.num_rows == 2**17
