"""How much memory this machine, or this container of it, has."""

import os
from contextlib import suppress
from pathlib import Path


def machine_memory() -> int:
    """Bytes that all processes here may use together."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(_cgroup_limit() or whole, whole)


def _cgroup_limit() -> int | None:
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            return int((Path("/sys/fs/cgroup") / name).read_text(encoding="ascii"))
    return None
