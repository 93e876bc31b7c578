"""Taking images out of a dataset for good: their bytes leave every tar that holds them.

A tar keeps its length and its other samples' places: where the image was stands one member of
zeros, which readers pass over. So whoever reads an older generation meanwhile gets every other
image, and that one masked. Index and manifest are written anew beside the old ones, for nobody to
read yet; then tar, ledger and pointer, in this order: killed anywhere, the same call ends the same.
"""

import hashlib
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from pipeline import storage
from pipeline.data.manifest import Manifest, ShardRecord, write_manifest
from pipeline.data.shard_index import ERASED as MEMBER
from pipeline.data.shard_index import ShardIndex, erased_key
from pipeline.errors import DatasetError, ObjectNotFoundError
from pipeline.packing.commit import publish_newest, split_url
from pipeline.packing.inventory import Inventory, open_inventory
from pipeline.packing.ledger import (
    ERASED,
    LedgerRow,
    PackState,
    Split,
    create_state,
    ledger_rows,
    read_state,
    write_ledger,
)
from pipeline.packing.leftovers import find_leftovers, remove_leftovers, root_of
from pipeline.packing.shard_writer import BLOCK, header
from pipeline.retention.generations import (
    find_unnamed,
    generations,
    refuse_beside_pack,
    refuse_links,
)
from pipeline.storage.marks import removing

_PIECE_BYTES = 32 * 2**20
"""Copied at a time, so that a shard of any size passes through little memory."""
Places = Mapping[tuple[str, str], set[int]]
"""Positions by split and path of the shard."""


@dataclass(frozen=True)
class ErasedImages:
    """What is taken out of a dataset: `keys`, the shards that hold them, and their bytes there.

    `strays`: files that no generation names, which may hold them too and go. `copies`: keys of
    other images with the very same bytes, which stay.
    """

    dataset: str
    keys: tuple[str, ...]
    shards: tuple[str, ...]
    bytes: int
    strays: tuple[str, ...]
    copies: tuple[str, ...]
    generation: int


def erase_images(url: str, asked: Sequence[str], *, delete: bool) -> ErasedImages:
    """Takes images out of all generations of the dataset at `url`; without `delete` only looks.

    Raises `DatasetError` for a key that the dataset never had, for adopted tars, which are not
    ours to change, for a damaged tar and while a pack is under way; `StorageError` beside another
    removal.
    """
    root = root_of(storage.absolute(url))[0]
    state = read_state(root)
    if state is None:
        raise DatasetError(
            f"{root}: jobs.pack did not make this dataset, so its tars are not ours to change. "
            "Take the images out of them where they came from, and adopt them again (jobs.index)."
        )
    for split in state.manifests:
        refuse_links(split_url(root, split))
    if not delete:
        with open_inventory() as inventory:
            return _Erasure(root, state, asked, inventory).told()
    name = hashlib.sha256(storage.canonical_json(sorted(asked))).hexdigest()[:12]
    with removing(root, f"erase-{name}"), open_inventory() as inventory:
        refuse_beside_pack(root)
        state = read_state(root)
        assert state is not None, "there was one, and states only follow on each other"
        return _Erasure(root, state, asked, inventory).run()


class _Erasure:
    """One erasure from the dataset in `root`, whose newest state is `state`."""

    def __init__(
        self, root: str, state: PackState, asked: Sequence[str], inventory: Inventory
    ) -> None:
        self._root, self._state, self._inventory = root, state, inventory
        inventory.ledger.put(ledger_rows(root, state))
        found = [inventory.ledger.find(each, root, "--erase") for each in asked]
        self.keys = tuple(dict.fromkeys(found))
        # Whatever the keys ever were: all rows, not only the newest ones.
        keys = set(self.keys)
        self._rows = [row for row in ledger_rows(root, state) if row.key in keys]
        self._every = {split: generations(split_url(root, split)) for split in state.manifests}
        self._places = self._find_places()
        self._strays = self._find_strays()

    def told(self) -> ErasedImages:
        """What is there to be taken out."""
        records = self._records()
        sizes = 0
        for (split, path), positions in self._places.items():
            if (split, path) in records:
                url = split_url(self._root, split)
                spans = _spans(_read_index(url, records[split, path]), positions)
                sizes += sum(stop - start for start, stop in _left(storage.join(url, path), spans))
        return ErasedImages(
            dataset=self._root,
            keys=self.keys,
            shards=tuple(sorted(path for _, path in self._places)),
            bytes=sizes,
            strays=tuple(path for _, path in self._strays),
            copies=self._copies(),
            generation=self._state.generation,
        )

    def run(self) -> ErasedImages:
        """Takes them out, bytes before the ledger; a next generation if something changed."""
        told, leftovers = self.told(), find_leftovers(self._root)
        records, state = self._records(), self._state
        manifests = {split: self._rewritten(split) for split in state.manifests}
        for (split, path), positions in self._places.items():
            if (split, path) in records:
                record = records[split, path]
                index = _read_index(split_url(self._root, split), record)
                _blank(self._root, split, record, _spans(index, positions))
        rows = [row for row in map(self._erased_row, self.keys) if row is not None]
        if rows or manifests != state.manifests:
            state = self._commit(manifests, rows)
        publish_newest(self._root, state, self._inventory)
        # Of those that lay there first: where the same command ran twice and its twin's end took
        # the mark away, a pack may have begun, and no manifest names its shards yet.
        for split, path in self._find_strays():
            if (split, path) in self._strays:
                storage.delete(storage.join(split_url(self._root, split), path))
        remove_leftovers(leftovers)
        return replace(told, generation=state.generation)

    def _commit(self, manifests: dict[Split, str], rows: Sequence[LedgerRow]) -> PackState:
        before, folder = self._state, self._inventory.folder
        path = write_ledger(self._root, before.generation + 1, rows, folder)
        state = replace(
            before,
            generation=before.generation + 1,
            ledgers=(*before.ledgers, path),
            manifests=manifests,
        )
        if not create_state(self._root, state):
            raise DatasetError(
                f"{self._root}: a pack finished generation {state.generation} meanwhile. Run the "
                "same command again: it takes them out of that one, too."
            )
        self._inventory.ledger.put(rows)
        return state

    def _erased_row(self, key: str) -> LedgerRow | None:
        """The key's next row; its path and checksum stay, so that no pack brings it back."""
        row = self._inventory.ledger.row(key)
        assert row is not None, "it was found"
        if (row.status, row.reason) == ("removed", ERASED):
            return None
        nowhere = replace(row, split="", shard="", position=-1, label="", message="", annotation="")
        return replace(nowhere, status="removed", reason=ERASED)

    def _records(self) -> dict[tuple[str, str], ShardRecord]:
        """Each shard as the newest generation has it that names it."""
        return {
            (split, shard.path): shard
            for split, every in self._every.items()
            for manifest in reversed(every)
            for shard in manifest.shards
        }

    def _rewritten(self, split: Split) -> str:
        """The digest of the split's manifest without them, which is written."""
        before = self._every[split][0]
        url = split_url(self._root, split)
        shards = []
        for shard in before.shards:
            positions = self._places.get((split, shard.path), set())
            new = _without(url, shard, positions) if positions else shard
            if new.live:
                shards.append(new)
        if tuple(shards) == before.shards:
            return before.digest
        manifest = Manifest(before.generation + 1, before.digest, tuple(shards))
        write_manifest(url, manifest)
        return manifest.digest

    def _find_places(self) -> Places:
        found: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
        for row in self._rows:
            if row.shard:
                found[row.split, row.shard].add(row.position)
        # What --deduplicate left out lies in a tar all the same; its row does not say where.
        hidden = {row.key for row in self._rows if row.status == "duplicate"}
        for (split, path), record in self._records().items() if hidden else ():
            if record.removed:
                index = _read_index(split_url(self._root, split), record)
                at = {position for position in record.removed if index.keys[position] in hidden}
                if at:
                    found[split, path] |= at
        return found

    def _find_strays(self) -> list[tuple[Split, str]]:
        """What no generation names: killed packs left it, with whatever images it holds."""
        return [
            (split, path)
            for split in self._state.manifests
            for path in find_unnamed(split_url(self._root, split), 0)
            if not path.startswith("manifests/")
        ]

    def _copies(self) -> tuple[str, ...]:
        """Removed ones and duplicates too: their bytes lie in a tar as well."""
        found: list[str] = []
        for sha256 in {row.sha256 for row in self._rows if row.sha256}:
            same = self._inventory.ledger.rows(_IN_A_TAR, (sha256, ERASED))
            found += [other.key for other in same if other.key not in self.keys]
        return tuple(sorted(set(found)))


_IN_A_TAR = "status IN ('packed', 'duplicate', 'removed') AND sha256=? AND reason<>?"


def _read_index(url: str, record: ShardRecord) -> ShardIndex:
    index_url = storage.join(url, record.index_path)
    return ShardIndex.from_bytes(storage.read(index_url), record.index_sha256, index_url)


def _spans(index: ShardIndex, positions: Iterable[int]) -> list[tuple[int, int]]:
    """Where samples lie in their tar, headers and padding with them."""
    return [index.span(position, whole=True) for position in sorted(positions)]


def _left(url: str, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Those of a tar's spans that hold something still; a tar that is gone holds nothing."""
    try:
        return [span for span in spans if storage.read(url, *span) != _nothing(*span)]
    except ObjectNotFoundError:
        return []


def _without(url: str, shard: ShardRecord, positions: set[int]) -> ShardRecord:
    """The shard's record with these positions taken out; its new index is written."""
    index = _read_index(url, shard)
    spans = _spans(index, positions)
    blank_sha256 = _blank_sha256(storage.join(url, shard.path), shard, spans)
    data = _blank_index(index, positions).to_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    stem = PurePosixPath(shard.path).stem
    path = f"index/{stem}.{sha256[:12]}.arrow"
    if sha256 == shard.index_sha256:
        path = shard.index_path
    else:
        storage.publish(storage.join(url, path), data)
    return replace(
        shard,
        sha256=blank_sha256,
        index_path=path,
        index_sha256=sha256,
        removed=tuple(sorted({*shard.removed, *positions})),
    )


def _blank_index(index: ShardIndex, positions: Iterable[int]) -> ShardIndex:
    keys, extensions = list(index.keys), list(index.extensions)
    columns = {
        name: getattr(index, name).copy()
        for name in ("offsets", "sizes", "crc32", "widths", "heights")
    }
    for name in ("json", "cls", "txt"):
        for what in ("offsets", "sizes", "crc32"):
            columns[f"{name}_{what}"] = getattr(index, f"{name}_{what}").copy()
    for position in positions:
        keys[position], extensions[position] = erased_key(position), ""
        for name, column in columns.items():
            column[position] = -1 if name.endswith("_sizes") else 0
        columns["offsets"][position] = int(index.starts[position]) + BLOCK
        columns["crc32"][position] = zlib.crc32(b"")
    return replace(index, keys=keys, extensions=extensions, **columns)


def _blank(root: str, split: str, shard: ShardRecord, spans: Sequence[tuple[int, int]]) -> None:
    """Writes the tar anew without what lay in these spans; once it is so, nothing is written."""
    url = storage.join(split_url(root, split), shard.path)
    if not _left(url, spans):
        return
    scratch = storage.scratch(url)
    try:
        with scratch.open("wb") as file:
            file.writelines(without for _, without in _pieces(url, shard, spans))
        storage.publish(url, scratch)
    finally:
        scratch.unlink(missing_ok=True)


def _blank_sha256(url: str, shard: ShardRecord, spans: Sequence[tuple[int, int]]) -> str:
    """Raises `DatasetError` for a damaged tar: its damage would get a checksum that is right."""
    found, blank = hashlib.sha256(), hashlib.sha256()
    for piece, without in _pieces(url, shard, spans):
        found.update(piece)
        blank.update(without)
    # A killed erasure may have blanked it already.
    if found.hexdigest() not in (shard.sha256, blank.hexdigest()):
        raise DatasetError(
            f"{url}: its bytes are not those of the manifest (sha256 differs). If another erasure "
            f"was killed, run that one again first; else see what is damaged: {_VERIFY}"
        )
    return blank.hexdigest()


_VERIFY = "`python -m jobs.verify --dataset URL`."


def _pieces(
    url: str, shard: ShardRecord, spans: Sequence[tuple[int, int]]
) -> Iterable[tuple[bytes, bytes]]:
    """The tar piece by piece, each as it is, and with nothing in these spans."""
    size = storage.stat(url).size
    if size != shard.bytes:
        raise DatasetError(
            f"{url}: holds {size:,} bytes, the manifest says {shard.bytes:,}. See what is damaged "
            f"first: {_VERIFY}"
        )
    for start in range(0, shard.bytes, _PIECE_BYTES):
        found = storage.read(url, start, min(shard.bytes, start + _PIECE_BYTES))
        piece = bytearray(found)
        for first, last in spans:
            low, high = max(first, start), min(last, start + len(piece))
            if low < high:
                nothing = _nothing(first, last)[low - first : high - first]
                piece[low - start : high - start] = nothing
        yield found, bytes(piece)


def _nothing(start: int, stop: int) -> bytes:
    """What stands in a span of a tar where a sample was: a member of zeros."""
    return header(MEMBER, stop - start - BLOCK) + bytes(stop - start - BLOCK)
