"""One shard's latents as one Arrow IPC file that plain pyarrow and polars open.

Columns: `key`, `position` (in the source shard), then fixed-shape tensors [Z, h, w], then the
source's own columns. Rows come in source order; record batch i holds what is left of the source
positions [i B, (i + 1) B) when failed samples are gone, so a row is found by arithmetic and one
ranged read.
"""

import functools
import hashlib
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.data.column_types import arrow_array, arrow_type
from pipeline.data.manifest import Count
from pipeline.latents.identity import Identity

Array = npt.NDArray[Any]

_ARROW_TYPES = {"float16": pa.float16(), "float32": pa.float32()}


class RecordBatchPlace(NamedTuple):
    """Where a record batch lies in its file: byte offset, length, its rows, and its CRC-32."""

    offset: Count
    bytes: Count
    rows: Count
    crc32: Count


@dataclass(frozen=True)
class LatentRows:
    """Rows of a latent file: `tensors` [n, Z, h, w] by column, `record` with the rest as well.

    Arrays are views of the file's memory where that is local; text is decoded when asked for.
    """

    record: pa.RecordBatch
    tensors: dict[str, Array]

    def __len__(self) -> int:
        return int(self.record.num_rows)

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
    def columns(self) -> dict[str, list[Any]]:
        """The source's own columns."""
        fields = [f for f in self.record.schema if f.name not in ("key", "position")]
        plain = [f.name for f in fields if not isinstance(f.type, pa.FixedShapeTensorType)]
        return {name: self.record.column(name).to_pylist() for name in plain}

    def take(self, rows: npt.NDArray[np.int64]) -> "LatentRows":
        """A copy of some rows."""
        tensors = {name: values[rows] for name, values in self.tensors.items()}
        rest = self.record.select(["key", "position", *self.columns])
        return LatentRows(rest.take(pa.array(rows)), tensors)


def schema_of(identity: Identity) -> pa.Schema:
    """The schema of every latent file of this identity."""
    options = identity.options
    tensor = pa.fixed_shape_tensor(_ARROW_TYPES[options.dtype], identity.latent_shape)
    fields = [pa.field("key", pa.string(), False), pa.field("position", pa.int32(), False)]
    fields += [pa.field(name, tensor, False) for name in options.tensors]
    fields += [
        pa.field(name, arrow_type(kind), True) for name, kind in options.column_kinds.items()
    ]
    return pa.schema(fields, metadata={"identity": identity.digest})


@dataclass
class LatentFileWriter:
    """Writes record batches to a local file as they come; memory stays at one batch."""

    path: Path
    identity: Identity
    places: list[RecordBatchPlace] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._schema = schema_of(self.identity)
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
        """Appends one record batch; tensors are [rows, Z, h, w] of the store's type."""
        arrays: list[pa.Array] = [
            pa.array(keys, pa.string()),
            pa.array(np.asarray(positions, dtype=np.int32)),
        ]
        arrays += [
            _tensor_array(self._schema.field(name).type, tensors[name])
            for name in self.identity.options.tensors
        ]
        arrays += [
            arrow_array(list(columns[name]), kind)
            for name, kind in self.identity.options.column_kinds.items()
        ]
        batch = pa.record_batch(arrays, schema=self._schema)
        self._writer.write_batch(batch)
        # Counted from the end: the first call writes the schema before the batch.
        size = pa.ipc.get_record_batch_size(batch)
        crc32 = zlib.crc32(batch.serialize())
        self.places.append(RecordBatchPlace(self._file.tell() - size, size, len(keys), crc32))


def _tensor_array(kind: pa.FixedShapeTensorType, values: Array) -> pa.ExtensionArray:
    flat = np.ascontiguousarray(values).reshape(-1)
    if not len(values):
        return pa.ExtensionArray.from_storage(kind, pa.array([], kind.storage_type))
    size = int(np.prod(kind.shape))
    storage = pa.FixedSizeListArray.from_arrays(pa.array(flat), size)
    return pa.ExtensionArray.from_storage(kind, storage)


def rows_of(batch: pa.RecordBatch, identity: Identity, names: Sequence[str]) -> LatentRows:
    """A record batch as numpy views: the tensors in `names` only."""
    shape, dtype = (batch.num_rows, *identity.latent_shape), np.dtype(identity.options.dtype)
    tensors = {}
    for name in names:
        # Past Arrow's own conversions, which cost more than reading the values: 14 us, not 5.
        values = batch.column(name).storage.values
        data = values.buffers()[1] if len(values) else b""
        tensors[name] = np.frombuffer(data, dtype, len(values) or -1).reshape(shape)
    return LatentRows(batch, tensors)


def file_digest(path: Path) -> str:
    """SHA-256 of a local file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
