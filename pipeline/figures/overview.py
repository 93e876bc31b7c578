"""A model at a glance, for its run in MLflow: what it rebuilds, draws, and where it puts images."""

from collections.abc import Iterator

import numpy as np
import torch

from pipeline.config import PreprocessConfig
from pipeline.data import Batch, Dataset, load_images
from pipeline.figures.canvas import label_names, to_png
from pipeline.figures.images import draw_reconstructions, draw_samples
from pipeline.figures.latents import draw_latent_means
from pipeline.vae import VAE

_SHOWN = 20
"""Images that are rebuilt, and as many that are drawn from the prior."""
_MOST_PIXELS = 8 * 2**20
"""Of the images on the map: a driver has no GPU, and nobody waits long for a picture."""
_MOST_IMAGES = 500
"""Points on a map: more of them hide each other."""
_AT_ONCE = 20
"""Images encoded together: memory stays at that of the pictures."""


def glanced_at(dataset: Dataset, preprocess: PreprocessConfig) -> Batch:
    """The images that the pictures are made from: the first ones, as many as are soon encoded."""
    pixels = preprocess.channels * preprocess.image_size**2
    return load_images(dataset, max(_SHOWN, min(_MOST_IMAGES, _MOST_PIXELS // pixels)), preprocess)


def draw_glance(vae: VAE, batch: Batch, of: str) -> Iterator[tuple[str, bytes]]:
    """The pictures' names and PNGs; `of` says what the images are: held out, or trained on."""
    images = batch.images[batch.valid]
    if not len(images):
        return
    with torch.inference_mode():
        means = torch.cat([vae.encode(part).mean for part in torch.split(images, _AT_ONCE)])
        rebuilt = vae.decode(means[:_SHOWN])
    yield (
        "reconstructions.png",
        to_png(draw_reconstructions, images[:_SHOWN], {"at the mean": rebuilt}, note=of),
    )
    yield "samples.png", to_png(draw_samples, vae.sample(_SHOWN))
    labels = [
        label for label, valid in zip(batch.columns["label"], batch.valid, strict=True) if valid
    ]
    yield (
        "latent_means.png",
        to_png(
            draw_latent_means,
            np.asarray(means),
            labels=label_names(labels),
            note=of,
        ),
    )
