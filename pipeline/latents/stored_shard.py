"""A receipt as one state of its dataset counts it: without the samples that were removed."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.latents.positions import Kept
from pipeline.latents.receipt import FailedSample, LatentPart, Receipt
from pipeline.latents.statistics import ChannelStatistics


@dataclass(frozen=True)
class StoredPart:
    """A part as this dataset sees it: without the positions that were removed from it."""

    part: LatentPart
    removed: tuple[int, ...]
    statistics: ChannelStatistics

    @functools.cached_property
    def failed(self) -> tuple[FailedSample, ...]:
        """Failed samples that the dataset still counts."""
        gone = set(self.removed)
        return tuple(sample for sample in self.part.failed if sample.position not in gone)

    @functools.cached_property
    def counted(self) -> Kept:
        """The samples that the dataset counts, those that failed among them."""
        return self.part.held.without(list(self.removed))

    @functools.cached_property
    def latents(self) -> Kept:
        """The samples that have latents which count."""
        return self.part.held.without([*self.removed, *(s.position for s in self.failed)])

    @property
    def rows(self) -> int:
        """Latents that count."""
        return len(self.part.held) - len(self.removed) - len(self.failed)


@dataclass(frozen=True)
class StoredShard:
    """A receipt as this dataset sees it, part by part, and all positions that it removed."""

    receipt: Receipt
    removed: tuple[int, ...]
    parts: tuple[StoredPart, ...]

    @property
    def failed(self) -> tuple[FailedSample, ...]:
        """Failed samples that the dataset still counts."""
        return tuple(sample for part in self.parts for sample in part.failed)

    @property
    def rows(self) -> int:
        """Latents that count."""
        return sum(part.rows for part in self.parts)

    @property
    def filtered(self) -> int:
        """Samples of the dataset that `--where` left out."""
        first = [p for p in self.parts if p.part.size == self.parts[0].part.size]
        gone = len(self.removed) - sum(len(part.removed) for part in first)
        return self.receipt.filtered - gone


def removed_of(part: LatentPart, removed: Sequence[int]) -> tuple[int, ...]:
    """Those of a shard's removed positions that a part holds."""
    if part.held.bits is None or not removed:
        return tuple(removed)
    gone = np.asarray(removed, dtype=np.int64)
    return tuple(gone[np.isin(gone, part.held.array)].tolist())
