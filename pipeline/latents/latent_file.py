"""One part's latents as one Arrow IPC file that plain pyarrow, polars and datasets open.

Columns: `key`, `position` (in the source shard), then tensors as lists of Z h w numbers (their
field's metadata has the shape), then the source's own columns. Rows come in source order; record
batch i holds what is left of the held positions of ranks [i B, (i + 1) B) when failed samples are
gone, so a row is found by arithmetic and one ranged read.
"""

import functools
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from pipeline.data.column_types import arrow_array, arrow_type, vector_size
from pipeline.data.manifest import Count
from pipeline.int8 import restored
from pipeline.json_value import JsonValue
from pipeline.latents.identity import EncodeOptions, Identity
from pipeline.masking import printable

Array = npt.NDArray[Any]
Column: TypeAlias = "list[JsonValue] | Array"
"""Of n samples: n values as Python has them, or vectors [n, N]."""

_ARROW_TYPES = {"float16": pa.float16(), "float32": pa.float32(), "int8": pa.int8()}
SCALE = "_scale"
"""Ending of the column that says what a tensor's eight bits stand for: see `pipeline.int8`."""


class RecordBatchPlace(NamedTuple):
    """Where a record batch lies in its file: byte offset, length, its rows, and its XXH3."""

    offset: Count
    bytes: Count
    rows: Count
    xxh3: str
    """`record_digest` of its bytes."""


@dataclass(frozen=True)
class LatentRows:
    """Rows of a latent file: `tensors` [n, Z, h, w] by column, `record` with the rest as well.

    Arrays are views of the file's memory where that is local; text is decoded when asked for.
    """

    record: pa.RecordBatch
    tensors: dict[str, Array]
    kinds: dict[str, str]
    """The source's own columns, each with its kind."""

    def __len__(self) -> int:
        return int(self.record.num_rows)

    def __repr__(self) -> str:
        tensors = [f"{name} {shown(values)}" for name, values in self.tensors.items()]
        return f"LatentRows of {len(self):,} latents: {', '.join([*tensors, *self.kinds])}"

    @functools.cached_property
    def keys(self) -> list[str]:
        """The samples' keys."""
        return list(self.record.column("key").to_pylist())

    @property
    def positions(self) -> npt.NDArray[np.int32]:
        """Where each sample stands in its source shard, ascending."""
        found: npt.NDArray[np.int32] = self.record.column("position").to_numpy()
        return found

    @functools.cached_property
    def columns(self) -> dict[str, Column]:
        """The source's own columns, as `column_values` gives them."""
        found = self.kinds.items()
        return {name: column_values(self.record.column(name), kind) for name, kind in found}

    def take(self, rows: npt.NDArray[np.int64]) -> "LatentRows":
        """A copy of some rows."""
        tensors = {name: values[rows] for name, values in self.tensors.items()}
        scales = [n + SCALE for n in self.tensors if n + SCALE in self.record.schema.names]
        names = ["key", "position", *self.tensors, *scales, *self.kinds]
        rest = self.record.select(names)
        return LatentRows(rest.take(pa.array(rows)), tensors, self.kinds)


@dataclass(frozen=True, eq=False)
class Latent:
    """One image's latents: each tensor [Z, h, w] in the store's type, and the copied columns.

    A column of vectors gives one, [N].
    """

    key: str
    tensors: dict[str, Array]
    columns: "dict[str, JsonValue | Array]"

    def __eq__(self, other: object) -> bool:
        """Whether key, tensors and columns are the same, each number too."""
        if not isinstance(other, Latent):
            return NotImplemented
        mine, theirs = ({**each.tensors, **each.columns} for each in (self, other))
        return (
            self.key == other.key
            and mine.keys() == theirs.keys()
            and all(_is_same(value, theirs[name]) for name, value in mine.items())
        )

    __hash__ = None  # type: ignore[assignment]  # Its arrays may be written to.

    def __repr__(self) -> str:
        tensors = [f"{name} {shown(values)}" for name, values in self.tensors.items()]
        return printable(f"Latent {self.key}: {', '.join([*tensors, *self.columns])}")


def _is_same(one: object, other: object) -> bool:
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return np.array_equal(np.asarray(one), np.asarray(other))
    return one == other


def shown(values: Array) -> str:
    """An array's type and shape, as a line about it has them."""
    return f"{values.dtype} {list(values.shape)}"


def column_values(values: pa.Array, kind: str) -> Column:
    """One column: a list of what Python has; vectors [n, N], NaN where there is none."""
    size = vector_size(kind)
    if size is None:
        return list(values.to_pylist())
    found = values.values.to_numpy(zero_copy_only=False).reshape(len(values), size)
    missing = values.is_null().to_numpy(zero_copy_only=False)
    return np.where(missing[:, None], np.nan, found) if missing.any() else found


def schema_of(identity: Identity, shape: tuple[int, int, int]) -> pa.Schema:
    """The schema of every latent file of this identity with latents of this shape."""
    options = identity.options
    # Lists and no extension type: `datasets` refuses files with a type that it does not know.
    item = pa.field("item", _ARROW_TYPES[options.dtype], False)
    tensor, said = pa.list_(item, math.prod(shape)), {"shape": json.dumps(shape)}
    fields = [pa.field("key", pa.string(), False), pa.field("position", pa.int32(), False)]
    fields += [pa.field(name, tensor, False, said) for name in options.tensors]
    if options.dtype == "int8":
        scale = pa.list_(pa.field("item", pa.float32(), False), 2 * shape[0])
        fields += [pa.field(name + SCALE, scale, False) for name in options.tensors]
    fields += [
        pa.field(name, arrow_type(kind), True) for name, kind in options.column_kinds.items()
    ]
    return pa.schema(fields, metadata={"identity": identity.digest})


@dataclass
class LatentFileWriter:
    """Writes record batches to a local file as they come; memory stays at one batch."""

    path: Path
    identity: Identity
    shape: tuple[int, int, int]
    places: list[RecordBatchPlace] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._schema = schema_of(self.identity, self.shape)
        self._file = pa.OSFile(str(self.path), "wb")
        self._writer = pa.ipc.new_file(self._file, self._schema)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._writer.close()
        finally:
            self._file.close()

    def write(
        self,
        keys: Sequence[str],
        positions: Sequence[int],
        tensors: Mapping[str, Array],
        columns: Mapping[str, Sequence[Any]],
    ) -> None:
        """Appends one record batch; tensors are [rows, Z, h, w] of the store's type.

        Of eight bits their scales come too, [rows, 2, Z], as NAME_scale.
        """
        arrays: list[pa.Array] = [
            pa.array(keys, pa.string()),
            pa.array(np.asarray(positions, dtype=np.int32)),
        ]
        arrays += [
            _tensor_array(self._schema.field(name).type, tensors[name])
            for name in stored_columns(self.identity.options)
        ]
        arrays += [
            arrow_array(list(columns[name]), kind)
            for name, kind in self.identity.options.column_kinds.items()
        ]
        self.write_record(pa.record_batch(arrays, schema=self._schema))

    def write_record(self, batch: pa.RecordBatch) -> None:
        """Appends a record batch of this file's schema as it is."""
        self._writer.write_batch(batch)
        # Counted from the end: the first call writes the schema before the batch.
        size = pa.ipc.get_record_batch_size(batch)
        digest = record_digest(batch.serialize())
        place = RecordBatchPlace(self._file.tell() - size, size, batch.num_rows, digest)
        self.places.append(place)


def stored_columns(options: EncodeOptions) -> tuple[str, ...]:
    """The columns of a file that tensors make up, in its order."""
    scales = tuple(name + SCALE for name in options.tensors) if options.dtype == "int8" else ()
    return options.tensors + scales


def record_digest(data: Any) -> str:
    """16 hexadecimal digits that readers compare once: XXH3-64, 34 GB/s where CRC-32 has 7."""
    return xxhash.xxh3_64_hexdigest(data)


def _tensor_array(kind: pa.FixedSizeListType, values: Array) -> pa.FixedSizeListArray:
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, type=kind)


def rows_of(
    batch: pa.RecordBatch, identity: Identity, shape: tuple[int, int, int], names: Sequence[str]
) -> LatentRows:
    """A record batch as numpy views: the tensors in `names` only."""
    wanted, dtype = (batch.num_rows, *shape), np.dtype(identity.options.dtype)
    tensors = {}
    for name in names:
        tensors[name] = stored_values(batch, name, dtype).reshape(wanted)
        if dtype == np.int8:
            scales = stored_values(batch, name + SCALE, np.dtype(np.float32))
            tensors[name] = restored(tensors[name], scales.reshape(len(batch), 2, shape[0]))
    return LatentRows(batch, tensors, identity.options.column_kinds)


def stored_values(batch: pa.RecordBatch, name: str, dtype: np.dtype[Any]) -> Array:
    """All numbers of a column of lists, as a view.

    Past Arrow's own conversions, which cost more than reading the values: 14 us, not 5.
    """
    values = batch.column(name).values
    data = values.buffers()[1] if len(values) else b""
    return np.frombuffer(data, dtype, len(values) or -1)


def file_digest(path: Path) -> str:
    """SHA-256 of a local file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
