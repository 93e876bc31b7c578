"""Eight planted bottlenecks: does `jobs.bench` name each, and bring turning it what it said?

    python -m tests.benchmarks.bench --work runs/bench

Each is planted into a training of noise images, timed by `run_bench`, then turned as it was told,
and the training with that is timed by itself, for longer. One JSON line: of each what was named,
the gain that was foretold and the one that came; `--only NAME ...` runs some.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.commands.bench import run_bench, training_of
from pipeline.config import BenchConfig, PackConfig
from pipeline.data import Dataset
from pipeline.pace.probes import Subject, fill_cache, training_pace
from pipeline.pace.trials import trials
from pipeline.packing.pack import pack

SECONDS, LONG_SECONDS = 1.5, 4.0


@dataclass(frozen=True)
class Planted:
    """What is wrong, and how the flag begins that mends it.

    `images`: their sides in pixels. `changes_training`: the flag does, and is ranked among those.
    """

    settings: Mapping[str, object]
    flag: str
    images: int = 64
    changes_training: bool = False


CONV = {"kind": "conv", "width": 8}
TINY = {"kind": "mlp", "width": 16, "latent_channels": 4}
PLANTED: dict[str, Planted] = {
    "one decoding thread": Planted(
        {"network": TINY, "loader": {"threads": 1}, "image_size": 64, "crop": "random"},
        "--loader.threads", 256,
    ),
    "images that are slow to decode": Planted(
        {"network": TINY, "image_size": 32}, "--loader.cache-folder", 256
    ),
    "a slow transform": Planted(
        {"network": CONV, "image_size": 32, "transform": "tests.benchmarks.planted_transform:slow"},
        "without --transform",
    ),
    "micro-batches of one": Planted(
        {"network": CONV, "image_size": 32, "micro_batch_size": 1}, "without --micro-batch-size",
        changes_training=True,
    ),
    "double precision": Planted(
        {"network": {"kind": "mlp", "width": 1500}, "image_size": 32, "precision": "fp64"},
        "--precision auto",
        changes_training=True,
    ),
    "activations computed twice": Planted(
        {
            "network": {
                "kind": "autoencoder_kl", "widths": [16, 32], "groups": 4,
                "gradient_checkpointing": True,
            },
            "image_size": 32, "global_batch_size": 128,
        },
        "without --model.gradient-checkpointing",
    ),
    "sixteen latents per image": Planted(
        {"network": CONV, "image_size": 32, "objective": {"samples": 16}}, "--objective.samples 1",
        changes_training=True,
    ),
    "batches of two": Planted(
        {"network": CONV, "image_size": 32, "global_batch_size": 2}, "--global-batch-size",
        changes_training=True,
    ),
}  # fmt: skip


def dataset(work: Path, side: int) -> str:
    """256 images of noise, PNG: what decodes slowly where they are large."""
    folder = work / f"images-{side}"
    if not folder.exists():
        folder.mkdir(parents=True)
        draw = np.random.default_rng(0)
        for number in range(256):
            pixels = draw.integers(0, 256, (side, side, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{number:04d}.png", compress_level=1)
    output = work / f"packed-{side}"
    pack(PackConfig(source=(str(folder),), output=str(output), workers=1))
    return str(output)


def measured(config: BenchConfig, flag: str) -> float:
    """The gain that the flag brings: both trainings in turn, twice, for longer than the bench."""
    subject = Subject(Dataset.open(config.data), training_of(config), LONG_SECONDS)
    with tempfile.TemporaryDirectory() as cache:
        (chosen,) = [trial for trial in trials(subject, cache) if trial.flag == flag]
        turned = replace(chosen.subject, seconds=LONG_SECONDS)
        fill_cache(turned)
        paces = [(training_pace(subject), training_pace(turned)) for _ in range(2)]
    return sum(after for _, after in paces) / sum(before for before, _ in paces)


def look(work: Path, name: str, say: Callable[[str], None]) -> dict[str, object]:
    """One planted bottleneck: what was named, foretold and came."""
    planted = PLANTED[name]
    config = BenchConfig.model_validate(
        {
            "data": dataset(work, planted.images), "precision": "fp32", "global_batch_size": 64,
            **planted.settings,
        }
    )  # fmt: skip
    found = run_bench(config, SECONDS)
    best = found.best_changing if planted.changes_training else found.best
    row: dict[str, object] = {
        "named": best.flag if best else None,
        "is_planted": best is not None and best.flag.startswith(planted.flag),
        "drift": round(found.ranking.drift, 3),
    }
    if best is not None:
        came = measured(config, best.flag)
        row |= {
            "foretold": round(best.gain, 3), "measured": round(came, 3),
            "ratio": round(best.gain / came, 3),
        }  # fmt: skip
    say(f"{name}: {row}")
    return row


def main() -> None:
    """Prints one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="For datasets.")
    parser.add_argument("--only", nargs="+", default=list(PLANTED), choices=list(PLANTED))
    arguments = parser.parse_args()
    found = {name: look(arguments.work, name, print) for name in arguments.only}
    named = sum(bool(row["is_planted"]) for row in found.values())
    print(json.dumps({"load": os.getloadavg()[0], "named": named, "of": len(found), **found}))


if __name__ == "__main__":
    main()
