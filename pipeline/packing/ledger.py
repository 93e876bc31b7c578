"""What a dataset has seen of its sources: the state of packing, one table per generation.

OUT/ledger/GENERATION.json    options, sources, classes, manifests and the tables; never replaced
OUT/ledger/GENERATION-HASH.arrow   a row per file that was looked at, or key that was removed
OUT/pack.json             a copy of one of the former, from which the newest is found
The newest row of a key counts. A generation exists once its .json does, which one of any number of
packs creates; all that names a current state is derived from it.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import pyarrow as pa

from pipeline import storage
from pipeline.data.manifest import ShardRecord, check_format
from pipeline.errors import DatasetError, ObjectNotFoundError

STATE = "pack.json"
FORMAT = "vae-pipeline/pack"
VERSION = 1


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """One key: where it came from, and which sample it is now (`shard` "" when it is none)."""

    key: str
    url: str
    path: str
    size: int
    etag: str
    sha256: str
    split: str
    shard: str
    position: int
    reason: str
    """Why it was rejected, `removed`, or "" for a sample that counts."""
    message: str


@dataclass(frozen=True)
class PackState:
    """What packing knows of a dataset that it made."""

    generation: int
    options: Mapping[str, Any]
    sources: tuple[str, ...]
    classes: Mapping[str, int]
    ledgers: tuple[str, ...]
    manifests: Mapping[str, str] = field(default_factory=dict)
    """The digest of each split's manifest."""


def read_state(output: str) -> PackState | None:
    """The newest state at `output`; None when nothing was packed there."""
    state = _read_state(storage.join(output, STATE))
    # The copy lags behind while a pack is about to replace it, or was killed before it did.
    while newer := _read_state(_generation_url(output, state.generation + 1 if state else 1)):
        state = newer
    return state


def _generation_url(output: str, generation: int) -> str:
    return storage.join(output, "ledger", f"{generation:06d}.json")


def _read_state(url: str) -> PackState | None:
    try:
        data = storage.read_json(url)
    except ObjectNotFoundError:
        return None
    check_format(data, url, FORMAT, VERSION)
    try:
        return PackState(
            int(data["generation"]), dict(data["options"]), tuple(map(str, data["sources"])),
            dict(data["classes"]), tuple(map(str, data["ledgers"])),
            dict(data.get("manifests", {})),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{url}: is no whole state of packing ({error}). Restore it.") from None


def create_state(output: str, state: PackState) -> bool:
    """Makes this the state of its generation; False if another state is that already."""
    url = _generation_url(output, state.generation)
    data = state_to_bytes(state)
    return storage.create_if_absent(url, data) or storage.read(url) == data


def state_to_bytes(state: PackState) -> bytes:
    """What is stored of a state."""
    return storage.canonical_json({"format": FORMAT, "version": VERSION, **asdict(state)})


def read_ledger(output: str, state: PackState | None) -> dict[str, LedgerRow]:
    """The newest row of each key."""
    rows: dict[str, LedgerRow] = {}
    for path in state.ledgers if state else ():
        url = storage.join(output, path)
        try:
            found = rows_from_bytes(storage.read(url))
        except (pa.ArrowException, TypeError) as error:
            raise DatasetError(
                f"{url}: is no whole table of what was packed ({error}). Restore it, or pack anew "
                "into another --output."
            ) from None
        rows |= {row.key: row for row in found}
    return rows


def write_ledger(output: str, generation: int, rows: Iterable[LedgerRow]) -> str:
    """Writes a generation's rows; the table's path below `output`."""
    data = rows_to_bytes(rows)
    path = f"ledger/{generation:06d}-{hashlib.sha256(data).hexdigest()[:12]}.arrow"
    storage.publish(storage.join(output, path), data)
    return path


def rows_to_bytes(rows: Iterable[LedgerRow]) -> bytes:
    """An Arrow IPC file."""
    rows = list(rows)
    columns = {
        field.name: [getattr(row, field.name) for row in rows] for field in fields(LedgerRow)
    }
    whole = {"size", "position"}
    schema = pa.schema([(name, pa.int64() if name in whole else pa.string()) for name in columns])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_table(pa.table(columns, schema))
    data: bytes = sink.getvalue().to_pybytes()
    return data


def rows_from_bytes(data: bytes) -> list[LedgerRow]:
    """From what `rows_to_bytes` gave."""
    with pa.ipc.open_file(pa.BufferReader(data)) as reader:
        columns = reader.read_all().to_pydict()
    return [LedgerRow(*values) for values in zip(*columns.values(), strict=True)]


def without(
    shards: Iterable[ShardRecord], dead: Mapping[str, Iterable[int]]
) -> tuple[ShardRecord, ...]:
    """The shards with further positions removed; `dead` maps a shard's path to positions.

    A shard of which nothing is left goes: it may be one that was damaged, and packed anew.
    """
    changed = []
    for shard in shards:
        removed = tuple(sorted({*shard.removed, *dead.get(shard.path, ())}))
        if len(removed) < shard.samples:
            changed.append(ShardRecord(**{**vars(shard), "removed": removed}))
    return tuple(changed)
