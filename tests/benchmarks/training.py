"""What training costs beside bare training; one JSON line for each part.

    python -m tests.benchmarks.training [PART ...] [--photos ../shared/data/photos]

light     jobs.train on one Ray Train worker, with loader, MLflow, metrics and checkpoints every
          50 steps, over threads that decode from memory beside a plain loop; a step costs about
          as much as decoding its images
heavy     the same with a model whose step costs ten times as much
ranks     jobs.train on two Ray Train workers over two plain DDP processes, the light model
tracking  the CPU time of recorder and reporter as a share of a step's
numerics  what `deterministic` and `exact` cost, two ranks
control   the order for 256 ranks, the recorder's CPU, Ray Train's own processes by worker

Ratios are of measurements that take turns in one run; the load average stands beside each.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import torch

from pipeline.config import PackConfig, PreprocessConfig
from pipeline.data.preprocess import preprocess_into
from pipeline.packing.pack import pack
from tests.benchmarks import training_control, training_costs
from tests.benchmarks.bare_training import make, samples, step
from tests.benchmarks.encode import write_dataset
from tests.support.killing import finish, start_job
from tests.support.warm import ROOT

IMAGE_SIZE, BATCH, WARM_UP = 64, 32, 30
WIDTHS = (4, 8, 16, 24, 32, 48, 64, 96)
PARTS = ("light", "heavy", "ranks", "tracking", "numerics", "control")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=PARTS, help=f"of {', '.join(PARTS)}")
    parser.add_argument("--photos", type=Path, help="A folder of photographs; else smooth noise.")
    parser.add_argument("--seconds", type=float, default=15.0, help="Of each measurement.")
    parser.add_argument("--rounds", type=int, default=2, help="Of both sides in turn.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-training-") as name:
        data = write_images(Path(name), arguments.photos)
        for part in arguments.parts:
            before = os.getloadavg()[0]
            if part in ("light", "heavy", "ranks"):
                found = against_bare(part, Path(name), data, arguments.seconds, arguments.rounds)
            elif part == "control":
                found = training_control.control(Path(name), arguments.seconds)
            else:
                found = getattr(training_costs, part)(Path(name), data, arguments.seconds)
            found = {key: round(value, 4) for key, value in found.items()}
            print(json.dumps({"part": part, **found, "load_before": round(before, 2)}), flush=True)


def write_images(folder: Path, photos: Path | None) -> str:
    """A packed dataset of photographs, or of small JPEGs that are made here."""
    if photos is None:
        return write_dataset(folder, 1000, IMAGE_SIZE, shard_images=250)
    pack(PackConfig(source=(str(photos),), output=str(folder / "data"), workers=2))
    return str(folder / "data")


def costs(data: str, width: int) -> tuple[float, float]:
    """Seconds on one core for a batch: of decoding it, and of a bare step on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    images = samples(data)[: 4 * BATCH]
    preprocess = PreprocessConfig(image_size=IMAGE_SIZE)
    batch = torch.empty((len(images), 3, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8)
    vae = make(model(width), IMAGE_SIZE)
    optimizer = torch.optim.AdamW(vae.parameters(), 1e-5, fused=True)

    def decoding() -> None:
        for out, image in zip(batch, images, strict=True):
            preprocess_into(out, image, preprocess)

    def stepping() -> None:
        for part in batch.split(BATCH):
            step(vae, vae, optimizer, part)

    found = [fastest(work) * BATCH / len(images) for work in (decoding, stepping)]
    torch.set_num_threads(before)
    return found[0], found[1]


def fastest(work: Callable[[], None]) -> float:
    """Seconds of CPU time, the least of three times: the first one also warms up."""
    seconds = []
    for _ in range(3):
        started = time.thread_time()
        work()
        seconds.append(time.thread_time() - started)
    return min(seconds)


def model(width: int) -> str:
    """The model section as JSON."""
    return json.dumps({"kind": "conv", "width": width, "latent_channels": 16})


def chosen_width(data: str, wanted: float) -> tuple[int, float]:
    """The width at which a step costs closest to `wanted` times its decoding; the ratio."""
    found = {}
    for width in WIDTHS:
        decoding, stepping = costs(data, width)
        found[width] = stepping / decoding
        if found[width] > 2 * wanted:
            break
    width = min(found, key=lambda each: abs(found[each] - wanted))
    return width, found[width]


def against_bare(
    part: str, folder: Path, data: str, seconds: float, rounds: int
) -> dict[str, float]:
    """Images/s of both sides in turn, the bare one with one and with all cores for torch."""
    ranks = 2 if part == "ranks" else 1
    width, cost = chosen_width(data, 10.0 if part == "heavy" else 1.0)
    cores = len(os.sched_getaffinity(0))
    choices = sorted({1, cores // ranks})
    steps = 40
    probe = bare_rate(data, width, steps, choices[-1], cores, ranks)
    steps = max(100, int(seconds * probe / BATCH))
    ours: list[float] = []
    bare: dict[int, list[float]] = {threads: [] for threads in choices}
    for number in range(rounds):
        for threads in choices:
            bare[threads].append(bare_rate(data, width, steps, threads, cores, ranks))
        ours.append(our_rate(folder, f"{part}-{number}", data, width, steps, ranks))
    best = max(statistics.median(rates) for rates in bare.values())
    return {
        "width": width,
        "step_over_decode": cost,
        "steps": steps,
        "images_per_second": statistics.median(ours),
        **{
            f"bare_{threads}_torch_threads": statistics.median(rates)
            for threads, rates in bare.items()
        },
        "ratio": statistics.median(ours) / best,
    }


def bare_rate(data: str, width: int, steps: int, threads: int, cores: int, ranks: int) -> float:
    """Images/s of a process of its own; its global batch is `BATCH`, as ours."""
    words = {
        "model": model(width), "image-size": IMAGE_SIZE, "batch": BATCH // ranks, "steps": steps,
        "torch-threads": threads, "decode-threads": cores // ranks, "ranks": ranks,
    }  # fmt: skip
    flags = [word for key, value in words.items() for word in (f"--{key}", str(value))]
    found = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.bare_training", data, *flags],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    rate: float = json.loads(found.stdout.splitlines()[-1])["images_per_second"]
    return rate


def our_rate(folder: Path, name: str, data: str, width: int, steps: int, ranks: int) -> float:
    """Images/s of jobs.train after its warm-up, by the time stamps of its points in MLflow."""
    words: dict[str, Any] = {
        "data": data, "run": name, "workers": ranks, "steps": WARM_UP + steps, "tail": "drop",
        "global-batch-size": BATCH, "image-size": IMAGE_SIZE, "precision": "fp32",
        "checkpoint-every": 50, "evaluate-every": 10**9, "model.width": width,
        "model.latent-channels": 16,
    }  # fmt: skip
    flags = [word for key, value in words.items() for word in (f"--{key}", str(value))]
    (folder / name).mkdir()
    result = finish(start_job(folder / name, "jobs.train", *flags))
    client = mlflow.MlflowClient(f"sqlite:///{folder / name}/runs/mlflow.db")
    points = client.get_metric_history(result["run_id"], "images_seen")
    points = sorted((point for point in points if point.step >= WARM_UP), key=lambda p: p.step)
    first, last = points[0], points[-1]
    return (last.value - first.value) / ((last.timestamp - first.timestamp) / 1000)


if __name__ == "__main__":
    main()
