"""Stock webdataset on the same shards, as its documentation has it: what people compare with."""

import os
import time
import warnings
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipeline import storage
from pipeline.errors import ConfigError
from pipeline.pace.probes import Subject


def stock_pace(subject: Subject) -> float:
    """Images per second of its loader alone, with a worker per core; over an epoch at most.

    Raises `ConfigError` where it is not installed, or can't read where the shards lie.
    """
    loader = _stock_loader(subject)
    began, images = 0.0, 0
    for number, (batch,) in enumerate(loader):
        if number == 0:
            # Its workers have started, which they do anew at each epoch's begin.
            began = time.perf_counter()
            continue
        images += len(batch)
        if time.perf_counter() - began >= subject.seconds:
            break
    if not images:
        raise ConfigError(
            f"--compare: {subject.dataset.url} holds fewer than two batches: give a smaller "
            "`--global-batch-size N`."
        )
    return images / (time.perf_counter() - began)


def _stock_loader(subject: Subject) -> Any:
    try:
        import webdataset
    except ModuleNotFoundError:
        raise ConfigError(
            "--compare sets stock webdataset beside this loader, and it is not installed: "
            "`pip install webdataset`."
        ) from None
    dataset, preprocess = subject.dataset, subject.config.preprocess
    urls = [dataset.shard_url(shard) for shard in dataset.shards]
    if any(storage.local_path(url) is None for url in urls):
        raise ConfigError(
            "--compare: stock webdataset reads no s3:// URL. Give `--data` of a local copy."
        )
    size, mode = preprocess.image_size, "L" if preprocess.channels == 1 else "RGB"

    def resized(image: Image.Image) -> torch.Tensor:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
        small = image.convert(mode).resize((size, size), Image.Resampling.BILINEAR, box)
        return torch.from_numpy(np.array(small).reshape(size, size, -1)).permute(2, 0, 1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)
        data = data.shuffle(500).decode("pil").to_tuple("jpg;jpeg;png;webp").map_tuple(resized)
        batches = data.batched(subject.config.global_batch_size)
        workers = min(len(os.sched_getaffinity(0)), len(urls))
        return webdataset.WebLoader(batches, batch_size=None, num_workers=workers)
