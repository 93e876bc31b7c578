"""Images as an evaluation reads them: in manifest order, as the model wants them."""

from collections.abc import Sequence
from contextlib import closing

import torch

from pipeline.config import LoaderConfig, PreprocessConfig
from pipeline.data import Dataset, Loader
from pipeline.vae import VAE


def read_first(dataset: Dataset, vae: VAE, count: int) -> torch.Tensor:
    """The first `count` good images in manifest order, uint8 `[<= count, C, H, W]`."""
    images: list[torch.Tensor] = []
    with closing(in_order(dataset, vae.preprocess, min(count, len(dataset)))) as loader:
        for batch in loader:
            images += batch.images[batch.valid]
            if len(images) >= count:
                break
    return torch.stack(images[:count])


def in_order(
    dataset: Dataset,
    preprocess: PreprocessConfig,
    global_batch_size: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    columns: Sequence[str] = ("label",),
    settings: LoaderConfig | None = None,
    stall_seconds: float = 300.0,
) -> Loader:
    """A dataset's images in manifest order, as a model wants them: this rank's share of them."""
    return Loader(
        dataset,
        preprocess.held_out(),
        global_batch_size=global_batch_size,
        shuffle=False,
        rank=rank,
        world_size=world_size,
        columns=tuple(name for name in columns if dataset.has_column(name)),
        settings=settings or LoaderConfig(),
        stall_seconds=stall_seconds,
    )
