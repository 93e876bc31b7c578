"""What a new run can be refused for is found out before its name is taken, and within seconds."""

import logging
import os
import threading

import torch

from pipeline.commands.machine_memory import machine_memory
from pipeline.config import TrainConfig
from pipeline.data import Dataset
from pipeline.data.loader import PREFETCH_BATCHES
from pipeline.data.transform import try_transform
from pipeline.errors import ConfigError, DatasetError, ModelError
from pipeline.registry.named_models import load_named
from pipeline.runs.run import Pins
from pipeline.tracking.mlflow_probe import deleted_experiment
from pipeline.vae import VAE, build_vae
from pipeline.vae.start import check_start, freeze

logger = logging.getLogger(__name__)

_FLOATS = 3
"""Of a pixel in one pass, of 4 bytes each: what the network sees, what it makes of it, the slope.
Its own layers come on top, so this is less than any training takes."""

_MLFLOW_SECONDS = 10.0
"""For which MLflow is waited: training needs no answer, and says itself that there is none."""


def refuse_what_cannot_train(config: TrainConfig, pins: Pins) -> VAE | None:
    """Raises `ConfigError` for a model, start, transform, dataset or experiment that won't do.

    Returns the model that --init names.
    """
    deleted: list[str] = []
    asking = threading.Thread(
        target=lambda: deleted.extend(deleted_experiment(config.tracking.experiment)),
        name="experiment",
        daemon=True,
    )
    asking.start()
    _check_data(config, pins)
    if config.transform is not None:
        size = config.image_size
        try_transform(config.transform, (config.channels, size, size))
    try:
        start = _check_model(config)
    except ModelError as error:
        raise ConfigError(str(error)) from error
    asking.join(_MLFLOW_SECONDS)
    for reason in deleted:
        raise ConfigError(reason)
    return start


def check_size(dataset: Dataset, global_batch_size: int) -> None:
    """An empty dataset is an error, one smaller than a batch is said."""
    if not len(dataset):
        raise DatasetError(
            f"{dataset.url}: holds no samples that count. Pack images into it first."
        )
    if global_batch_size > len(dataset):
        logger.warning(
            "a batch of %d is larger than the dataset of %d images: each step is an epoch, and its "
            "rest is padding, which is masked. Give a smaller `--global-batch-size N`",
            global_batch_size, len(dataset),
        )  # fmt: skip


def check_memory(config: TrainConfig, images: int) -> None:
    """Raises `ConfigError` if batches that are surely kept here exceed this machine's memory."""
    if os.environ.get("RAY_ADDRESS"):
        return  # Its nodes' memory is not this machine's.
    image = config.channels * config.image_size**2
    batches = config.global_batch_size * image * (PREFETCH_BATCHES + 1)
    workers = max(1, config.max_workers)
    passed = min(config.global_batch_size, workers * (config.micro_batch_size or 2**62))
    needed = batches + passed * image * _FLOATS * 4
    there = machine_memory()
    if needed <= there:
        return
    fitting = int(there / 2 / image / (PREFETCH_BATCHES + 1 + _FLOATS * 4))
    raise ConfigError(
        f"--global-batch-size {config.global_batch_size}: images of {config.image_size} pixels "
        f"need at least {needed / 2**30:.0f} GiB then, and this machine has {there / 2**30:.0f}. "
        f"Give `--global-batch-size {max(workers, min(fitting, images))}`; with "
        "`--micro-batch-size N` fewer images pass the network at a time."
    )


def _check_data(config: TrainConfig, pins: Pins) -> None:
    dataset = Dataset.open(config.data, pins.dataset, config.shards_below)
    check_size(dataset, config.global_batch_size)
    check_memory(config, len(dataset))
    if config.holdout is None:
        logger.warning(
            "no hold-out: every number of this run is of the images that it trains on. To know "
            "what the model makes of others, pack with `--holdout 0.05`, or give `--holdout URL`."
        )
    elif len(Dataset.open(config.holdout, pins.holdout, config.shards_below)) == 0:
        raise ConfigError(
            f"--holdout {config.holdout}: holds no image, so nothing can be measured on it. Pack "
            "again with more images or a larger `--holdout SHARE`."
        )


def _check_model(config: TrainConfig) -> VAE | None:
    is_own = config.model.kind == "custom"
    # The built-in networks need no memory for that; somebody's own is tried on two images.
    with torch.device("cpu" if is_own else "meta"):
        vae = build_vae(config.model, config.preprocess)
    if is_own and config.freeze:  # The built-in ones share no weight.
        freeze(vae, config.freeze)
    if config.init is None:
        return None
    start, _ = load_named(config.init, config.storage, config.model.own_classes, flag="--init")
    check_start(vae, start, config.init)
    return start
