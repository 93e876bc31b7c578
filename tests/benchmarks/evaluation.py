"""Seconds of `jobs.evaluate` on MNIST, and images/s of its bound against a bare loop.

python tests/benchmarks/evaluation.py --mnist ../shared/data/mnist [--images 2000] [--samples 1000]

Trains the paper's mlp (784-200-200-50, Bernoulli) for 300 steps, packs the first test images, and
runs the whole job as a process. The bare loop is the same bound in a dozen lines of torch on the
same weights and images: what a researcher would write, with no exact noise and no other number.
"""

import argparse
import gzip
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipeline.config import ModelConfig, PackConfig, PreprocessConfig
from pipeline.packing.pack import pack
from pipeline.vae import VAE, build_vae, draw_noise, importance_estimate, save_bundle

ROUND = 100  # images per timed call of the bound


def main() -> None:
    """Prints one JSON line of results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mnist", type=Path, required=True)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--samples", type=int, default=1000)
    arguments = parser.parse_args()
    test, labels = read(arguments.mnist, "t10k", arguments.images)
    vae = train(read(arguments.mnist, "train", 60_000)[0], steps=300)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, vae, test, labels)
        started = time.perf_counter()
        job = subprocess.run(
            [
                sys.executable, "-m", "jobs.evaluate", "--model", folder / "vae",
                "--data", folder / "data", "--output", folder / "report",
                "--importance-samples", str(arguments.samples),
            ],
            check=False, capture_output=True, text=True,
        )  # fmt: skip
        seconds = time.perf_counter() - started
    if job.returncode != 0:
        sys.exit(job.stderr)
    found = json.loads(job.stdout.splitlines()[-1])
    ours, bare = rates(vae, test[: 3 * ROUND], arguments.samples)
    report = {
        "job_seconds": round(seconds, 1),
        "images": found["images"],
        "samples": arguments.samples,
        "elbo": found["elbo"],
        "iwae": found["iwae"],
        "iwae_images_per_second": round(ours, 1),
        "bare_images_per_second": round(bare, 1),
        "ratio": round(ours / bare, 3),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(report))


def read(folder: Path, split: str, count: int) -> tuple[torch.Tensor, list[str]]:
    """The first images `[count, 1, 28, 28]` uint8 of an idx file, and their labels."""
    pixels = gzip.decompress((folder / f"{split}-images-idx3-ubyte.gz").read_bytes())[16:]
    names = gzip.decompress((folder / f"{split}-labels-idx1-ubyte.gz").read_bytes())[8:]
    array = np.frombuffer(pixels, np.uint8).reshape(-1, 1, 28, 28)[:count]
    return torch.from_numpy(array.copy()), [str(label) for label in names[:count]]


def train(images: torch.Tensor, steps: int) -> VAE:
    """The paper's network, far from converged: a bound costs the same."""
    torch.manual_seed(0)
    config = ModelConfig(kind="mlp", likelihood="bernoulli")
    vae = build_vae(config, PreprocessConfig(image_size=28, channels=1))
    vae.start_at(images.float().mean(dim=0) / 255)
    optimizer = torch.optim.Adam(vae.parameters(), 1e-3)
    order = torch.Generator().manual_seed(0)
    for step in range(1, steps + 1):
        chosen = torch.randint(len(images), (100,), generator=order)
        loss = -vae(images[chosen], draw_noise(vae, 0, step, range(100))).elbo.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return vae.eval()


def write(folder: Path, vae: VAE, images: torch.Tensor, labels: list[str]) -> None:
    """The bundle `vae` and the dataset `data`."""
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / "images" / label / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(path)
    save_bundle(vae, folder / "vae")
    pack(PackConfig(source=(str(folder / "images"),), output=str(folder / "data")))


def rates(vae: VAE, images: torch.Tensor, samples: int) -> tuple[float, float]:
    """Images/s of our bound and of the bare loop, the best of alternating rounds."""
    best = {"ours": 0.0, "bare": 0.0}
    for start in range(0, len(images), ROUND):
        part = images[start : start + ROUND]
        for name, bound in (("ours", our_bound), ("bare", bare_bound)):
            started = time.perf_counter()
            bound(vae, part, samples)
            best[name] = max(best[name], len(part) / (time.perf_counter() - started))
    return best["ours"], best["bare"]


def our_bound(vae: VAE, images: torch.Tensor, samples: int) -> torch.Tensor:
    """As `jobs.evaluate` computes it."""
    return importance_estimate(vae, images, samples, 0, chunk=1600 // len(images)).bound


def bare_bound(vae: VAE, images: torch.Tensor, samples: int) -> torch.Tensor:
    """IWAE_K in plain torch, 64 draws at a time."""
    with torch.no_grad():
        binary = (torch.rand(images.shape) * 255 < images).float()
        q = vae.encode((binary * 255).to(torch.uint8))
        mean, deviation = q.mean.flatten(1), (0.5 * q.log_variance).exp().flatten(1)
        target = binary.flatten(1)[:, None]
        chunks = []
        for start in range(0, samples, 64):
            noise = torch.randn(len(images), min(64, samples - start), mean.shape[1])
            z = mean[:, None] + deviation[:, None] * noise
            logits = vae.network.decode(z.view(-1, mean.shape[1], 1, 1)).view(*z.shape[:2], -1)
            log_p = (target * logits - torch.nn.functional.softplus(logits)).sum(dim=2)
            log_r = 0.5 * (noise.square() - z.square()).sum(dim=2)
            chunks.append(log_p + log_r + deviation.log().sum(dim=1, keepdim=True))
        return torch.logsumexp(torch.cat(chunks, dim=1), dim=1) - math.log(samples)


if __name__ == "__main__":
    main()
