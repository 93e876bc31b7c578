"""Which positions of a source shard something holds: all of them, or a bit for each."""

import base64
import binascii
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from pipeline.errors import StoreError

Ids = npt.NDArray[np.int64]
Bits = Annotated[str, Field(max_length=2**25)]
Samples = Annotated[int, Field(ge=0, lt=2**31, strict=True)]
"""Of a shard: a latent file's positions are int32."""


@dataclass(frozen=True)
class Positions:
    """Ascending positions of a shard of `samples`; `bits` in base64, one each, None: all."""

    samples: Samples
    bits: Bits | None = None

    @staticmethod
    def of(samples: int, held: Iterable[int] | Ids) -> "Positions":
        """These positions, in whatever order they come."""
        mask = np.zeros(samples, dtype=np.bool_)
        mask[np.asarray(list(held) if not isinstance(held, np.ndarray) else held, np.int64)] = True
        if mask.all():
            return Positions(samples)
        bits = base64.b64encode(np.packbits(mask, bitorder="little").tobytes()).decode()
        return Positions(samples, bits)

    def checked(self, where: str) -> "Positions":
        """Itself; raises `StoreError` naming `where` for bits that `of` would not have made."""
        try:
            if self.bits is not None and Positions.of(self.samples, self.array) != self:
                raise ValueError("of another shard, or not as they are written")  # noqa: TRY301
        except (ValueError, binascii.Error) as error:
            raise StoreError(f"{where}: its positions are {error}") from None
        return self

    @cached_property
    def array(self) -> Ids:
        """Every position, ascending."""
        if self.bits is None:
            return np.arange(self.samples)
        packed = np.frombuffer(base64.b64decode(self.bits, validate=True), np.uint8)
        if len(packed) != -(-self.samples // 8):
            raise ValueError(f"{len(packed)} bytes for {self.samples} samples")
        mask = np.unpackbits(packed, count=self.samples, bitorder="little")
        return np.flatnonzero(mask)

    @cached_property
    def _length(self) -> int:
        return self.samples if self.bits is None else len(self.array)

    def __len__(self) -> int:
        return self._length

    def holds(self, positions: Sequence[int]) -> bool:
        """Whether each of these is among them; costs nothing where all are."""
        if self.bits is None:
            return all(0 <= position < self.samples for position in positions)
        return bool(np.isin(positions, self.array).all())

    def rank(self, positions: Any) -> Any:
        """How many of them lie before each of these positions, which it holds."""
        if self.bits is None:
            return positions
        return np.searchsorted(self.array, positions)

    def without(self, gone: Ids | list[int]) -> "Kept":
        """What is left when some of them are gone."""
        return Kept(self, np.sort(self.rank(np.asarray(gone, dtype=np.int64))))


def together(parts: Sequence[Positions]) -> Positions | None:
    """What parts of one shard hold, one or more of them; None where two hold the same position.

    A part that holds all is never spelled out: it may claim any number.
    """
    if sum(map(len, parts)) > parts[0].samples:
        return None
    whole = [part for part in parts if part.bits is None]
    if whole:
        return whole[0]
    mask = np.zeros(parts[0].samples, dtype=np.bool_)
    for part in parts:
        if mask[part.array].any():
            return None
        mask[part.array] = True
    return Positions.of(len(mask), np.flatnonzero(mask))


@dataclass(frozen=True, eq=False)
class Kept:
    """Those of `positions` whose ranks are not `gone` (ascending); as little is kept as those."""

    positions: Positions
    gone: Ids

    def __len__(self) -> int:
        return len(self.positions) - len(self.gone)

    def intersected(self, ranks: Ids) -> "Kept":
        """What is left of these ranks alone."""
        chosen = np.setdiff1d(ranks, self.gone)
        return Kept(self.positions, np.setdiff1d(np.arange(len(self.positions)), chosen))

    def has(self, positions: Any) -> npt.NDArray[np.bool_]:
        """Whether each of these source positions, which `positions` holds, is left."""
        return ~np.isin(self.positions.rank(positions), self.gone)

    def ranks(self, numbers: Ids) -> Ids:
        """The rank among `positions` of each of these, by its number among those that are left."""
        if not len(self.gone):
            return numbers
        # Before the i-th gone one lie gone[i] - i that are left.
        left_before = self.gone - np.arange(len(self.gone))
        found: Ids = numbers + np.searchsorted(left_before, numbers, side="right")
        return found
