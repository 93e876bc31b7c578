"""Every way in which a file is damaged, each undone afterwards."""

import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

Damage = Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    """One damage to one file of a world."""

    file: str
    kind: str
    damage: str
    apply: Damage

    def __str__(self) -> str:
        return f"{self.kind}: {self.file}: {self.damage}"


def cases_of(root: Path, file: str, kind: str, older: bytes | None, flips: int) -> Iterator[Case]:
    """All damages to a file; `older` is what it held once, if it was ever replaced."""
    path = root / file
    data, chance = path.read_bytes(), random.Random(file)

    def case(name: str, apply: Damage) -> Case:
        return Case(file, kind, name, apply)

    for _ in range(flips if data else 0):
        place = chance.randrange(8 * len(data))
        yield case(f"bit {place}", _write(_flipped(data, place)))
    cuts = {1, len(data) // 2, len(data) - 1, len(data) - 16}
    for cut in sorted(cut for cut in cuts if 0 < cut < len(data)):
        yield case(f"cut at {cut}", _write(data[:cut]))
    yield case("empty", _write(b""))
    yield case("deleted", lambda p: p.unlink())
    yield case("a byte more", _write(data + b"\0"))
    yield case("two of it", _write(data + data))
    yield case("zeros", _write(bytes(len(data))))
    siblings = sorted(p for p in path.parent.iterdir() if p.is_file() and p != path)
    like = [p for p in siblings if p.suffix == path.suffix][:2]
    for sibling in like:
        yield case(f"replaced by {sibling.name}", _write(sibling.read_bytes()))
        yield case(f"swapped with {sibling.name}", _swap(sibling))
    if like:
        yield case("a link to a sibling", _link(str(like[0])))
    if older is not None:
        yield case("an older version", _write(older))
    yield case("a link to nothing", _link(str(root / "nothing")))
    yield case("a link to /dev/zero", _link("/dev/zero"))
    yield case("a folder", _folder)
    yield case("a FIFO", _fifo)


def _flipped(data: bytes, place: int) -> bytes:
    changed = bytearray(data)
    changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


def _write(data: bytes) -> Damage:
    def apply(path: Path) -> None:
        path.unlink()
        path.write_bytes(data)

    return apply


def _swap(other: Path) -> Damage:
    def apply(path: Path) -> None:
        mine, theirs = path.read_bytes(), other.read_bytes()
        path.write_bytes(theirs)
        other.write_bytes(mine)

    return apply


def _link(target: str) -> Damage:
    def apply(path: Path) -> None:
        path.unlink()
        path.symlink_to(target)

    return apply


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@contextmanager
def damaged(case: Case, root: Path) -> Iterator[None]:
    """While the block runs, the file is damaged; what the readers wrote beside it goes as well."""
    path = root / case.file
    before = {p: p.read_bytes() for p in path.parent.iterdir() if p.is_file()}
    case.apply(path)
    try:
        yield
    finally:
        for p in path.parent.iterdir():
            if p.is_dir() and not p.is_symlink() and p == path:
                shutil.rmtree(p)
            elif not p.is_dir() or p.is_symlink():
                p.unlink()
        for p, data in before.items():
            p.write_bytes(data)
