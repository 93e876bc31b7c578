"""`jobs.encode --dry-run`: what an encoding would cost, from encoding for a short time."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pipeline import storage
from pipeline.config import EncodeConfig
from pipeline.data import Dataset, preprocess_digest
from pipeline.encoding.also import Also
from pipeline.encoding.cutting import Place, latent_shape_of
from pipeline.encoding.determinism import exact_numerics
from pipeline.encoding.driver import EncodePlan
from pipeline.encoding.shard import PartWriter
from pipeline.encoding.shard_batches import shard_batches
from pipeline.latents.identity import EncodeOptions, Identity
from pipeline.machine import cores_here
from pipeline.vae import VAE

PROBE_SECONDS = 30.0
"""The first batches fill caches and compile kernels: seconds of them; this outweighs that."""


@dataclass(frozen=True)
class EncodingCost:
    """What is left to encode and what it would take; rates are of a short probe, 0 without one."""

    images: int
    shards: int
    source_bytes: int
    identity: str
    actors: int
    store_bytes: int = 0
    images_per_second: float = 0.0
    hours: float = 0.0
    gpu_hours: float = 0.0
    dry_run: bool = True


@dataclass(frozen=True)
class _Probed:
    images: int
    bytes: int


def probe(
    config: EncodeConfig,
    vae: VAE,
    dataset: Dataset,
    identity: Identity,
    plan: EncodePlan,
    lanes: int,
    also: Sequence[Also],
) -> EncodingCost:
    """Encodes `lanes` shards at a time for `PROBE_SECONDS`; nothing is written to the store.

    The rate is this process's; `hours` assumes that every actor has cores or a GPU like it.
    """
    images = sum(dataset.shards[number].samples for number in plan.todo)
    cost = EncodingCost(
        images=images,
        shards=len(plan.todo),
        source_bytes=sum(dataset.shards[number].bytes for number in plan.todo),
        identity=identity.digest,
        actors=config.actors,
    )
    if not plan.todo:
        return cost
    started = time.monotonic()
    probed = _encode_for(
        PROBE_SECONDS, plan.todo[:lanes], vae, dataset, identity,
        threads=max(1, int(config.cores)), also=also,
    )  # fmt: skip
    done = max(1, probed.images)
    rate = done / (time.monotonic() - started)
    hours = images / (rate * max(1, config.actors)) / 3600
    on_gpu = next(vae.parameters()).is_cuda
    return replace(
        cost,
        store_bytes=round(probed.bytes / done * images),
        images_per_second=round(rate, 1),
        hours=round(hours, 4),
        gpu_hours=round(hours * max(1, config.actors), 4) if on_gpu else 0.0,
    )


def pace_of_encoding(vae: VAE, dataset: Dataset, seconds: float) -> float:
    """Images per second of an encoding by this process, a shard for each core at a time.

    It stands beside other paces and writes nothing that stays: the model may be untrained.
    """
    cores = max(1, int(cores_here()))
    seen = preprocess_digest(vae.preprocess)
    options = EncodeOptions(precision="fp32")
    identity = Identity("0" * 64, seen, vae.latent_shape, options, vae.scale)
    vae = vae.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    shards = range(min(cores, len(dataset.shards)))
    started = time.monotonic()
    # Cores are shared among the lanes: as many threads for each would be their square.
    threads = cores // len(shards)
    probed = _encode_for(seconds, shards, vae, dataset, identity, threads=threads, also=())
    return probed.images / (time.monotonic() - started)


def _encode_for(
    seconds: float,
    shards: Sequence[int],
    vae: VAE,
    dataset: Dataset,
    identity: Identity,
    *,
    threads: int,
    also: Sequence[Also],
) -> _Probed:
    """Encodes these shards beside each other, into files that go again."""
    deadline = time.monotonic() + seconds
    with (
        storage.temporary_folder("vae-probe-") as folder,
        ThreadPoolExecutor(len(shards)) as pool,
    ):

        def lane(number: int) -> _Probed:
            return _encode_until(
                vae, dataset, identity, number,
                threads=threads, folder=folder, deadline=deadline, also=also,
            )  # fmt: skip

        probed = list(pool.map(lane, shards))
    return _Probed(sum(each.images for each in probed), sum(each.bytes for each in probed))


def _encode_until(
    vae: VAE,
    dataset: Dataset,
    identity: Identity,
    number: int,
    *,
    threads: int,
    folder: Path,
    deadline: float,
    also: Sequence[Also],
) -> _Probed:
    images = 0  # passed, also those that --where leaves out
    writers: dict[Place, PartWriter] = {}
    shard = dataset.shards[number]
    with ExitStack() as open_, exact_numerics():
        for batch in shard_batches(vae, dataset, shard, identity.options, threads, also=also):
            if batch.place not in writers:
                path = folder / f"{number}-{len(writers)}"
                shape = latent_shape_of(vae, batch.place.shape)
                writer = PartWriter(path, identity, batch.place, shape)
                writers[batch.place] = open_.enter_context(writer)
            writers[batch.place].write(batch)
            images = max(images, batch.samples[-1].position + 1)
            if time.monotonic() >= deadline:
                break
    return _Probed(images, sum(writer.path.stat().st_size for writer in writers.values()))
