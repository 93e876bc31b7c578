"""What encodes the shards of a dataset by their numbers, with its model on a device."""

from collections.abc import Callable

import torch

from pipeline.data.dataset import Dataset
from pipeline.encoding.also import load_again
from pipeline.encoding.shard import encode_shard
from pipeline.encoding.under_way import UnderWay
from pipeline.latents.identity import Identity
from pipeline.latents.receipt import Receipt
from pipeline.vae.vae import VAE


def shard_encoder(
    vae: VAE,
    dataset: Dataset,
    identity: Identity,
    under_way: UnderWay,
    *,
    store: str,
    threads: int,
) -> Callable[[int], Receipt]:
    """The function that encodes one shard by its number, the model on this process's device."""
    views = max(1, len(identity.options.views))
    model = on_device(vae)
    also = load_again(identity.options.also, model.device)

    def encode(number: int) -> Receipt:
        under_way.forget(number)
        return encode_shard(
            model, dataset, dataset.shards[number], identity=identity, store=store,
            threads=threads, also=also, count=lambda rows: under_way.count(number, rows / views),
        )  # fmt: skip

    return encode


def on_device(vae: VAE) -> VAE:
    """The model on the GPU that this process has, else where it is."""
    return vae.to("cuda" if torch.cuda.is_available() else "cpu")
