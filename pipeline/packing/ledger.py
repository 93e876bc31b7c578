"""What a dataset has seen of its sources: the state of packing, one table per generation.

OUT/ledger/GENERATION.json    options, sources, classes, manifests and the tables; never replaced
OUT/ledger/GENERATION-HASH.arrow   a row per file that was looked at, or key that was removed
OUT/pack.json             a copy of one of the former, from which the newest is found
The newest row of a key counts. A generation exists once its .json does, which one of any number of
packs creates; all that names a current state is derived from it.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline import storage
from pipeline.data.manifest import ShardRecord, check_format
from pipeline.errors import DatasetError, ObjectNotFoundError

STATE = "pack.json"
FORMAT = "vae-pipeline/pack"
VERSION = 2


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
    status: str
    """packed, rejected, ignored, duplicate, removed: what counts is `packed`."""
    reason: str
    """Why it was rejected, or under which kind it was ignored."""
    message: str
    label: str
    width: int
    height: int
    mode: str
    """As Pillow names it: RGB, L, RGBA, CMYK ..."""


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
    """The newest row of each key, all in memory."""
    return {row.key: row for row in ledger_rows(output, state)}


def ledger_rows(output: str, state: PackState | None) -> Iterator[LedgerRow]:
    """All rows, generation by generation: of several with one key, the last counts."""
    for path in state.ledgers if state else ():
        url = storage.join(output, path)
        try:
            yield from rows_from_bytes(storage.read(url))
        except (pa.ArrowException, TypeError) as error:
            raise DatasetError(
                f"{url}: is no whole table of what was packed ({error}). Restore it, or pack anew "
                "into another --output."
            ) from None


def write_ledger(output: str, generation: int, rows: Iterable[LedgerRow], folder: Path) -> str:
    """Writes a generation's rows, first into `folder`; the table's path below `output`."""
    table = folder / "ledger.arrow"
    with pa.OSFile(str(table), "wb") as file:
        _write_rows(file, rows)
    with table.open("rb") as written:
        digest = hashlib.file_digest(written, "sha256").hexdigest()
    path = f"ledger/{generation:06d}-{digest[:12]}.arrow"
    storage.publish(storage.join(output, path), table)
    return path


_NAMES = [field.name for field in fields(LedgerRow)]
_WHOLE = {"size", "position", "width", "height"}
_SCHEMA = pa.schema([(name, pa.int64() if name in _WHOLE else pa.string()) for name in _NAMES])
_BATCH_ROWS = 50_000


def _write_rows(sink: Any, rows: Iterable[LedgerRow]) -> None:
    rows = iter(rows)
    with pa.ipc.new_file(sink, _SCHEMA) as writer:
        while batch := list(islice(rows, _BATCH_ROWS)):
            columns = [[getattr(row, name) for row in batch] for name in _NAMES]
            writer.write_batch(pa.record_batch(columns, schema=_SCHEMA))


def rows_from_bytes(data: bytes) -> Iterator[LedgerRow]:
    """From what `write_ledger` wrote, a batch at a time."""
    with pa.ipc.open_file(pa.BufferReader(data)) as reader:
        for number in range(reader.num_record_batches):
            columns = reader.get_batch(number).to_pydict()
            yield from (LedgerRow(*values) for values in zip(*columns.values(), strict=True))


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
