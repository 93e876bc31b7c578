"""What a pack knows while it works, on disk: 10^7 inputs need some 100 MB of memory.

An SQLite file in the temporary folder holds what the sources list, what a table says, and the
ledger (`ledger_table`); it is sorted and joined there, and goes with the pack.
"""

import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from operator import attrgetter
from pathlib import Path

from pipeline import storage
from pipeline.data.image_kinds import UNREADABLE
from pipeline.data.keys import key_of
from pipeline.errors import DatasetError
from pipeline.packing.counts import TableCounts
from pipeline.packing.key_clashes import join_told, refuse_packed_before, refuse_replacing, settle
from pipeline.packing.ledger import ERASED, GONE
from pipeline.packing.ledger_table import BATCH_ROWS, LedgerTable, columns_of, write_rows
from pipeline.sources.annotations import (
    Annotation,
    AnnotationRow,
    digest_of_text,
    normal,
    spellings,
)
from pipeline.sources.archives import without_archive_suffix
from pipeline.sources.source_file import SourceFile
from pipeline.sources.table_rows import is_list

_CACHE_KIB = 65_536
"""SQLite's own memory: 64 MiB, however many inputs there are."""
_UNLISTED = (
    "key NOT IN (SELECT key FROM listed) AND url NOT IN "  # noqa: S608  # our own words
    f"(SELECT url FROM listed WHERE status='rejected' AND reason='{UNREADABLE}')"
)
"""What an archive held that can't be read to its end this time may lie in it still."""
_BELOW = (
    "EXISTS (SELECT 1 FROM sources s WHERE %s AND "
    "(ledger.url=s.url OR substr(ledger.url, 1, length(s.url) + 1)=s.url || '/'))"
)
_ABSENT = (
    f"{_UNLISTED} AND ({_BELOW % 's.now'} OR NOT {_BELOW % '1'} "  # noqa: S608  # our own words
    "AND EXISTS (SELECT 1 FROM sources WHERE now AND elsewhere) AND NOT EXISTS "
    "(SELECT 1 FROM sources WHERE elsewhere AND (NOT now OR url IN "
    f"(SELECT url FROM listed WHERE status='rejected' AND reason='{UNREADABLE}'))))"
)
"""The condition on the ledger under which the sources of this pack hold an input no more.

What lies below no source came from a list or a glob: where all of those are read, it is gone.
"""
_VANISHED = (
    "status IN ('rejected', 'ignored', 'duplicate') AND "  # noqa: S608  # our own words
    f"({_ABSENT} OR {_UNLISTED} AND url IN (SELECT url FROM listed))"
)
_LEFT_BEHIND = (
    f"status='packed' AND EXISTS (SELECT 1 FROM listed) AND {_ABSENT} "  # noqa: S608  # our own
    # Under another path the file is there: of a source that holds one that was named before.
    "AND url NOT IN (SELECT url FROM listed WHERE offset<0 AND member='')"
)
_FIND_ORPHANS = (
    "INSERT INTO orphans SELECT key FROM ledger d WHERE status='duplicate' "
    "AND key NOT IN (SELECT key FROM removing) AND NOT EXISTS (SELECT 1 FROM ledger k "
    "LEFT JOIN listed l ON l.key=k.key WHERE k.sha256=d.sha256 AND (k.reason=? OR "
    "k.status='packed' AND k.key NOT IN (SELECT key FROM removing) AND (l.key IS NULL OR "
    "l.etag='' OR l.size=k.size AND l.etag=k.etag AND l.status<>'ignored')))"
)
"""Duplicates of which no sample with their bytes stays, or surely stays; of erased ones none is."""
_HUSHED = "SELECT COUNT(*) FROM listed l JOIN ledger d ON d.key=l.key WHERE d.status='packed' AND "
_ORPHAN = "d.key IN (SELECT key FROM orphans)"
_LABELLED = (
    "SELECT SUM(given_label<>''), SUM(given_label IS NULL AND label<>'') FROM listed "
    "WHERE status=''"
)
_FILE = [field.name for field in fields(SourceFile)]
_values_of = attrgetter(*_FILE)


@dataclass(frozen=True)
class Choice:
    """Which of the listed inputs a pack reads."""

    checksum: bool = False
    """All of them: contents are compared, not sizes and tags."""
    retry: bool = False
    """Only those that were rejected or ignored before."""
    repack: tuple[str, ...] = ()
    """Also those whose samples lie in these shards."""
    image_column: str | None = None
    below: tuple[str, ...] = ()
    told: bool = False
    """A table beside the inputs was read: what it doesn't say of an image is not said."""


class Inventory:
    """What is listed and told in one pack, and its `ledger`; see the module."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._db = sqlite3.connect(folder / "inventory.sqlite", isolation_level=None)
        self._db.create_function("digest", 1, digest_of_text, deterministic=True)
        # Nothing of it outlives the pack, so nothing is ever brought back after a crash.
        for pragma in ("journal_mode=OFF", "synchronous=OFF", f"cache_size=-{_CACHE_KIB}"):
            self._db.execute(f"PRAGMA {pragma}")
        columns = columns_of(_FILE)
        self._db.execute(f"CREATE TABLE listed (ord BLOB, key, root, label, {columns})")
        self._db.execute(
            "CREATE TABLE told (path TEXT, written TEXT, annotation TEXT, met INTEGER)"
        )
        self._db.execute("CREATE TABLE sources (url TEXT, now INTEGER, elsewhere INTEGER)")
        self._db.execute("CREATE TABLE removing (key TEXT PRIMARY KEY)")
        self._db.execute("CREATE TABLE orphans (key TEXT PRIMARY KEY)")
        self.ledger = LedgerTable(self._db)

    def close(self) -> None:
        """Ends the use of the file."""
        self._db.close()

    def list_inputs(self, root: str, files: Iterable[SourceFile]) -> None:
        """What one source holds."""
        marks = ",".join("?" * (4 + len(_FILE)))
        write_rows(
            self._db,
            f"INSERT INTO listed VALUES ({marks})",  # noqa: S608  # marks alone
            ((file.order, file.key, root, file.label, *_values_of(file)) for file in files),
        )

    def settle(self) -> int:
        """Leaves one input for each key; how many went (`key_clashes`)."""
        return settle(self._db)

    def tell(self, rows: Iterable[AnnotationRow], url: str) -> TableCounts:
        """Gives each listed input what the row that names it says.

        Raises `DatasetError` for a table that names an image twice, with other values.
        """
        write_rows(
            self._db,
            "INSERT INTO told VALUES (?, ?, ?, 0)",
            (
                (normal(row.path) if row.path else None, row.name, row.annotation.to_text())
                for row in rows
            ),
        )
        self._db.execute("CREATE INDEX told_path ON told (path)")
        join_told(self._db)
        twice = self._db.execute(
            "SELECT MIN(written) FROM told WHERE path IS NOT NULL GROUP BY path "
            "HAVING COUNT(DISTINCT annotation) > 1"
        ).fetchone()
        if twice is not None:
            raise DatasetError(
                f"{storage.shown(url)}: names {twice[0]!r} twice, with other values. Leave one row "
                "of each image, or several that differ in their caption alone."
            )
        images, relabelled = _give(self._db, storage.absolute(url))
        rows_, met = self._db.execute("SELECT COUNT(*), SUM(met) FROM told").fetchone()
        unmet = self._db.execute("SELECT written FROM told WHERE met=0 LIMIT 1").fetchone()
        hushed = int(self._db.execute(_HUSHED + _hushed(Choice(told=True))).fetchone()[0])
        example = unmet[0] if unmet else ""
        labelled, folders = self.labelled()
        return TableCounts(
            rows_, met or 0, rows_ - (met or 0), images=images, example=example,
            labelled=labelled, folders=folders, relabelled=relabelled, hushed=hushed,
        )  # fmt: skip

    def labelled(self) -> tuple[int, int]:
        """Inputs whose label a table says, and beside them those with the first folder's name."""
        given, folders = self._db.execute(_LABELLED).fetchone()
        return given or 0, (folders or 0) if given else 0

    def labels(self) -> set[str]:
        """Of all inputs that may be packed, and of all rows of the table."""
        found = self._db.execute("SELECT DISTINCT label FROM listed WHERE status=''")
        labels = {label for (label,) in found if label is not None}
        for (text,) in self._db.execute("SELECT annotation FROM told"):
            label = Annotation.from_text(text).label
            if label is not None:
                labels.add(label)
        return labels

    def first_path(self) -> str:
        """Of the inputs, for a message."""
        found = self._db.execute("SELECT path FROM listed LIMIT 1").fetchone()
        return found[0] if found else "nothing"

    def inputs(self) -> int:
        """How many are listed that may be packed."""
        return int(self._db.execute("SELECT COUNT(*) FROM listed WHERE status=''").fetchone()[0])

    def unread(self) -> Counter[tuple[str, str]]:
        """What the ledger says of all inputs, as `known` does of those that are not read."""
        query = (
            "SELECT d.status, d.reason, COUNT(*) FROM listed l JOIN ledger d ON d.key=l.key "
            "GROUP BY 1, 2"
        )
        return Counter({(s, r): count for s, r, count in self._db.execute(query)})

    def known(self, choice: Choice, removals: Iterable[str] = ()) -> Counter[tuple[str, str]]:
        """How many inputs are not read, by what the ledger says of them: status and reason.

        Of those that are in `removals`, what it is about to say.
        """
        fresh, values = _fresh(choice)
        query = (
            "SELECT COALESCE(d.status, 'ignored'), COALESCE(d.reason, 'new'), COUNT(*) "  # noqa: S608
            f"FROM listed l LEFT JOIN ledger d ON d.key=l.key WHERE NOT ({fresh}) "
        )
        grouped = self._db.execute(f"{query} GROUP BY 1, 2", values)
        found = Counter({(status, reason): count for status, reason, count in grouped})
        for key in removals:
            row = self._db.execute(f"{query} AND l.key=?", (*values, key)).fetchone()
            if row is not None and row[2]:
                found[row[0], row[1]] -= 1
                found["removed", ""] += 1
        return found

    def fresh(self, choice: Choice) -> Iterator[tuple[SourceFile, str]]:
        """The inputs to read in packing order, each with what was packed before, or "".

        That is its content's SHA-256, a slash, and the digest of what was told of it.
        """
        fresh, values = _fresh(choice)
        anew, more = _among("d.shard", choice.repack)
        known = (
            f"CASE WHEN d.key IS NULL OR d.status='removed' OR {anew} OR {_hushed(choice)} "
            f"OR {_ORPHAN} THEN '' ELSE d.sha256 || '/' || d.annotation END"
        )
        query = (
            f"SELECT {', '.join(f'l.{name}' for name in _FILE)}, {known} "  # noqa: S608
            f"FROM listed l LEFT JOIN ledger d ON d.key=l.key WHERE {fresh} ORDER BY l.ord, l.key"
        )
        for *file, content in self._db.execute(query, (*more, *values)):
            yield SourceFile(*file), "" if choice.retry else content

    def compare(self, now: Iterable[str], known: Iterable[str], removals: Iterable[str]) -> None:
        """Takes in the sources of this pack and of earlier ones, and which keys it removes.

        Raises `DatasetError` for a file that an earlier pack took under another path.
        """
        places = {source: storage.absolute(source).rstrip("/") for source in now}
        given = {source.rstrip("/") for source in known}
        urls = {*places.values(), *given}
        rows = [(url, url in places.values(), _leads_elsewhere(url)) for url in urls]
        write_rows(self._db, "INSERT INTO sources VALUES (?, ?, ?)", rows)
        write_rows(self._db, "INSERT INTO removing VALUES (?)", ((key,) for key in removals))
        for source, place in places.items() if given else ():
            if place not in given or is_list(source):  # whose rows may name other files by now
                new_keys = place in given
                refuse_packed_before(self._db, source, sorted(given), new_keys=new_keys)
                refuse_replacing(self._db, source)
        if self.ledger.number("COUNT(*)", "status='duplicate'"):
            self.ledger.index_contents()
            self._db.execute(_FIND_ORPHANS, (ERASED,))

    def vanished(self) -> list[str]:
        """Keys of inputs that were no samples, and that the sources hold no more."""
        return [row.key for row in self.ledger.rows(_VANISHED)]

    def gone(self) -> list[str]:
        """Keys of the ledger that no listed input has."""
        unlisted = "status<>'removed' AND key NOT IN (SELECT key FROM listed)"
        return [row.key for row in self.ledger.rows(unlisted)]

    def left_behind(self) -> tuple[int, str]:
        """Samples that came from the sources and are not listed now; how many, the first's path.

        Of a pack that listed nothing, and of what could not be read whole, nobody knows.
        """
        first = next(self.ledger.rows(_LEFT_BEHIND), None)
        return self.ledger.number("COUNT(*)", _LEFT_BEHIND), first.path if first else ""

    def keys_left_behind(self) -> bytes:
        """Those of the same samples, one a line."""
        return b"".join(f"{row.key}\n".encode() for row in self.ledger.rows(_LEFT_BEHIND))


def _give(db: sqlite3.Connection, table: str) -> tuple[int, int]:
    """What rows say, to the inputs they name; how many of these are packed, or relabelled."""
    images = relabelled = last = 0
    archive = _only_archive(db)
    query = (
        "SELECT rowid,path,url,root,status='',annotation,given_label FROM listed "
        "WHERE rowid>? ORDER BY 1 LIMIT ?"
    )
    while page := db.execute(query, (last, BATCH_ROWS)).fetchall():
        given = []
        for row, path, at, root, packs, own, before in page:
            told = _told(db, spellings(path, at, root, table, archive))
            if told is None:
                continue
            said = Annotation.from_text(told)
            both = said.beside(Annotation.from_text(own)).to_text() if own else told
            given.append((both, said.label, said.label, row))
            images += packs
            relabelled += bool(packs and before and said.label and said.label != before)
        write_rows(
            db,
            "UPDATE listed SET annotation=?, label=COALESCE(?, label), "
            "given_label=COALESCE(?, given_label) WHERE rowid=?",
            given,
        )
        last = page[-1][0]
    return images, relabelled


def _told(db: sqlite3.Connection, names: Iterable[str]) -> str | None:
    """Its row; one that names another input by its very path is that one's alone."""
    taken = False
    for number, spelling in enumerate(names):
        if number >= 2 and number % 2 == 0:  # whole; without its suffix it follows
            taken = _is_path(db, spelling)
        if taken:
            continue
        found = db.execute("SELECT annotation FROM told WHERE path=?", (spelling,))
        row = found.fetchone()
        if row is not None:
            db.execute("UPDATE told SET met=1 WHERE path=?", (spelling,))
            return str(row[0])
    return None


def _is_path(db: sqlite3.Connection, spelling: str) -> bool:
    found = db.execute("SELECT 1 FROM listed WHERE key=? LIMIT 1", (key_of(spelling),))
    return found.fetchone() is not None


def _only_archive(db: sqlite3.Connection) -> str:
    """The path of the one archive among the sources, without suffix; "" where others are."""
    query = "SELECT DISTINCT url, root FROM listed WHERE offset>=0 OR member<>'' LIMIT 2"
    found = db.execute(query).fetchall()
    if len(found) != 1:
        return ""
    return without_archive_suffix(found[0][0].removeprefix(found[0][1]).lstrip("/"))


def _leads_elsewhere(source: str) -> bool:
    """Whether its inputs may lie beside it, not below: those of a list, of a glob."""
    return is_list(source) or any(sign in source for sign in "*?[")


@contextmanager
def open_inventory() -> Iterator[Inventory]:
    """An empty inventory, which goes with the block."""
    with storage.temporary_folder("vae-pack-") as folder:
        inventory = Inventory(folder)
        try:
            yield inventory
        finally:
            inventory.close()


def _among(column: str, values: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    return f"({column} IN ({','.join('?' * len(values))}))" if values else "0", tuple(values)


def _fresh(choice: Choice) -> tuple[str, tuple[str, ...]]:
    """The condition on (l)isted and le(d)ger under which an input is read, and its values.

    What was erased is never read again, whatever lies there now.
    """
    asked, values = _asked(choice)
    return f"(COALESCE(d.status || ':' || d.reason, '')<>'removed:{ERASED}' AND {asked})", values


def _hushed(choice: Choice) -> str:
    """The condition under which a table said something of an input, and says nothing any more.

    What a table says of its own rows lies within it.
    """
    silent = "(l.annotation='' AND %d OR l.annotation<>'' AND digest(l.annotation)='')"
    return f"(d.annotation<>'' AND l.row_group='' AND {silent % choice.told})"


def _asked(choice: Choice) -> tuple[str, tuple[str, ...]]:
    if choice.retry:
        return (
            "(l.status='' AND (COALESCE(d.status, '') IN ('rejected', 'ignored') OR "
            "COALESCE(d.reason, '')=? OR d.key IS NULL AND l.url IN "
            # What lies in an archive that is whole by now.
            "(SELECT url FROM ledger WHERE status='rejected' AND reason=?)))"
        ), (GONE, UNREADABLE)
    if choice.checksum:
        return "1", ()
    anew, values = _among("COALESCE(d.shard, '')", choice.repack)
    return (
        "(d.key IS NULL OR l.etag='' OR d.size<>l.size OR d.etag<>l.etag "
        f"OR (d.status='ignored')<>(l.status='ignored') OR {anew} "
        "OR d.status='packed' AND l.annotation<>'' AND digest(l.annotation)<>d.annotation "
        f"OR d.status='packed' AND {_hushed(choice)} OR d.status='removed' AND d.reason='{GONE}' "
        f"OR {_ORPHAN} "
        # These say nothing of the image: it was not there, or grew, at that moment.
        "OR d.status='rejected' AND d.reason IN ('missing', 'changed'))"
    ), values
