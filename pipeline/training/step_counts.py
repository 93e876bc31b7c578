"""What all ranks tell each other at the beginning of a step, in one message."""

from functools import cached_property

import torch

from pipeline.data import Batch
from pipeline.training.world import World


class Counts:
    """Counts over all ranks; whoever reads the first one waits for the slowest rank.

    The message is under way from the beginning, so that the forward pass need not wait for it.
    """

    def __init__(self, batch: Batch, world: World, own_seconds: float, *, stop: bool) -> None:
        """`own_seconds` are this rank's of the step before, `stop` is its wish to stop."""
        named = torch.tensor([key != "" for key in batch.keys])
        # Each rank's seconds have a place of their own, as microseconds.
        mine = torch.zeros(3 + world.size, dtype=torch.int64)
        mine[0], mine[1], mine[2] = batch.valid.sum(), (named & ~batch.valid).sum(), int(stop)
        mine[3 + world.rank] = int(own_seconds * 1e6)
        self._pending = world.begin_sum(mine.to(world.device))

    @cached_property
    def _totals(self) -> list[int]:
        totals: list[int] = self._pending.result().tolist()
        return totals

    @property
    def images(self) -> int:
        """Valid images in the global batch."""
        return self._totals[0]

    @property
    def divisor(self) -> int:
        """What a sum over them is divided by for their mean: at least 1."""
        return max(1, self.images)

    @property
    def bad_images(self) -> int:
        """Images that could not be read or decoded."""
        return self._totals[1]

    @property
    def wishes(self) -> int:
        """Ranks that wish to stop."""
        return self._totals[2]

    @property
    def rank_seconds(self) -> tuple[float, ...]:
        """What each rank did by itself in the step before, in seconds."""
        return tuple(count / 1e6 for count in self._totals[3:])
