"""`jobs.encode --dry-run`: what an encoding would cost, from encoding for a short time."""

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import EncodeConfig
from pipeline.data import Dataset, read_shard
from pipeline.encoding.batch import encode_batch
from pipeline.encoding.determinism import exact_numerics
from pipeline.encoding.driver import EncodePlan
from pipeline.latents.identity import Identity
from pipeline.latents.latent_file import LatentFileWriter
from pipeline.vae import VAE

PROBE_SECONDS = 30.0
"""The first batches fill caches and compile kernels: seconds of them; this outweighs that."""


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
) -> dict[str, Any]:
    """Encodes `lanes` shards at a time for `PROBE_SECONDS`; nothing is written to the store.

    The rate is this process's; `hours` assumes that every actor has cores or a GPU like it.
    """
    images = sum(dataset.shards[number].samples for number in plan.todo)
    result: dict[str, Any] = {
        "dry_run": True,
        "images": images,
        "shards": len(plan.todo),
        "source_bytes": sum(dataset.shards[number].bytes for number in plan.todo),
        "identity": identity.digest,
        "actors": config.actors,
    }
    if not plan.todo:
        return result | {"store_bytes": 0, "images_per_second": 0.0, "hours": 0.0, "gpu_hours": 0.0}
    started = time.monotonic()
    deadline = started + PROBE_SECONDS
    with tempfile.TemporaryDirectory(prefix="probe-") as folder, ThreadPoolExecutor(lanes) as pool:

        def lane(number: int) -> _Probed:
            path = Path(folder) / str(number)
            return _encode_until(
                config, vae, dataset, identity=identity, number=number, path=path, deadline=deadline
            )

        probed = list(pool.map(lane, plan.todo[:lanes]))
    done = max(1, sum(each.images for each in probed))
    rate = done / (time.monotonic() - started)
    hours = images / (rate * max(1, config.actors)) / 3600
    on_gpu = next(vae.parameters()).is_cuda
    return result | {
        "store_bytes": round(sum(each.bytes for each in probed) / done * images),
        "images_per_second": round(rate, 1),
        "hours": round(hours, 4),
        "gpu_hours": round(hours * max(1, config.actors), 4) if on_gpu else 0.0,
    }


def _encode_until(
    config: EncodeConfig,
    vae: VAE,
    dataset: Dataset,
    identity: Identity,
    number: int,
    path: Path,
    deadline: float,
) -> _Probed:
    options, images = identity.options, 0
    batches = read_shard(
        dataset, dataset.shards[number], vae.preprocess, batch_size=options.batch_size,
        columns=options.columns, threads=max(1, int(config.cores)),
    )  # fmt: skip
    with LatentFileWriter(path, identity) as writer, exact_numerics():
        for batch in batches:
            count = sum(key != "" for key in batch.keys)
            encoded = encode_batch(vae, batch.images, batch.keys, batch.valid.numpy(), options)
            tensors = {name: value[:count] for name, value in encoded.tensors.items()}
            columns = {name: values[:count] for name, values in batch.columns.items()}
            writer.write(batch.keys[:count], range(count), tensors, columns)
            images += count
            if time.monotonic() >= deadline:
                break
    return _Probed(images, path.stat().st_size)
