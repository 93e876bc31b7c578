"""Numbers in eight bits: of each image and channel 255 steps between its least and its largest.

Two float32 stand beside each channel, the step and the middle; a value is number x step + middle.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

_MOST = 127
"""Steps to each side of the middle: a signed byte's, less -128, which has no counterpart."""


@dataclass(frozen=True)
class Int8:
    """`numbers` int8 [n, Z, h, w]; `scales` float32 [n, 2, Z], steps and then middles."""

    numbers: npt.NDArray[np.int8]
    scales: Floats

    @property
    def values(self) -> Floats:
        """float32 [n, Z, h, w]: what they stand for."""
        return restored(self.numbers, self.scales)


def to_int8(values: Floats) -> Int8:
    """The nearest of what eight bits can say: off by at most half a step."""
    low, high = values.min(axis=(2, 3)), values.max(axis=(2, 3))
    # Halves and parts before sums: the largest float32 has to pass too.
    middle = low * np.float32(0.5) + high * np.float32(0.5)
    step = high / np.float32(2 * _MOST) - low / np.float32(2 * _MOST)
    safe = np.where(step > 0, step, np.float32(1))
    steps = np.rint((values - middle[:, :, None, None]) / safe[:, :, None, None])
    numbers = np.clip(steps, -_MOST, _MOST).astype(np.int8)
    return Int8(numbers, np.stack([step, middle], axis=1))


def restored(numbers: npt.NDArray[np.int8], scales: Floats) -> Floats:
    """float32 [n, Z, h, w] of numbers [n, Z, h, w] and scales [n, 2, Z]."""
    values = numbers.astype(np.float32)
    values *= scales[:, 0, :, None, None]
    values += scales[:, 1, :, None, None]
    return values
