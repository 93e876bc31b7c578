"""The index of one shard, where each sample lies in the tar; and a sample cut out by it."""

import hashlib
import json
import sys
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import TypeAdapter, ValidationError

from pipeline import storage
from pipeline.errors import DatasetError, SampleError, ShortageError, StorageError, first_refusal
from pipeline.json_value import Json
from pipeline.storage.tables import FAULTS, parse_table

Int64 = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]
UInt32 = npt.NDArray[np.uint32]


ERASED = "__erased__"
"""The member of a tar that stands where an image was taken out for good: webdataset's readers pass
over names in such underscores."""


def erased_key(position: int) -> str:
    """What stands in place of the key of the erased sample at a position of its shard."""
    return f"{ERASED}{position}"


@dataclass(frozen=True)
class ShardIndex:
    """Columns of n samples in tar order; one Arrow IPC file per shard.

    `starts` and `ends` span a whole sample in the tar, from its first member's header to the end of
    its last member's padding. `offsets` and `sizes` are those of the image's bytes, whose CRC-32
    (zlib's) is `crc32`; widths and heights are after EXIF orientation. For the members beside it,
    each with a CRC-32 of its own, a size of -1 says that there is none.
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
    json_crc32: UInt32
    cls_offsets: Int64
    cls_sizes: Int64
    cls_crc32: UInt32
    txt_offsets: Int64
    txt_sizes: Int64
    txt_crc32: UInt32
    columns: Mapping[str, str] | None = None
    """Kinds of the columns beside the images, by name (`column_types`); None: not looked at."""

    def __len__(self) -> int:
        return len(self.keys)

    def part(self, start: int, stop: int) -> Self:
        """A copy of the samples at positions [start, stop): it keeps nothing of the rest."""
        columns = {name: getattr(self, name)[start:stop] for name in _NAMES}
        return replace(self, **{name: column.copy() for name, column in columns.items()})

    def span(self, position: int, *, whole: bool) -> tuple[int, int]:
        """Where the image at a position begins and ends in the tar, or the `whole` sample."""
        if whole:
            return int(self.starts[position]), int(self.ends[position])
        start = int(self.offsets[position])
        return start, start + int(self.sizes[position])

    def to_bytes(self) -> bytes:
        """The Arrow IPC file; the same columns give the same bytes."""
        table = pa.table({name: getattr(self, name) for name in _NAMES}, _SCHEMA)
        if self.columns is not None:
            kinds = json.dumps(dict(self.columns), sort_keys=True)
            table = table.replace_schema_metadata({"columns": kinds})
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
            table = parse_table(data, _SCHEMA, url)
            columns = {name: table[name] for name in table.column_names}
            texts = {name: columns.pop(name).to_pylist() for name in ("keys", "extensions")}
            # A few words, of which each sample would otherwise have a copy.
            texts["extensions"] = [sys.intern(word) for word in texts["extensions"]]
            stated = (table.schema.metadata or {}).get(b"columns")
            kinds = None if stated is None else storage.parse_json(stated, url)
            if kinds is not None:
                kinds = TypeAdapter(dict[str, str]).validate_python(kinds)
            arrays = {name: column.to_numpy() for name, column in columns.items()}
            index = cls(**texts, **arrays, columns=kinds)
            index._check()
        except ShortageError:
            raise
        except (StorageError, ValidationError, *FAULTS) as error:
            raise DatasetError(
                f"{url}: is no index of a shard ({first_refusal(error)}). Restore it."
            ) from None
        return index

    def _check(self) -> None:
        """Raises `ValueError` for places that no tar can have: they would be read from."""
        if len(self) == 0:
            return
        ordered = (self.starts >= 0).all() and (self.ends[:-1] <= self.starts[1:]).all()
        if not ordered or (self.starts > self.ends).any() or (self.sizes < 0).any():
            raise ValueError("a sample's place lies outside of it")
        for offsets, sizes in self._members():
            inside = (self.starts <= offsets) & (offsets <= self.ends)
            # Not `offsets + sizes`, which may pass the largest number and come out negative.
            inside &= sizes <= self.ends - np.where(inside, offsets, self.ends)
            if not (inside | (sizes < 0)).all():
                raise ValueError("a sample's place lies outside of it")

    def _members(self) -> list[tuple[Int64, Int64]]:
        return [
            (self.offsets, self.sizes), (self.json_offsets, self.json_sizes),
            (self.cls_offsets, self.cls_sizes), (self.txt_offsets, self.txt_sizes),
        ]  # fmt: skip


_KINDS = {"widths": pa.int32(), "heights": pa.int32(), "keys": pa.string()}
_KINDS |= {"extensions": pa.string(), "crc32": pa.uint32()}
_KINDS |= {f"{name}_crc32": pa.uint32() for name in ("json", "cls", "txt")}
_NAMES = [field.name for field in fields(ShardIndex) if field.name != "columns"]
_SCHEMA = pa.schema([(name, _KINDS.get(name, pa.int64())) for name in _NAMES])


@dataclass(frozen=True)
class RawSample:
    """A sample's undecoded bytes, whose checksum is not yet checked, and the columns beside it.

    `crc32` (zlib's, 4 GB/s) is what the index says of the image.
    """

    key: str
    image: bytes
    crc32: int
    columns: Json
    fault: SampleError | None = None
    """What is wrong with it as it lies in the shard; there is no image then."""

    def checked_image(self) -> bytes:
        """The image's bytes; raises `SampleError` if they are not those that were packed."""
        if self.fault is not None:
            raise self.fault
        if zlib.crc32(self.image) != self.crc32:
            raise SampleError("checksum", f"{self.key}: its bytes are not those that were packed")
        return self.image


def cut_sample(
    index: ShardIndex, position: int, data: bytes, begin: int, columns: Sequence[str]
) -> RawSample:
    """The sample at a position of a shard, of whose bytes `data` are those from `begin` on."""

    def member(offsets: Int64, sizes: Int64) -> bytes | None:
        size, offset = int(sizes[position]), int(offsets[position]) - begin
        return None if size < 0 else data[offset : offset + size]

    key, crc32 = index.keys[position], int(index.crc32[position])
    values: Json = dict.fromkeys(columns)
    if int(index.sizes[position]) == 0 and key == erased_key(position):
        return RawSample(key, b"", crc32, values, SampleError("erased", f"{key}: was taken out"))
    if index.span(position, whole=bool(columns))[1] > begin + len(data):
        fault = SampleError("truncated", f"{key}: its shard was cut short before its end")
        return RawSample(key, b"", crc32, values, fault)
    if columns:
        beside = member(index.json_offsets, index.json_sizes)
        label = member(index.cls_offsets, index.cls_sizes)
        caption = member(index.txt_offsets, index.txt_sizes)
        try:
            _check_beside(beside, index.json_crc32[position], key)
            _check_beside(label, index.cls_crc32[position], key)
            _check_beside(caption, index.txt_crc32[position], key)
            found = columns_of(beside, label, caption, key)
        except SampleError as fault:
            return RawSample(key, b"", crc32, values, fault)
        values = {name: found.get(name) for name in columns}
    image = member(index.offsets, index.sizes)
    assert image is not None, "only samples with an image are indexed"
    return RawSample(key, image, crc32, values)


def _check_beside(data: bytes | None, crc32: np.uint32, key: str) -> None:
    if data is not None and zlib.crc32(data) != int(crc32):
        raise SampleError("checksum", f"{key}: what lies beside it is not what was packed")


def columns_of(fields: bytes | None, label: bytes | None, caption: bytes | None, key: str) -> Json:
    """The columns in a sample's .json, .cls and .txt; raises `SampleError` where they make none.

    As webdataset reads them: a .cls without the white space around it, a .txt to the letter.
    """
    try:
        found = json.loads(fields) if fields else {}
        if not isinstance(found, dict):
            raise SampleError("annotation", f"{key}.json: holds {str(found)[:100]}, no columns")
        if label is not None:
            found.setdefault("label", label.decode().strip())
        if caption is not None:
            found.setdefault("caption", caption.decode())
    except (ValueError, RecursionError) as error:
        raise SampleError(
            "annotation", f"{key}: what lies beside it can't be read: {error}"
        ) from None
    return found
