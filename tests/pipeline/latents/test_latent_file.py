import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pyarrow as pa
import pytest

from pipeline.latents.latent_file import (
    LatentFileWriter,
    file_digest,
    rows_of,
    schema_of,
)
from pipeline.storage.tables import parse_batch
from tests.support.small_store import LATENT_SHAPE, identity_of, small_vae

IDENTITY = identity_of(
    small_vae(), dtype="float16", columns=("label", "cls"), kinds=("string", "int64")
)
SCHEMA = schema_of(IDENTITY, LATENT_SHAPE)
GENERATOR = np.random.default_rng(0)
TENSORS = {
    n: GENERATOR.normal(size=(5, *LATENT_SHAPE)).astype(np.float16) for n in ("mean", "logvar")
}
KEYS = [f"k{n}" for n in range(5)]


@pytest.fixture
def written(tmp_path: Path) -> Any:
    """A file of record batches of 3, 0 and 2 rows."""
    with LatentFileWriter(tmp_path / "f.arrow", IDENTITY, LATENT_SHAPE) as writer:
        for first, last in ((0, 3), (3, 3), (3, 5)):
            part = slice(first, last)
            columns: dict[str, Sequence[Any]] = {
                "label": ["a", None, "ü", "d", "e"][part],
                "cls": [0, 1, None, 3, 4][part],
            }
            tensors = {name: values[part] for name, values in TENSORS.items()}
            writer.write(KEYS[part], range(10, 15)[part], tensors, columns)
    return writer


def test_plain_pyarrow_reads_keys_tensors_and_columns(written: Any) -> None:
    with pa.memory_map(str(written.path)) as file:
        table = pa.ipc.open_file(file).read_all()
    assert table.column("key").to_pylist() == KEYS
    assert table.column("label").to_pylist() == ["a", None, "ü", "d", "e"]
    assert table.column("cls").to_pylist() == [0, 1, None, 3, 4]
    assert json.loads(table.schema.field("mean").metadata[b"shape"]) == list(LATENT_SHAPE)
    found = table.column("mean").combine_chunks().flatten().to_numpy().reshape(5, *LATENT_SHAPE)
    np.testing.assert_array_equal(found, TENSORS["mean"])


def test_polars_reads_the_same_values(written: Any) -> None:
    frame = polars.read_ipc(written.path)
    assert frame["key"].to_list() == KEYS
    column = frame["logvar"]
    np.testing.assert_array_equal(
        np.array(column.to_list(), np.float16).reshape(5, *LATENT_SHAPE), TENSORS["logvar"]
    )


def test_each_place_is_one_record_batch_that_can_be_read_alone(written: Any) -> None:
    data = written.path.read_bytes()
    assert [place.rows for place in written.places] == [3, 0, 2]
    empty, last = written.places[1:]
    batch = parse_batch(data[empty.offset : empty.offset + empty.bytes], SCHEMA, "f")
    nothing = rows_of(batch, IDENTITY, LATENT_SHAPE, ("mean",))
    assert (len(nothing), nothing.keys) == (0, [])
    assert nothing.tensors["mean"].shape == (0, *LATENT_SHAPE)
    batch = parse_batch(data[last.offset : last.offset + last.bytes], SCHEMA, "f")
    rows = rows_of(batch, IDENTITY, LATENT_SHAPE, ("logvar",))
    assert rows.keys == KEYS[3:]
    assert rows.positions.tolist() == [13, 14]
    assert list(rows.tensors) == ["logvar"]
    np.testing.assert_array_equal(rows.tensors["logvar"], TENSORS["logvar"][3:])
    assert rows.columns == {"label": ["d", "e"], "cls": [3, 4]}
    some = rows.take(np.array([1]))
    assert (some.keys, some.columns) == (["k4"], {"label": ["e"], "cls": [4]})


def test_tensors_are_views_of_the_files_memory_and_not_copies(written: Any) -> None:
    with pa.memory_map(str(written.path)) as file:
        whole = file.read_buffer()
        place = written.places[0]
        batch = parse_batch(whole.slice(place.offset, place.bytes), SCHEMA, "f")
        values = rows_of(batch, IDENTITY, LATENT_SHAPE, ("mean",)).tensors["mean"]
        offset = values.__array_interface__["data"][0] - whole.address
        assert 0 < offset < whole.size


def test_the_same_rows_give_the_same_bytes(written: Any, tmp_path: Path) -> None:
    with LatentFileWriter(tmp_path / "again.arrow", IDENTITY, LATENT_SHAPE) as writer:
        for first, last in ((0, 3), (3, 3), (3, 5)):
            part = slice(first, last)
            columns: dict[str, Sequence[Any]] = {
                "label": ["a", None, "ü", "d", "e"][part],
                "cls": [0, 1, None, 3, 4][part],
            }
            tensors = {name: values[part].copy() for name, values in TENSORS.items()}
            writer.write(KEYS[part], range(10, 15)[part], tensors, columns)
    assert file_digest(writer.path) == file_digest(written.path)


def test_an_error_inside_leaves_a_file_that_nobody_takes_for_whole(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), LatentFileWriter(tmp_path / "f", IDENTITY, LATENT_SHAPE):
        raise RuntimeError
    with pytest.raises(pa.ArrowInvalid):
        pa.ipc.open_file(str(tmp_path / "f"))
