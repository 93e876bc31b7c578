"""Images as an evaluation reads them: in manifest order, as the model wants them."""

from contextlib import closing

import torch

from pipeline.data import Dataset, Loader
from pipeline.vae import VAE


def read_first(dataset: Dataset, vae: VAE, count: int) -> torch.Tensor:
    """The first `count` good images in manifest order, uint8 `[<= count, C, H, W]`."""
    images: list[torch.Tensor] = []
    with closing(in_order(dataset, vae, min(count, len(dataset)), 0, 1)) as loader:
        for batch in loader:
            images += batch.images[batch.valid]
            if len(images) >= count:
                break
    return torch.stack(images[:count])


def in_order(
    dataset: Dataset, vae: VAE, global_batch_size: int, rank: int, world_size: int
) -> Loader:
    """A dataset's images in manifest order, as a model wants them: this rank's share of them."""
    preprocess = vae.preprocess
    return Loader(
        dataset,
        global_batch_size=global_batch_size,
        image_size=preprocess.image_size,
        channels=preprocess.channels,
        # Held-out images are looked at as they are, also where training crops at random.
        crop="center" if preprocess.crop == "random" else preprocess.crop,
        resize=preprocess.resize,
        shuffle=False,
        tail="pad",
        rank=rank,
        world_size=world_size,
        columns=("label",),
    )
