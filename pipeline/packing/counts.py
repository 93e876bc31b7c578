"""The law of packing: every input that the sources hold ends in exactly one of four ways."""

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from pipeline import counted as nouns
from pipeline.data.image_kinds import UNREADABLE, cure_of
from pipeline.sources.annotations import COLUMN, KEPT_AS, WITHOUT
from pipeline.sources.members import GUESSED

# Nothing of these is lost: a later member of the same name, `--remove`, `--limit`, an input that
# `--retry-rejected` leaves for the next append.
_NO_LOSS = frozenset(("replaced", "removed", "limit", "new"))
_SHOWN = 5
"""Reasons a terminal is told, the commonest first; the list of rejects has all."""


@dataclass(frozen=True)
class Counts:
    """seen = packed + duplicates + rejected + ignored: of what the sources hold now.

    `seen` is every file and archive member that could be an image, by name or first bytes, and
    every row of a table. `packed` ones are samples that count, of whichever generation.
    """

    seen: int
    packed: int
    duplicates: int
    """Left out by `--deduplicate`: another sample has the same bytes."""
    reasons: Mapping[str, int]
    """Rejected ones."""
    ignored: Mapping[str, int]
    """By kind: a suffix that is not read, `hidden`, `replaced` ..."""
    others: Mapping[str, int] = field(default_factory=dict)
    """None of `seen`: files that are no images, by suffix; folders, devices, dangling links."""

    def __post_init__(self) -> None:
        accounted = self.packed + self.duplicates + self.rejected + sum(self.ignored.values())
        assert self.seen == accounted, f"the law of packing: {self}"

    @property
    def rejected(self) -> int:
        """Looked at, and not good."""
        return sum(self.reasons.values())

    def lost(self, allowed: Collection[str] = ()) -> int:
        """Rejected inputs, and ignored ones that look like images, but for the kinds `allowed`."""
        fine = {kind.lower() for kind in allowed} | _NO_LOSS
        return self.rejected + sum(n for kind, n in self.ignored.items() if kind not in fine)

    def is_over(self, bad_fraction: float, allowed: Collection[str] = ()) -> bool:
        """Whether more is lost than that share of `seen`.

        What lies in an archive that can't be read to its end was not seen: no share bounds it but
        that of all.
        """
        unknown = bool(self.reasons.get(UNREADABLE)) and bad_fraction < 1
        return unknown or self.lost(allowed) > bad_fraction * self.seen

    def over_lines(self, bad_fraction: float, allowed: Collection[str] = ()) -> list[str]:
        """For people: why the exit code is not 0, and how to take that for success."""
        lost, number = self.lost(allowed), self.reasons.get(UNREADABLE)
        if number:
            return [
                f"What else {number:,} of the archives and tables hold is not known: the exit code "
                "is 3. To take that for success: `--bad-fraction 1`."
            ]
        share = math.ceil(100 * lost / self.seen) / 100
        return [
            f"More than {bad_fraction:.1%} of the inputs are lost, so the exit code is 3. To take "
            f"that for success: `--bad-fraction {share:g}`."
        ]

    def summary(self) -> list[str]:
        """For people: the law in one line, then the largest losses, each with its cure."""
        ignored = sum(self.ignored.values())
        lines = [
            f"{self.seen:,} seen = {self.packed:,} packed + {self.duplicates:,} duplicates + "
            f"{self.rejected:,} rejected + {ignored:,} ignored."
        ]
        lines += _told("Rejected", self.reasons) + _told("Ignored", self.ignored)
        return lines + _aside(self.others)


@dataclass(frozen=True)
class TableCounts:
    """rows = met + unmatched: how many rows of a table name an input; how many inputs are named."""

    rows: int = 0
    met: int = 0
    unmatched: int = 0
    images: int = 0
    """Inputs that a row names."""
    example: str = ""
    """What a row says that names none."""
    folders: int = 0
    """Inputs that took the folder's name for their label, beside others that have a table's."""
    labelled: int = 0
    """Inputs whose label a table says: this one, a list, or the one that holds them."""
    relabelled: int = 0
    """Inputs that the list or table which brought them in labels otherwise."""
    kept: int = 0
    """Samples that keep what a table said when they were packed: this pack reads none of them."""
    hushed: int = 0
    """Samples of which a table said something when they were packed, and this one says nothing."""

    def __post_init__(self) -> None:
        assert self.rows == self.met + self.unmatched, f"the law of tables: {self}"


def counted(found: Mapping[str, int], seen: int, others: Mapping[str, int]) -> Counts:
    """From numbers by "STATUS:REASON"."""
    by_status: dict[str, Counter[str]] = {
        name: Counter() for name in ("packed", "duplicate", "rejected", "ignored")
    }
    for name, number in found.items():
        status, _, reason = name.partition(":")
        if status == "removed":
            status, reason = "ignored", "removed"
        by_status[status][reason] += number
    return Counts(
        seen=seen,
        packed=by_status["packed"].total(),
        duplicates=by_status["duplicate"].total(),
        reasons=dict(sorted(by_status["rejected"].items())),
        ignored=dict(sorted(by_status["ignored"].items())),
        others=dict(sorted(others.items())),
    )


def _told(what: str, found: Mapping[str, int]) -> list[str]:
    most = Counter(found).most_common(_SHOWN)
    lines = [
        f"  {what}: {number:,} {kind or 'without suffix'}" + (f": {cure}" if cure else "")
        for kind, number in most
        for cure in (cure_of(kind),)
    ]
    left = sum(found.values()) - sum(number for _, number in most)
    return [*lines, f"  {what}: {left:,} for other reasons"] if left else lines


def with_cures(reasons: Mapping[str, int]) -> str:
    """The most frequent reasons in one line, each with its cure."""
    most = Counter(reasons).most_common(_SHOWN)
    return ", ".join(
        f"{number:,} {kind}" + (f": {cure}" if (cure := cure_of(kind)) else "")
        for kind, number in most
    )


def _aside(others: Mapping[str, int]) -> list[str]:
    """What is counted and none of the inputs: files, and what is to be known of the others."""
    columns = [name for name in others if name.startswith(COLUMN)]
    files = {name: n for name, n in others.items() if name not in (*columns, GUESSED)}
    lines = [f"Beside them: {_listed(files)}."] if files else []
    if columns:
        told = [
            name.removeprefix(COLUMN)
            + (" left out" if KEPT_AS not in name and not name.endswith(WITHOUT) else "")
            + f" ({nouns.counted(others[name], 'row')})"
            for name in columns
        ]
        lines.append(f"Columns of tables that samples have not as they were: {'; '.join(told)}.")
    if others.get(GUESSED):
        lines.append(
            f"{others[GUESSED]:,} names in zips are in no encoding that is told there, and were "
            "read as CP437. Are they wrong in labels: unpack the zip, and pack the folder."
        )
    return lines


def _listed(found: Mapping[str, int]) -> str:
    most = Counter(found).most_common(_SHOWN)
    left = sum(found.values()) - sum(number for _, number in most)
    more = [f"{left:,} of other kinds"] if left else []
    return ", ".join([f"{number:,} {kind or 'without suffix'}" for kind, number in most] + more)
