"""A run's batches: the generations that it reads to its end, and each rank's part of them."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.config import LoaderConfig, PreprocessConfig
from pipeline.data import Batch, Dataset, Loader
from pipeline.errors import ConfigError
from pipeline.evaluation.reading import in_order
from pipeline.json_value import Json
from pipeline.runs.run import Run
from pipeline.training.world import World

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchSettings:
    """Which batches a run is made of, and how they are read."""

    preprocess: PreprocessConfig
    global_batch_size: int
    seed: int
    flip: bool
    transform: str | None
    stall_seconds: float
    loader: LoaderConfig


def open_pinned(
    run: Run, data: str, holdout: str | None, shards_below: tuple[str, ...]
) -> tuple[Dataset, Dataset | None]:
    """The generations of training data and hold-out that the run began with."""
    pins = run.pins()
    assert pins is not None, "a run is opened before it is trained"
    held = Dataset.open(holdout, pins.holdout, shards_below) if holdout else None
    return Dataset.open(data, pins.dataset, shards_below), held


def training_loader(
    dataset: Dataset, settings: BatchSettings, world: World, order: Json | None
) -> Loader:
    """This rank's part of each batch, from the place `order` on, which a checkpoint kept."""
    loader = Loader(
        dataset,
        settings.preprocess,
        global_batch_size=settings.global_batch_size,
        flip=settings.flip,
        transform=settings.transform,
        seed=settings.seed,
        tail="pad",
        rank=world.rank,
        world_size=world.size,
        settings=settings.loader,
        stall_seconds=settings.stall_seconds,
    )
    if loader.steps_per_epoch == 0:
        loader.close()
        raise ConfigError(f"{dataset.url}: holds no images. Name a dataset that has some.")
    if order is not None:
        loader.load_state_dict(order)
    if world.rank == 0:
        bound = loader.memory_bound_bytes / 2**20
        logger.debug("each rank's loader keeps at most %.0f MiB of images in memory", bound)
    return loader


def holdout_loader(holdout: Dataset, settings: BatchSettings, world: World) -> Loader:
    """This rank's part of the hold-out: every image once, in the order of the manifest."""
    return in_order(
        holdout,
        settings.preprocess,
        settings.global_batch_size,
        rank=world.rank,
        world_size=world.size,
        columns=(),
        # Read once, beside a running loader: a cache would only hold what training needs.
        settings=settings.loader.model_copy(update={"cache_folder": None}),
        stall_seconds=settings.stall_seconds,
    )


def without_end(loader: Loader) -> Iterator[Batch]:
    """One epoch after the other."""
    while True:
        yield from loader
