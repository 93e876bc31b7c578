"""Per-channel mean and variance in float64, merged in a fixed order: bytes don't depend on who.

Welford's sums in Chan's pairwise form (Chan, Golub & LeVeque 1979): count, mean, sum of squared
deviations. `without` takes rows away again, which is how removed samples leave a snapshot.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter

from pipeline.json_value import Json

Array = npt.NDArray[Any]
_MOST_MEAN, _MOST_SUM = 1e39, 1e300
"""No float32 is 1e39; beyond these sums of squares can't be merged in float64."""


@dataclass(frozen=True)
class ChannelStatistics:
    """Sums over `rows` latents [Z, h, w] for each of Z channels, `count` values in each.

    `squares` is the sum of squared deviations from `mean`; `posterior_variance` the mean of
    exp(logvar), None where no log-variance is stored.
    """

    rows: int
    count: int
    mean: tuple[float, ...]
    squares: tuple[float, ...]
    posterior_variance: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        lengths = {len(self.mean), len(self.squares)}
        lengths |= {len(self.posterior_variance)} if self.posterior_variance else set()
        if len(lengths) != 1 or min(self.rows, self.count) < 0:
            raise ValueError("the statistics are not of one number of channels")
        sums = (*self.squares, *(self.posterior_variance or ()))
        if not all(abs(mean) < _MOST_MEAN for mean in self.mean) or not all(
            0 <= value < _MOST_SUM for value in sums
        ):
            raise ValueError("the statistics are of no numbers that float32 has")

    @property
    def std(self) -> tuple[float, ...]:
        """Population standard deviation of the stored values per channel; 0 without rows."""
        return tuple(math.sqrt(value / max(self.count, 1)) for value in self.squares)

    @property
    def sample_std(self) -> tuple[float, ...] | None:
        """Standard deviation of z ~ q(z|x) over the data: sqrt(Var[mean] + E[exp(logvar)])."""
        if self.posterior_variance is None:
            return None
        pairs = zip(self.squares, self.posterior_variance, strict=True)
        return tuple(math.sqrt(s / max(self.count, 1) + v) for s, v in pairs)

    def merge(self, other: "ChannelStatistics") -> "ChannelStatistics":
        """The statistics of both sets of rows together."""
        if not self.rows or not other.rows:
            return self if other.rows == 0 else other
        return self._combine(other, 1)

    def without(self, other: "ChannelStatistics") -> "ChannelStatistics":
        """The statistics of the rows that are left when those of `other` are taken away."""
        if other.rows > self.rows:
            raise ValueError(f"can't take {other.rows} rows from {self.rows}")
        if other.rows == self.rows:
            return empty(len(self.mean), self.posterior_variance is not None)
        return self._combine(other, -1) if other.rows else self

    def _combine(self, other: "ChannelStatistics", sign: int) -> "ChannelStatistics":
        rows, count = self.rows + sign * other.rows, self.count + sign * other.count
        mine, theirs = self.count / count, sign * other.count / count
        mean, squares = [], []
        for a, b, sa, sb in zip(self.mean, other.mean, self.squares, other.squares, strict=True):
            mean.append(a + (b - a) * theirs)
            # Adding: n_a n_b / n. Taking away: the same identity solved for the smaller set.
            between = (b - a) ** 2 * self.count * theirs
            squares.append(max(sa + sign * sb + between, 0.0))
        within = None
        if self.posterior_variance is not None and other.posterior_variance is not None:
            pairs = zip(self.posterior_variance, other.posterior_variance, strict=True)
            within = tuple(a * mine + b * theirs for a, b in pairs)
        return ChannelStatistics(rows, count, tuple(mean), tuple(squares), within)

    def to_json(self) -> Json:
        """A JSON-able dictionary; float64 survives it exactly."""
        return {
            "rows": self.rows,
            "count": self.count,
            "mean": list(self.mean),
            "squares": list(self.squares),
            "posterior_variance": (
                None if self.posterior_variance is None else list(self.posterior_variance)
            ),
        }

    @classmethod
    def from_json(cls, value: Json) -> "ChannelStatistics":
        """The inverse of `to_json`; raises `ValueError` for anything else."""
        return TypeAdapter(cls).validate_python(value)


def empty(channels: int, with_variance: bool) -> ChannelStatistics:
    """The statistics of no rows."""
    zeros = (0.0,) * channels
    return ChannelStatistics(0, 0, zeros, zeros, zeros if with_variance else None)


def measure(latents: Array, log_variance: Array | None = None) -> ChannelStatistics:
    """The statistics of stored latents [n, Z, h, w], n >= 1, computed in float64."""
    rows, channels, positions = latents.shape[0], latents.shape[1], latents[0, 0].size
    # Sums are taken in the order of memory: a channels-last batch would round otherwise than its
    # copy in a file.
    values = latents.reshape(rows, channels, positions).astype(np.float64, order="C")
    mean = values.mean(axis=(0, 2))
    squares = np.square(values - mean[None, :, None]).sum(axis=(0, 2))
    within = None
    if log_variance is not None:
        flat = log_variance.reshape(rows, channels, positions).astype(np.float64, order="C")
        within = tuple(np.exp(flat).mean(axis=(0, 2)).tolist())
    return ChannelStatistics(
        rows, rows * positions, tuple(mean.tolist()), tuple(squares.tolist()), within
    )
