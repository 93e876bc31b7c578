"""Pictures good enough to print: each function takes arrays and a path or file to write to."""

import pipeline.figures.plain_matplotlib  # noqa: F401  # before what imports matplotlib
from pipeline.figures.canvas import to_png
from pipeline.figures.comparison import draw_comparison
from pipeline.figures.curves import (
    Curve,
    GapPoint,
    RatePoint,
    draw_pull,
    draw_rate_distortion,
    draw_training_curves,
)
from pipeline.figures.images import (
    draw_interpolations,
    draw_progress,
    draw_reconstructions,
    draw_samples,
    draw_sheet,
    draw_traversals,
)
from pipeline.figures.latents import (
    draw_aggregated_posterior,
    draw_kl_per_dimension,
    draw_latent_means,
)

__all__ = [
    "Curve",
    "GapPoint",
    "RatePoint",
    "draw_aggregated_posterior",
    "draw_comparison",
    "draw_interpolations",
    "draw_kl_per_dimension",
    "draw_latent_means",
    "draw_progress",
    "draw_pull",
    "draw_rate_distortion",
    "draw_reconstructions",
    "draw_samples",
    "draw_sheet",
    "draw_training_curves",
    "draw_traversals",
    "to_png",
]
