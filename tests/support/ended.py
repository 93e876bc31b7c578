"""Ending a job at one of its writes, as a kill does: no later one is made."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from pipeline import storage

_WRITES = ("publish", "create_if_absent", "delete")


class Ended(BaseException):
    """As a kill: nothing catches it."""


@contextmanager
def ended_after(writes: int) -> Iterator[list[str]]:
    """Ends the block at the write to storage after so many; what stood there already stays.

    Gives the names of the writes that were not made: none where the block makes no more.
    """
    left, refused = writes, list[str]()

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def write(*given: Any) -> Any:
            nonlocal left
            if left == 0:
                refused.append(name)
                raise Ended
            left -= 1
            return real(*given)

        return write

    with pytest.MonkeyPatch.context() as patch:
        for name in _WRITES:
            patch.setattr(storage, name, counted(name, getattr(storage, name)))
        with suppress(Ended):
            yield refused
