"""The loader from a real S3 server on loopback; one JSON line.

    python -m tests.benchmarks.loader_s3 --photos ../shared/data/photos --work runs/loader

`--parts` chooses: s3 (batches of 256 pixels against bare ranged reads and bare decoding in series,
also with a tenth of all requests failing), bytes (fetched per dataset byte at many world sizes).
"""

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import torch

from pipeline import storage
from pipeline.config import LoaderConfig
from pipeline.data import Loader
from pipeline.data.fetch import SampleReader
from tests.benchmarks.loader import (
    BATCH,
    SIZE,
    THREADS,
    bare_decode,
    in_turn,
    ours,
    packed,
    rate,
    steady,
    tiny_dataset,
)
from tests.servers import rgw
from tests.servers.fault_proxy import FaultProxy, Rule

WORLDS = (1, 2, 3, 5, 7, 8, 16)
COPIES = 43


@contextmanager
def gateway() -> Iterator[tuple[str, rgw.S3Server]]:
    """A bucket's URL on a real S3 server of its own, with the environment set for it."""
    missing = rgw.missing_programs()
    if missing:
        raise SystemExit(f"needs {', '.join(missing)}: run `make servers`.")
    with tempfile.TemporaryDirectory(prefix="rgw-") as folder:
        server = rgw.start(Path(folder))
        try:
            os.environ |= server.environment
            yield server.bucket(), server
        finally:
            server.stop()


def s3(arguments: argparse.Namespace) -> dict[str, float]:
    """Photos to batches from S3, against bare ranged reads and bare decoding in series.

    Each photo COPIES times, three times the memory: no epoch can live off the last.
    """
    memory = 512 * 2**20  # the loader's own choice
    with gateway() as (bucket, server):
        dataset = packed(copied(arguments), f"{bucket}/photos")
        local_photos = packed(arguments.photos, str(arguments.work / "photos"))
        reader = SampleReader(local_photos, 1, 0, ())
        images = [reader.read(sample).image for sample in range(len(local_photos))]
        part = 2 * 2**20
        parts = [
            (dataset.shard_url(shard), at, min(at + part, shard.bytes))
            for shard in dataset.shards
            for at in range(0, shard.bytes, part)
        ]

        def ranged() -> int:
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(lambda place: storage.read(*place), parts))
            return len(dataset)

        def loaded() -> float:
            with closing(
                Loader(
                    dataset, global_batch_size=BATCH, image_size=SIZE, threads=THREADS,
                    settings=LoaderConfig(memory_bytes=memory),
                )
            ) as loader:  # fmt: skip
                return steady(loader, 1)

        get, bare, full = in_turn(
            partial(rate, ranged), lambda: rate(lambda: bare_decode(images * 3)), loaded
        )
        with FaultProxy(server.port) as proxy:
            # The proxy takes its share of the cores: bare reads go through it too.
            os.environ["AWS_ENDPOINT_URL"] = proxy.endpoint
            proxied = rate(ranged)
            proxy.rules = [Rule("^GET .*[.]tar", "status", probability=0.1)]
            failing = loaded()
            proxy.rules = []
    harmonic, harmonic_proxied = (1 / (1 / reads + 1 / bare) for reads in (get, proxied))
    return {
        "ranged_reads_images_per_second": get,
        "loader_images_per_second": full,
        "to_harmonic_sum": full / harmonic,
        "to_harmonic_sum_with_tenth_failing": failing / harmonic_proxied,
    }


def copied(arguments: argparse.Namespace) -> Path:
    """A folder with each photo under COPIES names."""
    folder = Path(arguments.work) / f"copies-{COPIES}"
    for number in range(COPIES):
        if not (folder / str(number)).exists():
            shutil.copytree(arguments.photos, folder / str(number))
    return folder


def fetched(arguments: argparse.Namespace) -> dict[str, float]:
    """Bytes fetched by all ranks over the dataset's bytes, in the second of two epochs; and their
    requests over (dataset's bytes / bytes of a chunk).

    With a memory of a seventh of the dataset; what is fetched ahead for the next epoch is counted
    at both ends of the measured one.
    """
    found: dict[str, float] = {}
    with gateway() as (bucket, _):
        dataset = tiny_dataset(arguments.work, arguments.samples, 600, f"{bucket}/tiny")
        whole = sum(shard.bytes for shard in dataset.shards)
        for world in arguments.worlds:
            total, requests, chunk = 0, 0, 1
            for rank in range(world):
                with closing(
                    Loader(
                        dataset, global_batch_size=BATCH, image_size=8, rank=rank,
                        world_size=world, threads=THREADS,
                        settings=LoaderConfig(memory_bytes=whole // 7),
                    )
                ) as loader:  # fmt: skip
                    ours(loader)
                    before, asked = loader.stats.bytes_fetched, loader._reader.transfers.requests
                    ours(loader)
                    total += loader.stats.bytes_fetched - before
                    requests += loader._reader.transfers.requests - asked
                    chunk = loader.order.chunk
            found[f"bytes_world_{world}"] = total / whole
            found[f"requests_world_{world}"] = requests / (len(dataset) / chunk)
    return found


PARTS = {"s3": s3, "bytes": fetched}


def main() -> None:
    """Prints one JSON line of all parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True, help="A folder of real photos.")
    parser.add_argument("--work", type=Path, required=True, help="For packed datasets.")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--samples", type=int, default=100_000, help="Of the part bytes.")
    parser.add_argument("--worlds", type=int, nargs="+", default=WORLDS, help="Of the part bytes.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps({name: PARTS[name](arguments) for name in arguments.parts}))


if __name__ == "__main__":
    main()
