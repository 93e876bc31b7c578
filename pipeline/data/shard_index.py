"""The index of one shard: where each sample lies in the tar, and the checksum of its image."""

import hashlib
import sys
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import DatasetError

Int64 = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]
UInt32 = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class ShardIndex:
    """Columns of n samples in tar order; one Arrow IPC file per shard.

    `starts` and `ends` span a whole sample in the tar, from its first member's header to the end of
    its last member's padding. `offsets` and `sizes` are those of the image's bytes, whose CRC-32
    (zlib's) is `crc32`; widths and heights are after EXIF orientation. For the members beside it a
    size of -1 says that there is none.
    """

    keys: list[str]
    extensions: list[str]
    starts: Int64
    ends: Int64
    offsets: Int64
    sizes: Int64
    widths: Int32
    heights: Int32
    crc32: UInt32
    json_offsets: Int64
    json_sizes: Int64
    cls_offsets: Int64
    cls_sizes: Int64
    txt_offsets: Int64
    txt_sizes: Int64

    def __len__(self) -> int:
        return len(self.keys)

    def part(self, start: int, stop: int) -> Self:
        """A copy of the samples at positions [start, stop): it keeps nothing of the rest."""
        columns = {field.name: getattr(self, field.name)[start:stop] for field in fields(self)}
        return replace(self, **{name: column.copy() for name, column in columns.items()})

    def to_bytes(self) -> bytes:
        """The Arrow IPC file; the same columns give the same bytes."""
        table = pa.table({field.name: getattr(self, field.name) for field in fields(self)})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        data: bytes = sink.getvalue().to_pybytes()
        return data

    @classmethod
    def from_bytes(cls, data: bytes, sha256: str, url: str) -> Self:
        """Checks the bytes against `sha256`; raises `DatasetError` naming `url`."""
        found = hashlib.sha256(data).hexdigest()
        if found != sha256:
            raise DatasetError(
                f"{url}: has sha256 {found[:12]}, the manifest says {sha256[:12]}. Run "
                "`python -m jobs.verify --dataset` on the dataset to see what else is damaged."
            )
        try:
            with pa.ipc.open_file(pa.BufferReader(data)) as reader:
                table = reader.read_all()
            # Offsets that lie would be followed out of the buffer.
            table.validate(full=True)
            columns: dict[str, Any] = {name: table[name] for name in table.column_names}
            texts = {name: columns.pop(name).to_pylist() for name in ("keys", "extensions")}
            # A few words, of which each sample would otherwise have a copy.
            texts["extensions"] = [sys.intern(word) for word in texts["extensions"]]
            return cls(**texts, **{name: column.to_numpy() for name, column in columns.items()})
        except (pa.ArrowException, KeyError, OSError, TypeError, ValueError) as error:
            raise DatasetError(f"{url}: is no index of a shard ({error}). Restore it.") from None
