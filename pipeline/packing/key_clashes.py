"""One input for each key: of those that share one, the later counts, or the pack is refused."""

import sqlite3
from collections.abc import Sequence
from dataclasses import fields

from pipeline import storage
from pipeline.errors import DatasetError
from pipeline.sources.annotations import Annotation, join_captions
from pipeline.sources.source_file import SourceFile

_MOST_SHOWN = 5
"""Pairs in a message: enough to see the pattern."""
_FILE = [field.name for field in fields(SourceFile)]


def settle(db: sqlite3.Connection) -> int:
    """Leaves one input for each key, the later one of an archive or list; how many went.

    Raises `DatasetError` for inputs of different places that would share a key, for a file that
    two sources hold, and for rows of a list that disagree.
    """
    db.execute("CREATE INDEX listed_key ON listed (key)")
    _check_sources(db)
    clashes, gone = [], 0
    twice = "SELECT key FROM listed GROUP BY key HAVING COUNT(*) > 1"
    for (key,) in db.execute(twice).fetchall():
        found = _listed(db, "key=? ORDER BY rowid", (key,))
        first, last = found[0], found[-1]
        if any(file.url != last.url for file in found):
            clashes.append(f"{first.place} and {last.place} (both {key!r})")
        elif any(file.annotation != last.annotation for file in found):
            joined = join_captions([Annotation.from_text(file.annotation) for file in found])
            if joined is None:
                raise DatasetError(
                    f"{_source_of(db, key)}: names {last.path!r} twice, with other values."
                )
            db.execute("UPDATE listed SET annotation=? WHERE key=?", (joined.to_text(), key))
        gone += len(found) - 1
        db.execute(
            "DELETE FROM listed WHERE key=:key AND rowid<"
            "(SELECT MAX(rowid) FROM listed WHERE key=:key)",
            {"key": key},
        )
    if clashes:
        shown = "; ".join(clashes[:_MOST_SHOWN]) + ("; ..." if len(clashes) > _MOST_SHOWN else "")
        raise DatasetError(
            f"{len(clashes)} pairs of inputs have one path below their sources, of which the "
            f"key is made: {shown}. Name a folder that both lie in as the one source, or pack "
            "them into two datasets."
        )
    return gone


def _source_of(db: sqlite3.Connection, key: str) -> str:
    found = db.execute("SELECT root FROM listed WHERE key=?", (key,)).fetchone()
    return storage.shown(found[0])


def _check_sources(db: sqlite3.Connection) -> None:
    if db.execute("SELECT COUNT(DISTINCT root) FROM listed").fetchone()[0] < 2:
        return
    both = db.execute(
        "SELECT MIN(rowid), MAX(rowid) FROM listed WHERE status='' GROUP BY url, offset, "
        "member, inner HAVING COUNT(DISTINCT root) > 1 AND COUNT(DISTINCT key) > 1 LIMIT 1"
    ).fetchone()
    if both is not None:
        one, other = (_listed(db, "rowid=?", (row,))[0] for row in both)
        raise DatasetError(
            f"{one.place}: lies in two of the sources, and would be packed twice, as "
            f"{one.path!r} and as {other.path!r}. Name one of those sources only."
        )


def _listed(db: sqlite3.Connection, where: str, values: Sequence[object]) -> list[SourceFile]:
    query = f"SELECT {', '.join(_FILE)} FROM listed WHERE {where}"  # noqa: S608  # our own words
    return [SourceFile(*row) for row in db.execute(query, tuple(values))]
