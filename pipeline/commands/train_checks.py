"""What a new run can be refused for is found out before its name is taken, and within seconds."""

import logging
import os
import threading

import torch

from pipeline.config import TrainConfig
from pipeline.data import Dataset
from pipeline.data.preprocess import try_transform
from pipeline.errors import ConfigError, DatasetError, ModelError
from pipeline.rank_memory import needs_of, refuse_ranks_beyond_memory
from pipeline.registry.named_models import load_named
from pipeline.runs.run import Pins
from pipeline.tracking.mlflow_probe import deleted_experiment
from pipeline.training.settings import settings_of
from pipeline.training.world import current_world
from pipeline.vae import VAE, build_vae
from pipeline.vae.start import check_start, freeze

logger = logging.getLogger(__name__)

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
    refuse_beyond_memory_here(config, pins)
    asking.join(_MLFLOW_SECONDS)
    for reason in deleted:
        raise ConfigError(reason)
    return start


def refuse_beyond_memory_here(config: TrainConfig, pins: Pins) -> None:
    """Raises `ConfigError` where the ranks that begin on this machine surely find too little.

    Those on a cluster's nodes look for themselves.
    """
    if config.max_workers and os.environ.get("RAY_ADDRESS"):
        return
    dataset = Dataset.open(config.data, pins.dataset, config.shards_below)
    ranks = config.min_workers or int(os.environ.get("WORLD_SIZE", "1"))
    here = min(ranks, int(os.environ.get("LOCAL_WORLD_SIZE", ranks)))
    needs = needs_of(settings_of(config), dataset, ranks, current_world().device)
    refuse_ranks_beyond_memory(needs, here)


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


def _check_data(config: TrainConfig, pins: Pins) -> None:
    dataset = Dataset.open(config.data, pins.dataset, config.shards_below)
    check_size(dataset, config.global_batch_size)
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
    vae.refuse_without_posterior("--model.kind library")
    if is_own and config.freeze:  # The built-in ones share no weight.
        freeze(vae, config.freeze)
    if config.init is None:
        return None
    start, _ = load_named(config.init, config.storage, config.model.own_classes, flag="--init")
    check_start(vae, start, config.init)
    return start
