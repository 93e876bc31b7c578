"""What this machine has left: memory that can be had, compared with what a job surely needs."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import ConfigError

_GIB = 2**30


class Need(NamedTuple):
    """Bytes that a job can't do without, what they are for, and how to need fewer."""

    what: str
    bytes: int
    mend: str


def refuse_beyond_memory(needs: Sequence[Need], free: int | None, first: str = "") -> None:
    """Raises `ConfigError` if `needs` together are more than the `free` bytes; None: nobody knows.

    `first` is told before what each need says would mend it. It is for before anything is taken:
    what Linux grants, and then has not, freezes the whole machine.
    """
    whole = sum(need.bytes for need in needs)
    if free is None or whole <= free:
        return
    most = max(need.bytes for need in needs)
    parts = ", ".join(f"{_gib(need.bytes)} for {need.what}" for need in needs)
    mends = [need.mend for need in needs if need.bytes >= min(most, free // 2)]
    raise ConfigError(
        f"memory: at least {_gib(whole)} are needed here ({parts}), and {_gib(free)} can be had. "
        f"Give {first}{'; and '.join(mends)}."
    )


def free_memory_bytes(root: Path = Path("/")) -> int | None:
    """What machine, container or service, and `ulimit -v` still give; None if nobody says.

    Pages of files count as free: the system gives them away first. `root` holds `proc` and `sys`.
    """
    found = [_machine_free(root), *_group_free(root), *_addresses_left(root)]
    return min((each for each in found if each is not None), default=None)


def memory_limit_bytes(root: Path = Path("/")) -> int:
    """The machine's memory, or less where this process's group is limited to less."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([whole, *(limit for _, limit in _limits(root))])


def cores_here(root: Path = Path("/")) -> float:
    """Cores that this process may use: those it may run on, or fewer where its group is limited."""
    limits = [_cores_of(folder) for folder in _folders(root, "cpu")]
    return min([float(len(os.sched_getaffinity(0))), *(each for each in limits if each)])


def _cores_of(folder: Path) -> float | None:
    words = " ".join(_lines(folder / "cpu.max")[:1]).split()
    if not words:
        words = [*_lines(folder / "cpu.cfs_quota_us"), *_lines(folder / "cpu.cfs_period_us")]
    whole = len(words) == 2 and all(word.isdigit() for word in words)  # "max", -1: none
    return int(words[0]) / int(words[1]) if whole else None


def _machine_free(root: Path) -> int | None:
    for line in _lines(root / "proc/meminfo"):
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return None


def _group_free(root: Path) -> list[int]:
    free = []
    for folder, limit in _limits(root):
        is_v2 = (folder / "memory.current").exists()
        used = _number(folder / ("memory.current" if is_v2 else "memory.usage_in_bytes"))
        stat = dict(line.split() for line in _lines(folder / "memory.stat"))
        total = "" if is_v2 else "total_"
        given_back = sum(int(stat.get(f"{total}{kind}_file", 0)) for kind in ("inactive", "active"))
        if used is not None:
            free.append(limit - max(0, used - given_back))
    return free


def _addresses_left(root: Path) -> list[int]:
    """Of this process's address space, where schedulers of HPC limit that."""
    name, used = "Max address space", _lines(root / "proc/self/statm")
    for line in _lines(root / "proc/self/limits"):
        most = line.removeprefix(name).split()[:1]
        if line.startswith(name) and used and most[0].isdigit():
            taken = int(used[0].split()[0]) * os.sysconf("SC_PAGE_SIZE")
            return [max(0, int(most[0]) - taken)]
    return []


def _limits(root: Path) -> list[tuple[Path, int]]:
    """The control groups with a limit of memory, each with it, from the own to the outermost."""
    found: dict[Path, int] = {}
    for folder in _folders(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = _number(folder / name)
            if limit is not None:
                found.setdefault(folder, limit)
    return list(found.items())


def _folders(root: Path, kind: str) -> Iterator[Path]:
    """The control groups that this process is in, from its own to the outermost.

    In a container the own one is mounted as the root.
    """
    for line in _lines(root / "proc/self/cgroup"):
        _, kinds, path = line.split(":", 2)
        if kinds and kind not in kinds.split(","):
            continue
        top = root / "sys/fs/cgroup" / (kind if kinds else "")
        own = top / path.lstrip("/")
        for folder in (own, *own.parents):
            yield folder
            if folder == top:
                break


def _number(path: Path) -> int | None:
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].isdigit() else None  # "max": none


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _gib(count: int) -> str:
    return f"{count / _GIB:,.1f} GiB"
