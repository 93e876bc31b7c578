"""The first column of the IWAE paper's table 1, on MNIST through the real loader.

One stochastic layer of 50, 2x200 tanh units each way, dynamic binarisation, batches of 20, Adam
with eps 1e-4, the paper's eight learning rates; NLL by 5,000 importance samples (Burda et al. 2015,
and its code). The default runs 20 epochs for each k, in eight equal stages; `--full` runs the
paper's 3,280 in stages of 3^i.

    python -m tests.benchmarks.iwae_table --mnist ../shared/data/mnist --work runs/iwae

Each epoch and the numbers are kept in WORK: the same command goes on where it was stopped.
"""

import argparse
import gzip
import itertools
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipeline.config import ModelConfig, ObjectiveConfig, PackConfig, PreprocessConfig
from pipeline.data import Dataset, Loader, load_images
from pipeline.packing.pack import pack
from pipeline.vae import (
    VAE,
    build_vae,
    draw_noise,
    importance_estimate,
    objective_loss,
)

RATES = [1e-4 * round(10 ** (1 - stage / 7), 1) for stage in range(8)]
PREPROCESS = PreprocessConfig(image_size=28, channels=1)
BATCH = 20


@dataclass(frozen=True)
class Schedule:
    """Epochs at each of the eight rates, as a share of all steps."""

    epochs: int
    full: bool

    def rate(self, done: float) -> float:
        """The learning rate after `done` of [0, 1) of the run."""
        if not self.full:
            return RATES[int(8 * done)]
        epoch = done * self.epochs
        stage = next(i for i in range(8) if epoch < (3 ** (i + 1) - 1) / 2)
        return RATES[stage]


def write_dataset(mnist: Path, name: str, folder: Path, count: int) -> Dataset:
    """Packs the first `count` images of an IDX file as PNGs, unless that was done."""
    packed = folder / "packed"
    if not (packed / "manifest.json").exists():
        pixels = np.frombuffer(gzip.decompress((mnist / name).read_bytes()), np.uint8, offset=16)
        (folder / "images").mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(pixels.reshape(-1, 28, 28)[:count]):
            Image.fromarray(image).save(folder / f"images/{number:05}.png")
        pack(PackConfig(source=(str(folder / "images"),), output=str(packed), workers=1))
    return Dataset.open(str(packed))


@dataclass(frozen=True)
class Trained:
    """A model in evaluation mode, and the seconds that its training took, all starts together."""

    vae: VAE
    seconds: float


def train(
    dataset: Dataset, samples: int, schedule: Schedule, seed: int, *, kept: Path, latents: int = 50
) -> Trained:
    """IWAE_K, or the VAE for K = 1; `kept` holds the state after each epoch, to go on from."""
    torch.manual_seed(seed)
    vae = build_vae(
        ModelConfig(kind="mlp", likelihood="bernoulli", latent_channels=latents), PREPROCESS
    )
    start = load_images(dataset, min(2000, len(dataset)), PREPROCESS).images
    vae.start_at(start.double().mean(0).float() / 255)
    objective = ObjectiveConfig(kind="iwae" if samples > 1 else "beta", samples=samples)
    optimizer = torch.optim.Adam(vae.parameters(), lr=0.0, eps=1e-4, fused=True)
    loader = Loader(
        dataset,
        global_batch_size=BATCH,
        image_size=28,
        channels=1,
        seed=seed,
        tail="drop",
        threads=1,
    )
    total, begun, before = loader.steps_per_epoch * schedule.epochs, 0, 0.0
    if kept.exists():
        state = torch.load(kept, weights_only=True)
        vae.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        loader.load_state_dict(state["order"])
        begun, before = state["epochs"], state["seconds"]
    step, started = begun * loader.steps_per_epoch, time.perf_counter()
    for epoch in range(begun, schedule.epochs):
        loss_sum = 0.0
        for batch in loader:
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate(step / total)
            step += 1
            noise = draw_noise(vae, seed, step, batch.slots, samples=samples)
            terms = vae(batch.images, noise)
            loss = objective_loss(objective, terms, step).loss_per_image.mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            loss_sum += float(loss.detach())
        seconds = before + time.perf_counter() - started
        state = {
            "model": vae.state_dict(), "optimizer": optimizer.state_dict(),
            "order": loader.state_dict(), "epochs": epoch + 1, "seconds": seconds,
        }  # fmt: skip
        kept.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, kept.with_suffix(".new"))
        kept.with_suffix(".new").replace(kept)
        print(
            f"k={samples} epoch {epoch + 1}/{schedule.epochs} loss "
            f"{loss_sum / loader.steps_per_epoch:.2f} {seconds:.0f} s",
            file=sys.stderr,
            flush=True,
        )
    loader.close()
    return Trained(vae.eval(), before + time.perf_counter() - started)


def read(dataset: Dataset) -> torch.Tensor:
    """All images, uint8 `[N, 1, 28, 28]`."""
    return load_images(dataset, len(dataset), PREPROCESS).images


@torch.no_grad()
def measure(
    vae: VAE, test: torch.Tensor, training: torch.Tensor, samples: int
) -> dict[str, object]:
    """NLL of each test image by importance sampling, and the active units on training images."""
    nll = []
    for start in range(0, len(test), 50):
        images = test[start : start + 50]
        slots = range(start, start + len(images))
        estimate = importance_estimate(vae, images, samples, seed=1, slots=slots, chunk=100)
        nll += (-estimate.bound).tolist()
    white = draw_noise(vae, 2, 0, range(len(training))).pixels * 255 < training
    means = vae.encode(white.to(torch.uint8) * 255).mean.flatten(1)
    return {"nll": nll, "active_units": int((means.var(0) > 0.01).sum())}


def result_of(
    arguments: argparse.Namespace, dataset: Dataset, test: torch.Tensor, samples: int
) -> dict[str, object]:
    """Trains and measures one k, or reads what an earlier run found."""
    folder = arguments.work / f"k{samples}"
    if not (folder / "result.json").exists():
        schedule = Schedule(3280 if arguments.full else arguments.epochs, arguments.full)
        trained = train(dataset, samples, schedule, arguments.seed, kept=folder / "epoch.pt")
        training = load_images(dataset, min(500, len(dataset)), PREPROCESS).images
        started = time.perf_counter()
        measured = measure(trained.vae, test, training, arguments.importance_samples)
        seconds = {"train": trained.seconds, "measure": time.perf_counter() - started}
        (folder / "result.json").write_text(json.dumps({**measured, "seconds": seconds}))
    return json.loads((folder / "result.json").read_text())


def summary(results: dict[int, dict[str, object]]) -> dict[str, object]:
    """Means with standard errors, and the paired differences of neighbours."""
    rows = {k: np.array(result["nll"]) for k, result in results.items()}
    table = {
        str(k): {
            "nll": float(row.mean()),
            "standard_error": float(row.std(ddof=1) / math.sqrt(len(row))),
            "active_units": results[k]["active_units"],
            "seconds": results[k]["seconds"],
        }
        for k, row in rows.items()
    }
    order = sorted(rows)
    pairs = {}
    for fewer, more in itertools.pairwise(order):
        gain = rows[fewer] - rows[more]
        error = float(gain.std(ddof=1) / math.sqrt(len(gain)))
        pairs[f"k{fewer} - k{more}"] = {"nats": float(gain.mean()), "standard_error": error}
    return {"table": table, "paired": pairs}


def main(words: list[str] | None = None) -> dict[str, object]:
    """Prints the table as one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mnist", type=Path, required=True, help="Folder of the four IDX files.")
    parser.add_argument("--work", type=Path, required=True, help="Datasets, models, results.")
    parser.add_argument("--k", type=int, nargs="+", default=[1, 5, 50])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--full", action="store_true", help="The paper's 3,280 epochs.")
    parser.add_argument("--train-images", type=int, default=60_000)
    parser.add_argument("--test-images", type=int, default=1000)
    parser.add_argument("--importance-samples", type=int, default=5000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(words)
    torch.set_num_threads(arguments.threads)
    dataset = write_dataset(
        arguments.mnist,
        "train-images-idx3-ubyte.gz",
        arguments.work / "train",
        arguments.train_images,
    )
    held = write_dataset(
        arguments.mnist, "t10k-images-idx3-ubyte.gz", arguments.work / "test", arguments.test_images
    )
    test = read(held)
    found = {k: result_of(arguments, dataset, test, k) for k in arguments.k}
    result = summary(found)
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
