"""The ledger as a table of an SQLite file: the newest row of each key, asked and changed by key."""

import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import islice
from operator import attrgetter
from typing import Any

from pipeline.data.keys import find_key
from pipeline.errors import DatasetError
from pipeline.packing.ledger import LedgerRow

BATCH_ROWS = 10_000
"""In one transaction: one for each row would take most of the time."""
_ROW = [field.name for field in fields(LedgerRow)]
_values_of = attrgetter(*_ROW)
_WHOLE = {"size", "offset", "position", "width", "height"}


_MOST_LABELS = 100
"""Of which the result tells how many images each has: the most frequent ones."""


@dataclass(frozen=True)
class Found:
    """What the samples are: sides in pixels, how many of each mode and label."""

    smallest_side: int
    largest_side: int
    smallest_pixels: int
    largest_pixels: int
    modes: Mapping[str, int]
    num_labels: int
    labels: Mapping[str, int]
    """The most frequent ones."""
    unlabelled: int


class LedgerTable:
    """A row for each key that was looked at, or removed, of whichever generation."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self.clear()

    def clear(self) -> None:
        """It is empty from here on."""
        self._db.execute("DROP TABLE IF EXISTS ledger")
        columns = columns_of(_ROW).replace("key TEXT", "key TEXT PRIMARY KEY")
        self._db.execute(f"CREATE TABLE ledger ({columns}) WITHOUT ROWID")

    def put(self, rows: Iterable[LedgerRow]) -> None:
        """Rows that are newer than those of the same key."""
        marks = ",".join("?" * len(_ROW))
        write_rows(
            self._db,
            f"INSERT OR REPLACE INTO ledger VALUES ({marks})",  # noqa: S608  # marks alone
            map(_values_of, rows),
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

    def find(self, asked: str, output: str, flag: str) -> str:
        """The key that a key or a path means, as people write it; `DatasetError` naming `flag`."""
        try:
            return find_key(asked, _Keys(self))
        except KeyError as error:
            raise DatasetError(f"{output}: `{flag}`: {error.args[0]}") from None

    def tally(self, column: str) -> dict[str, int]:
        """How many samples that count have each value of `column`."""
        query = f"SELECT {column}, COUNT(*) FROM ledger WHERE status='packed' GROUP BY 1"  # noqa: S608
        return {str(value): count for value, count in self._db.execute(query)}

    def number(self, expression: str, where: str = "status='packed'") -> int:
        """One number about the ledger."""
        query = f"SELECT {expression} FROM ledger WHERE {where}"  # noqa: S608  # our own words
        return int(self._db.execute(query).fetchone()[0] or 0)

    def index_contents(self) -> None:
        """Makes samples be found by their bytes at once."""
        self._db.execute("CREATE INDEX IF NOT EXISTS by_content ON ledger (sha256)")

    def set_aside(self, keys: Iterable[str]) -> None:
        """From here on these are no samples that another input is a copy of."""
        statement = "UPDATE ledger SET status='leaving' WHERE key=? AND status='packed'"
        write_rows(self._db, statement, ((key,) for key in keys))

    def copy_of(self, sha256: str, key: str) -> str | None:
        """The path of a sample of another key that counts and has this content."""
        self.index_contents()
        query = "SELECT path FROM ledger WHERE sha256=? AND status='packed' AND key<>? ORDER BY key"
        found = self._db.execute(query, (sha256, key)).fetchone()
        return None if found is None else str(found[0])

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """What is put within the block costs one commit, not one for each call."""
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            self._db.execute("COMMIT")


def found_in(ledger: LedgerTable) -> Found:
    """What the samples are that count."""
    told = ledger.tally("label")
    labels = Counter({label: n for label, n in told.items() if label})
    return Found(
        smallest_side=ledger.number("MIN(MIN(width, height))"),
        largest_side=ledger.number("MAX(MAX(width, height))"),
        smallest_pixels=ledger.number("MIN(width * height)"),
        largest_pixels=ledger.number("MAX(width * height)"),
        modes={mode: n for mode, n in ledger.tally("mode").items() if mode},
        num_labels=len(labels),
        labels=dict(labels.most_common(_MOST_LABELS)),
        unlabelled=sum(told.values()) - labels.total(),
    )


class _Keys:
    """The ledger's keys, as a collection that is not in memory."""

    def __init__(self, ledger: LedgerTable) -> None:
        self._ledger = ledger

    def __contains__(self, key: object) -> bool:
        return self._ledger.row(str(key)) is not None

    def __iter__(self) -> Iterator[str]:
        return self._ledger.keys()

    def __len__(self) -> int:
        return self._ledger.number("COUNT(*)")


def write_rows(db: sqlite3.Connection, statement: str, rows: Iterable[Sequence[Any]]) -> None:
    """Runs the statement with each row, thousands to a commit."""
    if db.in_transaction:
        db.executemany(statement, rows)
        return
    rows = iter(rows)
    while batch := list(islice(rows, BATCH_ROWS)):
        db.execute("BEGIN")
        db.executemany(statement, batch)
        db.execute("COMMIT")


def columns_of(names: Sequence[str]) -> str:
    """Names with their types, for CREATE TABLE."""
    return ", ".join(f"{name} {'INTEGER' if name in _WHOLE else 'TEXT'}" for name in names)
