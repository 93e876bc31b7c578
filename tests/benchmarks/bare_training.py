"""The same training without this project around it: threads that decode from memory, and torch.

No order, no checks of bytes, no checkpoints, no metrics, no average of weights, no skipped steps;
one loop a rank, DDP where there are several. `tests/benchmarks/training.py` measures against it:

    python -m tests.benchmarks.bare_training DATA --model '{"width": 16}' --image-size 64
"""

import argparse
import json
import os
import tarfile
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from pipeline.config import ModelConfig, PreprocessConfig
from pipeline.data import Dataset
from pipeline.data.image_kinds import IMAGE_SUFFIXES
from pipeline.data.preprocess import preprocess_into
from pipeline.vae import VAE, Noise, build_vae

AHEAD, WARM_UP = 4, 10


@dataclass(frozen=True)
class Bare:
    """What is trained and how: `batch` images per step of each rank."""

    data: str
    model: str
    image_size: int
    batch: int
    steps: int
    torch_threads: int
    decode_threads: int


def samples(data: str) -> list[bytes]:
    """Every image of a local dataset as it lies in its tars."""
    found = []
    for shard in Dataset.open(data).shards:
        with tarfile.open(Path(data) / shard.path) as tar:
            for member in tar:
                if Path(member.name).suffix in IMAGE_SUFFIXES:
                    file = tar.extractfile(member)
                    assert file is not None
                    found.append(file.read())
    return found


def decoded(images: list[bytes], bare: Bare, pool: ThreadPoolExecutor) -> Iterator[Tensor]:
    """Batches without end, some of them decoded ahead, each in two tasks a thread."""
    preprocess = PreprocessConfig(image_size=bare.image_size)
    shape = (bare.batch, 3, bare.image_size, bare.image_size)
    part = max(1, bare.batch // (2 * bare.decode_threads))
    ahead: deque[tuple[Tensor, list[Future[None]]]] = deque()
    number = 0

    def decode(out: Tensor, first: int) -> None:
        for place in range(len(out)):
            preprocess_into(out[place], images[(first + place) % len(images)], preprocess)

    while True:
        while len(ahead) < AHEAD:
            batch = torch.empty(shape, dtype=torch.uint8)
            tasks = [
                pool.submit(decode, batch[at : at + part], number + at)
                for at in range(0, bare.batch, part)
            ]
            ahead.append((batch, tasks))
            number += bare.batch
        batch, tasks = ahead.popleft()
        for task in tasks:
            task.result()
        yield batch


def make(model: str, image_size: int) -> VAE:
    """The model that both sides train, from its section as JSON."""
    torch.manual_seed(0)
    config = ModelConfig.model_validate_json(model)
    return build_vae(config, PreprocessConfig(image_size=image_size))


def step(vae: VAE, model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor) -> None:
    """Forward, backward and AdamW."""
    shape = images.shape
    pixels = torch.rand(shape) if vae.uses_pixel_noise else torch.zeros(()).expand(shape)
    noise = Noise(torch.randn(len(images), *vae.latent_shape), pixels)
    loss = -model(images, noise).elbo.mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def train(rank: int, ranks: int, bare: Bare, folder: str) -> None:
    """Leaves FOLDER/RANK.json: images/s of all ranks after the warm-up."""
    torch.set_num_threads(bare.torch_threads)
    if ranks > 1:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        torch.distributed.init_process_group(
            "gloo", f"file://{folder}/rendezvous", rank=rank, world_size=ranks
        )
    vae = make(bare.model, bare.image_size)
    model = DistributedDataParallel(vae, gradient_as_bucket_view=True) if ranks > 1 else vae
    optimizer = torch.optim.AdamW(vae.parameters(), 1e-5, fused=True)
    with ThreadPoolExecutor(bare.decode_threads) as pool:
        batches = decoded(samples(bare.data)[rank::ranks], bare, pool)
        for number in range(WARM_UP + bare.steps):
            if number == WARM_UP:
                started = time.perf_counter()
            step(vae, model, optimizer, next(batches))
        seconds = time.perf_counter() - started
    rate = ranks * bare.steps * bare.batch / seconds
    (Path(folder) / f"{rank}.json").write_text(json.dumps(rate))
    if ranks > 1:
        torch.distributed.destroy_process_group()


def main() -> None:
    """Prints images/s as one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--model", required=True, help="The model section as JSON.")
    parser.add_argument("--image-size", type=int, required=True)
    parser.add_argument("--batch", type=int, default=32, help="Of each rank.")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--torch-threads", type=int, default=1)
    parser.add_argument("--decode-threads", type=int, default=2)
    parser.add_argument("--ranks", type=int, default=1)
    arguments = vars(parser.parse_args())
    ranks = arguments.pop("ranks")
    bare = Bare(**arguments)
    with tempfile.TemporaryDirectory(prefix="bare-") as folder:
        if ranks == 1:
            train(0, 1, bare, folder)
        else:
            spawn(train, (ranks, bare, folder), nprocs=ranks)
        rate = json.loads((Path(folder) / "0.json").read_text())
    print(json.dumps({"images_per_second": rate}))


if __name__ == "__main__":
    main()
