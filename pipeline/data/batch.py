"""A batch as the loader gives it."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """b samples: `images` uint8 [b, C, H, W] on the CPU, `keys`, `valid` bool [b].

    A padded slot has the key "" and is not valid; a bad sample keeps its slot and key, is not
    valid, has zeros for an image, and its reason in `errors`. `columns` hold what was asked for,
    one entry per slot. `slots` are the places of these samples in the global batch `index` of
    `epoch`.
    """

    images: Tensor
    keys: list[str]
    valid: Tensor
    columns: dict[str, list[Any]]
    epoch: int
    index: int
    slots: range
    errors: dict[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        good, slots = int(self.valid.sum()), len(self.keys)
        return (
            f"Batch {self.index} of epoch {self.epoch}: images uint8 {list(self.images.shape)}, "
            f"{good} of {slots} valid" + "".join(f", {name}" for name in self.columns)
        )
