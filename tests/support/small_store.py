"""Small datasets, models and stores for this room's tests, made without Ray or a job."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipeline.config import ModelConfig, PackConfig, PreprocessConfig
from pipeline.data import Dataset
from pipeline.data.preprocess import preprocess_digest
from pipeline.encoding.also import load_again
from pipeline.encoding.driver import finish, plan_encoding, publish
from pipeline.encoding.shard import encode_shard
from pipeline.latents import LatentStore
from pipeline.latents.identity import EncodeOptions, Identity
from pipeline.packing.pack import pack
from pipeline.vae import VAE, build_vae

LATENT_SHAPE = (3, 2, 2)


def small_vae(seed: int = 0) -> VAE:
    """An untrained conv model of 8 x 8 grey images; latents [3, 2, 2]."""
    torch.manual_seed(seed)
    config = ModelConfig(latent_channels=3, latent_size=2, width=4)
    vae = build_vae(config, PreprocessConfig(image_size=8, channels=1)).eval()
    vae.digest = f"{seed:064x}"
    return vae


def write_images(folder: Path, numbers: range) -> None:
    """PNGs of noise, 8 x 8, in three folders that are their labels."""
    for number in numbers:
        path = folder / f"label{number % 3}" / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(path)


def small_dataset(folder: Path, numbers: range, **options: Any) -> Dataset:
    """Those images, packed into `folder/data` in shards of about 15."""
    write_images(folder / "images", numbers)
    given = {"source": (str(folder / "images"),), "output": str(folder / "data"), **options}
    pack(PackConfig(shard_bytes=60_000, workers=1, **given))
    return Dataset.open(given["output"])


def identity_of(vae: VAE, **options: Any) -> Identity:
    given = EncodeOptions(**{"precision": "fp32", "batch_size": 4, **options})
    seen = preprocess_digest(vae.preprocess)
    return Identity(str(vae.digest), seen, vae.latent_shape, given, vae.scale)


def encode(vae: VAE, dataset: Dataset, store: str | Path, **options: Any) -> LatentStore:
    """Encodes what has no receipt, one shard after the other, and publishes the snapshot."""
    url, identity = str(store), identity_of(vae, **options)
    plan = plan_encoding(url, dataset, identity)
    also = load_again(identity.options.also, vae.device)
    for number in plan.todo:
        shard = dataset.shards[number]
        encode_shard(vae, dataset, shard, identity, url, threads=1, also=also)
    publish(url, finish(url, dataset, identity, plan.known, {}), data=dataset.url, model="m")
    return LatentStore.open_all(url)
