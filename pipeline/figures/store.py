"""Pictures of a latent store: what its latents decode to, and how its channels are spread."""

import numpy as np

from pipeline.encoding.report import Reconstructions
from pipeline.figures.canvas import AMBER, BLUE, INK, Canvas, Target, signed
from pipeline.figures.images import draw_reconstructions
from pipeline.latents.statistics import ChannelStatistics

_WIDTH, _HEIGHT = 7.2, 2.6
_MAX_TICKS = 16
"""Channels that are numbered below a bar each; more numbers would run into each other."""


def draw_decoded(reconstructions: Reconstructions, target: Target) -> None:
    """Source images over what their stored latents decode to."""
    draw_reconstructions(
        reconstructions.originals,
        {"from the store": reconstructions.decoded},
        target,
        note="images spread evenly over the snapshot, and their stored latents decoded",
        columns=8,
    )


def draw_channels(statistics: ChannelStatistics, target: Target) -> None:
    """Each channel's mean and standard deviation, and that of draws where it is known."""
    mean, std = np.array(statistics.mean), np.array(statistics.std)
    channels = np.arange(len(mean))
    note = "bars: mean ± one standard deviation of the stored latents"
    if statistics.sample_std is not None:
        note += "; thin lines: of draws z ~ q(z|x)"
    headline = (
        f"{len(mean)} latent channels, means from {signed(float(mean.min()), '.2g')} to "
        f"{signed(float(mean.max()), '.2g')}, deviations {std.min():.2g} to {std.max():.2g}"
    )
    with Canvas(_WIDTH, _HEIGHT, headline, note) as canvas:
        axes = canvas.axes(0.5, 0.05, _WIDTH - 0.6, _HEIGHT - 0.5)
        if statistics.sample_std is not None:
            draws = np.array(statistics.sample_std)
            axes.vlines(channels, mean - draws, mean + draws, color=AMBER, linewidth=1.2, zorder=2)
        axes.bar(channels, 2 * std, bottom=mean - std, width=0.55, color=BLUE, zorder=3)
        axes.hlines(mean, channels - 0.27, channels + 0.27, color=INK, linewidth=1.2, zorder=4)
        step = max(1, -(-len(channels) // _MAX_TICKS))
        axes.set_xticks(channels[::step])
        axes.set_xlabel("channel")
        canvas.save(target)
