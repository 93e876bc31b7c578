"""What a pack knows while it works, on disk: 10^7 inputs need some 100 MB of memory.

An SQLite file in the temporary folder holds what the sources list, what a table says, and the
ledger; it is sorted and joined there, and goes with the pack.
"""

import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.errors import DatasetError
from pipeline.packing.ledger import LedgerRow
from pipeline.sources.annotations import (
    Annotation,
    AnnotationRow,
    join_captions,
    normal,
    spellings,
)
from pipeline.sources.source_file import SourceFile

MOST_SHOWN = 5
"""Names in a message: enough to see the pattern."""
_CACHE_KIB = 65_536
"""SQLite's own memory: 64 MiB, however many inputs there are."""
_BATCH_ROWS = 10_000
"""In one transaction: one for each row would take most of the time."""
_FILE = [field.name for field in fields(SourceFile)]
_ROW = [field.name for field in fields(LedgerRow)]
_values_of = attrgetter(*_FILE)
_WHOLE = {"size", "offset", "position", "width", "height", "met"}


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


@dataclass(frozen=True)
class TableCounts:
    """How many rows of a table name an input, and how many inputs are named."""

    rows: int = 0
    met: int = 0
    unmatched: int = 0
    images: int = 0
    """Inputs that a row names."""
    example: str = ""
    """A row's path that names none."""


class Inventory:
    """Three tables of one pack; see the module."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._db = sqlite3.connect(folder / "inventory.sqlite", isolation_level=None)
        # Nothing of it outlives the pack, so nothing is ever brought back after a crash.
        for pragma in ("journal_mode=OFF", "synchronous=OFF", f"cache_size=-{_CACHE_KIB}"):
            self._db.execute(f"PRAGMA {pragma}")
        self._db.execute(f"CREATE TABLE listed (ord BLOB, key, root, label, {_columns(_FILE)})")
        self._db.execute(
            "CREATE TABLE told (path TEXT, written TEXT, annotation TEXT, met INTEGER)"
        )
        self.forget_ledger()

    def close(self) -> None:
        """Ends the use of the file."""
        self._db.close()

    def forget_ledger(self) -> None:
        """The ledger is empty from here on."""
        self._db.execute("DROP TABLE IF EXISTS ledger")
        columns = _columns(_ROW).replace("key TEXT", "key TEXT PRIMARY KEY")
        self._db.execute(f"CREATE TABLE ledger ({columns}) WITHOUT ROWID")

    def put(self, rows: Iterable[LedgerRow]) -> None:
        """Rows that are newer than those of the same key."""
        marks = ",".join("?" * len(_ROW))
        self._write(
            f"INSERT OR REPLACE INTO ledger VALUES ({marks})",  # noqa: S608  # marks alone
            ([getattr(row, name) for name in _ROW] for row in rows),
        )

    def row(self, key: str) -> LedgerRow | None:
        """The newest row of a key."""
        found = self._db.execute("SELECT * FROM ledger WHERE key=?", (key,)).fetchone()
        return None if found is None else LedgerRow(*found)

    def rows(self, where: str = "1", values: Sequence[Any] = ()) -> Iterator[LedgerRow]:
        """The ledger's rows of which `where` holds, by key."""
        query = f"SELECT * FROM ledger WHERE {where} ORDER BY key"  # noqa: S608  # our own words
        for found in self._db.execute(query, values):
            yield LedgerRow(*found)

    def keys(self) -> Iterator[str]:
        """Keys of samples that count."""
        for (key,) in self._db.execute("SELECT key FROM ledger WHERE status='packed' ORDER BY key"):
            yield key

    def tally(self, column: str) -> dict[str, int]:
        """How many samples that count have each value of `column`."""
        query = f"SELECT {column}, COUNT(*) FROM ledger WHERE status='packed' GROUP BY 1"  # noqa: S608
        return {str(value): count for value, count in self._db.execute(query)}

    def number(self, expression: str, where: str = "status='packed'") -> int:
        """One number about the ledger."""
        query = f"SELECT {expression} FROM ledger WHERE {where}"  # noqa: S608  # our own words
        return int(self._db.execute(query).fetchone()[0] or 0)

    def copy_of(self, sha256: str, key: str) -> bool:
        """Whether a sample of another key that counts has this content."""
        self._db.execute("CREATE INDEX IF NOT EXISTS by_content ON ledger (sha256)")
        query = "SELECT 1 FROM ledger WHERE sha256=? AND status='packed' AND key<>?"
        return self._db.execute(query, (sha256, key)).fetchone() is not None

    def list_inputs(self, root: str, files: Iterable[SourceFile]) -> None:
        """What one source holds."""
        marks = ",".join("?" * (4 + len(_FILE)))
        self._write(
            f"INSERT INTO listed VALUES ({marks})",  # noqa: S608  # marks alone
            ((file.order, file.key, root, file.label, *_values_of(file)) for file in files),
        )

    def settle(self) -> int:
        """Leaves one input for each key, the later one of an archive or list; how many went.

        Raises `DatasetError` for inputs of different places that would share a key, for a file that
        two sources hold, and for rows of a list that disagree.
        """
        self._db.execute("CREATE INDEX listed_key ON listed (key)")
        self._check_sources()
        clashes, gone = [], 0
        twice = "SELECT key FROM listed GROUP BY key HAVING COUNT(*) > 1"
        for (key,) in self._db.execute(twice).fetchall():
            found = self._listed("key=? ORDER BY rowid", (key,))
            first, last = found[0], found[-1]
            if any(file.url != last.url for file in found):
                clashes.append(f"{first.place} and {last.place} (both {key!r})")
            elif any(file.annotation != last.annotation for file in found):
                joined = join_captions([Annotation.from_text(file.annotation) for file in found])
                if joined is None:
                    raise DatasetError(f"a list names {last.path!r} twice, with other values.")
                self._db.execute(
                    "UPDATE listed SET annotation=? WHERE key=?", (joined.to_text(), key)
                )
            gone += len(found) - 1
            self._db.execute(
                "DELETE FROM listed WHERE key=:key AND rowid<"
                "(SELECT MAX(rowid) FROM listed WHERE key=:key)",
                {"key": key},
            )
        if clashes:
            shown = "; ".join(clashes[:MOST_SHOWN]) + ("; ..." if len(clashes) > MOST_SHOWN else "")
            raise DatasetError(
                f"{len(clashes)} pairs of inputs have one path below their sources, of which the "
                f"key is made: {shown}. Name a folder that both lie in as the one source, or pack "
                "them into two datasets."
            )
        return gone

    def _check_sources(self) -> None:
        if self._db.execute("SELECT COUNT(DISTINCT root) FROM listed").fetchone()[0] < 2:
            return
        both = self._db.execute(
            "SELECT MIN(rowid), MAX(rowid) FROM listed WHERE status='' GROUP BY url, offset, "
            "member, inner HAVING COUNT(DISTINCT root) > 1 AND COUNT(DISTINCT key) > 1 LIMIT 1"
        ).fetchone()
        if both is not None:
            one, other = (self._listed("rowid=?", (row,))[0] for row in both)
            raise DatasetError(
                f"{one.place}: lies in two of the sources, and would be packed twice, as "
                f"{one.path!r} and as {other.path!r}. Name one of those sources only."
            )

    def tell(self, rows: Iterable[AnnotationRow], url: str) -> TableCounts:
        """Gives each listed input what the row that names it says.

        Raises `DatasetError` for a table that names an image twice, with other values.
        """
        self._write(
            "INSERT INTO told VALUES (?, ?, ?, 0)",
            ((normal(row.path), row.path, row.annotation.to_text()) for row in rows),
        )
        self._db.execute("CREATE INDEX told_path ON told (path)")
        self._join_captions()
        twice = self._db.execute(
            "SELECT MIN(written) FROM told GROUP BY path HAVING COUNT(DISTINCT annotation) > 1"
        ).fetchone()
        if twice is not None:
            raise DatasetError(
                f"{storage.shown(url)}: names {twice[0]!r} twice, with other values."
            )
        images, last = 0, 0
        query = "SELECT rowid, path, url, root FROM listed WHERE rowid>? ORDER BY rowid LIMIT ?"
        while page := self._db.execute(query, (last, _BATCH_ROWS)).fetchall():
            found = [(row, self._told(path, url, root)) for row, path, url, root in page]
            images += sum(told is not None for _, told in found)
            self._write(
                "UPDATE listed SET annotation=?, label=COALESCE(?, label), "
                "given_label=COALESCE(?, given_label) WHERE rowid=?",
                (
                    (told, label := Annotation.from_text(told).label, label, row)
                    for row, told in found
                    if told is not None
                ),
            )
            last = page[-1][0]
        rows_, met = self._db.execute("SELECT COUNT(*), SUM(met) FROM told").fetchone()
        unmet = self._db.execute("SELECT written FROM told WHERE met=0 LIMIT 1").fetchone()
        return TableCounts(rows_, met or 0, rows_ - (met or 0), images, unmet[0] if unmet else "")

    def _join_captions(self) -> None:
        """Rows of one image that differ by their caption alone become its several captions."""
        several = "SELECT path FROM told GROUP BY path HAVING COUNT(DISTINCT annotation) > 1"
        for (path,) in self._db.execute(several).fetchall():
            query = "SELECT annotation FROM told WHERE path=? ORDER BY rowid"
            texts = [text for (text,) in self._db.execute(query, (path,))]
            joined = join_captions([Annotation.from_text(text) for text in texts])
            if joined is not None:
                self._db.execute(
                    "UPDATE told SET annotation=? WHERE path=?", (joined.to_text(), path)
                )

    def _told(self, path: str, url: str, root: str) -> str | None:
        for spelling in spellings(path, url, root):
            found = self._db.execute("SELECT annotation FROM told WHERE path=?", (spelling,))
            row = found.fetchone()
            if row is not None:
                self._db.execute("UPDATE told SET met=1 WHERE path=?", (spelling,))
                return str(row[0])
        return None

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

    def known(self, choice: Choice) -> Counter[tuple[str, str]]:
        """How many inputs are not read, by what the ledger says of them: status and reason."""
        fresh, values = _fresh(choice)
        query = (
            "SELECT COALESCE(d.status, 'ignored'), COALESCE(d.reason, 'new'), COUNT(*) "  # noqa: S608
            f"FROM listed l LEFT JOIN ledger d ON d.key=l.key WHERE NOT ({fresh}) GROUP BY 1, 2"
        )
        return Counter({(s, r): count for s, r, count in self._db.execute(query, values)})

    def fresh(self, choice: Choice) -> Iterator[tuple[SourceFile, str]]:
        """The inputs to read in packing order, each with its content as packed before, or ""."""
        fresh, values = _fresh(choice)
        anew, more = _among("d.shard", choice.repack)
        known = (
            f"CASE WHEN d.status IN ('removed') OR {anew} THEN '' ELSE COALESCE(d.sha256, '') END"
        )
        query = (
            f"SELECT {', '.join(f'l.{name}' for name in _FILE)}, {known} "  # noqa: S608
            f"FROM listed l LEFT JOIN ledger d ON d.key=l.key WHERE {fresh} ORDER BY l.ord, l.key"
        )
        for *file, content in self._db.execute(query, (*more, *values)):
            yield SourceFile(*file), "" if choice.retry else content

    def gone(self) -> list[str]:
        """Keys of the ledger that no listed input has."""
        query = (
            "SELECT key FROM ledger WHERE status<>'removed' AND key NOT IN (SELECT key FROM listed)"
        )
        return [key for (key,) in self._db.execute(query)]

    def _listed(self, where: str, values: Sequence[Any]) -> list[SourceFile]:
        query = f"SELECT {', '.join(_FILE)} FROM listed WHERE {where}"  # noqa: S608  # our own words
        return [SourceFile(*row) for row in self._db.execute(query, values)]

    def _write(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        rows = iter(rows)
        while batch := list(islice(rows, _BATCH_ROWS)):
            self._db.execute("BEGIN")
            self._db.executemany(statement, batch)
            self._db.execute("COMMIT")


@contextmanager
def open_inventory() -> Iterator[Inventory]:
    """An empty inventory, which goes with the block."""
    with storage.temporary_folder("vae-pack-") as folder:
        inventory = Inventory(folder)
        try:
            yield inventory
        finally:
            inventory.close()


def _columns(names: Sequence[str]) -> str:
    return ", ".join(f"{name} {'INTEGER' if name in _WHOLE else 'TEXT'}" for name in names)


def _among(column: str, values: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    return f"({column} IN ({','.join('?' * len(values))}))" if values else "0", tuple(values)


def _fresh(choice: Choice) -> tuple[str, tuple[str, ...]]:
    """The condition on (l)isted and le(d)ger under which an input is read, and its values."""
    if choice.retry:
        return "(COALESCE(d.status, '') IN ('rejected', 'ignored') AND l.status='')", ()
    if choice.checksum:
        return "1", ()
    anew, values = _among("COALESCE(d.shard, '')", choice.repack)
    return (
        "(d.key IS NULL OR l.etag='' OR d.size<>l.size OR d.etag<>l.etag "
        f"OR (d.status='ignored')<>(l.status='ignored') OR {anew} "
        # These say nothing of the image: it was not there, or grew, at that moment.
        "OR d.status='rejected' AND d.reason IN ('missing', 'changed'))"
    ), values
