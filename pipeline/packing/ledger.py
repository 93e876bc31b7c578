"""What a dataset has seen of its sources: the state of packing, one table per generation.

OUT/ledger/GENERATION.json    options, sources, classes, manifests and the tables; never replaced
OUT/ledger/GENERATION-HASH.arrow   a row per file that was looked at, or key that was removed
OUT/pack.json             a copy of one of the former, from which the newest is found
The newest row of a key counts. A generation exists once its .json does, which one of any number of
packs creates; all that names a current state is derived from it.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from pipeline import storage
from pipeline.config import PackConfig
from pipeline.data.manifest import PACK_STATE, Count, Digest, ShardRecord, read_pointer
from pipeline.errors import DatasetError, ObjectNotFoundError, ShortageError, StorageError
from pipeline.packing.inspect_image import PackOptions
from pipeline.storage.tables import parse_table

STATE = "pack.json"
ERASED = "erased"
"""Why a key was removed whose image no pack may bring back."""
GONE = "gone"
"""Why an input that was no sample was removed that its source holds no more: back, it is new."""

Split = Literal["", "train", "holdout"]


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
    """Why it was rejected, or under which kind it was ignored; of a removed one "",
    `ERASED` or `GONE`."""
    message: str
    label: str
    width: int
    height: int
    mode: str
    """As Pillow names it: RGB, L, RGBA, CMYK ..."""
    annotation: str
    """The digest of what a table said of it (label, captions, columns); "" where none did."""


@dataclass(frozen=True)
class PackState:
    """What packing knows of a dataset that it made."""

    generation: Count
    options: PackOptions
    sources: tuple[str, ...]
    classes: dict[str, int]
    ledgers: tuple[str, ...]
    manifests: dict[Split, Digest]
    """The digest of each split's manifest."""

    def flags(self, names: Iterable[str]) -> list[str]:
        """These of its options as words of a command line, where they are not what is usual."""
        words: list[str] = []
        for name in names:
            info, value = PackConfig.model_fields.get(name), getattr(self.options, name)
            if info is not None and value is not None and value != info.default:
                words += [f"--{name.replace('_', '-')}", str(value)]
        return words


def read_state(output: str) -> PackState | None:
    """The newest state at `output`; None when nothing was packed there.

    Raises `DatasetError` where a dataset's pointer names a later pack than any state there is: the
    newest one is gone, and what it knew (removed keys, say) must not come back in silence.
    """
    state = _read_state(storage.join(output, STATE))
    # The copy lags behind while a pack is about to replace it, or was killed before it did.
    while newer := read_generation_state(output, state.generation + 1 if state else 1):
        state = newer
    for split in state.manifests if state else ():
        assert state is not None, "it has manifests"
        pointer = read_pointer(storage.join(output, split) if split else output)
        if pointer is None or pointer.ledger is None or pointer.ledger <= state.generation:
            continue
        if read_generation_state(output, state.generation + 1) is not None:
            return read_state(output)  # another pack committed in between
        raise DatasetError(
            f"{_generation_url(output, pointer.ledger)}: is gone, and {STATE} is older than it "
            f"({state.generation}). What that pack added and removed is not known any more: "
            "restore that file, or pack anew into another `--output URL`."
        )
    return state


def read_generation_state(output: str, generation: int) -> PackState | None:
    """The state that pack number `generation` created; None where there is none."""
    url = _generation_url(output, generation)
    state = _read_state(url)
    if state is not None and state.generation != generation:
        raise PACK_STATE.damaged(url, f"it is the state of generation {state.generation}")
    return state


def _generation_url(output: str, generation: int) -> str:
    return storage.join(output, "ledger", f"{generation:06d}.json")


def _read_state(url: str) -> PackState | None:
    try:
        value = storage.read_document(PACK_STATE, url)
    except ObjectNotFoundError:
        return None
    state = PACK_STATE.typed(PackState, value, url)
    try:
        for path in state.ledgers:
            storage.check_name(path, url)
    except StorageError as error:
        raise DatasetError(str(error)) from None
    return state


def create_state(output: str, state: PackState) -> bool:
    """Makes this the state of its generation; False if another state is that already."""
    url = _generation_url(output, state.generation)
    data = state_to_bytes(state)
    return storage.create_if_absent(url, data) or storage.read(url) == data


def state_to_bytes(state: PackState) -> bytes:
    """What is stored of a state."""
    return PACK_STATE.encode(asdict(state))


def read_ledger(output: str, state: PackState | None) -> dict[str, LedgerRow]:
    """The newest row of each key, all in memory."""
    return {row.key: row for row in ledger_rows(output, state)}


def ledger_rows(output: str, state: PackState | None) -> Iterator[LedgerRow]:
    """All rows, generation by generation: of several with one key, the last counts."""
    for path in state.ledgers if state else ():
        url = storage.join(output, path)
        try:
            data = storage.read(url)
            _check_hash(data, path, url)
            yield from rows_from_bytes(data, url)
        except ObjectNotFoundError:
            raise DatasetError(f"{url}: is missing, and with it what was packed. {_ANEW}") from None
        except ShortageError:
            raise
        except StorageError as error:
            raise DatasetError(f"{error} {_ANEW}") from None


_ANEW = "Restore it, or pack anew into another `--output URL`."


def _check_hash(data: bytes, path: str, url: str) -> None:
    if hashlib.sha256(data).hexdigest()[:12] != path[-18:-6]:
        raise StorageError(f"{url}: its bytes are not those that its name is a hash of.")


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
_values_of = attrgetter(*_NAMES)
_WHOLE = {"size", "position", "width", "height"}
_SCHEMA = pa.schema([(name, pa.int64() if name in _WHOLE else pa.string()) for name in _NAMES])
_BATCH_ROWS = 50_000
"""In a record batch: some MB in memory while it is written, whatever the ledger's length."""


def _write_rows(sink: Any, rows: Iterable[LedgerRow]) -> None:
    rows = iter(rows)
    with pa.ipc.new_file(sink, _SCHEMA) as writer:
        while batch := list(islice(rows, _BATCH_ROWS)):
            columns = zip(*map(_values_of, batch), strict=True)
            writer.write_batch(pa.record_batch(list(columns), schema=_SCHEMA))


def rows_from_bytes(data: bytes, url: str) -> Iterator[LedgerRow]:
    """From what `write_ledger` wrote, a batch at a time; raises `StorageError` naming `url`."""
    for batch in parse_table(data, _SCHEMA, url).to_batches():
        columns = batch.to_pydict()
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


def rejects_of(rows: Iterable[LedgerRow]) -> bytes:
    """What `rejects.jsonl` holds of these rows, which are in the order of their keys."""
    return b"".join(
        storage.canonical_json(
            {
                "path": row.path,
                "url": row.url,
                "message": row.message,
                "reason": "duplicate" if row.status == "duplicate" else row.reason,
            }
        )
        for row in rows
        if row.status in ("rejected", "ignored", "duplicate")
    )
