"""One input for each key: of those that share one, the later counts, or the pack is refused."""

import hashlib
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields

from pipeline import storage
from pipeline.data.keys import key_of
from pipeline.errors import AccessDeniedError, DatasetError, SampleError
from pipeline.sources.annotations import Annotation, join_captions
from pipeline.sources.archives import without_archive_suffix
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
    clashes: list[list[SourceFile]] = []
    shared = Counter[str]()
    sources = db.execute("SELECT COUNT(DISTINCT root) FROM listed").fetchone()[0]
    gone = 0
    twice = "SELECT key FROM listed GROUP BY key HAVING COUNT(*) > 1"
    for (key,) in db.execute(twice).fetchall():
        found = _listed(db, "key=? ORDER BY rowid", (key,))
        last = found[-1]
        if any(file.url != last.url for file in found):
            shared += Counter(paths=1, inputs=len(found))
            if len(clashes) < _MOST_SHOWN:
                clashes.append(found)
        elif any(file.annotation != last.annotation for file in found):
            _join(db, key, found)
        gone += len(found) - 1
        db.execute(
            "DELETE FROM listed WHERE key=:key AND rowid<"
            "(SELECT MAX(rowid) FROM listed WHERE key=:key)",
            {"key": key},
        )
    if clashes:
        raise DatasetError(_said(clashes, shared, sources))
    return gone


def _join(db: sqlite3.Connection, key: str, found: Sequence[SourceFile]) -> None:
    """Gives all rows of a key what those say that say something; a folder says nothing."""
    texts = list(dict.fromkeys(file.annotation for file in found if file.annotation))
    said = [Annotation.from_text(text) for text in texts]
    joined = said[0] if len(said) == 1 else join_captions(said)
    if joined is None:
        raise DatasetError(
            f"{_lists_of(db, key)}: {found[-1].path!r} is named twice, with other values. Leave "
            "one row of each image, or several that differ in their caption alone."
        )
    db.execute(
        "UPDATE listed SET annotation=?, given_label=?, label=COALESCE(?, label) WHERE key=?",
        (joined.to_text(), joined.label, joined.label, key),
    )


def join_told(db: sqlite3.Connection) -> None:
    """Rows of one image that differ by their caption alone become its several captions."""
    several = (
        "SELECT path FROM told WHERE path IS NOT NULL GROUP BY path "
        "HAVING COUNT(DISTINCT annotation) > 1"
    )
    for (path,) in db.execute(several).fetchall():
        query = "SELECT annotation FROM told WHERE path=? ORDER BY rowid"
        texts = [text for (text,) in db.execute(query, (path,))]
        joined = join_captions([Annotation.from_text(text) for text in texts])
        if joined is not None:
            db.execute("UPDATE told SET annotation=? WHERE path=?", (joined.to_text(), path))


def _said(clashes: Sequence[Sequence[SourceFile]], shared: Mapping[str, int], sources: int) -> str:
    """Which inputs share a path, and what to do, as the first of them tell."""
    pairs = [
        f"{found[0].place} and {found[-1].place} (both {found[0].path!r})"
        + (f", and {len(found) - 2:,} more" if len(found) > 2 else "")
        for found in clashes
    ]
    shown = "; ".join(pairs) + ("; ..." if shared["paths"] > len(pairs) else "")
    first, last = clashes[0][0], clashes[0][-1]
    one, other = _holder(first, last), _holder(last, first)
    if sources > 1:
        cure = "Name a folder that all lie in as the one source, or pack them into several datasets"
    elif not one.endswith("/") or not other.endswith("/"):
        cure = (
            f"{one} and {other} stand for one folder: leave one of them out (move it out of the "
            "source), or pack them into two datasets"
        )
    else:
        cure = "Leave one of each out of the list, or pack them into two datasets"
    return (
        f"{shared['inputs']:,} inputs share {shared['paths']:,} path{'s' * (shared['paths'] > 1)} "
        f"below their sources, of which the key is made: {shown}. {cure}."
    )


def _holder(file: SourceFile, other: SourceFile) -> str:
    """The archive or table that holds an input; the folder of a file, as large as one may be."""
    if file.offset >= 0 or file.member:
        return storage.shown(file.url)
    folder = file.url.rpartition("/")[0]
    for stem in (without_archive_suffix(other.url), other.url.rpartition(".")[0]):
        if file.url.startswith(f"{stem}/"):
            folder = stem
    return f"{storage.shown(folder)}/"


def _lists_of(db: sqlite3.Connection, key: str) -> str:
    found = db.execute("SELECT DISTINCT root FROM listed WHERE key=? AND annotation<>''", (key,))
    return " and ".join(storage.shown(root) for (root,) in found)


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


def refuse_packed_before(
    db: sqlite3.Connection, root: str, known: Sequence[str], *, new_keys: bool
) -> None:
    """Raises `DatasetError` for an input of the new source `root` that the ledger has by another
    path: an earlier pack found it through one of the sources `known`. `new_keys`: of a source that
    was there before, whose inputs that are known are none of these."""
    place = storage.absolute(root).rstrip("/")
    db.execute("CREATE INDEX IF NOT EXISTS by_place ON ledger (url)")
    db.create_function("key_of", 1, key_of, deterministic=True)
    ways: list[tuple[str, tuple[str | int, ...]]] = [
        ("k.url=l.url AND l.offset<0 AND l.member=''", ())
    ]
    for source in known:
        outer, inner = sorted((place, source), key=len)
        if inner.startswith(f"{outer}/"):
            step = f"{without_archive_suffix(inner.removeprefix(f'{outer}/'))}/"
            if outer == source:
                ways.append(("k.key=key_of(? || l.path) AND +k.url=l.url", (step,)))
            else:
                same = "k.key=key_of(substr(l.path, ?)) AND +k.url=l.url AND substr(l.path, 1, ?)=?"
                ways.append((same, (len(step) + 1, len(step), step)))
    for way, values in ways:
        found = db.execute(
            "SELECT l.rowid, k.path FROM listed l CROSS JOIN ledger k WHERE l.status='' AND "  # noqa: S608
            f"l.root=? AND k.key<>l.key AND k.status IN ('packed', 'duplicate') AND {way} "
            "AND k.key NOT IN (SELECT key FROM removing) "
            "AND NOT (? AND EXISTS (SELECT 1 FROM ledger o WHERE o.key=l.key)) LIMIT 1",
            (root, *values, new_keys),
        ).fetchone()  # fmt: skip
        if found is not None:
            one = _listed(db, "rowid=?", (found[0],))[0]
            as_before = [url for url in known if one.url == url or one.url.startswith(f"{url}/")]
            shown = ", ".join(map(storage.shown, as_before or known))
            raise DatasetError(
                f"{one.place}: is in this dataset as {found[1]!r} (from {shown}), and would be "
                f"packed twice, as {one.path!r} too. Name the source as it was named then, and "
                "beside it none that holds it or lies in it; or give another `--output URL`."
            )


def refuse_replacing(db: sqlite3.Connection, root: str) -> None:
    """Raises `DatasetError` where an input of `root` would take the place of another file's sample.

    A file that is there no more was moved here; one of the same bytes was copied.
    """
    rows = db.execute(
        "SELECT l.rowid, k.url, k.path, k.size, k.sha256 FROM listed l JOIN ledger k "
        "ON k.key=l.key WHERE l.root=? AND l.status='' AND k.status='packed' AND k.url<>l.url "
        "AND k.key NOT IN (SELECT key FROM removing) LIMIT ?", (root, _MOST_COMPARED),
    ).fetchall()  # fmt: skip
    for rowid, url, path, size, sha256 in rows:
        file = _listed(db, "rowid=?", (rowid,))[0]
        if not _is_there(url) or (file.size == size and _has_bytes(file, sha256)):
            continue
        raise DatasetError(
            f"{storage.shown(file.place)}: would replace the sample {path!r} of "
            f"{storage.shown(url)}, which is another file, and still there. A key is made of the "
            "path below the source: to have both, move the new files into a folder of their own "
            "below the earlier source, and append that one; to have the new ones alone, "
            "`--append --remove PATH ...` the earlier ones before, without `--source`; or give "
            "another `--output URL`."
        )


_MOST_COMPARED = 64
"""Files that have another's path: each is asked for, and read where their sizes are the same."""


def _is_there(url: str) -> bool:
    """Whether that file is still there, or nobody knows: an address of the ledger is not asked."""
    if storage.protocol(url) not in ("file", "s3", "s3a", "gs", "gcs"):
        return True
    try:
        return storage.exists(url)
    except AccessDeniedError:
        return True


def _has_bytes(file: SourceFile, sha256: str) -> bool:
    """Whether it has this content; of a table's row its mean size must do, which was compared."""
    try:
        return bool(file.row_group) or hashlib.sha256(file.read()).hexdigest() == sha256
    except SampleError:
        return True  # None of the sample's place: it will be a reject.


def _listed(db: sqlite3.Connection, where: str, values: Sequence[object]) -> list[SourceFile]:
    query = f"SELECT {', '.join(_FILE)} FROM listed WHERE {where}"  # noqa: S608  # our own words
    return [SourceFile(*row) for row in db.execute(query, tuple(values))]
